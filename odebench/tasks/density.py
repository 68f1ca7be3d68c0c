"""The task of fitting a density to a data set or to an unnormalised target density, by mapping a base density."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from odebench.config.schema.quantities import SPLITS
from odebench.config.settings import Settings
from odebench.data import (
    DensityData,
    ImageData,
    batch_generator,
    batch_indices,
    batch_random_state,
    dequantise,
)
from odebench.models.flow import EXACT_TRACE_LIMIT
from odebench.tasks.build import build_model
from odebench.tasks.compatibility import check_density_model
from odebench.tasks.density_figures import density_figures
from odebench.tasks.task import Loss, Task


class DensityTask(Task):
    """Fit a density by maximum likelihood, density matching or flow matching. All three are evaluated in the same way.

    See ``odebench.tasks.Task`` for the methods.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        """Build the model. Raises UsageError as ``Task`` does, and if data, loss and model do not fit together."""
        super().__init__(settings, device, DensityData, ImageData)
        data: DensityData | ImageData = self._data
        splits: Mapping[str, Any] = data.splits()
        self._splits: dict[str, Tensor] = {name: getattr(x, "images", x).to(device) for name, x in splits.items()}
        self._train = self._splits["train"]
        self._loss = settings.loss.name
        shape = tuple(self._train.shape[1:])
        self._num_dims = math.prod(shape)
        # Evaluations use the exact trace if it is not too expensive, even if the training estimates it.
        self._trace_method = "exact" if self._num_dims <= EXACT_TRACE_LIMIT else None
        model = build_model(settings, {"shape": shape})
        check_density_model(model, data, settings)
        self.model: Any = model.to(device)

    @property
    def quantities(self) -> list[str]:
        """See ``odebench.tasks.Task``."""
        known = {
            "bits_per_dim": isinstance(self._data, ImageData),
            "kl_nats": self._log_density is not None,
            **dict.fromkeys(("nfe", "sampling_nfe", "samples_per_s"), self.eval_solve is not None),
            "trace_std_nats": self.eval_solve is not None and self._estimates_trace(self.model),
        }
        return ["loss", "nll_nats", *(name for name, is_known in known.items() if is_known)]

    @property
    def _log_density(self) -> Any:
        return getattr(self._data, "log_density", None)

    @staticmethod
    def _estimates_trace(model: nn.Module) -> bool:
        return any(getattr(part, "trace", "exact") == "hutchinson" for part in model.modules())

    def batch(self, step: int) -> Tensor:
        """Return samples [B, *shape] of the data, new ones if it can draw them; for density matching, of the base."""
        key = (self._seed, *divmod(step, self.steps_per_epoch))
        if self._loss == "density_matching":
            return self.model.base_sample(self.batch_size, batch_generator(*key)).to(self._device)
        draw = getattr(self._data, "draw", None)
        if draw is not None:
            return draw(self.batch_size, batch_random_state(*key)).to(self._device)
        chosen = batch_indices(len(self._train), self.batch_size, *key).to(self._device)
        return self._as_floats(self._train[chosen], batch_generator(*key))

    def loss(self, batch: Tensor) -> Loss:
        """Compute the loss that the settings choose, in nats per sample. For flow matching it is a mean square."""
        model = self.model.train()
        if self._loss == "flow_matching":
            value = flow_matching_loss(model, batch, **self._loss_options)
            return Loss(value, {"train/loss": value.detach()}, ())
        if self._loss == "density_matching":
            log_q, x, solves = self._push_forward(model, batch, self._solve)
            value = (log_q - self._log_density(x)).mean()
            metrics = {"train/loss": value.detach(), "train/kl_nats": value.detach() + self._log_normaliser()}
        else:
            log_prob, solves = model.log_prob(batch, self._solve)
            value = -log_prob.mean()
            likelihood = self._likelihood_metrics(value.detach())
            metrics = {"train/loss": value.detach(), **{f"train/{name}": x for name, x in likelihood.items()}}
        return self._add_penalty(Loss(value, metrics, solves), self._num_dims)

    @torch.no_grad()
    def evaluate(self, split: str, model: nn.Module | None = None) -> dict[str, float]:
        """Compute the loss, likelihoods, and the cost of likelihood and sampling.

        nll_std_error, samples: standard error of nll_nats, and number of samples. bits_per_dim: only for images.
        kl_nats: only if the density of the target is known. nfe, sampling_nfe, samples_per_s: only with an ODE.
        trace_std_nats: standard deviation of the log-likelihood that is due to the trace estimator, in the first batch;
        only if the model estimates the trace.
        """
        model = (model or self.model).eval()
        log_prob, nfe = self._log_prob(model, split, self._trace_method)
        nll = -log_prob.mean().item()
        metrics = {"nll_std_error": _std_error(log_prob), "samples": len(log_prob)}
        metrics |= self._likelihood_metrics(nll)
        metrics["loss"] = nll
        if self._log_density is not None:
            kl, kl_std_error = self._kl(model, split)
            metrics |= {"kl_nats": kl, "kl_std_error": kl_std_error}
            if self._loss == "density_matching":
                metrics["loss"] = kl - self._log_normaliser()
        if self.eval_solve is None:
            return metrics
        metrics["nfe"] = sum(nfe) / len(nfe)
        if self._estimates_trace(model):
            estimate, _ = self._log_prob(model, split, "hutchinson", num_batches=1)
            error = estimate - log_prob[: len(estimate)]
            # Without the exact trace, two estimates are compared: their difference has twice the variance of one.
            scale = 1.0 if self._trace_method == "exact" else 0.5
            metrics["trace_std_nats"] = (scale * error.square().mean()).sqrt().item()
        return metrics | self._sampling_metrics(model)

    def limit_split(self, split: str, num: int) -> None:
        """See ``odebench.tasks.Task``."""
        self._splits[split] = self._splits[split][:num]

    def format_metrics(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Format divergence and likelihoods, first the one that the loss optimises, and the cost of sampling."""
        rows = []
        if "kl_nats" in metrics:
            rows.append(("KL", f"{metrics['kl_nats']:.4f} nats{_format_std_error(metrics, 'kl_std_error')}"))
        if "bits_per_dim" in metrics:
            rows.append(("likelihood", f"{metrics['bits_per_dim']:.4f} bits/dim"))
        nll = f"{metrics['nll_nats']:.4f} nats{_format_std_error(metrics, 'nll_std_error')}"
        if "samples" in metrics:
            nll += f"  ({metrics['samples']:,.0f} samples)"
        rows.insert(len(rows) if self._loss == "density_matching" or "bits_per_dim" in metrics else 0, ("NLL", nll))
        if "sampling_nfe" in metrics:
            rows.append(("sampling", f"NFE {metrics['sampling_nfe']:.0f}, {metrics['samples_per_s']:,.0f} samples/s"))
        return rows

    @torch.no_grad()
    def predict(self, split: str) -> dict[str, list[Any]]:
        """Return index and log-likelihood (log_prob_nats) of each sample of a split, in the data set's order."""
        log_prob, _ = self._log_prob(self.model.eval(), split, self._trace_method)
        return {"index": list(range(len(log_prob))), "log_prob_nats": [round(x, 6) for x in log_prob.tolist()]}

    @torch.no_grad()
    def sample(self, num: int, seed: int) -> Tensor:
        """Draw samples [num, *shape] of the model. The same seed gives the same samples."""
        generator = torch.Generator().manual_seed(seed)
        model = self.model.eval()
        counts = [min(self._eval_batch_size, num - start) for start in range(0, num, self._eval_batch_size)]
        return torch.cat([model.sample(count, self.eval_solve, generator)[0].cpu() for count in counts])

    @torch.no_grad()
    def outputs(self, split: str, num: int) -> Tensor:
        """Return log-likelihoods [num]. If the trace is estimated, return the samples mapped to the base instead."""
        model = self.model.eval()
        x = self._as_floats(self._splits[split][:num], torch.Generator().manual_seed(0))
        x = x.to(next(model.parameters()).dtype)
        solved = model.log_prob if self._trace_method else model.to_base
        return solved(x, self.eval_solve, self._trace_method)[0]

    @torch.no_grad()
    def figures(self, split: str = "test", animate: bool = True) -> dict[str, Figure | bytes]:
        """Draw the figures of ``density_figures``, with the samples of a split."""
        samples = self._as_floats(self._splits[split], torch.Generator().manual_seed(0))
        normalised = None if self._log_density is None else lambda x: self._log_density(x) - self._log_normaliser()
        return density_figures(self.model.eval(), self.eval_solve, samples, normalised, animate)

    def _push_forward(self, model: Any, z: Tensor, solve: Any) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
        """Map base samples z [B, *shape] to x. Returns log q(x) [B], x and the statistics of the solves."""
        x, log_det, solves = model.from_base(z, solve)
        return model.base_log_prob(z) - log_det, x, solves

    def _kl(self, model: Any, split: str) -> tuple[float, float]:
        """Estimate KL(q || p) and its standard error from samples of the model q. Each split has a fixed seed."""
        generator = torch.Generator().manual_seed(SPLITS.index(split))
        z = model.base_sample(len(self._splits[split]), generator).to(self._device)
        log_ratios = []
        for part in z.split(self._eval_batch_size):
            log_q, x, _ = self._push_forward(model, part, self.eval_solve)
            log_ratios.append(log_q - self._log_density(x))
        log_ratio = torch.cat(log_ratios).double()
        return log_ratio.mean().item() + self._log_normaliser(), _std_error(log_ratio)

    def _log_normaliser(self) -> float:
        return self._data.log_normaliser if isinstance(self._data, DensityData) else 0.0  # type: ignore[return-value]

    def _log_prob(
        self, model: Any, split: str, trace: str | None, num_batches: int | None = None
    ) -> tuple[Tensor, list[int]]:
        """Return log p [N] of the samples in a split, or in its first ``num_batches`` batches, and each batch's NFE."""
        log_probs, nfe = [], []
        for x in itertools.islice(self._batches(split), num_batches):
            log_prob, solves = model.log_prob(x, self.eval_solve, trace)
            log_probs.append(log_prob)
            nfe.append(sum(stats.nfe for stats in solves))
        return torch.cat(log_probs).double(), nfe

    def _likelihood_metrics(self, nll: Any) -> dict[str, Any]:
        """Return the negative log-likelihood in nats and, for images, in bits per dimension."""
        if not isinstance(self._data, ImageData):
            return {"nll_nats": nll}
        # The density is that of intensities in [0, 1]; bits per dimension refer to 256 levels, hence 8 = log2(256).
        return {"nll_nats": nll, "bits_per_dim": nll / (self._num_dims * math.log(2)) + 8}

    def _sampling_metrics(self, model: Any) -> dict[str, float]:
        started = time.perf_counter()
        _, solves = model.sample(self._eval_batch_size, self.eval_solve, torch.Generator().manual_seed(0))
        seconds = time.perf_counter() - started
        return {"sampling_nfe": sum(stats.nfe for stats in solves), "samples_per_s": self._eval_batch_size / seconds}

    def _batches(self, split: str) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for part in self._splits[split].split(self._eval_batch_size):
            yield self._as_floats(part, generator)

    def _as_floats(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        return samples if samples.is_floating_point() else dequantise(samples, generator)


def _format_std_error(metrics: Mapping[str, float], name: str) -> str:
    return f" ± {metrics[name]:.4f}" if math.isfinite(metrics.get(name, math.nan)) else ""


def _std_error(values: Tensor) -> float:
    """Return the standard error of the mean of values [n]; NaN for a single value."""
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else math.nan


def flow_matching_loss(model: Any, x1: Tensor, coupling: str, sigma: float) -> Tensor:
    """Compute the mean square of T v(tT, x_t) - (x1 - x0) at x_t = (1 - t) x0 + t x1 + sigma eps, a scalar.

    x1: data [B, *shape]. x0 is drawn from the model's base, t uniformly from [0, 1], and eps from N(0, I). T is the end
    time of the model. coupling: "independent" pairs each x1 with a random x0 (Lipman et al. 2023; Tong et al. 2024);
    "optimal_transport" pairs the x0 and x1 of the batch so that the sum of squared distances is smallest (Tong et al.
    2024, minibatch OT).
    """
    num = len(x1)
    x0 = model.base_sample(num).to(x1)
    if coupling == "optimal_transport":
        x0 = x0[transport_plan(x0, x1)]
    t = torch.rand(num, device=x1.device, dtype=x1.dtype)
    weight = t.view(num, *[1] * (x1.ndim - 1))
    x_t = (1 - weight) * x0 + weight * x1
    if sigma:
        x_t = x_t + sigma * torch.randn_like(x_t)
    velocity = model.end_time * model.velocity(t * model.end_time, x_t)
    return (velocity - (x1 - x0)).square().mean()


def transport_plan(x0: Tensor, x1: Tensor) -> Tensor:
    """Return, for each row of x1 [B, *shape], the index of the row of x0 that optimal transport pairs with it [B]."""
    cost = torch.cdist(x1.flatten(1), x0.flatten(1)).square()
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=x1.device)

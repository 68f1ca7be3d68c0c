"""The task of modelling irregular time series: reconstruction, extrapolation and classification."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from odebench.config.settings import Settings
from odebench.data import batch_generator, batch_indices
from odebench.data.series import SeriesBatch, SeriesData, SeriesSplit
from odebench.errors import Diverged
from odebench.models.series import Forecast, LatentODE
from odebench.models.series.cells import ODERNNCell
from odebench.models.series.fields import AutonomousField
from odebench.plots.series import PredictedSeries
from odebench.tasks.build import build_model
from odebench.tasks.compatibility import check_series_model
from odebench.tasks.series_figures import LatentDynamics, examples, series_figures
from odebench.tasks.series_losses import (
    contribute_nan_bounds,
    kl_from_prior,
    kl_weight,
    label_loss,
    log_likelihood,
    lower_bound,
    negative_log_posterior,
)
from odebench.tasks.series_metrics import (
    Sums,
    error_sums,
    label_metrics,
    likelihood_sums,
    metrics_from_sums,
    window_error_sums,
)
from odebench.tasks.task import Loss, Task

NUM_RATE_TIMES = 101
# Encoder and solution are compared at a time before this fraction of the span, so that inputs follow it.
MAX_CONSISTENCY_FRACTION = 0.8


@dataclass(frozen=True)
class SeriesTrainingBatch:
    """A batch of series for a training step.

    inputs: the observations that are encoded. targets: the observations to predict. noise: standard normal noise
    [S, B, L] for the latent samples. kl_weight: the weight of the KL divergence in this epoch.

    consistency_time: one of the targets' times. The inputs from this time on are encoded a second time; None: they are
    not. num_compared: the number of series that have such inputs. A shard gets a fraction of the batch's number,
    according to its size, so that the mean of the shards' consistency terms is that of the batch.
    """

    inputs: SeriesBatch
    targets: SeriesBatch
    noise: Tensor | None
    kl_weight: float
    consistency_time: float | None = None
    num_compared: float = 0.0

    def rows(self, rows: slice) -> "SeriesTrainingBatch":
        """Return the batch with only these series: the shard of one process."""
        inputs, targets = self.inputs.rows(rows), self.targets.rows(rows)
        noise = None if self.noise is None else self.noise[:, rows]
        num_compared = self.num_compared * len(inputs) / len(self.inputs)
        return SeriesTrainingBatch(inputs, targets, noise, self.kl_weight, self.consistency_time, num_compared)


class TimeSeriesTask(Task):
    """Fit series by the evidence lower bound or autoregressively. Both are evaluated in the same way.

    See ``odebench.tasks.Task`` for the methods.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        """Build the model. Raises UsageError as ``Task`` does, and if the data lacks what the model needs."""
        super().__init__(settings, device, SeriesData)
        data: SeriesData = self._data
        self._splits = {split: series.to(device) for split, series in data.splits().items()}
        # The number of series to evaluate, by split.
        self._counts = {split: len(series) for split, series in self._splits.items()}
        self.model: Any = build_model(settings, _data_properties(data)).to(device)
        check_series_model(self.model, data, settings)
        self._window = float(data.train.times[data.train.is_input].max())
        self._redrawn: tuple[int, SeriesSplit] | None = None

    @property
    def quantities(self) -> list[str]:
        """See ``odebench.tasks.Task``."""
        model, validation = self.model, self._splits["validation"]
        predicts, has_ode = model.noise_std is not None, self.eval_solve is not None
        compared = validation.times[validation.is_target] if validation.truth is None else validation.times
        labels = None if model.classifier is None else validation.labels
        rates = self._data.rate is not None and getattr(model, "rates", None) is not None
        known = {
            **dict.fromkeys(("kl_nats", "elbo_nats"), model.latent_dim > 0),
            **dict.fromkeys(("mse", "mse_per_feature"), predicts),
            "rmse_interpolation": predicts and bool((compared <= self._window).any()),
            "rmse_extrapolation": predicts and bool((compared > self._window).any()),
            **dict.fromkeys(("rate_rmse", "constant_rate_rmse"), rates),
            "accuracy": labels is not None,
            "auc": labels is not None and len(labels.unique()) > 1,
            "nfe": has_ode,
            "encoder_nfe": has_ode and any(isinstance(part, ODERNNCell) for part in model.modules()),
            "decoder_nfe": has_ode and isinstance(model, LatentODE),
        }
        return ["loss", "nll_nats", *(name for name, is_known in known.items() if is_known)]

    def batch(self, step: int) -> SeriesTrainingBatch:
        """Return series with their inputs and targets. Some data sets draw new inputs in each epoch."""
        epoch, index = divmod(step, self.steps_per_epoch)
        split = self._training_split(epoch)
        chosen = batch_indices(len(split), self.batch_size, self._seed, epoch, index).to(self._device)
        generator = batch_generator(self._seed, epoch, index)
        options = self._loss_options
        noise = self._noise(options.get("samples", 1), len(chosen), generator)
        weight = kl_weight(epoch, options["kl_wait_epochs"], options["kl_growth"]) if self.model.latent_dim else 0.0
        batch = SeriesTrainingBatch(*split.inputs_and_targets(chosen), noise, weight)
        if not options.get("consistency", 0.0):
            return batch
        times, latest = batch.targets.times.cpu(), MAX_CONSISTENCY_FRACTION * self._data.span
        num_before = int((times < latest * torch.rand((), generator=generator).item()).sum())
        since = times[min(num_before, len(times) - 1)].item()
        is_later = batch.inputs.times >= since
        num_compared = int((batch.inputs.mask & is_later.unsqueeze(1)).any((1, 2)).sum())
        return dataclasses.replace(batch, consistency_time=since, num_compared=num_compared)

    def loss(self, batch: SeriesTrainingBatch) -> Loss:
        """Compute the negative lower bound or log-likelihood, plus the loss of labels and the consistency, if used."""
        model, targets = self.model.train(), batch.targets
        try:
            forecast = model(batch.inputs, targets.times, self._solve, targets.mask.any(-1), batch.noise)
        except Diverged:
            if batch.noise is not None:
                contribute_nan_bounds(len(batch.noise), self._loss_options["combine"], self._device)
            raise
        value = self._loss_value(model, forecast, targets, batch.kl_weight)
        with torch.no_grad():
            metrics = metrics_from_sums([self._sums(model, forecast, targets)]) | _nfe(forecast)
        tagged: dict[str, Any] = {f"train/{name}": number for name, number in metrics.items()}
        solves = forecast.encoder_stats + forecast.decoder_stats
        if batch.consistency_time is not None:
            term, encoder_stats = self._consistency(model, forecast, batch, batch.consistency_time)
            value, solves = value + self._loss_options["consistency"] * term, solves + encoder_stats
            tagged["task/consistency"] = term.detach()
        tagged |= {"train/loss": value.detach()}
        if forecast.posterior is not None:
            tagged["task/kl_weight"] = batch.kl_weight
        return self._add_penalty(Loss(value, tagged, solves))

    @torch.no_grad()
    def evaluate(self, split: str, model: nn.Module | None = None) -> dict[str, float]:
        """Compute the loss, likelihoods, errors and NFE.

        loss: with weight 1 of the KL divergence. series: the number of series. nll_nats, kl_nats, elbo_nats: means per
        series. mse, mse_per_feature: errors of the mean prediction. rmse_interpolation, rmse_extrapolation: its errors
        against the ground truth, or against the observations if that is unknown. rate_rmse: error of the event rate, if
        the true one is known. constant_rate_rmse: the same error of a constant rate, the series' number of events
        divided by its span. accuracy, auc: metrics of the predicted labels. nfe, encoder_nfe, decoder_nfe: means per
        batch.
        """
        model = (model or self.model).eval()
        series = self._splits[split]
        sums, logits, labels = [], [], []
        for indices in self._batches(split):
            forecast, targets, batch_sums = self._forecast_targets(model, series, indices)
            sums.append(batch_sums | {name: (nfe, 1) for name, nfe in _nfe(forecast).items()})
            if forecast.logits is not None and targets.labels is not None:
                logits.append(forecast.logits)
                labels.append(targets.labels)
        metrics = metrics_from_sums(sums) | {"series": self._counts[split]}
        return metrics | (label_metrics(logits, labels) if logits else {})

    def limit_split(self, split: str, num: int) -> None:
        """See ``odebench.tasks.Task``."""
        self._counts[split] = min(num, self._counts[split])

    def format_metrics(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Format the errors and likelihoods that the metrics contain."""
        texts = {
            "rmse_extrapolation": ("RMSE beyond", "{:.4f}"),
            "rmse_interpolation": ("RMSE within", "{:.4f}"),
            "mse": ("MSE", "{:.6f}"),
            "auc": ("AUC", "{:.4f}"),
            "rate_rmse": ("RMSE of the rate", "{:.4f}"),
            "elbo_nats": ("ELBO", "{:.3f} nats per series"),
            "nll_nats": ("NLL", "{:.3f} nats per series"),
        }
        return [(title, text.format(metrics[name])) for name, (title, text) in texts.items() if name in metrics]

    @torch.no_grad()
    def predict(self, split: str) -> dict[str, list[Any]]:
        """Return one row per series and target time.

        The columns are the observation of each channel, the mean and the standard deviation of its prediction over
        latent samples, the event rate, and the probability of label 1.
        """
        series, model = self._splits[split], self.model.eval()
        columns: dict[str, list[Any]] = {}
        for indices in self._batches(split):
            targets = series.targets(indices)
            forecast = self._forecast(model, series, indices, targets.times, targets.mask.any(-1))
            for name, part in _columns(self._data.channels, series.ids[indices], targets, forecast).items():
                columns.setdefault(name, []).extend(part)
        return columns

    @torch.no_grad()
    def outputs(self, split: str, num: int) -> Tensor:
        """Return the mean predictions of all observed targets, or the event rates if the model predicts only events."""
        series = self._splits[split]
        indices = torch.arange(min(num, self._counts[split]), device=self._device)
        targets = series.targets(indices)
        observed = targets.mask.any(-1)
        forecast = self._forecast(self.model.eval(), series, indices, targets.times, observed)
        if forecast.values is not None:
            return forecast.values.mean(0)[observed]
        assert forecast.log_rates is not None
        return forecast.log_rates.exp().mean(0)[observed]

    @torch.no_grad()
    def figures(self, split: str = "test", animate: bool = True) -> dict[str, Figure]:
        """Draw figures of a split's series; see ``series_figures``."""
        return series_figures(
            self._data, self._splits[split], self._forecaster(split), (0.0, self._window), self._dynamics()
        )

    def _dynamics(self) -> LatentDynamics | None:
        """The dynamics of a latent ODE whose state is the latent state alone."""
        model, solve = self.model, self.eval_solve
        if not isinstance(model, LatentODE) or not isinstance(model.field, AutonomousField) or solve is None:
            return None
        if model.latent_dim < 2 or model.latent_dim != model.state_dim:
            return None
        decoder = model.decoder

        def decode(z0: Tensor, times: Tensor) -> Tensor:
            assert decoder is not None
            return decoder(model.solve(z0.unsqueeze(0), times, solve)[0][0])

        field = partial(model.field, torch.zeros((), device=self._device))
        return LatentDynamics(field, None if decoder is None else decode)

    @torch.no_grad()
    def examples(self) -> list[PredictedSeries]:
        """Return the first test series of each label, reconstructed and extrapolated by the model, for figures."""
        return examples(self._data, self._splits["test"], self._forecaster("test"), (0.0, self._window))

    def _training_split(self, epoch: int) -> SeriesSplit:
        if self._data.redraw is None:
            return self._splits["train"]
        if self._redrawn is None or self._redrawn[0] != epoch:
            drawn = self._data.redraw(self._seed, epoch).to(self._device)
            self._redrawn = epoch, dataclasses.replace(self._splits["train"], is_input=drawn)
        return self._redrawn[1]

    def _noise(self, num_samples: int, num: int, generator: torch.Generator) -> Tensor | None:
        if not self.model.latent_dim:
            return None
        return torch.randn(num_samples, num, self.model.latent_dim, generator=generator).to(self._device)

    def _loss_value(self, model: Any, forecast: Forecast, targets: SeriesBatch, weight: float) -> Tensor:
        options = self._loss_options
        reduction, event_weight = options["reduction"], options.get("event_weight", 1.0)
        likelihood = log_likelihood(forecast, targets, model.noise_std, reduction, event_weight)
        if forecast.posterior is None:
            value = -likelihood.mean()
        else:
            kl = weight * kl_from_prior(forecast.posterior, reduction)
            value = -lower_bound(likelihood, kl, options["combine"])
        if forecast.logits is not None:
            assert targets.labels is not None
            value = value + options["label_weight"] * label_loss(forecast.logits, targets.labels)
        return value

    def _consistency(
        self, model: Any, forecast: Forecast, batch: SeriesTrainingBatch, start: float
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Compute the consistency term of the loss. Returns it, and the statistics of the encoder's solves.

        The encoder is given the inputs from time `start` on. The term is the negative log-probability, under its
        distribution, of the forecast's states at `start`, averaged over the series that have such inputs (0 if none
        has).
        """
        assert forecast.latents is not None
        inputs = batch.inputs
        num_before = [(series.times < start).sum() for series in (inputs, batch.targets)]
        first, column = torch.stack(num_before).tolist()
        rows = inputs.mask[:, first:].any((1, 2)).nonzero().squeeze(1)
        if not len(rows):
            return inputs.times.new_zeros(()), ()
        values, mask = (part[rows, first:] for part in (inputs.values, inputs.mask))
        later_inputs = SeriesBatch(inputs.times[first:] - start, values, mask, None)
        posterior, solves = model.encoder(later_inputs, self._solve)
        term = negative_log_posterior(posterior, forecast.latents[:, rows, column, : model.latent_dim])
        return term * (len(rows) / batch.num_compared), solves

    def _sums(self, model: Any, forecast: Forecast, targets: SeriesBatch) -> Sums:
        errors = {} if forecast.values is None else error_sums(forecast.values, targets)
        return likelihood_sums(forecast, targets, model.noise_std) | errors

    def _forecast(
        self, model: Any, series: SeriesSplit, indices: Tensor, times: Tensor, target_mask: Tensor | None = None
    ) -> Forecast:
        """Forecast some series with the evaluation solver. The latent samples of a series are always the same."""
        noise = self._noise(self._loss_options.get("eval_samples", 1), len(series), torch.Generator().manual_seed(0))
        chosen = None if noise is None else noise[:, indices]
        return model(series.inputs(indices), times, self.eval_solve, target_mask, chosen)

    def _forecaster(self, split: str) -> Callable[[Tensor, Tensor], Forecast]:
        """A function of indices of a split's series and times."""
        return partial(self._forecast, self.model.eval(), self._splits[split])

    def _forecast_targets(self, model: Any, series: SeriesSplit, indices: Tensor) -> tuple[Forecast, SeriesBatch, Sums]:
        """Forecast the targets of some series. Returns forecast, targets, and the sums for all metrics."""
        targets = series.targets(indices)
        truth = series.noiseless(indices) if series.truth is not None else targets
        requested = [targets.times, truth.times]
        if self._data.rate is not None:
            requested.append(torch.linspace(0, self._data.span, NUM_RATE_TIMES, device=self._device))
        times, columns = torch.unique(torch.cat(requested), return_inverse=True)
        at_targets, at_truth, *at_rate = columns.split([len(part) for part in requested])
        target_mask = targets.mask.new_zeros(len(indices), len(times))
        target_mask[:, at_targets] |= targets.mask.any(-1)
        target_mask[:, at_truth] |= truth.mask.any(-1)
        for rate_columns in at_rate:
            target_mask[:, rate_columns] = True
        full_forecast = self._forecast(model, series, indices, times, target_mask)
        forecast = full_forecast.at_times(at_targets)
        if getattr(model, "feeds_back_predictions", False):  # predict only at the targets, as in training
            forecast = self._forecast(model, series, indices, targets.times, targets.mask.any(-1))
        loss = self._loss_value(model, forecast, targets, 1.0).item()
        sums = self._sums(model, forecast, targets) | {"loss": (loss * len(indices), len(indices))}
        if full_forecast.values is not None:
            sums |= window_error_sums(full_forecast.values[:, :, at_truth], truth, self._window)
        if self._data.rate is not None and full_forecast.log_rates is not None:
            rate = self._data.rate(series.ids[indices], times[at_rate[0]])
            inferred = full_forecast.log_rates[:, :, at_rate[0]].exp().sum(-1).mean(0)
            # The baseline without a model: the number of events of the series, divided by its span.
            constant = targets.mask.sum((1, 2)).unsqueeze(1) / self._data.span
            for name, estimate in {"rate_rmse": inferred, "constant_rate_rmse": constant}.items():
                sums[name] = ((estimate - rate).double().square().sum().item(), rate.numel())
        return forecast, targets, sums

    def _batches(self, split: str) -> Iterator[Tensor]:
        return iter(torch.arange(self._counts[split], device=self._device).split(self._eval_batch_size))


def _data_properties(data: SeriesData) -> dict[str, Any]:
    """Return the properties of the data that the constructor of a model may need."""
    train = data.train
    is_used = train.mask & (train.is_input | train.is_target).unsqueeze(1)
    means = train.values.where(is_used, 0).sum(0) / is_used.sum(0).clamp(min=1)
    return {
        "num_features": len(data.channels),
        "span": data.span,
        "target_start": data.target_start,
        "feature_means": means,
    }


def _columns(channels: tuple[str, ...], ids: Tensor, targets: SeriesBatch, forecast: Forecast) -> dict[str, list[Any]]:
    """Return columns with the forecast, with one row for each time at which something was observed."""
    rows = targets.mask.any(-1).nonzero(as_tuple=True)
    columns = {"series": ids[rows[0]], "time": targets.times[rows[1]]}
    if forecast.values is not None:
        observed = targets.values.masked_fill(~targets.mask, torch.nan)[rows]
        mean, std = forecast.values.mean(0)[rows], forecast.values.std(0, correction=0)[rows]
        for i, name in enumerate(channels):
            columns |= {name: observed[:, i], f"{name}_mean": mean[:, i], f"{name}_std": std[:, i]}
    if forecast.log_rates is not None:
        columns["rate"] = forecast.log_rates.exp().sum(-1).mean(0)[rows]
    if forecast.logits is not None:
        columns["probability"] = forecast.logits.sigmoid().mean(0)[rows[0]]
    return {name: column.tolist() for name, column in columns.items()}


def _nfe(forecast: Forecast) -> dict[str, float]:
    """Return the NFE of a batch: total, encoder and decoder. Empty if nothing was solved."""
    roles = {"encoder_nfe": forecast.encoder_stats, "decoder_nfe": forecast.decoder_stats}
    metrics = {role: float(sum(stats.nfe for stats in solves)) for role, solves in roles.items() if solves}
    return {"nfe": sum(metrics.values())} | metrics if metrics else {}

"""Likelihoods of irregular series, and the evidence lower bound of latent variable models."""

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from odebench.data.series import SeriesBatch
from odebench.models.series import Forecast, Posterior
from odebench.ode.control import sum_over

Reduction = Literal["sum", "mean"]
HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def log_likelihood(
    forecast: Forecast, targets: SeriesBatch, noise_std: Tensor | None, reduction: Reduction, event_weight: float = 1.0
) -> Tensor:
    """Log-likelihood [S, B] of each series given each latent sample: Gaussian observations, and weighted events.

    noise_std: [D]. reduction: "sum", in nats per series (Chen et al. 2018); "mean", the mean over the observed values
    of each feature, then over features (unobserved ones count as zero), and events averaged over their kinds (Rubanova
    et al. 2019).
    """
    total = torch.zeros(1, len(targets.values), dtype=targets.values.dtype, device=targets.values.device)
    if forecast.values is not None:
        assert noise_std is not None
        log_density = gaussian_log_density(forecast.values, targets, noise_std)
        total = total + reduce_series(log_density, targets.mask, reduction)
    if forecast.log_rates is not None:
        kinds = targets.mask.shape[2] if reduction == "mean" else 1
        total = total + event_weight * event_log_likelihood(forecast, targets.mask) / kinds
    return total


def gaussian_log_density(values: Tensor, targets: SeriesBatch, noise_std: Tensor) -> Tensor:
    """Log density of each observation, given its mean in values [S, B, T, D] and noise_std [D]; 0 where unobserved."""
    error = torch.where(targets.mask, targets.values - values, 0) / noise_std
    return torch.where(targets.mask, -0.5 * error.square() - noise_std.log() - HALF_LOG_2_PI, 0)


def event_log_likelihood(forecast: Forecast, events: Tensor) -> Tensor:
    """Log-likelihood [S, B] of events, bool [B, T, E]: sum of their log rates minus the expected number of events."""
    assert forecast.log_rates is not None
    assert forecast.expected_events is not None
    return torch.where(events, forecast.log_rates, 0).sum((-2, -1)) - forecast.expected_events


def reduce_series(values: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """Reduce values [..., B, T, D], zero where mask is False, to one per series [..., B]; see ``log_likelihood``."""
    if reduction == "sum":
        return values.sum((-2, -1))
    return (values.sum(-2) / mask.sum(-2).clamp(min=1)).mean(-1)


def kl_from_prior(posterior: Posterior, reduction: Reduction) -> Tensor:
    """KL(q || N(0, I)) of each series [B]; reduction "mean" averages over the latent dimensions."""
    kl = 0.5 * (posterior.mean.square() + posterior.std.square() - 1) - posterior.std.log()
    return kl.sum(-1) if reduction == "sum" else kl.mean(-1)


def lower_bound(likelihood: Tensor, kl: Tensor | float, combine: Literal["mean", "logsumexp"]) -> Tensor:
    """Evidence lower bound, from log-likelihoods [S, B] and weighted KL divergences [B], averaged over series.

    combine: "mean" over samples; "logsumexp", the logarithm of the mean over samples of the exponential of the bound of
    the whole batch (public code of Rubanova et al. 2019).
    """
    bounds = (likelihood - kl).mean(1)
    if combine == "mean":
        return bounds.mean()
    return torch.logsumexp(_mean_over_processes(bounds), 0) - math.log(len(bounds))


def _mean_over_processes(bounds: Tensor) -> Tensor:
    """Average the bounds over the shards of a training batch in several processes, with the gradient of this shard.

    The logarithm of a mean over samples needs the bounds of the whole batch; gradients are averaged after the backward
    pass. Evaluation, without gradients, runs in one process.
    """
    if not (dist.is_initialized() and torch.is_grad_enabled()):
        return bounds
    total = sum_over(dist.group.WORLD, bounds.detach().clone())
    return bounds + (total / dist.get_world_size() - bounds.detach())


def contribute_nan_bounds(num_samples: int, combine: Literal["mean", "logsumexp"], device: torch.device) -> None:
    """Send NaN to the other processes, which wait for this process's bounds, after its solve has failed."""
    if combine == "logsumexp":
        _mean_over_processes(torch.full((num_samples,), math.nan, device=device))


def kl_weight(epoch: int, wait_epochs: int | None, growth: float) -> float:
    """0 for wait_epochs epochs, then 1 - growth^k in the k-th epoch after them; always 1 if wait_epochs is None."""
    if wait_epochs is None:
        return 1.0
    return 1.0 - growth ** max(epoch - wait_epochs, 0)


def negative_log_posterior(posterior: Posterior, states: Tensor) -> Tensor:
    """-log q of states [S, B, L], without its constant: a mean over samples and series.

    states: the ODE's solution at a time; posterior: the encoder's q given the inputs after that time. The loss term
    makes the two agree, so that solutions continue beyond the training times as from a newly encoded state. The bound
    alone lets them leave the region where the encoder puts its states.
    """
    deviation = (states - posterior.mean) / posterior.std
    return (0.5 * deviation.square() + posterior.std.log()).sum() / states[..., 0].numel()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits [S, B] for labels [B] of 0 or 1, averaged over both dimensions."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype).expand_as(logits))

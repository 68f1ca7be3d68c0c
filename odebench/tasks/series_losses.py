"""Compute likelihoods of irregular series, and the evidence lower bound of latent variable models.

S: latent samples. B: series of a batch. T: times. D: features. E: kinds of events. L: latent dimensions.
"""

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
    """Return the log-likelihood [S, B] of each series given each latent sample.

    It is the sum of the log-likelihoods of Gaussian observations and, with weight ``event_weight``, of events.

    noise_std: standard deviation [D] of the observations. reduction: "sum" gives nats per series (Chen et al. 2018);
    "mean" takes the mean over the observed values of each feature, then the mean over features (a feature without
    observations counts as zero), and divides the events' part by the number of their kinds (Rubanova et al. 2019).
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
    """Return the log-density of each observation [S, B, T, D], 0 where unobserved. values: their means."""
    error = torch.where(targets.mask, targets.values - values, 0) / noise_std
    return torch.where(targets.mask, -0.5 * error.square() - noise_std.log() - HALF_LOG_2_PI, 0)


def event_log_likelihood(forecast: Forecast, events: Tensor) -> Tensor:
    """Return the log-likelihood [S, B] of events, bool [B, T, E]: the sum of log-rates minus the expected number."""
    assert forecast.log_rates is not None
    assert forecast.expected_events is not None
    return torch.where(events, forecast.log_rates, 0).sum((-2, -1)) - forecast.expected_events


def reduce_series(values: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """Reduce values [..., B, T, D], which are 0 outside mask, to one per series [..., B]; see ``log_likelihood``."""
    if reduction == "sum":
        return values.sum((-2, -1))
    return (values.sum(-2) / mask.sum(-2).clamp(min=1)).mean(-1)


def kl_from_prior(posterior: Posterior, reduction: Reduction) -> Tensor:
    """Return KL(q || N(0, I)) [B] of each series. With reduction "mean" it is divided by the latent dimension."""
    kl = 0.5 * (posterior.mean.square() + posterior.std.square() - 1) - posterior.std.log()
    return kl.sum(-1) if reduction == "sum" else kl.mean(-1)


def lower_bound(likelihood: Tensor, kl: Tensor | float, combine: Literal["mean", "logsumexp"]) -> Tensor:
    """Return the evidence lower bound, a scalar, averaged over series.

    likelihood: log-likelihoods [S, B]. kl: weighted KL divergences [B]. combine: "mean" takes the mean over latent
    samples. "logsumexp" takes log(mean(exp(bound))) over latent samples, where each bound is that of the whole batch
    (public code of Rubanova et al. 2019).
    """
    bounds = (likelihood - kl).mean(1)
    if combine == "mean":
        return bounds.mean()
    return torch.logsumexp(_mean_over_processes(bounds), 0) - math.log(len(bounds))


def _mean_over_processes(bounds: Tensor) -> Tensor:
    """Average the bounds [S] over the processes, each of which has a shard of the training batch.

    The combination "logsumexp" needs the bounds of the whole batch. The result has only the gradient of this shard,
    because gradients are averaged after the backward pass. With one process, or without gradients (in evaluation), the
    bounds are returned unchanged.
    """
    if not (dist.is_initialized() and torch.is_grad_enabled()):
        return bounds
    total = sum_over(dist.group.WORLD, bounds.detach().clone())
    return bounds + (total / dist.get_world_size() - bounds.detach())


def contribute_nan_bounds(num_samples: int, combine: Literal["mean", "logsumexp"], device: torch.device) -> None:
    """Send NaN to the other processes after the solve of this one has failed: they wait for its bounds."""
    if combine == "logsumexp":
        _mean_over_processes(torch.full((num_samples,), math.nan, device=device))


def kl_weight(epoch: int, wait_epochs: int | None, growth: float) -> float:
    """Return the weight of the KL divergence: 0 until epoch wait_epochs, then 1 - growth^k after k further epochs.

    Always 1 if wait_epochs is None.
    """
    if wait_epochs is None:
        return 1.0
    return 1.0 - growth ** max(epoch - wait_epochs, 0)


def negative_log_posterior(posterior: Posterior, states: Tensor) -> Tensor:
    """Return -log q(states) without its constant, averaged over latent samples and series.

    states: the solution of the ODE [S, B, L] at some time. posterior: q, the encoder's distribution given the inputs
    from that time on. This loss term makes the two agree. Beyond the training times, solutions then continue like those
    from a newly encoded state. The lower bound alone lets them leave the region where the encoder puts its states.
    """
    deviation = (states - posterior.mean) / posterior.std
    return (0.5 * deviation.square() + posterior.std.log()).sum() / states[..., 0].numel()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of logits [S, B] for labels [B] (0 or 1), averaged over both dimensions."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype).expand_as(logits))

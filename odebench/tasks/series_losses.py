"""Likelihoods of irregular series, and the lower bound that a latent variable model of them maximises."""

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
    """Of each series given each latent sample [S, B]: its Gaussian observations and, times event_weight, its events.

    noise_std: [D]. reduction: "sum", in nats a series (Chen et al. 2018); "mean", the mean over the observed numbers of
    each feature, then over features, those without any counting as zero, and likewise events over kinds (Rubanova et
    al. 2019).
    """
    found = torch.zeros(1, len(targets.values), dtype=targets.values.dtype, device=targets.values.device)
    if forecast.values is not None:
        assert noise_std is not None
        found = found + reduce_series(
            gaussian_log_density(forecast.values, targets, noise_std), targets.mask, reduction
        )
    if forecast.log_rates is not None:
        kinds = targets.mask.shape[2] if reduction == "mean" else 1
        found = found + event_weight * event_log_likelihood(forecast, targets.mask) / kinds
    return found


def gaussian_log_density(values: Tensor, targets: SeriesBatch, noise_std: Tensor) -> Tensor:
    """Of each number, given its mean in values [S, B, T, D] and noise_std [D]; 0 where nothing was observed."""
    error = torch.where(targets.mask, targets.values - values, 0) / noise_std
    return torch.where(targets.mask, -0.5 * error.square() - noise_std.log() - HALF_LOG_2_PI, 0)


def event_log_likelihood(forecast: Forecast, events: Tensor) -> Tensor:
    """[S, B] of events, bool [B, T, E]: the sum of the logarithms of their rates less the expected number of events."""
    assert forecast.log_rates is not None
    assert forecast.expected_events is not None
    return torch.where(events, forecast.log_rates, 0).sum((-2, -1)) - forecast.expected_events


def reduce_series(values: Tensor, mask: Tensor, reduction: Reduction) -> Tensor:
    """Numbers [..., B, T, D], zero where the mask is False, to one a series [..., B]; see ``log_likelihood``."""
    if reduction == "sum":
        return values.sum((-2, -1))
    return (values.sum(-2) / mask.sum(-2).clamp(min=1)).mean(-1)


def kl_from_prior(posterior: Posterior, reduction: Reduction) -> Tensor:
    """KL(q || N(0, I)) of each series [B]; "mean": over the latent dimensions."""
    kl = 0.5 * (posterior.mean.square() + posterior.std.square() - 1) - posterior.std.log()
    return kl.sum(-1) if reduction == "sum" else kl.mean(-1)


def lower_bound(likelihood: Tensor, kl: Tensor | float, combine: Literal["mean", "logsumexp"]) -> Tensor:
    """The bound that is maximised, from log-likelihoods [S, B] and weighted divergences [B], a mean over series.

    combine: "mean" over samples; "logsumexp", the logarithm of the mean over samples of the exponential of each one's
    bound for the whole batch (Rubanova et al. 2019's public code).
    """
    bounds = (likelihood - kl).mean(1)
    if combine == "mean":
        return bounds.mean()
    return torch.logsumexp(_mean_over_processes(bounds), 0) - math.log(len(bounds))


def _mean_over_processes(bounds: Tensor) -> Tensor:
    """The mean over the shares that several processes have of a training batch, with the gradient of this share.

    A logarithm of a mean over samples needs the whole batch's bounds; their gradients are averaged after the backward
    pass. An evaluation, without gradients, is one process's own.
    """
    if not (dist.is_initialized() and torch.is_grad_enabled()):
        return bounds
    total = sum_over(dist.group.WORLD, bounds.detach().clone())
    return bounds + (total / dist.get_world_size() - bounds.detach())


def contribute_nan_bounds(num_samples: int, combine: Literal["mean", "logsumexp"], device: torch.device) -> None:
    """What a process does that has no bounds, its solve having failed: the others, who wait for them, get NaN."""
    if combine == "logsumexp":
        _mean_over_processes(torch.full((num_samples,), math.nan, device=device))


def kl_weight(epoch: int, wait_epochs: int | None, growth: float) -> float:
    """0 for so many epochs, then 1 - growth^k, k epochs after these; 1 throughout where wait_epochs is None."""
    if wait_epochs is None:
        return 1.0
    return 1.0 - growth ** max(epoch - wait_epochs, 0)


def negative_log_posterior(posterior: Posterior, states: Tensor) -> Tensor:
    """-log q of states [S, B, L], without its constant: a mean over samples and series.

    Of the states that an ODE reaches at a time, under the encoder's q for what comes after that time: what is encoded
    there and what is solved to there shall be the same states. Then solutions go on beyond the training's times as they
    would from a new start, where the bound alone lets them leave the region that the encoder fills.
    """
    away = (states - posterior.mean) / posterior.std
    return (0.5 * away.square() + posterior.std.log()).sum() / states[..., 0].numel()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits [S, B] for labels [B] of 0 or 1, a mean over both."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype).expand_as(logits))

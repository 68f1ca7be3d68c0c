"""Compute metrics of forecasts of irregular series: sums for each batch, then means over all batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from odebench.data.series import SeriesBatch
from odebench.models.series import Forecast
from odebench.tasks.series_losses import kl_from_prior, log_likelihood, reduce_series
from odebench.tasks.task import read_numbers

Sums = dict[str, tuple[Tensor | float, Tensor | float]]
"""Name of a quantity -> (sum of its values, number of values), each a number or a scalar tensor."""


def likelihood_sums(forecast: Forecast, targets: SeriesBatch, noise_std: Tensor | None) -> Sums:
    """Return the sum of nll_nats, averaged over latent samples, over the series.

    Models with a latent variable also get the sum of kl_nats.
    """
    num = len(targets.values)
    likelihood = log_likelihood(forecast, targets, noise_std, "sum").mean(0)
    sums: Sums = {"nll_nats": (-likelihood.double().sum(), num)}
    if forecast.posterior is not None:
        sums["kl_nats"] = (kl_from_prior(forecast.posterior, "sum").double().sum(), num)
    return sums


def error_sums(values: Tensor, targets: SeriesBatch) -> Sums:
    """Sum the squared errors of the mean prediction, the mean of values [S, B, T, D] over S.

    mse: the mean over all observations. mse_per_feature: the mean for each series and feature, then the mean over
    features and series (Rubanova et al. 2019).
    """
    squares = _squared_errors(values, targets)
    return {
        "mse": (squares.double().sum(), targets.mask.sum()),
        "mse_per_feature": (reduce_series(squares, targets.mask, "mean").double().sum(), len(squares)),
    }


def window_error_sums(values: Tensor, targets: SeriesBatch, window_end: float) -> Sums:
    """Sum the squared errors up to ``window_end``, the last time of the model's inputs, and after it.

    ``metrics_from_sums`` computes rmse_interpolation and rmse_extrapolation from them.
    """
    squares = _squared_errors(values, targets).double()
    later = targets.times > window_end
    parts = {"interpolation": ~later, "extrapolation": later}
    return {f"rmse_{name}": (squares[:, part].sum(), targets.mask[:, part].sum()) for name, part in parts.items()}


def metrics_from_sums(sums: Sequence[Sums]) -> dict[str, float]:
    """Turn the sums of all batches into means, for rmse into roots of means. Quantities without values are left out."""
    read = iter(read_numbers(number for batch in sums for pair in batch.values() for number in pair))
    totals: dict[str, tuple[float, float]] = {}
    for batch in sums:
        for name in batch:
            value_before, count_before = totals.get(name, (0.0, 0.0))
            totals[name] = value_before + next(read), count_before + next(read)
    means = {name: value / count for name, (value, count) in totals.items() if count}
    metrics = {name: mean**0.5 if "rmse" in name else mean for name, mean in means.items()}
    if "kl_nats" in metrics:
        metrics["elbo_nats"] = -metrics["nll_nats"] - metrics["kl_nats"]
    return metrics


def label_metrics(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, float]:
    """Compute accuracy, and auc if both labels occur. The lists have one entry for each batch.

    logits: [S, B]; the probabilities are averaged over latent samples. labels: [B].
    """
    probability = torch.cat([batch.sigmoid().mean(0) for batch in logits]).cpu()
    truth = torch.cat(list(labels)).cpu()
    metrics = {"accuracy": ((probability > 0.5) == truth).double().mean().item()}
    if 0 < truth.sum() < len(truth):
        from sklearn.metrics import roc_auc_score  # imported only here: it takes seconds

        metrics["auc"] = float(roc_auc_score(truth.numpy(), probability.numpy()))
    return metrics


def _squared_errors(values: Tensor, targets: SeriesBatch) -> Tensor:
    return torch.where(targets.mask, targets.values - values.mean(0), 0).square()

"""Draw figures of a model's forecasts of irregular series."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from odebench.data.series import SeriesBatch, SeriesData, SeriesSplit
from odebench.models.series import Forecast
from odebench.plots import series as plots
from odebench.plots.style import padded_limits

NUM_SHOWN, NUM_PATHS, NUM_CHANNELS, NUM_TIMES = 6, 60, 3, 200
NUM_GRID, NUM_ELLIPSES = 24, 20
# Varied initial states: components, paths of each, and the largest shift in standard deviations.
NUM_COMPONENTS, NUM_VARIED, LARGEST_SHIFT = 4, 9, 1.0
# Without a ground truth, the time axis ends at this multiple of the data's time span.
EXTRAPOLATION_FACTOR = 1.25

Forecaster = Callable[[Tensor, Tensor], Forecast]


class LatentDynamics(NamedTuple):
    """A latent ODE: its field, a function of states [..., L], and its decoded solutions [N, T, D] from z0 [N, L] at
    times [T]; None if it predicts no values."""

    field: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, Tensor], Tensor] | None


def series_figures(
    data: SeriesData,
    split: SeriesSplit,
    forecast: Forecaster,
    window: tuple[float, float],
    dynamics: LatentDynamics | None = None,
) -> dict[str, Figure]:
    """Draw the first series of a split with their forecasts, event rates, latent paths and errors.

    The series are reconstructed and extrapolated. The error over time is drawn only if the ground truth of all series
    is known at the same times.

    forecast: a function of series indices [B] and times [T] that returns a Forecast. window: the first and the last
    time of the model's inputs. dynamics: of an autonomous latent ODE, for its phase portrait and its varied paths.
    """
    figures: dict[str, Figure] = {}
    first = range(min(NUM_SHOWN, len(split)))
    if shown := _reconstruct_series(data, split, first, forecast, window):
        figures |= _series_figure(data, split, shown)
    # Rates are drawn at evenly spaced times, because there are few event times where the rate is low.
    indices, times = torch.arange(min(NUM_PATHS, len(split))), _even_times(data, split)
    prediction = forecast(indices, times)
    if prediction.log_rates is not None:
        rates = [_inferred_rate(data, split, i, times, prediction.log_rates[:, i]) for i in first]
        figures["rates"] = plots.rates_over_time(rates)
    if prediction.latents is not None and prediction.latents.shape[-1] > 1:
        labels = None if split.labels is None else split.labels[indices].cpu().numpy()
        names = [f"label {label}" for label in range(data.num_classes)]
        figures["latents"] = plots.latent_paths(prediction.latents[0].cpu().numpy(), labels, names)
        if dynamics is not None:
            figures["phase"] = plots.phase_portrait(*_latent_plane(prediction, dynamics.field), labels, names)
            if dynamics.decode is not None and len(data.channels) == 2:
                figures["variations"] = _variations_figure(data, prediction, dynamics.decode, split.labels)
    return figures | _error_figure(split, forecast, window)


def _latent_plane(
    prediction: Forecast, field: Callable[[Tensor], Tensor]
) -> tuple[plots.LatentPlane, tuple[float, float]]:
    """The plane of the first two principal components of the latent states, and their shares of the variance."""
    assert prediction.latents is not None
    assert prediction.posterior is not None
    latents = prediction.latents[0]
    flat = latents.flatten(0, 1)
    centre = flat.mean(0)
    sizes, axes = torch.linalg.svd(flat - centre, full_matrices=False)[1:]
    axes = axes[:2]  # [2, L]
    paths = ((latents - centre) @ axes.T).cpu().numpy()
    x, y = (np.linspace(*padded_limits(paths[..., part], margin=0.08), NUM_GRID) for part in (0, 1))
    points = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1)).to(latents)
    velocities = field(centre + points @ axes) @ axes.T
    mean, std = (part[:NUM_ELLIPSES] for part in prediction.posterior)
    plane = plots.LatentPlane(
        paths,
        x,
        y,
        velocities.cpu().numpy(),
        ((mean - centre) @ axes.T).cpu().numpy(),
        ((axes * std.square().unsqueeze(1)) @ axes.T).cpu().numpy(),
    )
    first, second = (sizes[:2].square() / sizes.square().sum()).tolist()
    return plane, (first, second)


def _variations_figure(
    data: SeriesData, prediction: Forecast, decode: Callable[[Tensor, Tensor], Tensor], labels: Tensor | None
) -> Figure:
    """Vary the first components of the initial state of the first series of each label."""
    assert prediction.posterior is not None
    means, times = prediction.posterior.mean, torch.linspace(0, data.span, NUM_TIMES).to(prediction.posterior.mean)
    labels = torch.zeros(len(means)) if labels is None else labels[: len(means)]
    shifts = torch.linspace(-LARGEST_SHIFT, LARGEST_SHIFT, NUM_VARIED).to(means)
    shown = []
    for label in labels.unique():
        start = means[(labels == label).nonzero()[0]]
        for part, std in enumerate(means.std(0, correction=0)[:NUM_COMPONENTS]):
            z0 = start.repeat(NUM_VARIED, 1)
            z0[:, part] += shifts * std
            paths = decode(z0, times).cpu().numpy()
            title = f"component {part + 1}" + (f", label {int(label)}" if data.num_classes else "")
            shown.append(plots.LatentVariation(title, shifts.cpu().numpy(), paths))
    return plots.latent_variations(shown, columns=min(means.shape[1], NUM_COMPONENTS))


def examples(
    data: SeriesData, split: SeriesSplit, forecast: Forecaster, window: tuple[float, float]
) -> list[plots.PredictedSeries]:
    """Return the first series of each label, or without labels the first series, with the model's predictions.

    The list is empty if the model predicts no values.
    """
    labels = torch.zeros(len(split)) if split.labels is None else split.labels.cpu()
    first = [int((labels == label).nonzero()[0]) for label in labels.unique()]
    return _reconstruct_series(data, split, first, forecast, window)


def _reconstruct_series(
    data: SeriesData, split: SeriesSplit, indices: Sequence[int], forecast: Forecaster, window: tuple[float, float]
) -> list[plots.PredictedSeries]:
    """Reconstruct and extrapolate the series with these indices. Each gets its own call of ``forecast``."""
    shown = []
    for index in indices:
        position = torch.tensor([index])
        truth = None if split.truth is None else split.noiseless(position)
        times = _even_times(data, split) if truth is None else truth.times
        values = forecast(position, times).values
        if values is None:
            continue
        inputs, targets = split.inputs(position), split.targets(position)
        later = ~torch.isin(targets.times, inputs.times)
        held_out = SeriesBatch(targets.times[later], targets.values[:, later], targets.mask[:, later], None)
        shown.append(
            plots.PredictedSeries(
                label=f"series {int(split.ids[position])}",
                times=times.cpu().numpy(),
                predictions=values[:, 0].cpu().numpy(),
                observed=_observations(inputs),
                window=window,
                truth=None if truth is None else truth.values[0].cpu().numpy(),
                held_out=_observations(held_out) if len(held_out.times) else None,
            )
        )
    return shown


def _even_times(data: SeriesData, split: SeriesSplit) -> Tensor:
    return torch.linspace(0, EXTRAPOLATION_FACTOR * data.span, NUM_TIMES, device=split.times.device)


def _series_figure(data: SeriesData, split: SeriesSplit, shown: list[plots.PredictedSeries]) -> dict[str, Figure]:
    """Draw series of two channels in the plane. Of other series, draw the most often observed channels over time."""
    if len(data.channels) == 2:
        return {"series": plots.series_in_plane(shown)}
    chosen = split.mask.sum(0).argsort(descending=True, stable=True)[:NUM_CHANNELS].tolist()
    selected = [_select_channels(series, chosen) for series in shown]
    return {"series": plots.series_over_time(selected, [data.channels[i] for i in chosen])}


def _select_channels(series: plots.PredictedSeries, channels: list[int]) -> plots.PredictedSeries:
    """Return the series with only these channels."""
    held_out = series.held_out
    return series._replace(
        predictions=series.predictions[..., channels],
        observed=series.observed._replace(values=series.observed.values[:, channels]),
        truth=None if series.truth is None else series.truth[:, channels],
        held_out=None if held_out is None else held_out._replace(values=held_out.values[:, channels]),
    )


def _observations(batch: SeriesBatch) -> plots.MeasuredValues:
    values = batch.values[0].masked_fill(~batch.mask[0], torch.nan)
    return plots.MeasuredValues(batch.times.cpu().numpy(), values.cpu().numpy())


def _inferred_rate(
    data: SeriesData, split: SeriesSplit, index: int, times: Tensor, log_rates: Tensor
) -> plots.InferredRate:
    """Return the event rate of the series with this index. log_rates: its predicted log-rates [S, T, E]."""
    position = torch.tensor([index])
    return plots.InferredRate(
        label=f"series {int(split.ids[position])}",
        times=times.cpu().numpy(),
        rates=log_rates.exp().sum(-1).cpu().numpy(),
        events=split.targets(position).times.cpu().numpy(),
        truth=None if data.rate is None else data.rate(split.ids[position], times)[0].cpu().numpy(),
    )


def _error_figure(split: SeriesSplit, forecast: Forecaster, window: tuple[float, float]) -> dict[str, Figure]:
    if split.truth is None:
        return {}
    everything = torch.arange(len(split))
    truth = split.noiseless(everything)
    if not truth.mask.all():
        return {}
    values = forecast(everything, truth.times).values
    if values is None:
        return {}
    errors = (values.mean(0) - truth.values).square().mean((0, 2)).sqrt()
    return {"error": plots.error_over_time(truth.times.cpu().numpy(), {"model": errors[None].cpu().numpy()}, window)}

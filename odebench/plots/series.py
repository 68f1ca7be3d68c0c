"""Time series and a model's predictions: reconstructions, extrapolations, latent paths, rates and errors."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from odebench.plots import style

TIME_LABEL = "t (time of the series)"
BAND = (5, 95)  # percentiles over the latent samples
BAND_LABEL = f"{BAND[0]}th to {BAND[1]}th percentile of samples"
SAMPLES = "single latent samples"
MAX_PALE_LINES = 20
MAX_COLUMNS = 3
# How far axes follow predictions beyond the data, in spans of the data. More would flatten the data if they diverge.
MAX_OVERSHOOT = 0.5

WINDOW: dict[str, Any] = {"color": style.LIGHT_GREY, "linewidth": 0, "zorder": 0, "label": "observed window"}
TRUTH: dict[str, Any] = {
    "color": style.BLACK,
    "linewidth": 1.0,
    "linestyle": (0, (4, 2)),
    "zorder": 3,
    "label": "truth",
}
OBSERVED: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3.2,
    "color": style.GREY,
    "markeredgewidth": 0.7,
    "zorder": 1.9,  # under the lines
    "label": "observed",
}
HELD_OUT = OBSERVED | {"markerfacecolor": "white", "label": "held out from the model"}
EVENT: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 9, "color": style.BLACK, "label": "event"}
START: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4, "markerfacecolor": "white"}


class MeasuredValues(NamedTuple):
    """Measured values: times [n], values [n, D], NaN if not measured."""

    times: np.ndarray
    values: np.ndarray


class PredictedSeries(NamedTuple):
    """One series and a model's predictions of it.

    label: the title of the series' panel.
    times: [T], increasing, the times of predictions and truth.
    predictions: [S, T, D], one prediction per latent sample; S = 1 for a model without latent samples.
    observed: the input of the model; held_out: measured values that the model did not see, if any.
    window: first and last time of the input; later predictions are extrapolations.
    truth: [T, D], the values without noise; None if they are not known.
    """

    label: str
    times: np.ndarray
    predictions: np.ndarray
    observed: MeasuredValues
    window: tuple[float, float]
    truth: np.ndarray | None = None
    held_out: MeasuredValues | None = None

    def segments(self) -> Iterator[tuple[str, str, slice]]:
        """Yield the label, the colour and the times of the reconstruction, and then those of the extrapolation."""
        split = int(np.searchsorted(self.times, self.window[1], side="right"))
        yield "reconstruction", style.BLUE, slice(0, split)
        if split < len(self.times):
            yield "extrapolation", style.VERMILION, slice(max(split - 1, 0), None)

    def limits(self, components: slice) -> tuple[float, float]:
        """Axis limits that include all measured and true values, and predictions up to half a span beyond these."""
        truth = [] if self.truth is None else [self.truth]
        known = [points.values for points in (self.observed, self.held_out) if points is not None] + truth
        measured, predicted = np.concatenate(known)[:, components], _mean_and_band(self.predictions[..., components])
        low, high = style.padded_limits(measured if np.isfinite(measured).any() else predicted)
        further = MAX_OVERSHOOT * (high - low)
        followed = predicted.clip(low - further, high + further)
        return style.padded_limits(np.array([low, high, *style.padded_limits(followed)]), margin=0.06)


class InferredRate(NamedTuple):
    """The inferred rate of one Poisson process.

    label: the title of the process' panel.
    times: [T], increasing; rates: [S, T], the inferred rates at these times, one per latent sample.
    events: [n], the times of the events.
    truth: [T], the true rate of the process; None if it is not known.
    """

    label: str
    times: np.ndarray
    rates: np.ndarray
    events: np.ndarray
    truth: np.ndarray | None = None


def series_over_time(series: Sequence[PredictedSeries], names: Sequence[str], time: str = TIME_LABEL) -> Figure:
    """Draw reconstruction, extrapolation, truth and observations against time.

    There is one row per series and one column per component. Lines are means over latent samples, bands their 5th to
    95th percentiles; the input window is shaded.

    names: [D], names of the components, with units; time: label of the time axis, with unit.
    """
    figure, panels = style.new_figure(max(len(series) * len(names), 1), len(names), height_in=2.4)
    places = [(one, component) for one in series for component in range(len(names))]
    for axes, (one, component) in zip(panels, places, strict=False):
        axes.axvspan(*one.window, **WINDOW)
        if one.truth is not None:
            axes.plot(one.times, one.truth[:, component], **TRUTH)
        for label, tint, part in one.segments():
            _draw_band(axes, one.times[part], one.predictions[:, part, component], tint, label)
        if one.held_out is not None:
            axes.plot(one.held_out.times, one.held_out.values[:, component], **HELD_OUT)
        axes.plot(one.observed.times, one.observed.values[:, component], **OBSERVED)
        axes.set_ylim(one.limits(slice(component, component + 1)))
        style.style_axes(axes, one.label, time, names[component])
    if not series:
        style.style_axes(panels[0], "No series", time, "")
    style.legend_below(figure)
    return figure


def series_in_plane(
    series: Sequence[PredictedSeries], columns: int = MAX_COLUMNS, groups: Sequence[int] | None = None
) -> Figure:
    """Draw the first two components against each other, one panel per series.

    groups: [N], panels with the same number show the same part of the plane; by default each panel shows its own.

    The strong line is the mean over latent samples; pale lines are up to 20 single samples.
    """
    figure, panels = style.new_square_figure(max(len(series), 1), columns, 2.9)
    windows = _windows(series, groups or range(len(series)))
    for axes, one, window in zip(panels, series, windows, strict=False):
        if one.truth is not None:
            axes.plot(*one.truth[:, :2].T, **TRUTH)
        for label, tint, part in one.segments():
            samples = one.predictions[:, part, :2]
            if len(samples) > 1:
                pale = LineCollection(
                    list(samples[:MAX_PALE_LINES]), color=tint, linewidth=0.7, alpha=0.25, label=SAMPLES
                )
                axes.add_collection(pale)
            axes.plot(*_mean_and_band(samples)[0].T, color=tint, linewidth=style.LINE_PT, label=label)
        if one.held_out is not None:
            axes.plot(*one.held_out.values[:, :2].T, **HELD_OUT)
        axes.plot(*one.observed.values[:, :2].T, **OBSERVED)
        style.style_plane(axes, one.label, *window)
    if not series:
        style.style_plane(panels[0], "No series", (0.0, 1.0))
    style.legend_below(figure)
    return figure


def _windows(series: Sequence[PredictedSeries], groups: Sequence[int]) -> list[tuple[style.Limits, style.Limits]]:
    """For each series the limits of x and of y, of one length: those of all series of its group."""
    found: dict[int, list[list[style.Limits]]] = {}
    for one, group in zip(series, groups, strict=True):
        found.setdefault(group, []).append([one.limits(slice(0, 1)), one.limits(slice(1, 2))])
    windows = {}
    for group, limits in found.items():
        low, high = np.array(limits)[..., 0].min(axis=0), np.array(limits)[..., 1].max(axis=0)
        (x, y), half = (low + high) / 2, (high - low).max() / 2
        windows[group] = (x - half, x + half), (y - half, y + half)
    return [windows[group] for group in groups]


def model_comparison(models: Mapping[str, Sequence[PredictedSeries]]) -> Figure:
    """Compare models in the plane, series by series.

    models: name -> predictions of the same series. If names have two parts, such as "RNN, 30 points", there is one row
    of panels for each model (before the comma), and one column for each variant (after it). Other names share one row.
    """
    kinds = Counter(name.partition(", ")[0] for name in models)
    columns = max(kinds.values(), default=1)
    by_series = zip(*models.values(), strict=True)
    titled = [one._replace(label=name) for row in by_series for name, one in zip(models, row, strict=True)]
    groups = [index // len(models) for index in range(len(titled))]
    return series_in_plane(titled, columns if columns > 1 else max(len(models), 1), groups)


def latent_paths(
    paths: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    title: str = "Latent trajectories",
) -> Figure:
    """Draw the first two components of latent trajectories, coloured by class, with circles at their starts.

    paths: [N, T, L], L at least 2; labels: [N], indices into class_names.
    """
    figure, (axes,) = style.new_square_figure(1, 1, 4.2)
    labels = np.zeros(len(paths), dtype=int) if labels is None else labels
    for index in np.unique(labels):
        chosen = paths[labels == index][..., :2]
        name = class_names[index] if class_names else None
        tint = style.colour(int(index))
        axes.add_collection(LineCollection(list(chosen), color=tint, linewidth=0.9, alpha=0.7, label=name))
        axes.plot(*chosen[:, 0].T, **START, color=tint)
    style.style_plane(axes, title, style.padded_limits(paths[..., :2], margin=0.05))
    axes.set(xlabel="z₁ (latent)", ylabel="z₂ (latent)")
    axes.plot([], [], **START, color=style.GREY, label="start")
    style.legend_below(figure)
    return figure


class LatentPlane(NamedTuple):
    """A plane in latent space, in coordinates of the plane.

    paths: [N, T, 2], trajectories. x, y: [n], a grid, with the field's part in the plane: velocities [n, n, 2], rows
    along y. means [M, 2], covariances [M, 2, 2]: the posteriors of some initial states.
    """

    paths: np.ndarray
    x: np.ndarray
    y: np.ndarray
    velocities: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def phase_portrait(
    plane: LatentPlane, shares: tuple[float, float], labels: np.ndarray | None = None, class_names: Sequence[str] = ()
) -> Figure:
    """Draw the field as stream lines, trajectories coloured by class, and ellipses of two standard deviations.

    shares: of the variance of the trajectories, that of each coordinate. labels: [N], indices into class_names.
    """
    figure, (axes,) = style.new_figure(width_in=6.0, height_in=4.4)
    u, v = np.moveaxis(plane.velocities, 2, 0)
    axes.streamplot(plane.x, plane.y, u, v, color="#BBBBBB", linewidth=0.7, arrowsize=0.8, density=1.3, zorder=1)
    labels = np.zeros(len(plane.paths), dtype=int) if labels is None else labels
    for index in np.unique(labels):
        chosen, tint = plane.paths[labels == index], style.colour(int(index))
        name = class_names[index] if class_names else "trajectories"
        axes.add_collection(LineCollection(list(chosen), color=tint, linewidth=1.0, alpha=0.8, label=name))
        axes.plot(*chosen[:, 0].T, **START, color=tint)
    for mean, covariance, index in zip(plane.means, plane.covariances, labels, strict=False):
        variances, directions = np.linalg.eigh(covariance)
        width, height = 4 * np.sqrt(np.maximum(variances, 0))
        angle = np.degrees(np.arctan2(directions[1, 0], directions[0, 0]))
        tint = style.colour(int(index))
        axes.add_patch(Ellipse(mean, width, height, angle=angle, facecolor=tint, alpha=0.25, linewidth=0))
    x, y = (f"component {one}: {100 * share:.0f} % of the variance" for one, share in enumerate(shares, 1))
    style.style_axes(axes, "Latent phase portrait", x, y)
    axes.grid(False)
    axes.set(xlim=plane.x[[0, -1]], ylim=plane.y[[0, -1]])
    axes.plot([], [], color="#BBBBBB", linewidth=1.0, label="field")
    axes.plot([], [], **START, color=style.GREY, label="start")
    axes.fill_between([], [], color=style.GREY, alpha=0.25, linewidth=0, label="posterior, 2 std")
    style.legend_below(figure)
    return figure


class LatentVariation(NamedTuple):
    """Decoded paths that differ in one component of the initial state.

    label: the title of the panel. shifts: [N], those of the component. paths: [N, T, 2].
    """

    label: str
    shifts: np.ndarray
    paths: np.ndarray


def latent_variations(variations: Sequence[LatentVariation], columns: int) -> Figure:
    """Draw decoded paths in the plane, coloured by the shift of one component of their initial state.

    After Figure 9 of Chen et al. 2018. A dot is the start of a path.
    """
    figure, panels = style.new_square_figure(len(variations), columns, 2.0, bar=True)
    largest = max(float(np.abs(one.shifts).max()) for one in variations)
    colours = ScalarMappable(Normalize(-largest, largest), style.SHIFT_MAP)
    limits = style.padded_limits(np.concatenate([one.paths.reshape(-1, 2) for one in variations]), margin=0.05)
    for axes, one in zip(panels, variations, strict=False):
        tints = colours.to_rgba(one.shifts)
        axes.add_collection(LineCollection(list(one.paths), colors=tints, linewidth=1.0))
        axes.scatter(one.paths[:, 0, 0], one.paths[:, 0, 1], color=tints, s=9, zorder=3)
        style.style_plane(axes, one.label, limits)
    style.colour_bar(figure, colours, panels, "shift of the component (std of initial states)")
    return figure


def rates_over_time(rates: Sequence[InferredRate], time: str = TIME_LABEL) -> Figure:
    """Draw inferred and true rates of Poisson processes, with one panel per process and one tick per event."""
    figure, panels = style.new_figure(max(len(rates), 1), MAX_COLUMNS, height_in=2.6)
    for axes, one in zip(panels, rates, strict=False):
        if one.truth is not None:
            axes.plot(one.times, one.truth, **TRUTH)
        _draw_band(axes, one.times, one.rates, style.BLUE, "inferred")
        floor = np.full(len(one.events), 0.04)
        axes.plot(one.events, floor, **EVENT, transform=axes.get_xaxis_transform())
        axes.set_ylim(bottom=0)
        style.style_axes(axes, f"{one.label} ({len(one.events)} events)", time, "rate (events / unit of t)")
    if not rates:
        style.style_axes(panels[0], "No rates", time, "rate (events / unit of t)")
    style.legend_below(figure)
    return figure


def error_over_time(
    times: style.Numbers,
    errors: Mapping[str, np.ndarray],
    window: tuple[float, float],
    error: str = "RMSE (units of the data)",
    time: str = TIME_LABEL,
) -> Figure:
    """Draw the error of models against time, within and after the input window.

    Lines are means over runs, bands are ranges over runs. times: [T]; errors: model -> [R, T], one row per run.
    """
    figure, (axes,) = style.new_figure(width_in=5.6, height_in=3.6)
    axes.axvspan(*window, **WINDOW)
    for index, (model, runs) in enumerate(errors.items()):
        tint = style.colour(index)
        axes.plot(times, _mean_and_band(runs)[0], color=tint, linewidth=style.LINE_PT, label=model)
        if len(runs) > 1:
            axes.fill_between(times, runs.min(axis=0), runs.max(axis=0), color=tint, alpha=0.2, linewidth=0)
    if style.spans_decades(np.concatenate([runs.ravel() for runs in errors.values()] or [np.empty(0)])):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    style.style_axes(axes, "Error against time", time, error, legend=True)
    return figure


def _draw_band(axes: Axes, times: np.ndarray, samples: np.ndarray, colour: str, label: str) -> None:
    """Draw the mean of samples [S, T], and a band if there are several."""
    mean, low, high = _mean_and_band(samples)
    axes.plot(times, mean, color=colour, linewidth=style.LINE_PT, label=label)
    if len(samples) > 1:
        axes.fill_between(times, low, high, color=colour, alpha=0.2, linewidth=0, label=BAND_LABEL)


def _mean_and_band(samples: np.ndarray) -> np.ndarray:
    """Return mean and percentiles [3, ...] of samples [S, ...]; NaN if S is 0, or where a sample is not finite."""
    if not len(samples):
        return np.full((3, *samples.shape[1:]), np.nan)
    finite = np.where(np.isfinite(samples), samples, np.nan).astype(float)
    return np.stack([finite.mean(axis=0), *np.percentile(finite, BAND, axis=0)])

"""Curves of a training over its steps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from odebench.plots import style

SMOOTH_FROM = 60  # points; longer series are drawn pale, with their running mean
Row = Mapping[str, Any]


class _CurvePanel(NamedTuple):
    """One panel with two curves. tags: label -> tag in the metrics. scale: a factor for the values of the tags."""

    title: str
    y: str
    tags: dict[str, str]
    scale: float = 1.0


def _train_and_validation(title: str, y: str, name: str, scale: float = 1.0) -> _CurvePanel:
    """A panel with the metric `name` on the training batches and on the validation split."""
    return _CurvePanel(title, y, {"train": f"train/{name}", "validation": f"val/{name}"}, scale)


_PANELS = (
    _train_and_validation("Loss", "loss", "loss"),
    _train_and_validation("Accuracy", "accuracy (%)", "accuracy", 100.0),
    _train_and_validation("Negative log-likelihood", "nats per sample", "nll_nats"),
    _train_and_validation("Bits per dimension", "bits per dimension", "bits_per_dim"),
    _train_and_validation("Kullback-Leibler divergence", "KL (nats)", "kl_nats"),
    _train_and_validation("Evidence lower bound", "nats per series", "elbo_nats"),
    _train_and_validation("Error within the window", "RMSE (units of the data)", "rmse_interpolation"),
    _train_and_validation("Error after the window", "RMSE (units of the data)", "rmse_extrapolation"),
    _CurvePanel(
        "Evaluations of the vector field", "NFE per step", {"forward": "nfe/forward", "backward": "nfe/backward"}
    ),
)


def training_curves(rows: Sequence[Row], title: str | None = None) -> Figure:
    """Draw the loss, the task's quantities and NFE against the optimiser step, from the rows of a run's metrics.

    Omits panels without finite values, and the loss if it equals a quantity of the task. If no panel is left, draws one
    empty panel.
    """
    loss, *others = _PANELS
    others = [panel for panel in others if any(_curves(rows, panel))]
    is_duplicate = any(_curves(rows, loss) == _curves(rows, panel) for panel in others)
    panels = others if is_duplicate or not any(_curves(rows, loss)) else [loss, *others]
    figure, all_axes = style.new_figure(max(len(panels), 1), columns=3)
    if not panels:
        style.style_axes(all_axes[0], "No numbers were logged", "optimiser step", "")
    for panel, axes in zip(panels, all_axes, strict=False):
        _draw_panel(axes, panel, rows)
    if title:
        figure.suptitle(title, fontsize=style.TITLE_PT + 1)
    return figure


def _draw_panel(axes: Axes, panel: _CurvePanel, rows: Sequence[Row]) -> None:
    points = [_points(rows, tag, panel.scale) for tag in panel.tags.values()]
    for label, colour, (steps, values) in zip(panel.tags, (style.BLUE, style.VERMILION), points, strict=True):
        if not values.size:
            continue
        few = values.size <= SMOOTH_FROM
        mark = "o" if values.size <= 25 else ""
        if not few:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
        smooth = values if few else running_mean(values, values.size // 30)
        axes.plot(
            steps,
            smooth,
            color=colour,
            linewidth=style.LINE_PT,
            label=label if few else f"{label} (running mean)",
            zorder=3,
            marker=mark,
            markersize=3.5,
        )
    if panel.title == "Loss" and style.spans_decades(np.concatenate([values for _, values in points])):
        axes.set_yscale("log")
    if panel.title.startswith("Evaluations"):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    style.style_axes(axes, panel.title, "optimiser step", panel.y, legend=True)


def _curves(rows: Sequence[Row], panel: _CurvePanel) -> list[list[float]]:
    """The values of each curve in a panel."""
    return [_points(rows, tag, panel.scale)[1].tolist() for tag in panel.tags.values()]


def _points(rows: Sequence[Row], tag: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The steps and the scaled values of the tag in the rows in which both are finite."""
    pairs = [(row["step"], row[tag]) for row in rows if row.get("step") is not None and row.get(tag) is not None]
    array = np.asarray(pairs, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[:, 0], array[:, 1] * scale


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over each point and up to `width` points on each side; near the ends there are fewer."""
    kernel = np.ones(2 * width + 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")

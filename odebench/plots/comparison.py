"""Many runs in one figure: lines and points of two quantities, side by side."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from odebench.plots import style

STROKES = ("-", "--", ":")
MAX_LINES = 2 * len(style.COLOURS)  # solid, then dashed, of a panel; those of another panel may be dotted
MAX_NAMED = 30
FEW_POINTS = 300
RASTER_FROM = 2000  # points; an SVG of more would weigh megabytes
PANEL_IN = (5.2, 3.8)


Numbers = Sequence[float] | np.ndarray


class Line(NamedTuple):
    """One series of points; those with a coordinate that is not finite are left out.

    x, y: [N]. y_spread: [N], half the length of a bar or of a band, 0 or NaN where there is none.
    names: [N], written at the points where these are few.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    y_spread: np.ndarray | None = None
    names: Sequence[str] = ()


class Guide(NamedTuple):
    """A dashed line to compare with: a constant ``level``, or the points x, y."""

    label: str
    level: float | None = None
    x: Numbers = ()
    y: Numbers = ()


class Panel(NamedTuple):
    """What stands in one panel. x, y: labels with units; see `comparison` for the rest."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    guides: Sequence[Guide] = ()
    joined: bool = True
    curves: bool = False
    x_log: bool | None = None
    y_log: bool | None = None
    x_falls: bool = False


def comparison(panels: Sequence[Panel], columns: int = 3) -> Figure:
    """The panels, up to `columns` in a row, under one legend; a label has the same look in all of them. A line without
    a point only keeps its look from the others.

    joined: points of a line are joined in their order. curves: lines are curves without markers, but for a single
    point, and spreads are bands. x_log, y_log: logarithmic axes; None: where the numbers span decades. x_falls: the x
    axis runs from large to small, as tolerances do.
    """
    figure, all_axes = style.new_figure(len(panels), columns, *PANEL_IN)
    places = {label: index for index, label in enumerate(dict.fromkeys(_labels(panels)))}
    for panel, axes in zip(panels, all_axes, strict=True):
        lines = [_finite(line) for line in panel.lines]
        total, named = sum(len(line.x) for line in lines), sum(bool(name) for line in lines for name in line.names)
        for line in filter(_has_points, lines):
            _draw(axes, panel, line, places[line.label], total, named)
        for index, guide in enumerate(panel.guides):
            _draw_guide(axes, guide, index)
        _scale(axes, panel, lines)
        style.dress(axes, panel.title, panel.x, panel.y)
    style.legend_below(figure)
    return figure


def _labels(panels: Sequence[Panel]) -> list[str]:
    return [line.label for panel in panels for line in panel.lines]


def _finite(line: Line) -> Line:
    """The line without what cannot be drawn."""
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    kept = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    spread = None if line.y_spread is None else np.nan_to_num(np.asarray(line.y_spread, dtype=float)[kept])
    names = [name for i, name in enumerate(line.names) if i in set(kept)]
    return Line(line.label, x[kept], y[kept], spread, names)


def _has_points(line: Line) -> bool:
    return len(line.x) > 0


def _draw(axes: Axes, panel: Panel, line: Line, place: int, total: int, named: int) -> None:
    tint = style.colour(place)
    stroke = STROKES[place // len(style.COLOURS) % len(STROKES)]
    (drawn,) = axes.plot(
        line.x,
        line.y,
        color=tint,
        linestyle=stroke if panel.joined or panel.curves else "none",
        linewidth=style.LINE_PT,
        marker="" if panel.curves and len(line.x) > 1 else style.marker(place),
        markersize=6 if total <= FEW_POINTS else 4,
        alpha=1.0 if total <= FEW_POINTS or panel.curves else 0.5,
        markeredgewidth=0.8 if panel.joined else 0,
        rasterized=total > RASTER_FROM,
        label=line.label or None,
    )
    if stroke != "-":
        drawn.set_markerfacecolor("white")
        drawn.set_markeredgewidth(1.2)
    if line.y_spread is not None and line.y_spread.any():
        if panel.curves:
            low, high = line.y - line.y_spread, line.y + line.y_spread
            axes.fill_between(line.x, low, high, color=tint, alpha=0.15, linewidth=0)
        elif total <= FEW_POINTS:
            axes.errorbar(line.x, line.y, line.y_spread, fmt="none", ecolor=tint, elinewidth=1.0, capsize=2.5)
    if named <= MAX_NAMED:
        look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5, "color": tint}
        for x, y, name in zip(line.x, line.y, line.names, strict=False):
            if name:
                axes.annotate(name, (x, y), (0, 7), **look)


def _draw_guide(axes: Axes, guide: Guide, index: int) -> None:
    stroke = (0, ((5, 3), (1, 2), (8, 3, 1, 3))[index % 3])
    if guide.level is not None:
        axes.axhline(guide.level, color=style.GREY, linestyle=stroke, linewidth=1.3, label=guide.label)
    else:
        axes.plot(guide.x, guide.y, color=style.GREY, linestyle=stroke, linewidth=1.3, label=guide.label)


def _scale(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    asked_of: dict[Literal["x", "y"], bool | None] = {"x": panel.x_log, "y": panel.y_log}
    for axis, asked in asked_of.items():
        values = np.concatenate([getattr(line, axis) for line in lines] or [np.empty(0)])
        if _is_log(values, asked):
            axes.set(**{f"{axis}scale": "log"})
            low, high = getattr(axes, f"get_{axis}lim")()
            if high / low < 1000 and not (panel.x_falls and axis == "x"):
                ruler = axes.xaxis if axis == "x" else axes.yaxis
                ruler.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ruler.set_major_formatter(
                    "{x:g}" if values.min() > 1e-3 else LogFormatterSciNotation(minor_thresholds=(9, 9))
                )
                ruler.set_minor_formatter(NullFormatter())
        else:
            axes.ticklabel_format(axis=axis, useOffset=False)
            axes.margins(x=0.08 if axis == "x" else None, y=0.08 if axis == "y" else None)
            if values.size and 0 <= values.min() < 0.5 * values.max():
                axes.set(**{f"{axis}lim": (0, 1.08 * max(_top(line, axis) for line in lines))})
    if panel.x_falls:
        axes.invert_xaxis()


def _top(line: Line, part: str) -> float:
    """How far the line reaches, with its spread."""
    values = getattr(line, part)
    if part == "y" and line.y_spread is not None:
        values = values + line.y_spread
    return values.max(initial=0.0)


def _is_log(values: np.ndarray, asked: bool | None) -> bool:
    if not values.size or values.min() <= 0:
        return False
    return style.spans_decades(values) if asked is None else asked

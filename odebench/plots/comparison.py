"""Many runs in one figure: lines and points of two quantities, side by side."""

import textwrap
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter

from odebench.plots import labels, style

STROKES = ("-", "--", ":")
MAX_LINES = 2 * len(style.COLOURS)  # solid, then dashed, of a panel; those of another panel may be dotted
MAX_NAMED = 30
FEW_POINTS = 300
RASTER_FROM = 2000  # points; an SVG of more would weigh megabytes
PANEL_IN = (5.2, 3.8)
TITLE_LETTERS = 46  # in a line: more would run into the next panel
# What axes are of is read from their labels: of counts, which have no halves, and of costs, nought being their measure.
COUNTS = ("NFE", "(evaluations)", "optimiser step")
COSTS = (*COUNTS, "(MiB)", "(ms)", "(min)")
LEAST_SPAN = 0.25  # of the largest cost: an axis of one per cent makes any change look steep
MAX_NOTED = 4  # guides of a panel
FAR = 3.0  # times the largest or a part of the smallest number: what is further off would flatten the points


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
    """A dashed line to compare with: a constant ``level``, or the points x, y.

    note: written at the level, in place of an entry of its own in the legend, which names its ``source`` once. Of these
    a panel shows the few that are nearest to its points, and none that is far from them.
    is_front: x, y are points, in rings, and steps lead from one to the next.
    """

    label: str
    level: float | None = None
    x: Numbers = ()
    y: Numbers = ()
    note: str = ""
    source: str = ""
    is_front: bool = False


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
    drawn: set[str] = set()
    for panel, axes in zip(panels, all_axes, strict=True):
        lines = list(filter(_has_points, map(_finite, panel.lines)))
        shown = _shown(panel, lines)
        drawn |= {guide.label for guide in shown}
        total = sum(len(line.x) for line in lines)
        for line in lines:
            _draw(axes, panel, line, places[line.label], total)
        for index, guide in enumerate(shown):
            _draw_guide(axes, guide, 0 if guide.note else index)
        _scale(axes, panel, lines, shown)
        _write(axes, panel, lines, shown, places)
        style.dress(axes, textwrap.fill(panel.title, TITLE_LETTERS), panel.x, panel.y)
    style.legend_below(figure, _sources(panels, drawn))
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


def _shown(panel: Panel, lines: Sequence[Line]) -> list[Guide]:
    """The panel's guides; of those with notes the few that are nearest to the points."""
    values = np.concatenate([line.y for line in lines] or [np.empty(0)])

    def distance(guide: Guide) -> float:
        return float(np.abs(values - guide.level).min())

    near = [one for one in panel.guides if one.note and one.level is not None and _is_near(one.level, values)]
    nearest = {guide.label for guide in sorted(near, key=distance)[:MAX_NOTED]}
    return [guide for guide in panel.guides if not guide.note or guide.label in nearest]


def _is_near(level: float, values: np.ndarray) -> bool:
    if not values.size:
        return False
    low, high = float(values.min()), float(values.max())
    if low > 0:
        return low / FAR <= level <= high * FAR
    span = max(high - low, abs(low))
    return low - span <= level <= high + span


def _sources(panels: Sequence[Panel], drawn: Set[str]) -> dict[str, str]:
    """What the legend says in place of the labels of guides with notes: one entry a source, and whether some of its
    guides are not drawn."""
    noted = [guide for panel in panels for guide in panel.guides if guide.note]
    part = {guide.source for guide in noted if guide.label not in drawn}
    return {one.label: f"{one.source} (the nearest)" if one.source in part else one.source for one in noted}


def _write(axes: Axes, panel: Panel, lines: Sequence[Line], shown: Sequence[Guide], places: Mapping[str, int]) -> None:
    """The notes of the guides, and the names of the points where these are few."""
    taken = [box for line in lines for box in labels.boxes_of(axes, line.x, line.y, line.y_spread)]
    notes = {guide.note: guide.level for guide in shown if guide.note and guide.level is not None}
    taken = labels.write_notes(axes, notes, taken)
    if sum(bool(name) for line in lines for name in line.names) <= MAX_NAMED:
        named = [labels.NamedPoints(line.x, line.y, line.names, style.colour(places[line.label])) for line in lines]
        labels.write_names(axes, named, taken, is_cloud=not panel.joined)


def _draw(axes: Axes, panel: Panel, line: Line, place: int, total: int) -> None:
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


def _draw_guide(axes: Axes, guide: Guide, index: int) -> None:
    stroke = (0, ((5, 3), (1, 2), (8, 3, 1, 3))[index % 3])
    look: dict[str, Any] = {"color": style.GREY, "linestyle": stroke, "linewidth": 1.3, "label": guide.label}
    if guide.level is not None:
        axes.axhline(guide.level, zorder=1.7, **look)
    elif guide.is_front:
        rings: dict[str, Any] = {"marker": "o", "markersize": 11, "fillstyle": "none", "markeredgewidth": 1.2}
        axes.plot(guide.x, guide.y, drawstyle="steps-post", **rings, **look)
    else:
        axes.plot(guide.x, guide.y, **look)


def _scale(axes: Axes, panel: Panel, lines: Sequence[Line], shown: Sequence[Guide]) -> None:
    asked_of: dict[Literal["x", "y"], bool | None] = {"x": panel.x_log, "y": panel.y_log}
    for axis, asked in asked_of.items():
        values = np.concatenate([getattr(line, axis) for line in lines] or [np.empty(0)])
        if _is_log(values, asked):
            _scale_log(axes, axis, values, falls=panel.x_falls and axis == "x")
        else:
            tops = [_top(line, axis) for line in lines]
            if axis == "y":
                tops += [guide.level for guide in shown if guide.level is not None]
            _scale_linear(axes, axis, values, max(tops, default=0.0), getattr(panel, axis))
    if panel.x_falls:
        axes.invert_xaxis()


def _scale_log(axes: Axes, axis: str, values: np.ndarray, falls: bool) -> None:
    axes.set(**{f"{axis}scale": "log"})
    low, high = getattr(axes, f"get_{axis}lim")()
    if high / low < 1000 and not falls:
        ruler = axes.xaxis if axis == "x" else axes.yaxis
        ruler.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ruler.set_major_formatter("{x:g}" if values.min() > 1e-3 else LogFormatterSciNotation(minor_thresholds=(9, 9)))
        ruler.set_minor_formatter(NullFormatter())


def _scale_linear(axes: Axes, axis: Literal["x", "y"], values: np.ndarray, top: float, label: str) -> None:
    """top: how far the axis reaches that starts at nought."""
    axes.ticklabel_format(axis=axis, useOffset=False)
    axes.margins(x=0.08 if axis == "x" else None, y=0.08 if axis == "y" else None)
    is_count, is_cost = (any(words in label for words in some) for some in (COUNTS, COSTS))
    if is_count:
        ruler = axes.xaxis if axis == "x" else axes.yaxis
        ruler.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if not values.size:
        return
    if 0 <= values.min() < 0.5 * values.max():
        axes.set(**{f"{axis}lim": (0, 1.08 * top)})
    elif values.min() >= 0 and is_cost:
        low, high = getattr(axes, f"get_{axis}lim")()
        least = max(LEAST_SPAN * values.max(), 2.0 if is_count else 0.0)
        more = max(least - (high - low), 0.0) / 2
        axes.set(**{f"{axis}lim": (max(low - more, 0.0), high + more)})


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

"""Compare many runs in one figure: panels with lines or points of two quantities."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter

from odebench.plots import style, text_placement

LINE_STYLES: Any = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)))
MAX_LINES = 2 * len(style.COLOURS)  # per panel: first solid lines, then dashed; lines of other panels may be dotted
MAX_POINT_LABELS = 30
FEW_POINTS = 300
RASTER_FROM = 2000  # points; larger SVGs would take megabytes
PANEL_IN = (5.2, 3.8)
MAX_TITLE_LETTERS = 46  # per line of a title; longer lines would overlap the next panel
# Words in an axis label that mark a count, which gets integer ticks, or a cost, whose axis starts at zero.
COUNT_WORDS = ("NFE", "(evaluations)", "optimiser step")
COST_WORDS = (*COUNT_WORDS, "(MiB)", "(ms)", "(min)")
MIN_RELATIVE_SPAN = 0.25  # of a cost axis, relative to the largest cost: on a shorter axis 1 % would look steep
MAX_LABELLED_LINES = 4  # reference lines per panel
MAX_DISTANCE_FACTOR = 3.0  # hide reference lines further than this from the data: they would flatten it
OVERLAP_PX = 1.5  # points nearer than this hide each other
MIN_OVERLAP = 0.7  # of the points of a line, from which it is drawn wider
MAX_COMPARED = 200  # points of a line
BELOW = "zero or less"
PART = re.compile(r", (?![^\[(]*[\])])")  # between the parts of a label; a part may be a list: [8, 8]


class Line(NamedTuple):
    """One series of points; points with a coordinate that is not finite are not drawn.

    x, y: [N]. y_error: [N], half the length of an error bar or band; 0 or NaN for none.
    point_labels: [N], texts that are written at the points if these are few.
    runs: [N], or [1] if all points are of one: the folders of the runs that the points show. ends: [N]; the points are
    intervals from x to these. marker: draws the line in grey and dotted, with this marker.
    x_range: [N, 2], the ends of horizontal bars; NaN for none.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    y_error: np.ndarray | None = None
    point_labels: Sequence[str] = ()
    runs: Sequence[str] = ()
    ends: np.ndarray | None = None
    marker: str = ""
    x_range: np.ndarray | None = None

    def finite(self) -> "Line":
        """The line without points that are not finite."""
        x, y = np.asarray(self.x, dtype=float), np.asarray(self.y, dtype=float)
        kept = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        y_error = None if self.y_error is None else np.nan_to_num(np.asarray(self.y_error, dtype=float)[kept])
        point_labels = [self.point_labels[i] for i in kept.tolist()] if self.point_labels else []
        runs = [self.runs[i] for i in kept.tolist()] if len(self.runs) == len(x) else self.runs
        ends = None if self.ends is None else np.asarray(self.ends, dtype=float)[kept]
        x_range = None if self.x_range is None else self.x_range[kept]
        return Line(self.label, x[kept], y[kept], y_error, point_labels, runs, ends, self.marker, x_range)

    def values(self, axis: str) -> np.ndarray:
        """The coordinates along an axis, x or y, with the ends of intervals."""
        return np.append(self.x, self.ends) if axis == "x" and self.ends is not None else getattr(self, axis)


def num_points(lines: Iterable[Line]) -> int:
    """The number of finite points of all lines together."""
    return sum(len(line.finite().x) for line in lines)


class ReferenceLine(NamedTuple):
    """A dashed line for reference: a constant ``level``, or the points x, y.

    note: a text at the line; the legend then shows ``source`` instead of the label, each source once. A panel shows
    only those few lines with notes that are nearest to its points.
    is_front: whether x, y are points of a Pareto front, which is drawn as circles connected by steps.
    """

    label: str
    level: float | None = None
    x: style.Numbers = ()
    y: style.Numbers = ()
    note: str = ""
    source: str = ""
    is_front: bool = False


class Panel(NamedTuple):
    """Content of one panel. x, y: axis labels with units; see `comparison_figure` for the other fields."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    reference_lines: Sequence[ReferenceLine] = ()
    connect_points: bool = True
    as_curves: bool = False
    x_log: bool | None = None
    y_log: bool | None = None
    x_descending: bool = False


class Comparison(NamedTuple):
    """The panels of a figure, up to ``columns`` in a row."""

    panels: Sequence[Panel]
    columns: int = 3


def comparison_figure(
    panels: Sequence[Panel],
    columns: int = 3,
    styles: dict[str, int] | None = None,
    panel_in: tuple[float, float] = PANEL_IN,
) -> Figure:
    """Draw the panels, up to `columns` in a row, with one legend.

    Lines with the same label have the same style in all panels, also if one of them is empty. styles: label -> number
    of its style in other figures; labels that are missing are added. panel_in: width and height of a panel in inches.

    Fields of a panel: connect_points: connect the points of a line in order. as_curves: draw curves without markers,
    and errors as bands. x_log, y_log: whether an axis is logarithmic; None: only if the values span decades. With
    y_log=True, triangles at the lower edge stand for values of zero or less. x_descending: x decreases to the right,
    as is usual for tolerances.
    """
    figure, all_axes = style.new_figure(len(panels), columns, *panel_in)
    labels = dict.fromkeys(line.label for panel in panels for line in panel.lines)
    style_indices = _choose_styles(labels, {} if styles is None else styles)
    drawn: set[str] = set()
    letters = int(MAX_TITLE_LETTERS * panel_in[0] / style.pt(PANEL_IN[0]))
    for number, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        lines = [line for line in map(Line.finite, panel.lines) if len(line.x)]
        shown = _visible_reference_lines(panel, lines)
        drawn |= {reference.label for reference in shown}
        total = sum(len(line.x) for line in lines)
        artists = [
            _draw(axes, panel, line, style_indices[line.label], total, series_id(number, index))
            for index, line in enumerate(lines)
        ]
        for line in lines:
            _draw_bars(axes, line, style.colour(style_indices[line.label]))
            if panel.y_log:
                _mark_below(axes, line, style.colour(style_indices[line.label]))
        for index, reference in enumerate(shown):
            _draw_reference_line(axes, reference, 0 if reference.note else index)
        _scale(axes, panel, lines, shown)
        if panel.connect_points or panel.as_curves:
            _separate_overlaps(axes, artists)
        _write_labels(axes, panel, lines, shown, style_indices)
        style.style_axes(axes, textwrap.fill(panel.title, letters), panel.x, panel.y)
    style.legend_below(figure, short_labels(panels) | _sources(panels, drawn))
    return figure


def short_labels(panels: Sequence[Panel]) -> dict[str, str]:
    """Label -> the same without the parts that all series share, if this still tells the series apart."""
    labels = {line.label for panel in panels for line in panel.lines if not line.marker and len(line.finite().x)}
    parts = {label: PART.split(label) for label in labels}
    shared = set[str].intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    short = {label: ", ".join(part for part in its if part not in shared) for label, its in parts.items()}
    return short if all(short.values()) and len(set(short.values())) == len(short) else {}


def series_id(panel: int, index: int) -> str:
    """The id of a line in an SVG file: the number of its panel, and its own among the panel's lines with points.

    The ids of its error bars and bands begin alike.
    """
    return f"series-{panel}-{index}"


def _choose_styles(labels: Iterable[str], styles: dict[str, int]) -> dict[str, int]:
    """Choose a style for each label: its style in ``styles``, else one that no label has, or at least none of these.

    Adds the choices to ``styles``.
    """
    labels, chosen = list(labels), dict[str, int]()
    for label in labels:
        number = styles.get(label)
        if number is None or number in chosen.values():
            free = set(range(MAX_LINES)) - {*chosen.values(), *(styles[one] for one in labels if one in styles)}
            number = min(free - {*styles.values()} or free or {len(chosen)})
        chosen[label] = number
        styles.setdefault(label, number)
    return chosen


def _separate_overlaps(axes: Axes, artists: Sequence[Line2D]) -> None:
    """Widen lines behind the lines that would hide them, and draw their markers as rings. Sets no positions."""
    placed: list[np.ndarray] = []
    for artist in artists:
        points = axes.transData.transform(artist.get_xydata())
        points = points[np.isfinite(points).all(1)][:: max(len(points) // MAX_COMPARED, 1)]
        hidden = [np.abs(points[:, None] - other).max(-1).min(-1) < OVERLAP_PX for other in placed if len(other)]
        rank = min(sum(bool(len(one)) and one.mean() >= MIN_OVERLAP for one in hidden), 3)
        placed.append(points)
        if rank:
            artist.set(linewidth=style.pt(style.LINE_PT + 2.6 * rank), zorder=artist.get_zorder() - 0.1 * rank)
            artist.set(markersize=artist.get_markersize() + style.pt(4 * rank), fillstyle="none", markeredgewidth=1.2)


def _visible_reference_lines(panel: Panel, lines: Sequence[Line]) -> list[ReferenceLine]:
    """The panel's reference lines; among those with notes, only the few that are nearest to its points."""
    values = np.concatenate([line.y for line in lines] or [np.empty(0)])

    def distance(reference: ReferenceLine) -> float:
        return float(np.abs(values - reference.level).min())

    near = [one for one in panel.reference_lines if one.note and one.level is not None and _is_near(one.level, values)]
    nearest = {reference.label for reference in sorted(near, key=distance)[:MAX_LABELLED_LINES]}
    return [reference for reference in panel.reference_lines if not reference.note or reference.label in nearest]


def _is_near(level: float, values: np.ndarray) -> bool:
    if not values.size:
        return False
    low, high = float(values.min()), float(values.max())
    if low > 0:
        return low / MAX_DISTANCE_FACTOR <= level <= high * MAX_DISTANCE_FACTOR
    span = max(high - low, abs(low))
    return low - span <= level <= high + span


def _sources(panels: Sequence[Panel], drawn: Set[str]) -> dict[str, str]:
    """Label -> legend entry, for reference lines with notes: the source, and whether only the nearest are drawn."""
    noted = [reference for panel in panels for reference in panel.reference_lines if reference.note]
    part = {reference.source for reference in noted if reference.label not in drawn}
    return {one.label: f"{one.source} (the nearest)" if one.source in part else one.source for one in noted}


def _write_labels(
    axes: Axes, panel: Panel, lines: Sequence[Line], shown: Sequence[ReferenceLine], style_indices: Mapping[str, int]
) -> None:
    """Write the notes of reference lines, and the labels of points if these are few."""
    occupied = [box for line in lines for box in text_placement.marker_boxes(axes, line.x, line.y, line.y_error)]
    notes = {reference.note: reference.level for reference in shown if reference.note and reference.level is not None}
    occupied = text_placement.write_line_labels(axes, notes, occupied)
    if sum(bool(label) for line in lines for label in line.point_labels) <= MAX_POINT_LABELS:
        labelled = [
            text_placement.LabelledPoints(line.x, line.y, line.point_labels, style.colour(style_indices[line.label]))
            for line in lines
        ]
        paths: list[tuple[Any, Any]] = [(line.x, line.y) for line in lines if panel.connect_points]
        ends = np.array(axes.get_xlim())
        paths += [(one.x, one.y) if one.level is None else (ends, np.full(2, one.level)) for one in shown]
        crossed = [box for path in paths for box in text_placement.line_boxes(axes, *map(np.asarray, path))]
        text_placement.write_point_labels(axes, labelled, occupied, not panel.connect_points, crossed)


def _draw(axes: Axes, panel: Panel, line: Line, style_index: int, total: int, gid: str) -> Line2D:
    tint = style.GREY if line.marker else style.colour(style_index)
    line_style = ":" if line.marker else LINE_STYLES[style_index // len(style.COLOURS) % len(LINE_STYLES)]
    (drawn,) = axes.plot(
        *_path(line),
        gid=gid,
        markevery=None if line.ends is None else 3,  # at the first end of an interval
        clip_on=line.ends is None,  # a step may start on an axis
        color=tint,
        linestyle=line_style if panel.connect_points or panel.as_curves else "none",
        linewidth=style.pt(style.LINE_PT),
        marker=line.marker or ("" if panel.as_curves and len(line.x) > 1 else style.marker(style_index)),
        markersize=style.pt(6 if total <= FEW_POINTS else 4),
        alpha=1.0 if total <= FEW_POINTS or panel.as_curves else 0.5,
        markeredgewidth=1.5 if line.marker else 0.8 if panel.connect_points else 0,
        rasterized=total > RASTER_FROM,
        label=line.label or None,
    )
    if line_style != "-" and not line.marker:
        drawn.set(markerfacecolor="white", markeredgewidth=1.2)
    if not (panel.connect_points or panel.as_curves) and total <= FEW_POINTS:
        drawn.set(markerfacecolor="none", markeredgewidth=1.4)  # points behind others stay visible
    if line.y_error is not None and line.y_error.any():
        if panel.as_curves:
            low, high = line.y - line.y_error, line.y + line.y_error
            axes.fill_between(line.x, low, high, color=tint, alpha=0.15, linewidth=0, gid=f"{gid}-band")
        elif total <= FEW_POINTS:
            bars = axes.errorbar(line.x, line.y, line.y_error, fmt="none", ecolor=tint, elinewidth=1.0, capsize=2.5)
            for index, part in enumerate(bars.get_children()):
                part.set_gid(f"{gid}-bar{index}")
    return drawn


def _path(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line; those of intervals have gaps between them."""
    if line.ends is None:
        return line.x, line.y
    gap = np.full(len(line.x), np.nan)
    return np.stack([line.x, line.ends, gap], 1).ravel(), np.stack([line.y, line.y, gap], 1).ravel()


def _draw_bars(axes: Axes, line: Line, tint: str) -> None:
    """Draw the horizontal bars of the points."""
    if line.x_range is not None:
        low, high = line.x_range.T
        axes.hlines(line.y, low, high, color=tint, linewidth=4.5, alpha=0.35)


def _mark_below(axes: Axes, line: Line, tint: str) -> None:
    """Draw triangles at the lower edge for points that a logarithmic axis cannot show."""
    x = line.x[line.y <= 0]
    if len(x):
        axes.plot(
            x,
            np.zeros(len(x)),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="v",
            markersize=8,
            color=tint,
            markerfacecolor="white",
            clip_on=False,
            label=BELOW,
        )


def _draw_reference_line(axes: Axes, reference: ReferenceLine, index: int) -> None:
    line_style = (0, ((5, 3), (1, 2), (8, 3, 1, 3))[index % 3])
    options: dict[str, Any] = {
        "color": style.GREY,
        "linestyle": line_style,
        "linewidth": style.pt(1.3),
        "label": reference.label,
    }
    if reference.level is not None:
        axes.axhline(reference.level, zorder=1.7, **options)
    elif reference.is_front:
        rings: dict[str, Any] = {"marker": "o", "markersize": style.pt(11), "fillstyle": "none", "markeredgewidth": 1.2}
        axes.plot(reference.x, reference.y, drawstyle="steps-post", **rings, **options)
    else:
        axes.plot(reference.x, reference.y, **options)


def _scale(axes: Axes, panel: Panel, lines: Sequence[Line], shown: Sequence[ReferenceLine]) -> None:
    requested: dict[Literal["x", "y"], bool | None] = {"x": panel.x_log, "y": panel.y_log}
    for axis, log_scale in requested.items():
        values = np.concatenate([line.values(axis) for line in lines] or [np.empty(0)])
        is_log = style.spans_decades(values) if log_scale is None else log_scale
        positive = values[values > 0]
        if is_log and positive.size and (len(positive) == len(values) or (axis == "y" and log_scale)):
            _scale_log(axes, axis, positive, descending=panel.x_descending and axis == "x")
        else:
            tops = [_upper_end(line, axis) for line in lines]
            if axis == "y":
                tops += [reference.level for reference in shown if reference.level is not None]
            _scale_linear(axes, axis, values, max(tops, default=0.0), getattr(panel, axis))
    if panel.x_descending:
        axes.invert_xaxis()


def _scale_log(axes: Axes, axis: str, values: np.ndarray, descending: bool) -> None:
    axes.set(**{f"{axis}scale": "log"})
    low, high = getattr(axes, f"get_{axis}lim")()
    if high / low < 1000 and not descending:
        ruler = axes.xaxis if axis == "x" else axes.yaxis
        ruler.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ruler.set_major_formatter("{x:g}" if values.min() > 1e-3 else LogFormatterSciNotation(minor_thresholds=(9, 9)))
        ruler.set_minor_formatter(NullFormatter())


def _scale_linear(axes: Axes, axis: Literal["x", "y"], values: np.ndarray, top: float, label: str) -> None:
    """Set the limits and ticks of a linear axis. top: its upper end if it starts at zero."""
    axes.ticklabel_format(axis=axis, useOffset=False)
    axes.margins(x=0.08 if axis == "x" else None, y=0.08 if axis == "y" else None)
    is_count, is_cost = (any(words in label for words in some) for some in (COUNT_WORDS, COST_WORDS))
    if is_count:
        ruler = axes.xaxis if axis == "x" else axes.yaxis
        ruler.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if not values.size:
        return
    if 0 <= values.min() < 0.5 * values.max():
        axes.set(**{f"{axis}lim": (0, 1.08 * top)})
    elif values.min() >= 0 and is_cost:
        low, high = getattr(axes, f"get_{axis}lim")()
        least = max(MIN_RELATIVE_SPAN * values.max(), 2.0 if is_count else 0.0)
        more = max(least - (high - low), 0.0) / 2
        axes.set(**{f"{axis}lim": (max(low - more, 0.0), high + more)})


def _upper_end(line: Line, part: str) -> float:
    """The largest value of the line, including error bars."""
    values = line.values(part)
    if part == "y" and line.y_error is not None:
        values = values + line.y_error
    return values.max(initial=0.0)

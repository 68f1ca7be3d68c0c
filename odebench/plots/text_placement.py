"""Place text inside axes without overlaps: labels beside points, and at horizontal lines."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from odebench.plots import style

# Approximate width of a letter relative to its height, and of what surrounds axes, used to find free space.
LETTER_WIDTH = 0.58
AROUND_AXES_PT = np.array([64.4, 58.6])
POINT_LABEL_PT, LINE_LABEL_PT = 7.5, 6.5
MARKER_PT = 6.0
OFFSET_PT = 7.0  # from a point to its label: beside error bars and circles
OVER_PT = 6.0  # to a label over or under it
LINE_STEP_PT = 3.0  # between the boxes that stand for a line
MERGE_DISTANCE_PT = 6.0  # points nearer than this share a label
MAX_UNPLACED = 3  # if more labels than this do not fit into a scatter plot, write none

Box = tuple[float, float, float, float]  # left, bottom, right, top


class LabelledPoints(NamedTuple):
    """Points of one colour. x, y: [N]; labels: [N], "" for no label."""

    x: np.ndarray
    y: np.ndarray
    labels: Sequence[str]
    tint: str


class _PlacedLabel(NamedTuple):
    """A label at a point. side: -1 if it is left of the point, 1 if right, 0 if over or under it; rise: 1 or -1."""

    text: str
    point: tuple[float, float]
    tint: str
    side: int
    rise: int


def axes_pt(axes: Axes) -> np.ndarray:
    """The approximate width and height of axes in points, before the layout of the figure is known."""
    figure, place = axes.get_figure(), axes.get_subplotspec()
    assert isinstance(figure, Figure)
    assert place is not None
    rows, columns = place.get_gridspec().get_geometry()
    return 72 * figure.get_size_inches() / (columns, rows) - style.pt(1) * AROUND_AXES_PT


def marker_boxes(axes: Axes, x: np.ndarray, y: np.ndarray, y_error: np.ndarray | None = None) -> list[Box]:
    """Boxes around the markers and the error bars of points."""
    half, half_lengths = MARKER_PT / 2, np.zeros(len(y)) if y_error is None else y_error
    ends = zip(_to_points(axes, x, y - half_lengths), _to_points(axes, x, y + half_lengths), strict=True)
    return [(at - half, bottom - half, at + half, top + half) for (at, bottom), (_, top) in ends]


def line_boxes(axes: Axes, x: np.ndarray, y: np.ndarray) -> list[Box]:
    """Small boxes along the lines that connect points."""
    at = _to_points(axes, x, y)
    boxes: list[Box] = []
    for start, end in itertools.pairwise(at[np.isfinite(at).all(axis=1)]):
        steps = np.linspace(0, 1, max(int(np.hypot(*(end - start)) / LINE_STEP_PT), 1) + 1)[:, None]
        boxes += [(px - 0.5, py - 0.5, px + 0.5, py + 0.5) for px, py in (start + steps * (end - start)).tolist()]
    return boxes


def write_line_labels(axes: Axes, line_labels: Mapping[str, float], occupied: Sequence[Box]) -> list[Box]:
    """Write texts at horizontal lines: at the left or right end, above or below the line, where they overlap least.

    line_labels: text -> level of its line. A prefix that all texts share is written only at the highest line. Returns
    all occupied boxes.
    """
    size, line_label_pt = axes_pt(axes), style.pt(LINE_LABEL_PT)
    texts = sorted(line_labels, key=line_labels.__getitem__, reverse=True)
    shared = _common_prefix(texts)
    levels = np.array([line_labels[text] for text in texts])
    at = _to_points(axes, np.full(len(texts), axes.get_xlim()[0]), levels)[:, 1]
    lines = [(0.0, y - 0.7, float(size[0]), y + 0.7) for y in at]
    written: list[Box] = []

    def overlap_cost(box: Box) -> int:
        others = [(written, 100), (occupied, 10), (lines, 4)]  # overlapping texts are worst
        outside = box[1] < 0 or box[3] > size[1]
        return 100 * outside + sum(weight * _overlap(box, one) for boxes, weight in others for one in boxes)

    for index, (text, y) in enumerate(zip(texts, at, strict=True)):
        shown = text.removeprefix(shared) if index else text
        width = _width(shown, line_label_pt)
        choices = {}
        for rise in (1, -1):
            bottom = y + 1 if rise > 0 else y - 1 - line_label_pt
            choices[1.0, rise] = (size[0] - width, bottom, size[0], bottom + line_label_pt)
            choices[0.0, rise] = (0.0, bottom, width, bottom + line_label_pt)
        end, rise = min(choices, key=lambda choice: overlap_cost(choices[choice]))
        written.append(choices[end, rise])
        axes.annotate(
            shown,
            (end, line_labels[text]),
            (-5 if end else 3, rise),  # the halo makes letters wider than estimated
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right" if end else "left",
            va="bottom" if rise > 0 else "top",
            fontsize=line_label_pt,
            color=style.GREY,
            path_effects=[style.HALO],
            zorder=1.8,  # over the dashed lines, under the points
        )
    return [*occupied, *written]


def _common_prefix(texts: Sequence[str]) -> str:
    """The prefix that all texts share, up to and including a comma."""
    parts = zip(*(text.split(", ")[:-1] for text in texts), strict=False)
    return "".join(f"{alike[0]}, " for alike in itertools.takewhile(lambda alike: len(set(alike)) == 1, parts))


def write_point_labels(
    axes: Axes,
    lines: Sequence[LabelledPoints],
    occupied: Sequence[Box],
    is_scatter: bool,
    crossed: Sequence[Box] = (),
) -> None:
    """Write the labels beside their points where they overlap nothing; omit labels that do not fit.

    is_scatter: omit all labels if more than ``MAX_UNPLACED`` do not fit. crossed: boxes that labels cover only where
    they have no better place.
    """
    occupied, written = list(occupied), []
    for line in lines:
        for choices in _candidate_positions(axes, line):
            free = [(label, box) for label, box in choices if not any(_overlap(box, other) for other in occupied)]
            if free:
                label, box = min(free, key=lambda choice: sum(_overlap(choice[1], other) for other in crossed))
                written.append(label)
                occupied.append(box)
    total = sum(bool(label) for line in lines for label in line.labels)
    if is_scatter and total - len(written) > MAX_UNPLACED:
        return
    options: dict[str, Any] = {
        "textcoords": "offset points",
        "fontsize": style.pt(POINT_LABEL_PT),
        "path_effects": [style.HALO],
    }
    for text, point, tint, side, rise in written:
        ends = {-1: "right", 0: "center", 1: "left"}
        options |= {"ha": ends[side], "va": "bottom" if rise > 0 else "top", "color": tint}
        axes.annotate(text, point, (side * OFFSET_PT, rise * (1 if side else OVER_PT)), **options)


def _candidate_positions(axes: Axes, line: LabelledPoints) -> Iterator[list[tuple[_PlacedLabel, Box]]]:
    """Yield for each label of a line the positions around its point that lie inside the axes, the best first."""
    at, size, height = _to_points(axes, line.x, line.y), axes_pt(axes), style.pt(POINT_LABEL_PT)
    for index, text in _merge_nearby(at, line.labels):
        near = at[max(index - 1, 0) : index + 2]
        run, rise = near[-1] - near[0]
        first = -1 if run * rise > 0 else 1  # avoid the line itself
        choices = []
        for side, up in ((first, 1), (-first, -1), (-first, 1), (first, -1), (0, 1), (0, -1)):
            (x, y), width = at[index], _width(text, height)
            left = x - width / 2 + side * (OFFSET_PT + width / 2)
            away = 1 if side else OVER_PT
            bottom = y + away if up > 0 else y - away - height
            box = (left, bottom, left + width, bottom + height)
            if left >= 0 and bottom >= 0 and (box[2:] <= size).all():
                point = float(line.x[index]), float(line.y[index])
                choices.append((_PlacedLabel(text, point, line.tint, side, up), box))
        yield choices


def _merge_nearby(at: np.ndarray, labels: Sequence[str]) -> list[tuple[int, str]]:
    """The index and the label of each point that gets a label; nearby points share one label."""
    found: dict[int, list[str]] = {}
    for index, label in enumerate(labels):
        if label:
            near = [first for first in found if np.abs(at[first] - at[index]).max() <= MERGE_DISTANCE_PT]
            shown = found.setdefault(near[0] if near else index, [])
            shown += [] if label in shown else [label]
    return [
        (index, ", ".join(shown) if len(shown) < 3 else f"{shown[0]} … {shown[-1]}") for index, shown in found.items()
    ]


def _to_points(axes: Axes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Convert data coordinates to points (1/72 inch) from the lower left corner of the axes: [N, 2].

    The limits of the axes must already be set.
    """
    data = np.stack([x, y], axis=1).astype(float)
    return axes_pt(axes) * axes.transAxes.inverted().transform(axes.transData.transform(data))


def _width(text: str, size_pt: float) -> float:
    return LETTER_WIDTH * size_pt * len(text)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

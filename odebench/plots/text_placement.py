"""Words inside axes, none over another: names beside points, notes at dashed lines."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from odebench.plots import style

# What the axes of a `comparison` measure, roughly, and a letter: where there is room for words is told by these.
AXES_PT = np.array([310.0, 215.0])
LETTER_WIDTH = 0.58  # of a text's height
POINT_LABEL_PT, LINE_LABEL_PT = 7.5, 6.5
MARKER_PT = 6.0
OFFSET_PT = 7.0  # from a point to its name: beside an error bar and outside a ring
MERGE_DISTANCE_PT = 6.0  # points this near are named together
HALO = withStroke(linewidth=1.6, foreground="white")  # around letters: lines do not cross them
MAX_UNPLACED = 3  # names of a cloud; where more have no room none is written

Box = tuple[float, float, float, float]  # left, bottom, right, top


class LabelledPoints(NamedTuple):
    """Points of one colour, x and y: [N], with their names, "" for none."""

    x: np.ndarray
    y: np.ndarray
    labels: Sequence[str]
    tint: str


class _PlacedLabel(NamedTuple):
    """A name at a point, to its left or right (side: -1, 1), above or below it (rise: 1, -1)."""

    text: str
    point: tuple[float, float]
    tint: str
    side: int
    rise: int


def marker_boxes(axes: Axes, x: np.ndarray, y: np.ndarray, y_error: np.ndarray | None = None) -> list[Box]:
    """What the markers of points cover, with their error bars of half the length `spread`."""
    half, half_lengths = MARKER_PT / 2, np.zeros(len(y)) if y_error is None else y_error
    ends = zip(_to_points(axes, x, y - half_lengths), _to_points(axes, x, y + half_lengths), strict=True)
    return [(at - half, bottom - half, at + half, top + half) for (at, bottom), (_, top) in ends]


def write_line_labels(axes: Axes, line_labels: Mapping[str, float], occupied: Sequence[Box]) -> list[Box]:
    """Write each text at its level: above the line at the right end, or where it covers less: at the left, or below.
    Returns what is taken then. The words that all begin with are written once, at the highest."""
    texts = sorted(line_labels, key=line_labels.__getitem__, reverse=True)
    shared = _common_prefix(texts)
    at = _to_points(axes, np.full(len(texts), axes.get_xlim()[0]), np.array([line_labels[text] for text in texts]))[
        :, 1
    ]
    lines = [(0.0, y - 0.7, float(AXES_PT[0]), y + 0.7) for y in at]
    written: list[Box] = []

    def covers(box: Box) -> int:
        others = [(written, 100), (occupied, 10), (lines, 4)]  # two texts on one another are worst
        outside = box[1] < 0 or box[3] > AXES_PT[1]
        return 100 * outside + sum(weight * _overlap(box, one) for boxes, weight in others for one in boxes)

    for index, (text, y) in enumerate(zip(texts, at, strict=True)):
        shown = text.removeprefix(shared) if index else text
        width = _width(shown, LINE_LABEL_PT)
        choices = {}
        for rise in (1, -1):
            bottom = y + 1 if rise > 0 else y - 1 - LINE_LABEL_PT
            choices[1.0, rise] = (AXES_PT[0] - width, bottom, AXES_PT[0], bottom + LINE_LABEL_PT)
            choices[0.0, rise] = (0.0, bottom, width, bottom + LINE_LABEL_PT)
        end, rise = min(choices, key=lambda choice: covers(choices[choice]))
        written.append(choices[end, rise])
        axes.annotate(
            shown,
            (end, line_labels[text]),
            (-5 if end else 3, rise),  # with a halo letters run wider than they are measured
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right" if end else "left",
            va="bottom" if rise > 0 else "top",
            fontsize=LINE_LABEL_PT,
            color=style.GREY,
            path_effects=[HALO],
            zorder=1.8,  # over the dashed lines, under the points
        )
    return [*occupied, *written]


def _common_prefix(texts: Sequence[str]) -> str:
    """What all begin with, up to a comma."""
    parts = zip(*(text.split(", ")[:-1] for text in texts), strict=False)
    return "".join(f"{alike[0]}, " for alike in itertools.takewhile(lambda alike: len(set(alike)) == 1, parts))


def write_point_labels(axes: Axes, lines: Sequence[LabelledPoints], occupied: Sequence[Box], is_scatter: bool) -> None:
    """Write the names beside their points, where they cover nothing that is taken and no other name; those without room
    are left out. is_cloud: all are, where more than a few have no room of their own."""
    occupied, written = list(occupied), []
    for line in lines:
        for choices in _candidate_positions(axes, line):
            free = [(name, box) for name, box in choices if not any(_overlap(box, other) for other in occupied)]
            if free:
                written.append(free[0][0])
                occupied.append(free[0][1])
    total = sum(bool(name) for line in lines for name in line.labels)
    if is_scatter and total - len(written) > MAX_UNPLACED:
        return
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": POINT_LABEL_PT, "path_effects": [HALO]}
    for text, point, tint, side, rise in written:
        look |= {"ha": "left" if side > 0 else "right", "va": "bottom" if rise > 0 else "top", "color": tint}
        axes.annotate(text, point, (side * OFFSET_PT, rise), **look)


def _candidate_positions(axes: Axes, line: LabelledPoints) -> Iterator[list[tuple[_PlacedLabel, Box]]]:
    """Of each name of a line the places around its point that are inside the axes, the best first."""
    at = _to_points(axes, line.x, line.y)
    for index, text in _merge_nearby(at, line.labels):
        near = at[max(index - 1, 0) : index + 2]
        run, rise = near[-1] - near[0]
        first = -1 if run * rise > 0 else 1  # not on the line itself, be it that it rises or falls
        choices = []
        for side, up in ((first, 1), (-first, -1), (-first, 1), (first, -1)):
            (x, y), width = at[index], _width(text, POINT_LABEL_PT)
            left, bottom = (
                (x + OFFSET_PT if side > 0 else x - OFFSET_PT - width),
                (y + 1 if up > 0 else y - 1 - POINT_LABEL_PT),
            )
            box = (left, bottom, left + width, bottom + POINT_LABEL_PT)
            if left >= 0 and bottom >= 0 and (box[2:] <= AXES_PT).all():
                point = float(line.x[index]), float(line.y[index])
                choices.append((_PlacedLabel(text, point, line.tint, side, up), box))
        yield choices


def _merge_nearby(at: np.ndarray, labels: Sequence[str]) -> list[tuple[int, str]]:
    """The points that are named, and how: one for all at nearly the same place."""
    found: dict[int, list[str]] = {}
    for index, name in enumerate(labels):
        if name:
            near = [first for first in found if np.abs(at[first] - at[index]).max() <= MERGE_DISTANCE_PT]
            shown = found.setdefault(near[0] if near else index, [])
            shown += [] if name in shown else [name]
    return [
        (index, ", ".join(shown) if len(shown) < 3 else f"{shown[0]} … {shown[-1]}") for index, shown in found.items()
    ]


def _to_points(axes: Axes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N, 2]: where data stand in axes that have their limits, in points from the lower left, whatever the layout."""
    data = np.stack([x, y], axis=1).astype(float)
    return AXES_PT * axes.transAxes.inverted().transform(axes.transData.transform(data))


def _width(text: str, size_pt: float) -> float:
    return LETTER_WIDTH * size_pt * len(text)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

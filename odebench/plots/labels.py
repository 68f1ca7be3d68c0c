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
LETTER = 0.58  # of a text's height
NAME_PT, NOTE_PT = 7.5, 6.5
MARKER_PT = 6.0
AWAY_PT = 7.0  # from a point to its name: beside an error bar and outside a ring
SAME_PT = 6.0  # points this near are named together
HALO = withStroke(linewidth=1.6, foreground="white")  # around letters: lines do not cross them
MAX_WITHOUT_ROOM = 3  # names of a cloud; where more have no room none is written

Box = tuple[float, float, float, float]  # left, bottom, right, top


class NamedPoints(NamedTuple):
    """Points of one colour, x and y: [N], with their names, "" for none."""

    x: np.ndarray
    y: np.ndarray
    names: Sequence[str]
    tint: str


class _Name(NamedTuple):
    """A name at a point, to its left or right (side: -1, 1), above or below it (rise: 1, -1)."""

    text: str
    point: tuple[float, float]
    tint: str
    side: int
    rise: int


def boxes_of(axes: Axes, x: np.ndarray, y: np.ndarray, spread: np.ndarray | None = None) -> list[Box]:
    """What the markers of points cover, with their error bars of half the length `spread`."""
    half, reach = MARKER_PT / 2, np.zeros(len(y)) if spread is None else spread
    ends = zip(_places(axes, x, y - reach), _places(axes, x, y + reach), strict=True)
    return [(at - half, bottom - half, at + half, top + half) for (at, bottom), (_, top) in ends]


def write_notes(axes: Axes, notes: Mapping[str, float], taken: Sequence[Box]) -> list[Box]:
    """Write each text at its level: above the line at the right end, or where it covers less: at the left, or below.
    Returns what is taken then. The words that all begin with are written once, at the highest."""
    texts = sorted(notes, key=notes.__getitem__, reverse=True)
    shared = _beginning(texts)
    at = _places(axes, np.full(len(texts), axes.get_xlim()[0]), np.array([notes[text] for text in texts]))[:, 1]
    lines = [(0.0, y - 0.7, float(AXES_PT[0]), y + 0.7) for y in at]
    written: list[Box] = []

    def covers(box: Box) -> int:
        others = [(written, 100), (taken, 10), (lines, 4)]  # two texts on one another are worst
        outside = box[1] < 0 or box[3] > AXES_PT[1]
        return 100 * outside + sum(weight * _overlap(box, one) for boxes, weight in others for one in boxes)

    for index, (text, y) in enumerate(zip(texts, at, strict=True)):
        told = text.removeprefix(shared) if index else text
        width = _width(told, NOTE_PT)
        choices = {}
        for rise in (1, -1):
            bottom = y + 1 if rise > 0 else y - 1 - NOTE_PT
            choices[1.0, rise] = (AXES_PT[0] - width, bottom, AXES_PT[0], bottom + NOTE_PT)
            choices[0.0, rise] = (0.0, bottom, width, bottom + NOTE_PT)
        end, rise = min(choices, key=lambda choice: covers(choices[choice]))
        written.append(choices[end, rise])
        axes.annotate(
            told,
            (end, notes[text]),
            (-5 if end else 3, rise),  # with a halo letters run wider than they are measured
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right" if end else "left",
            va="bottom" if rise > 0 else "top",
            fontsize=NOTE_PT,
            color=style.GREY,
            path_effects=[HALO],
            zorder=1.8,  # over the dashed lines, under the points
        )
    return [*taken, *written]


def _beginning(texts: Sequence[str]) -> str:
    """What all begin with, up to a comma."""
    parts = zip(*(text.split(", ")[:-1] for text in texts), strict=False)
    return "".join(f"{alike[0]}, " for alike in itertools.takewhile(lambda alike: len(set(alike)) == 1, parts))


def write_names(axes: Axes, lines: Sequence[NamedPoints], taken: Sequence[Box], is_cloud: bool) -> None:
    """Write the names beside their points, where they cover nothing that is taken and no other name; those without room
    are left out. is_cloud: all are, where more than a few have no room of their own."""
    taken, written = list(taken), []
    for line in lines:
        for choices in _choices(axes, line):
            free = [(name, box) for name, box in choices if not any(_overlap(box, other) for other in taken)]
            if free:
                written.append(free[0][0])
                taken.append(free[0][1])
    total = sum(bool(name) for line in lines for name in line.names)
    if is_cloud and total - len(written) > MAX_WITHOUT_ROOM:
        return
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": NAME_PT, "path_effects": [HALO]}
    for text, point, tint, side, rise in written:
        look |= {"ha": "left" if side > 0 else "right", "va": "bottom" if rise > 0 else "top", "color": tint}
        axes.annotate(text, point, (side * AWAY_PT, rise), **look)


def _choices(axes: Axes, line: NamedPoints) -> Iterator[list[tuple[_Name, Box]]]:
    """Of each name of a line the places around its point that are inside the axes, the best first."""
    at = _places(axes, line.x, line.y)
    for index, text in _together(at, line.names):
        near = at[max(index - 1, 0) : index + 2]
        run, rise = near[-1] - near[0]
        first = -1 if run * rise > 0 else 1  # not on the line itself, be it that it rises or falls
        choices = []
        for side, up in ((first, 1), (-first, -1), (-first, 1), (first, -1)):
            (x, y), width = at[index], _width(text, NAME_PT)
            left, bottom = (x + AWAY_PT if side > 0 else x - AWAY_PT - width), (y + 1 if up > 0 else y - 1 - NAME_PT)
            box = (left, bottom, left + width, bottom + NAME_PT)
            if left >= 0 and bottom >= 0 and (box[2:] <= AXES_PT).all():
                point = float(line.x[index]), float(line.y[index])
                choices.append((_Name(text, point, line.tint, side, up), box))
        yield choices


def _together(at: np.ndarray, names: Sequence[str]) -> list[tuple[int, str]]:
    """The points that are named, and how: one for all at nearly the same place."""
    found: dict[int, list[str]] = {}
    for index, name in enumerate(names):
        if name:
            near = [first for first in found if np.abs(at[first] - at[index]).max() <= SAME_PT]
            told = found.setdefault(near[0] if near else index, [])
            told += [] if name in told else [name]
    return [(index, ", ".join(told) if len(told) < 3 else f"{told[0]} … {told[-1]}") for index, told in found.items()]


def _places(axes: Axes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N, 2]: where data stand in axes that have their limits, in points from the lower left, whatever the layout."""
    data = np.stack([x, y], axis=1).astype(float)
    return AXES_PT * axes.transAxes.inverted().transform(axes.transData.transform(data))


def _width(text: str, size_pt: float) -> float:
    return LETTER * size_pt * len(text)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

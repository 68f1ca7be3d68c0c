"""Draw all published values against our 95 % intervals, for ``pictures.py``.

The x-axis is the factor by which ours is worse than the published value, so that all quantities fit on one axis.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import results
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reproduction_tables import column_title, reproduction_of, without_repeats

from odebench.plots import style
from odebench.reproduce import verdicts
from odebench.reproduce.catalogue import DEFAULT_MARGIN
from odebench.reproduce.table import RowVerdict

ROW_IN = 0.23
LIMITS = 0.03, 60.0  # of the x-axis
# Verdict -> colour and marker.
STYLES = {
    verdicts.REPRODUCED: (style.GREEN, "o"),
    verdicts.BETTER: (style.BLUE, "<"),
    verdicts.CANNOT_TELL: (style.ORANGE, "D"),
    verdicts.WORSE: (style.VERMILION, ">"),
    verdicts.OTHER_NETWORK: (style.PURPLE, "s"),
    verdicts.PARTIAL: (style.GREY, "o"),
}


class ForestRow(NamedTuple):
    """A row of the plot. factor, low, high: how many times ours is worse than published, and its interval or NaN."""

    label: str
    word: str
    factor: float
    low: float
    high: float
    margin: float


def forest_rows(names: Sequence[str]) -> list[ForestRow]:
    """The rows of all published values in the files with these NAMEs."""
    rows = []
    for name in names:
        margins = reproduction_of(results.read(name)).margin
        for line in without_repeats(name):
            if line.published and line.verdict.word in STYLES:
                rows.append(_forest_row(name, line, margins.get(line.ours.tag, DEFAULT_MARGIN)))
    return rows


def _forest_row(name: str, line: RowVerdict, margin: float) -> ForestRow:
    ours, value = line.ours, line.published.value
    factors = [worse_factor(ours.tag, one, value) for one in (ours.mean, *ours.interval)]
    row = re.sub(r" \(.*?\)", "", line.ours.row)
    label = f"{name}: {row}, {column_title(ours.tag).removesuffix(' (%)')}"
    return ForestRow(label, line.verdict.word, factors[0], *sorted(factors[1:]), margin)


def worse_factor(tag: str, ours: float, published: float) -> float:
    """How many times ours is worse than published: 1 if equal, infinite without any skill or below zero."""
    if verdicts.logarithmic_unit(tag):
        return ours / published
    one, other = (verdicts.scale(tag, value) for value in (ours, published))
    if verdicts.larger_is_better(tag) and not tag.endswith("accuracy"):
        one, other = other, one
    elif ours < 0:
        return 0.0
    return one / other if other > 0 else math.inf


def draw(rows: Sequence[ForestRow]) -> Figure:
    """Draw a line for each row: its interval, its margin as a band, and its verdict as a colour."""
    figure, (axes,) = style.new_figure(1, 1, 9.6, 1.2 + ROW_IN * len(rows))
    axes.axvline(1.0, color=style.BLACK, linewidth=1.0)
    shown: set[str] = set()
    for place, row in enumerate(rows):
        if row.word != verdicts.OTHER_NETWORK:
            axes.barh(place, row.margin + row.margin / (1 + row.margin), left=1 / (1 + row.margin), height=0.8,
                      color=style.LIGHT_GREY)  # fmt: skip
        _draw_row(axes, place, row, "" if row.word in shown else row.word)
        shown.add(row.word)
    axes.set_xscale("log")
    axes.set_xlim(*LIMITS)
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    style.style_axes(axes, "", "ours / published (right: worse, or more)", "")
    style.legend_below(figure)
    return figure


def _draw_row(axes: Axes, place: int, row: ForestRow, label: str) -> None:
    tint, marker = STYLES[row.word]
    if row.high > row.low:
        axes.plot(
            [max(row.low, LIMITS[0]), min(row.high, LIMITS[1])], [place, place], color=tint, linewidth=style.LINE_PT
        )
    face = "white" if row.word == verdicts.PARTIAL else tint
    axes.plot(
        [row.factor], [place], marker, color=tint, markerfacecolor=face, markersize=6, label=label or None, zorder=3
    )

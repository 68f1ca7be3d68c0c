"""Numbers over many decades, by category."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from odebench.plots import style

Dots = Mapping[str, Mapping[str, float]]
ROW_IN = 0.42


def dots(panels: Mapping[str, Dots], x: str) -> Figure:
    """A panel a title, a row a category, a marker a label, on a logarithmic axis; what is not positive is left out.

    panels: title -> label -> category -> number. x: what the numbers are, with their unit.
    """
    categories = list(dict.fromkeys(name for panel in panels.values() for line in panel.values() for name in line))
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    figure, all_axes = style.new_figure(max(len(panels), 1), 2, 5.4, 1.1 + ROW_IN * max(len(categories), 2))
    for (title, panel), axes in zip(panels.items(), all_axes, strict=False):
        for label, line in panel.items():
            place = labels.index(label)
            # One below the other, so that equal numbers do not hide each other.
            shift = 0.5 * ((place + 0.5) / len(labels) - 0.5)
            rows = [(value, categories.index(name) + shift) for name, value in line.items() if value > 0]
            axes.plot(
                [value for value, _ in rows],
                [row for _, row in rows],
                linestyle="none",
                marker=style.marker(place),
                markersize=6,
                color=style.colour(place),
                label=label,
                clip_on=False,  # a whole decade is a limit, too
            )
        _scale(axes, [value for line in panel.values() for value in line.values() if value > 0])
        axes.set_yticks(range(len(categories)), categories)
        axes.set_ylim(len(categories) - 0.5, -0.5)
        style.dress(axes, title, x, "")
    style.legend_below(figure)
    return figure


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of whole decades."""
    axes.set_xscale("log")
    if values:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        axes.set_xlim(10.0**low, 10.0 ** max(high, low + 1))
    axes.xaxis.set_minor_formatter(NullFormatter())

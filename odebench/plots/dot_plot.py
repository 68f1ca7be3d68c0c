"""Dot plots: a row for each category, a marker for each label, on a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from odebench.plots import style

ROW_IN = 0.42  # height of a row, at least
DOT_IN = 0.085  # height between two dots of a row
MIN_SPAN = 90.0  # of an axis that does not begin and end at powers of ten

Dots = Mapping[str, Mapping[str, float]]


def dot_plot(panels: Mapping[str, Dots], x: str, spreads: Mapping[str, Dots] | None = None) -> Figure:
    """Draw one panel per title, with one row per category and one marker per label, on a logarithmic axis.

    Omits values <= 0. panels: title -> label -> category -> value. x: the axis label, with unit. spreads: like panels;
    a line connects each value of it with the marker.
    """
    categories = list(dict.fromkeys(name for panel in panels.values() for line in panel.values() for name in line))
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
    lines = [line for panel in panels.values() for line in panel.values()]
    # One scale, so that panels can be compared.
    all_values = [value for line in lines for value in line.values() if value > 0]
    height_in = 1.1 + max(ROW_IN, DOT_IN * len(labels)) * max(len(categories), 2)
    columns, width_in = (2, 5.4) if len(panels) < 3 else (3, 3.6)
    figure, all_axes = style.new_figure(max(len(panels), 1), columns, width_in, height_in)
    for (title, panel), axes in zip(panels.items(), all_axes, strict=False):
        for label, line in panel.items():
            place = labels.index(label)
            # Shifted vertically, so that equal values do not hide each other.
            shift = 0.7 * ((place + 0.5) / len(labels) - 0.5)
            rows = [(value, categories.index(name) + shift) for name, value in line.items() if value > 0]
            for name, end in (spreads or {}).get(title, {}).get(label, {}).items():
                height = categories.index(name) + shift
                axes.plot([line[name], end], [height, height], color=style.colour(place), linewidth=style.LINE_PT)
            axes.plot(
                [value for value, _ in rows],
                [row for _, row in rows],
                linestyle="none",
                marker=style.marker(place),
                markersize=style.pt(6),
                color=style.colour(place),
                label=label,
                clip_on=False,  # a value may lie on the limit of an axis
            )
        _scale(axes, all_values)
        axes.set_yticks(range(len(categories)), categories)
        axes.set_ylim(len(categories) - 0.5, -0.5)
        style.style_axes(axes, title, x, "")
    style.legend_below(figure)
    return figure


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Set a logarithmic axis. Its limits are 1, 2 or 5 times a power of ten, or such powers if these are few."""
    axes.set_xscale("log")
    if values:
        powers = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        steps = [factor * 10.0**power for power in range(powers[0], powers[1] + 1) for factor in (1, 2, 5)]
        low = max(step for step in steps if step <= min(values))
        high = min(step for step in steps if step >= max(values))
        if high / low < MIN_SPAN:
            low, high = 10.0 ** powers[0], 10.0 ** max(powers[1], powers[0] + 1)
        axes.set_xlim(low, high)
    axes.xaxis.set_minor_formatter(NullFormatter())

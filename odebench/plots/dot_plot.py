"""Dot plots: a row for each category, a marker for each label, on a logarithmic axis."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from odebench.plots import style

ROW_IN = 0.42  # height of a row

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
    figure, all_axes = style.new_figure(max(len(panels), 1), 2, 5.4, 1.1 + ROW_IN * max(len(categories), 2))
    for (title, panel), axes in zip(panels.items(), all_axes, strict=False):
        for label, line in panel.items():
            place = labels.index(label)
            # Shifted vertically, so that equal values do not hide each other.
            shift = 0.5 * ((place + 0.5) / len(labels) - 0.5)
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
        _scale_to_decades(axes, all_values)
        axes.set_yticks(range(len(categories)), categories)
        axes.set_ylim(len(categories) - 0.5, -0.5)
        style.style_axes(axes, title, x, "")
    style.legend_below(figure)
    return figure


def _scale_to_decades(axes: Axes, values: Sequence[float]) -> None:
    """Set a logarithmic axis with whole decades as limits."""
    axes.set_xscale("log")
    if values:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        axes.set_xlim(10.0**low, 10.0 ** max(high, low + 1))
    axes.xaxis.set_minor_formatter(NullFormatter())

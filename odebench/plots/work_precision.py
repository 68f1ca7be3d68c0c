"""What accuracy costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from odebench.plots import style

ERRORS = {
    "state_error": "relative error of the states",
    "parameter_gradient_error": "relative error of the parameters' gradient",
}


def work_precision(lines: Mapping[str, Sequence[Mapping[str, Any]]], error: str, title: str) -> Figure:
    """Error against time and against evaluations, one line a contestant, one point a tolerance.

    lines: label -> rows with "time_median_ms", "nfe_forward", "nfe_backward" (may be None) and ``error``, in the order
        of their tolerances, which the line follows: a looser one may cost more. What is not a positive number is left
        out.
    """
    figure, panels = style.new_figure(2, width_in=5.2, height_in=4.2)
    axes_of = {"time_median_ms": panels[0], "nfe": panels[1]}
    for index, (label, rows) in enumerate(lines.items()):
        for name, axes in axes_of.items():
            pairs = [(_cost(row, name), row.get(error)) for row in rows]
            points = [(cost, size) for cost, size in pairs if cost and size and size > 0]
            if not points:
                continue
            axes.plot(
                [cost for cost, _ in points],
                [size for _, size in points],
                color=style.colour(index),
                # Past the last colour the lines are dashed.
                linestyle="-" if index < len(style.COLOURS) else "--",
                marker=style.marker(index),
                markersize=5,
                linewidth=style.LINE_PT,
                label=label,
            )
    for axes, x_label in zip(panels, ("median time (ms)", "NFE, forward + backward"), strict=True):
        if axes.lines:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        style.dress(axes, title, x_label, ERRORS.get(error, error), legend=False)
    style.legend_below(figure)  # inside it would lie on the lines of many contestants
    return figure


def _cost(row: Mapping[str, Any], name: str) -> float | None:
    if name == "nfe":
        forward = row.get("nfe_forward")
        return None if forward is None else forward + (row.get("nfe_backward") or 0)
    return row.get(name)

"""What a gradient mode costs."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from odebench.plots import style


def memory_against_nfe(groups: Mapping[str, Sequence[Mapping[str, Any]]], labels: str = "tol") -> Figure:
    """Peak memory of a training step against its forward NFE, one line a gradient mode.

    groups: gradient mode -> rows with "nfe/forward", "memory/peak_mib" and `labels` ("tol", "steps"), the
    number that stands at each point.
    """
    figure, (axes,) = style.new_figure(width_in=5.8, height_in=4.0)
    top = 0.0
    for index, (mode, rows) in enumerate(groups.items()):
        ordered = sorted(rows, key=lambda row: row["nfe/forward"])
        nfe = [row["nfe/forward"] for row in ordered]
        peak = [row["memory/peak_mib"] for row in ordered]
        top = max([top, *peak])
        tint = style.colour(index)
        axes.plot(
            nfe,
            peak,
            color=tint,
            marker=style.marker(index),
            markersize=6,
            linewidth=style.LINE_PT,
            label=mode,
        )
        for row, x, y in zip(ordered, nfe, peak, strict=True):
            _label(axes, row.get(labels), x, y, tint)
    axes.set_ylim(0, 1.12 * top or 1.0)
    axes.set_xlim(left=0)
    name = {"tol": "tolerance"}.get(labels, labels)
    style.dress(axes, "Memory of one training step", "forward NFE per step", "peak memory (MiB)")
    if groups:
        axes.legend(title=f"gradient mode (labels: {name})", fontsize=9, title_fontsize=9, frameon=False)
    return figure


def _label(axes: Axes, number: float | None, x: float, y: float, colour: str) -> None:
    if number is None:
        return
    short = f"{number:.0e}".replace("e-0", "e-")
    text = short if abs(number) < 0.5 and float(short) == number else f"{number:g}"  # 1e-3, but 20
    axes.annotate(text, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour)

"""Figures of a solver: its step sizes, its memory by gradient mode, its error against its cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from odebench.plots import style

Numbers = Sequence[float] | np.ndarray
ERRORS = {
    "state_error": "relative error of the states",
    "parameter_gradient_error": "relative error of the parameters' gradient",
}


def step_sizes(times: Numbers, sizes: Numbers, title: str = "Step sizes of one solve") -> Figure:
    """Step sizes of one solve against the start of each step; absolute values for steps backward in time.

    times, sizes: [accepted], start and signed size of each accepted step, in the time of the ODE.
    """
    times, sizes = np.asarray(times, dtype=float), np.asarray(sizes, dtype=float)
    figure, (axes,) = style.new_figure(width_in=5.6, height_in=3.4)
    lengths = np.abs(sizes)
    axes.hlines(lengths, times, times + sizes, color=style.BLUE, linewidth=2.2, label=f"accepted ({len(times)})")
    axes.plot(times, lengths, linestyle="none", marker="o", markersize=4.5, color=style.BLUE)
    if style.spans_decades(lengths, ratio=10.0):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.15 * lengths.max(initial=1e-12))
    style.style_axes(axes, title, "t (time of the ODE)", "step size (time of the ODE)", legend=True)
    return figure


def memory_against_nfe(groups: Mapping[str, Sequence[Mapping[str, Any]]], labels: str = "tol") -> Figure:
    """Peak memory of a training step against its forward NFE, one line per gradient mode.

    groups: gradient mode -> rows with "nfe/forward", "memory/peak_mib" and the key `labels` ("tol", "steps"), whose
    value is written at each point.
    """
    figure, (axes,) = style.new_figure(width_in=5.8, height_in=4.0)
    top = 0.0
    for index, (mode, rows) in enumerate(groups.items()):
        ordered = sorted(rows, key=lambda row: row["nfe/forward"])
        nfe = [row["nfe/forward"] for row in ordered]
        peak = [row["memory/peak_mib"] for row in ordered]
        top = max([top, *peak])
        tint = style.colour(index)
        axes.plot(nfe, peak, color=tint, marker=style.marker(index), markersize=6, linewidth=style.LINE_PT, label=mode)
        for row, x, y in zip(ordered, nfe, peak, strict=True):
            _write_label(axes, row.get(labels), x, y, tint)
    axes.set_ylim(0, 1.12 * top or 1.0)
    axes.set_xlim(left=0)
    name = {"tol": "tolerance"}.get(labels, labels)
    style.style_axes(axes, "Memory of one training step", "forward NFE per step", "peak memory (MiB)")
    if groups:
        axes.legend(title=f"gradient mode (labels: {name})", fontsize=9, title_fontsize=9, frameon=False)
    return figure


def _write_label(axes: Axes, number: float | None, x: float, y: float, colour: str) -> None:
    if number is None:
        return
    short = f"{number:.0e}".replace("e-0", "e-")
    text = short if abs(number) < 0.5 and float(short) == number else f"{number:g}"  # 1e-3, but 20
    axes.annotate(text, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour)


def work_precision(lines: Mapping[str, Sequence[Mapping[str, Any]]], error: str, title: str) -> Figure:
    """Work-precision diagram: error against time and against NFE, one line per library, one point per tolerance.

    lines: label -> rows with "time_median_ms", "nfe_forward", "nfe_backward" (may be None) and ``error``, in the order
        of their tolerances, which the line follows: a looser one may cost more. Omits values that are not positive.
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
                # Dashed once all colours are used.
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
        style.style_axes(axes, title, x_label, ERRORS.get(error, error), legend=False)
    style.legend_below(figure)  # inside the axes it would cover lines
    return figure


def _cost(row: Mapping[str, Any], name: str) -> float | None:
    if name == "nfe":
        forward = row.get("nfe_forward")
        return None if forward is None else forward + (row.get("nfe_backward") or 0)
    return row.get(name)

"""The step sizes of a solve."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from odebench.plots import style

Numbers = Sequence[float] | np.ndarray


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

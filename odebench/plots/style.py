"""One look for all figures: colours, sizes, axes. Figures are drawn by Agg, without pyplot and its state."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito (2008), "Color Universal Design": told apart by colour-blind readers too. Yellow is left out,
# too light for lines on white.
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#56B4E9",
    "#CC79A7",
    "#000000",
)
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"

PANEL_WIDTH_IN = 4.6
PANEL_HEIGHT_IN = 3.1
TITLE_PT = 11
LABEL_PT = 10
TICK_PT = 9
LINE_PT = 1.7


def new_figure(
    num_panels: int = 1,
    columns: int = 2,
    width_in: float = PANEL_WIDTH_IN,
    height_in: float = PANEL_HEIGHT_IN,
) -> tuple[Figure, list[Axes]]:
    """An empty figure of `num_panels` panels in up to `columns` columns, each of the given size in inches."""
    columns = min(columns, num_panels)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(width_in * columns, height_in * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, columns, index + 1) for index in range(num_panels)]
    return figure, panels


def dress(axes: Axes, title: str, x: str, y: str, legend: bool = False) -> None:
    """Give the axes title, labels (with units) and the common look; call it after drawing."""
    axes.set_title(title, fontsize=TITLE_PT, loc="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=LABEL_PT)
    axes.set_ylabel(y, fontsize=LABEL_PT)
    axes.tick_params(labelsize=TICK_PT, color=GREY)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    if legend:
        axes.legend(fontsize=TICK_PT, frameon=False)


def colour(index: int) -> str:
    """The colour of the series number `index`."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of the series number `index`: series are told apart without colour, too."""
    return MARKERS[index % len(MARKERS)]


def spans_decades(values: Sequence[float] | np.ndarray, ratio: float = 20.0) -> bool:
    """Whether the finite values are positive and far enough apart for a logarithmic axis."""
    array = np.asarray(values, dtype=float)
    array = array[np.isfinite(array)]
    return bool(array.size and array.min() > 0 and array.max() / array.min() > ratio)

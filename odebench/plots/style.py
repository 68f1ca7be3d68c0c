"""Common style of all figures: colours, sizes, axes. Draws with Agg, without pyplot and its global state."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

# Colours of Okabe and Ito (2008), "Color Universal Design", which colour-blind readers can distinguish. Yellow is left
# out, since it is too light for lines on white.
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
LIGHT_GREY = "#EEEEEE"

# These maps change monotonically from dark to light, so they work for colour-blind readers and in greyscale print.
DENSITY_MAP = matplotlib.colormaps["Blues"]
SHIFT_MAP = matplotlib.colormaps["cividis"]

Numbers = Sequence[float] | np.ndarray
Limits = tuple[float, float]
PANEL_WIDTH_IN = 4.6
PANEL_HEIGHT_IN = 3.1
TITLE_PT = 11
LABEL_PT = 10
TICK_PT = 9
LINE_PT = 1.7
LEGEND_ENTRY_IN = 1.5
LEGEND_MARKER_PT = 8
LETTER_IN = 0.07
HALO = withStroke(linewidth=1.6, foreground="white")  # keeps lines away from letters


def pt(size: float) -> float:
    """A size, scaled with matplotlib's ``font.size`` (default 10): figures for papers have smaller letters."""
    return size * matplotlib.rcParams["font.size"] / 10


def new_figure(
    num_panels: int = 1, columns: int = 2, width_in: float = PANEL_WIDTH_IN, height_in: float = PANEL_HEIGHT_IN
) -> tuple[Figure, list[Axes]]:
    """An empty figure of `num_panels` panels in up to `columns` columns, each of the given size in inches."""
    rows = -(-num_panels // min(columns, num_panels))
    columns = -(-num_panels // rows)  # four panels of at most three columns: two and two
    figure = Figure(figsize=(width_in * columns, height_in * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, columns, index + 1) for index in range(num_panels)]
    return figure, panels


def style_axes(axes: Axes, title: str, x: str, y: str, legend: bool = False) -> None:
    """Set title, labels (with units) and the common style of axes; call it after drawing."""
    axes.set_title(title, fontsize=pt(TITLE_PT), loc="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=pt(LABEL_PT))
    axes.set_ylabel(y, fontsize=pt(LABEL_PT))
    axes.tick_params(labelsize=pt(TICK_PT), color=GREY)
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    if legend:
        axes.legend(fontsize=pt(TICK_PT), frameon=False)


def new_square_figure(
    num_panels: int, columns: int, size_in: float, bar: bool = False, title: str | None = None
) -> tuple[Figure, list[Axes]]:
    """Like `new_figure`, but with square panels for `style_plane`, close together.

    bar: whether to leave space for a colour bar on the right.
    title: the title of the whole figure.
    """
    figure, panels = new_figure(num_panels, columns, size_in, size_in + 0.4)
    figure.set_layout_engine("compressed", h_pad=0.06)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + (1.1 if bar else 0.3), height + (0.35 if title else 0.0))
    if title:
        figure.suptitle(title, fontsize=TITLE_PT + 1)
    return figure, panels


def style_plane(axes: Axes, title: str, limits: Limits, y_limits: Limits | None = None) -> None:
    """Style a panel that shows two-dimensional states: `limits` on both axes, or `y_limits` on the second; no grid.

    Only the outer panels of a figure keep their labels, and with the same limits also their tick labels.
    """
    style_axes(axes, title, "x₁", "x₂")
    axes.grid(False)
    axes.set(xlim=limits, ylim=y_limits or limits, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.label_outer(remove_inner_ticks=False)
    if y_limits:
        axes.tick_params(labelbottom=True, labelleft=True)


def colour_bar(
    figure: Figure, drawn: ScalarMappable, panels: Sequence[Axes], label: str, extend: str = "neither"
) -> None:
    """Add one colour bar to the right of panels with the same scale."""
    bar = figure.colorbar(drawn, ax=list(panels), extend=extend, fraction=0.05, pad=0.02, aspect=25)
    bar.set_label(label, fontsize=LABEL_PT)
    bar.ax.tick_params(labelsize=TICK_PT, color=GREY)
    bar.outline.set_visible(False)


def colour(index: int) -> str:
    """The colour of the series number `index`."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of the series number `index`, so that series differ also without colour, and if colours repeat."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def spans_decades(values: Numbers, ratio: float = 20.0) -> bool:
    """Whether the finite values are positive and far enough apart for a logarithmic axis."""
    array = np.asarray(values, dtype=float)
    array = array[np.isfinite(array)]
    return bool(array.size and array.min() > 0 and array.max() / array.min() > ratio)


def padded_limits(values: np.ndarray, margin: float = 0.0) -> Limits:
    """Limits around all finite values, extended by `margin` times their span; a span of 1 if all are equal."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)


def legend_below(figure: Figure, renamed: Mapping[str, str] | None = None) -> None:
    """Add one legend below all panels, with each label once, wrapped to the width of the figure.

    Increases the height of the figure. renamed: label -> text that the legend shows instead.
    """
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault((renamed or {}).get(label, label), handle)
    if not handles:
        return
    width_in = figure.get_figwidth()
    labels = [textwrap.fill(label, int((width_in - 0.8) / pt(LETTER_IN))) for label in handles]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    entry_in = max(pt(LEGEND_ENTRY_IN), 0.6 + pt(LETTER_IN) * longest)
    rows = -(-len(labels) // max(int(width_in / entry_in), 1))
    columns = -(-len(labels) // rows)
    more = sum(label.count("\n") for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.3 + 0.2 * (rows + more))
    legend = figure.legend(
        list(handles.values()),
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=pt(TICK_PT),
        frameon=False,
        columnspacing=1.4,
    )
    for shown in legend.legend_handles:  # some lines are wider, so that no other one hides them
        if isinstance(shown, Line2D):
            shown.set(linewidth=min(shown.get_linewidth(), pt(LINE_PT)))
            shown.set(markersize=min(shown.get_markersize(), pt(LEGEND_MARKER_PT)))

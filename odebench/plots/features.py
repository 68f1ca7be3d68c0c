"""Hidden states of a classifier through the depth of its ODE."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from odebench.plots import style

COLUMNS = 5
PANEL_IN = 2.1
# The palette "muted" of Tol (2021), which colour-blind readers can distinguish, and grey.
CLASS_COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#777777",
)  # fmt: skip


def features_through_depth(
    states: np.ndarray, labels: np.ndarray, times: Sequence[float], shares: tuple[float, float]
) -> Figure:
    """Draw two components of hidden states, one panel for each time, coloured by class.

    The last panel has the number of each class at the median of its states. states: [T, N, 2]. labels: [N]. shares: of
    the variance, that of each component.
    """
    title = f"Hidden states: components with {100 * shares[0]:.0f} and {100 * shares[1]:.0f} % of the variance"
    figure, panels = style.new_square_figure(len(times), COLUMNS, PANEL_IN, title=title)
    x_limits, y_limits = (style.padded_limits(states[..., part], margin=0.04) for part in (0, 1))
    for axes, state, time in zip(panels, states, times, strict=True):
        for label in np.unique(labels):
            tint = CLASS_COLOURS[label % len(CLASS_COLOURS)]
            axes.plot(*state[labels == label].T, ".", markersize=3, markeredgewidth=0, color=tint)
        style.style_axes(axes, f"t = {time:.2g}", "component 1", "component 2")
        axes.set(xlim=x_limits, ylim=y_limits)
        axes.grid(False)
        axes.label_outer()
    for label in np.unique(labels):
        place = np.median(states[-1][labels == label], axis=0)
        panels[-1].annotate(f"{label}", place, ha="center", va="center", fontweight="bold", path_effects=[style.HALO])
    return figure

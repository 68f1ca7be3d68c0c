"""The vector field."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from odebench.plots import style
from odebench.plots.density import SQUARE_IN, Limits, grid_points

Numbers = Sequence[float] | np.ndarray
LONG_ARROW = 1.2  # in spacings of the grid, for all but the fastest twentieth
MAX_COLUMNS = 4


def vector_field(times: Numbers, velocities: np.ndarray, limits: Limits, title: str | None = None) -> Figure:
    """The vector field in the plane at some times, in one scale for all.

    times: [T], a panel each.
    velocities: [T, num^2, 2], dx/dt at `density.grid_points(limits, num)`, num some 16.
    limits: of both axes.
    """
    figure, panels = style.new_planes(max(len(times), 1), MAX_COLUMNS, SQUARE_IN, title=title)
    num = int(np.sqrt(np.shape(velocities)[1])) if len(times) else 1
    unit = _typical_speed(velocities)
    for index, (axes, time) in enumerate(zip(panels, times, strict=False)):
        arrows = axes.quiver(
            *grid_points(limits, num).T,
            *velocities[index].T,
            angles="xy",
            scale_units="xy",
            scale=unit * num / (LONG_ARROW * (limits[1] - limits[0])),
            pivot="mid",
            width=0.006,
            color=style.VERMILION,
        )
        style.dress_plane(axes, f"t = {time:.3g}", limits)
        if index == 0:
            shown = float(f"{unit:.1g}")
            axes.quiverkey(arrows, 0.88, 1.05, shown, f"|dx/dt| = {shown:g}", labelpos="W", fontproperties={"size": 9})
    if not len(times):
        style.dress_plane(panels[0], "No times", limits)
    return figure


def _typical_speed(velocities: np.ndarray) -> float:
    speeds = np.linalg.norm(velocities, axis=-1)
    speeds = speeds[np.isfinite(speeds)]
    return float(np.quantile(speeds, 0.95)) or 1.0 if speeds.size else 1.0

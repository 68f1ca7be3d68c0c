"""The vector field, and the paths along it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from odebench.plots import style
from odebench.plots.density import SQUARE_IN, Limits, draw_density, grid_points, scale_of

Numbers = Sequence[float] | np.ndarray
LONG_ARROW = 1.2  # in spacings of the grid, for all but the fastest twentieth
MAX_COLUMNS = 4


def vector_field(
    times: Numbers,
    velocities: np.ndarray,
    limits: Limits,
    log_densities: np.ndarray | None = None,
    title: str | None = None,
) -> Figure:
    """The vector field in the plane at some times, over the density at that time; one scale for all.

    times: [T], a panel each.
    velocities: [T, num^2, 2], dx/dt at `density.grid_points(limits, num)`, num some 16.
    limits: of both axes.
    log_densities: [T, num^2], at grid points of their own num.
    """
    bar = log_densities is not None and len(times) > 0
    figure, panels = style.new_planes(max(len(times), 1), MAX_COLUMNS, SQUARE_IN, bar, title)
    scale = scale_of([] if log_densities is None else log_densities)
    num = int(np.sqrt(np.shape(velocities)[1])) if len(times) else 1
    unit = _typical_speed(velocities)
    for index, (axes, time) in enumerate(zip(panels, times, strict=False)):
        if log_densities is not None:
            image = draw_density(axes, log_densities[index], limits, scale)
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
    if bar:
        style.colour_bar(figure, image, panels, scale.label, extend="max")
    if not len(times):
        style.dress_plane(panels[0], "No times", limits)
    return figure


def paths_in_plane(times: Numbers, paths: np.ndarray, limits: Limits, title: str = "Trajectories") -> Figure:
    """Paths of particles in the plane, coloured by time, with their starts and ends.

    times: [T], in either direction; paths: [T, N, 2]; limits: of both axes.
    """
    times = np.asarray(times, dtype=float)
    figure, (axes,) = style.new_planes(1, 1, 4.2, bar=True)
    segments = np.stack([paths[:-1], paths[1:]], axis=2).reshape(-1, 2, 2)
    middles = np.repeat((times[:-1] + times[1:]) / 2, paths.shape[1])
    whole = np.isfinite(segments).all(axis=(1, 2))
    lines = LineCollection(list(segments[whole]), cmap=style.LINE_MAP, linewidth=0.8)
    lines.set_array(middles[whole])
    lines.set_clim(style.limits_of(times))
    axes.add_collection(lines)
    ends = {"start": (0, "white"), "end": (-1, style.BLACK)} if len(times) else {}
    for name, (index, face) in ends.items():
        axes.plot(
            *paths[index].T,
            linestyle="none",
            marker="o",
            markersize=3.2,
            markeredgewidth=0.7,
            color=style.BLACK,
            markerfacecolor=face,
            label=f"{name} (t = {times[index]:.3g})",
        )
    style.dress_plane(axes, title, limits)
    style.colour_bar(figure, lines, [axes], "t (time of the ODE)")
    if ends:
        axes.legend(fontsize=style.TICK_PT, loc="upper right", framealpha=0.9, edgecolor="none")
    return figure


def paths_over_time(times: Numbers, states: np.ndarray, title: str = "Trajectories", state: str = "z(t)") -> Figure:
    """One-dimensional states against time, coloured by where they start.

    times: [T], in either direction; states: [T, N]; state: what the axis says they are.
    """
    times = np.asarray(times, dtype=float)
    figure, (axes,) = style.new_figure(width_in=5.6, height_in=3.6)
    starts = states[0] if len(times) else np.empty(0)
    paths = [np.stack([times, path], axis=1) for path in states.T]
    lines = LineCollection(paths, cmap=style.LINE_MAP, linewidth=1.0)
    lines.set_array(np.ma.masked_invalid(starts))
    lines.set_clim(style.limits_of(starts))
    axes.add_collection(lines)
    axes.set(xlim=style.limits_of(times), ylim=style.limits_of(states, margin=0.05))
    style.dress(axes, title, "t (time of the ODE)", state)
    style.colour_bar(figure, lines, [axes], f"{state} at the start")
    return figure


def _typical_speed(velocities: np.ndarray) -> float:
    speeds = np.linalg.norm(velocities, axis=-1)
    speeds = speeds[np.isfinite(speeds)]
    return float(np.quantile(speeds, 0.95)) or 1.0 if speeds.size else 1.0

"""Densities and vector fields in the plane."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.quiver import Quiver
from scipy.ndimage import gaussian_filter

from odebench.plots import style
from odebench.plots.style import Limits

SQUARE_IN = 3.1
SATURATED_MASS = 0.01
MAX_EXPONENT = 50.0
LONG_ARROW = 1.2  # length of the arrow for the 95 % quantile of the speed, in grid spacings
MAX_COLUMNS = 4


class ColourScale(NamedTuple):
    """The colour scale of the densities in a figure: colours show exp(log density - offset), from 0 to `top`."""

    top: float
    offset: float

    @property
    def label(self) -> str:
        return "density" if not self.offset else f"density / exp({self.offset:.4g})"


def density_comparison(
    target: np.ndarray, model: np.ndarray, samples: np.ndarray, limits: Limits, title: str | None = None
) -> Figure:
    """Draw the target density, the model's density and a histogram of its samples, all with the target's colour scale.

    target, model: [num^2], log densities at `grid_points(limits, num)`. If only samples of the target are known, pass
        their `histogram`.
    samples: [N, 2], drawn from the model.
    limits: the limits of both axes.
    """
    figure, panels = style.new_square_figure(3, 3, SQUARE_IN, bar=True, title=title)
    sampled = histogram(samples, limits, num_bins(len(samples)))
    count = f"{len(samples):,} model sample{'' if len(samples) == 1 else 's'}"
    densities = {"Target density": target, "Model density": model, count: sampled}
    scale = shared_colour_scale([target])
    for axes, (name, log_density) in zip(panels, densities.items(), strict=True):
        image = draw_density(axes, log_density, limits, scale)
        style.style_plane(axes, name, limits)
    style.colour_bar(figure, image, panels, scale.label, extend="max")
    return figure


def grid_points(limits: Limits, num: int) -> np.ndarray:
    """The centres [num^2, 2] of num x num equal cells of the square `limits` x `limits`, row by row from the bottom."""
    edges = np.linspace(*limits, num + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    x, y = np.meshgrid(centres, centres)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def histogram(samples: np.ndarray, limits: Limits, num: int) -> np.ndarray:
    """Estimate the log density [num^2] of samples [N, 2] in the cells of `grid_points`; -inf in empty cells.

    It is normalised by all N samples, including those that are outside the limits or not finite.
    """
    finite = samples[np.isfinite(samples).all(axis=1)]
    counts, _, _ = np.histogram2d(finite[:, 1], finite[:, 0], bins=num, range=[limits, limits])
    cell = ((limits[1] - limits[0]) / num) ** 2
    with np.errstate(divide="ignore"):
        return np.log(counts.ravel() / (max(len(samples), 1) * cell))


def smoothed_histogram(samples: np.ndarray, limits: Limits, num: int) -> np.ndarray:
    """Like `histogram`, smoothed by a Gaussian with a standard deviation of one cell."""
    density = np.exp(histogram(samples, limits, num)).reshape(num, num)
    with np.errstate(divide="ignore"):
        return np.log(gaussian_filter(density, 1.0, mode="constant").ravel())


def num_bins(num_samples: int) -> int:
    """The number of bins per axis for a histogram: between 10 and 100, with two samples per cell on average."""
    return int(np.clip(np.sqrt(num_samples / 2), 10, 100))


def shared_colour_scale(log_densities: Iterable[np.ndarray]) -> ColourScale:
    """One colour scale for several log densities.

    Its top is the largest of the densities' own tops. 1 % of a density's mass lies in cells denser than its top, so
    that one outlier does not make the rest pale. If the log of the top is beyond +-50, as for some unnormalised
    densities, the top becomes the unit of the scale.
    """
    finite = [log_density[np.isfinite(log_density)] for log_density in log_densities]
    log_top = max((_log_top(values) for values in finite if values.size), default=0.0)
    offset = log_top if abs(log_top) > MAX_EXPONENT else 0.0
    return ColourScale(float(np.exp(log_top - offset)), offset)


def _log_top(finite: np.ndarray) -> float:
    falling = np.sort(finite)[::-1].astype(float)
    mass = np.cumsum(np.exp(falling - falling[0]))
    return float(falling[np.searchsorted(mass, SATURATED_MASS * mass[-1])])


def draw_density(axes: Axes, log_density: np.ndarray, limits: Limits, scale: ColourScale) -> AxesImage:
    """Draw a log density [num^2] at `grid_points`; NaN is grey."""
    side = int(np.sqrt(log_density.size))
    # The density in units of the scale, clipped slightly above its top.
    density = np.exp(np.minimum(log_density.astype(float) - scale.offset, np.log(1.1 * scale.top)))
    return axes.imshow(
        density.reshape(side, side),
        origin="lower",
        extent=(*limits, *limits),
        cmap=style.DENSITY_MAP.with_extremes(bad=style.GREY),
        vmin=0.0,
        vmax=scale.top,
    )


def vector_field(times: style.Numbers, velocities: np.ndarray, limits: Limits, title: str | None = None) -> Figure:
    """Draw a vector field in the plane at several times, all with the same scale of arrows.

    times: [T], one panel for each.
    velocities: [T, num^2, 2], dx/dt at `grid_points(limits, num)`; a num of about 16 is readable.
    limits: the limits of both axes.
    """
    figure, panels = style.new_square_figure(max(len(times), 1), MAX_COLUMNS, SQUARE_IN, title=title)
    unit = typical_speed(velocities)
    for index, (axes, time) in enumerate(zip(panels, times, strict=False)):
        arrows = draw_arrows(axes, velocities[index], limits, unit, style.VERMILION)
        style.style_plane(axes, f"t = {time:.3g}", limits)
        if index == 0:
            shown = float(f"{unit:.1g}")
            axes.quiverkey(arrows, 0.88, 1.05, shown, f"|dx/dt| = {shown:g}", labelpos="W", fontproperties={"size": 9})
    if not len(times):
        style.style_plane(panels[0], "No times", limits)
    return figure


def draw_arrows(axes: Axes, velocities: np.ndarray, limits: Limits, unit: float, tint: str) -> Quiver:
    """Draw velocities [num^2, 2] at `grid_points` as arrows; unit: the speed of an arrow of about a cell's length."""
    num = int(np.sqrt(len(velocities)))
    return axes.quiver(
        *grid_points(limits, num).T,
        *velocities.T,
        angles="xy",
        scale_units="xy",
        scale=unit * num / (LONG_ARROW * (limits[1] - limits[0])),
        pivot="mid",
        width=0.005,
        color=tint,
    )


def typical_speed(velocities: np.ndarray) -> float:
    """The 95 % quantile of the speeds of finite velocities [..., 2]; 1 if it is zero."""
    speeds = np.linalg.norm(velocities, axis=-1)
    speeds = speeds[np.isfinite(speeds)]
    return float(np.quantile(speeds, 0.95)) or 1.0 if speeds.size else 1.0

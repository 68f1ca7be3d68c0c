"""Draw figures of a density model: convert its tensors to arrays for ``odebench.plots``."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from odebench.plots import animation, density, image_grid

GRID_SIZE = 120
NUM_ARROWS = 16
NUM_PARTICLES = 400
NUM_SAMPLES = 20_000
NUM_FRAMES, NUM_CELLS = 31, 90
MAX_OVERSHOOT = 1.5  # how far axes follow particles between base and data, relative to these
NUM_FIELD_TIMES = 4
NUM_IMAGES = 50


def density_figures(
    model: Any, solve: Any, samples: Tensor, log_density: Callable[[Tensor], Tensor] | None, animate: bool = True
) -> dict[str, Figure | bytes]:
    """Return figures by name; a GIF is returned as bytes, if ``animate``.

    Two-dimensional data: the densities of target and model, samples, and the transformation over time. Images: samples
    and reconstructions. Other data: no figures.

    samples: samples [N, *shape] of the test split. log_density: the normalised log-density of the target, or None if it
    is unknown.
    """
    if samples.shape[1:] == (2,):
        return _planar_figures(model, solve, samples, log_density, animate)
    if samples.ndim == 4:
        return _image_figures(model, solve, samples[:NUM_IMAGES])
    return {}


def _planar_figures(
    model: Any, solve: Any, samples: Tensor, log_density: Callable[[Tensor], Tensor] | None, animate: bool
) -> dict[str, Figure | bytes]:
    half_width = 1.1 * samples.abs().max().item()
    limits = (-half_width, half_width)
    grid = torch.from_numpy(density.grid_points(limits, GRID_SIZE)).to(samples)
    modelled = model.log_prob(grid, solve, "exact")[0].cpu().numpy()
    if log_density is None:
        target = density.histogram(samples.cpu().numpy(), limits, density.num_bins(len(samples)))
    else:
        target = log_density(grid).cpu().numpy()
    frames, wide, generated = transformation(model, solve, half_width)
    figures: dict[str, Figure | bytes] = {
        "density": density.density_comparison(target, modelled, generated, limits),
        "transformation": animation.frame_strip(frames, wide, "From the base to the data"),
    }
    if animate:
        steps = _sampling_steps(model, solve)
        figures["transformation_gif"] = animation.animation(frames, wide, steps=steps)
    if not hasattr(model, "velocity"):
        return figures
    points = torch.from_numpy(density.grid_points(limits, NUM_ARROWS)).to(samples)
    times = np.linspace(0.0, float(model.end_time), NUM_FIELD_TIMES).tolist()
    velocities = np.stack([model.velocity(points.new_tensor(t), points).cpu().numpy() for t in times])
    return figures | {"field": density.vector_field(times, velocities, limits, title="The vector field")}


def transformation(
    model: Any, solve: Any, half_width: float
) -> tuple[list[animation.Frame], density.Limits, np.ndarray]:
    """Return frames from the base to the data, limits that hold their particles, and samples of the model [N, 2].

    The frames have densities that are estimated from the samples and, with an ODE, the vector field. half_width: the
    largest coordinate of the data.
    """
    times, name = np.linspace(0.0, float(model.end_time), NUM_FRAMES), "t ="
    if not hasattr(model, "velocity"):  # without an ODE, each layer counts as one unit of time
        times, name = np.unique(times.round()), "layer"
    base = model.base_sample(NUM_SAMPLES, torch.Generator().manual_seed(0))
    states = model.path(base, times.tolist(), solve)[0]
    clouds = states.cpu().numpy()
    wide = _wide_limits(clouds[:, :NUM_PARTICLES], half_width)
    points = torch.from_numpy(density.grid_points(wide, NUM_ARROWS)).to(base)
    frames = []
    for t, cloud in zip(times, clouds, strict=True):
        field = model.velocity(points.new_tensor(t), points).cpu().numpy() if name == "t =" else None
        log_density = density.smoothed_histogram(cloud, wide, NUM_CELLS)
        frames.append(animation.Frame(f"{name} {t:.3g}", cloud[:NUM_PARTICLES], log_density, field, float(t)))
    return frames, wide, clouds[-1]


def _sampling_steps(model: Any, solve: Any) -> animation.Steps | None:
    """The steps of a solve that draws samples; None without steps of a whole batch."""
    solves = model.sample(NUM_PARTICLES, solve, torch.Generator().manual_seed(0))[1]
    sizes = np.array([size for stats in solves for size in stats.step_sizes])
    return animation.Steps(np.cumsum(sizes) - sizes, sizes) if len(sizes) else None


def _wide_limits(clouds: np.ndarray, half_width: float) -> density.Limits:
    """Axis limits that include the data, up to half_width, and the particles [T, N, 2] of all frames."""
    sizes = [np.abs(cloud[np.isfinite(cloud)]).max(initial=half_width) for cloud in clouds]
    size = 1.05 * float(min(max(sizes), MAX_OVERSHOOT * max(sizes[0], half_width)))
    return -size, size


def _image_figures(model: Any, solve: Any, images: Tensor) -> dict[str, Figure | bytes]:
    generated, _ = model.sample(len(images), solve, torch.Generator().manual_seed(0))
    base, _, _ = model.to_base(images[:10], solve)
    reconstructed, _, _ = model.from_base(base, solve)
    return {
        "samples": image_grid.image_grid(generated.cpu().numpy(), "Samples of the model"),
        "reconstructions": image_grid.image_pairs(images[:10].cpu().numpy(), reconstructed.cpu().numpy()),
    }

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
NUM_PARTICLES = 2000
NUM_SAMPLES = 20_000
NUM_STRIP_FRAMES, NUM_GIF_FRAMES = 6, 31
NUM_FIELD_TIMES = 4
NUM_IMAGES = 50


def density_figures(
    model: Any, solve: Any, samples: Tensor, log_density: Callable[[Tensor], Tensor] | None
) -> dict[str, Figure | bytes]:
    """Return figures by name; a GIF is returned as bytes.

    Two-dimensional data: the densities of target and model, samples, and the transformation over time. Images: samples
    and reconstructions. Other data: no figures.

    samples: samples [N, *shape] of the test split. log_density: the normalised log-density of the target, or None if it
    is unknown.
    """
    if samples.shape[1:] == (2,):
        return _planar_figures(model, solve, samples, log_density)
    if samples.ndim == 4:
        return _image_figures(model, solve, samples[:NUM_IMAGES])
    return {}


def _planar_figures(
    model: Any, solve: Any, samples: Tensor, log_density: Callable[[Tensor], Tensor] | None
) -> dict[str, Figure | bytes]:
    half_width = 1.1 * samples.abs().max().item()
    limits = (-half_width, half_width)
    grid = torch.from_numpy(density.grid_points(limits, GRID_SIZE)).to(samples)
    modelled = model.log_prob(grid, solve, "exact")[0].cpu().numpy()
    generated, _ = model.sample(NUM_SAMPLES, solve, torch.Generator().manual_seed(0))
    if log_density is None:
        target = density.histogram(samples.cpu().numpy(), limits, density.num_bins(len(samples)))
    else:
        target = log_density(grid).cpu().numpy()
    base = model.base_sample(NUM_PARTICLES, torch.Generator().manual_seed(0)).to(samples)
    figures: dict[str, Figure | bytes] = {
        "density": density.density_comparison(target, modelled, generated.cpu().numpy(), limits),
        "transformation": animation.frame_strip(
            _frames(model, solve, base, NUM_STRIP_FRAMES), limits, "From the base to the data"
        ),
        "transformation_gif": animation.animation(_frames(model, solve, base, NUM_GIF_FRAMES), limits),
    }
    if not hasattr(model, "velocity"):
        return figures
    points = torch.from_numpy(density.grid_points(limits, NUM_ARROWS)).to(samples)
    times = np.linspace(0.0, float(model.end_time), NUM_FIELD_TIMES).tolist()
    velocities = np.stack([model.velocity(points.new_tensor(t), points).cpu().numpy() for t in times])
    return figures | {"field": density.vector_field(times, velocities, limits, title="The vector field")}


def _frames(model: Any, solve: Any, base: Tensor, num: int) -> list[animation.Frame]:
    times = np.linspace(0.0, float(model.end_time), num).tolist()
    states, _ = model.path(base, times, solve)
    name = "t =" if hasattr(model, "velocity") else "layer"  # without an ODE, each layer counts as one unit of time
    return [animation.Frame(f"{name} {t:.3g}", state.cpu().numpy()) for t, state in zip(times, states, strict=True)]


def _image_figures(model: Any, solve: Any, images: Tensor) -> dict[str, Figure | bytes]:
    generated, _ = model.sample(len(images), solve, torch.Generator().manual_seed(0))
    base, _, _ = model.to_base(images[:10], solve)
    reconstructed, _, _ = model.from_base(base, solve)
    return {
        "samples": image_grid.image_grid(generated.cpu().numpy(), "Samples of the model"),
        "reconstructions": image_grid.image_pairs(images[:10].cpu().numpy(), reconstructed.cpu().numpy()),
    }

"""Pictures of a density model: tensors to the arrays that ``odebench.plots`` draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from odebench.plots import animation, density, image_grid

GRID = 120
ARROWS = 16
PARTICLES = 2000
SAMPLES = 20_000
STRIP_FRAMES, GIF_FRAMES = 6, 31
FIELD_TIMES = 4
IMAGES = 50


def density_figures(
    model: Any, solve: Any, samples: Tensor, log_density: Callable[[Tensor], Tensor] | None
) -> dict[str, Figure | bytes]:
    """Figures, and GIFs as bytes, by name; of data that are neither in the plane nor images, none.

    samples: [N, *shape], of the test split. log_density: of the target, normalised, where it is known.
    """
    if samples.shape[1:] == (2,):
        return _in_the_plane(model, solve, samples, log_density)
    if samples.ndim == 4:
        return _of_images(model, solve, samples[:IMAGES])
    return {}


def _in_the_plane(
    model: Any, solve: Any, samples: Tensor, log_density: Callable[[Tensor], Tensor] | None
) -> dict[str, Figure | bytes]:
    reach = 1.1 * samples.abs().max().item()
    limits = (-reach, reach)
    grid = torch.from_numpy(density.grid_points(limits, GRID)).to(samples)
    modelled = model.log_prob(grid, solve, "exact")[0].cpu().numpy()
    drawn, _ = model.sample(SAMPLES, solve, torch.Generator().manual_seed(0))
    if log_density is None:
        target = density.histogram(samples.cpu().numpy(), limits, density.num_bins(len(samples)))
    else:
        target = log_density(grid).cpu().numpy()
    base = model.base_sample(PARTICLES, torch.Generator().manual_seed(0)).to(samples)
    figures: dict[str, Figure | bytes] = {
        "density": density.density_comparison(target, modelled, drawn.cpu().numpy(), limits),
        "transformation": animation.frame_strip(
            _frames(model, solve, base, STRIP_FRAMES), limits, "From the base to the data"
        ),
        "transformation_gif": animation.animation(_frames(model, solve, base, GIF_FRAMES), limits),
    }
    if not hasattr(model, "velocity"):
        return figures
    times, velocities = _velocities(model, limits, samples)
    return figures | {"field": density.vector_field(times, velocities, limits, title="The vector field")}


def _frames(model: Any, solve: Any, base: Tensor, num: int) -> list[animation.Frame]:
    times = np.linspace(0.0, float(model.end_time), num).tolist()
    states, _ = model.path(base, times, solve)
    name = "t =" if hasattr(model, "velocity") else "layer"  # without an ODE a layer is a unit of time
    return [animation.Frame(f"{name} {t:.3g}", state.cpu().numpy()) for t, state in zip(times, states, strict=True)]


def _velocities(model: Any, limits: density.Limits, like: Tensor) -> tuple[list[float], np.ndarray]:
    grid = torch.from_numpy(density.grid_points(limits, ARROWS)).to(like)
    times = np.linspace(0.0, float(model.end_time), FIELD_TIMES).tolist()
    return times, np.stack([model.velocity(grid.new_tensor(t), grid).cpu().numpy() for t in times])


def _of_images(model: Any, solve: Any, images: Tensor) -> dict[str, Figure | bytes]:
    drawn, _ = model.sample(len(images), solve, torch.Generator().manual_seed(0))
    base, _, _ = model.to_base(images[:10], solve)
    back, _, _ = model.from_base(base, solve)
    return {
        "samples": image_grid.image_grid(drawn.cpu().numpy(), "Samples of the model"),
        "reconstructions": image_grid.image_pairs(images[:10].cpu().numpy(), back.cpu().numpy()),
    }

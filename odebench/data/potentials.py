r"""Unnormalised densities exp(-U(z)) in the plane: U1 to U4 of Rezende and Mohamed (2015), Table 1.

    U1 = ((|z| - 2) / 0.4)^2 / 2 - ln(exp(-((z1 - 2) / 0.6)^2 / 2) + exp(-((z1 + 2) / 0.6)^2 / 2))
    U2 = ((z2 - w1) / 0.4)^2 / 2 + wall
    U3 = -ln(exp(-((z2 - w1) / 0.35)^2 / 2) + exp(-((z2 - w1 + w2) / 0.35)^2 / 2)) + wall
    U4 = -ln(exp(-((z2 - w1) / 0.4)^2 / 2) + exp(-((z2 - w1 + w3) / 0.35)^2 / 2)) + wall

    w1 = sin(pi z1 / 2)    w2 = 3 exp(-((z1 - 1) / 0.6)^2 / 2)    w3 = 3 sigmoid((z1 - 1) / 0.3)
    wall = (max(|z1| - 4, 0) / 0.4)^2 / 2

The wall is our addition. Without it U2 to U4 do not grow along z1, so the integral of exp(-U) is infinite, and the
divergence of a model from exp(-U) has no lower bound. The wall is zero in the range of the paper's figures, up to
|z1| = 4.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from odebench.data.density import DensityData, Distribution, sampled

LogDensity = Callable[[Tensor], Tensor]

# The probability outside |z1|, |z2| < BOX_HALF_WIDTH is below exp(-40) for all four.
BOX_HALF_WIDTH = 8.0

GRID_POINTS = 801  # along each axis


def potential_1(z: Tensor) -> Tensor:
    """-U1: a ring, densest at its left and right."""
    ring = -_half_square(torch.linalg.vector_norm(z, dim=-1) - 2, 0.4)
    return ring + torch.logaddexp(-_half_square(z[..., 0] - 2, 0.6), -_half_square(z[..., 0] + 2, 0.6))


def potential_2(z: Tensor) -> Tensor:
    """-U2: a wave."""
    return -_half_square(z[..., 1] - _w1(z), 0.4) - _wall(z)


def potential_3(z: Tensor) -> Tensor:
    """-U3: a wave that splits into two and joins again."""
    w2 = 3 * torch.exp(-_half_square(z[..., 0] - 1, 0.6))
    return _two_waves(z[..., 1] - _w1(z), w2, 0.35) - _wall(z)


def potential_4(z: Tensor) -> Tensor:
    """-U4: a wave that splits into two."""
    w3 = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    return _two_waves(z[..., 1] - _w1(z), w3, 0.4) - _wall(z)


def _two_waves(height: Tensor, distance: Tensor, std: float) -> Tensor:
    return torch.logaddexp(-_half_square(height, std), -_half_square(height + distance, 0.35))


def _w1(z: Tensor) -> Tensor:
    return torch.sin(math.pi / 2 * z[..., 0])


def _wall(z: Tensor) -> Tensor:
    return _half_square((z[..., 0].abs() - 4).relu(), 0.4)


def _half_square(x: Tensor, std: float) -> Tensor:
    return (x / std).square() / 2


@cache
def log_normaliser(log_density: LogDensity) -> float:
    """Log of the integral of exp(log_density) over the box, by the trapezoidal rule in float64."""
    # The density vanishes at the border, so the rule is a plain sum; for smooth densities its error is rounding alone.
    return (_on_grid(log_density).logsumexp((0, 1)) + 2 * math.log(2 * BOX_HALF_WIDTH / (GRID_POINTS - 1))).item()


@cache
def log_density_bound(log_density: LogDensity) -> float:
    """An upper bound of the log density, close to its maximum."""
    # The curvature at the maximum is below 200, and the spacing of the grid is 0.02.
    return _on_grid(log_density).max().item() + 0.05


def rejection_sample(log_density: LogDensity, num: int, random: np.random.RandomState) -> np.ndarray:
    """Independent samples [num, 2] of the density, by rejection of uniform points in the box."""
    kept = np.empty((0, 2))
    acceptance = math.exp(log_normaliser(log_density) - log_density_bound(log_density)) / (2 * BOX_HALF_WIDTH) ** 2
    while len(kept) < num:
        tries = math.ceil(1.1 * (num - len(kept)) / acceptance)
        points = random.uniform(-BOX_HALF_WIDTH, BOX_HALF_WIDTH, (tries, 2))
        level = log_density(torch.from_numpy(points)).numpy() - log_density_bound(log_density)
        kept = np.concatenate([kept, points[random.rand(tries) < np.exp(level)]])
    return kept[:num]


def _on_grid(log_density: LogDensity) -> Tensor:
    side = torch.linspace(-BOX_HALF_WIDTH, BOX_HALF_WIDTH, GRID_POINTS, dtype=torch.float64)
    return log_density(torch.cartesian_prod(side, side)).view(GRID_POINTS, GRID_POINTS)


def _potential_data(log_density: LogDensity) -> Callable[..., DensityData]:
    distribution = Distribution(
        source="Rezende, Mohamed: Variational inference with normalizing flows, ICML 2015, Table 1; U2 to U4 walled",
        sample=partial(rejection_sample, log_density),
        log_density=log_density,
        log_normaliser=partial(log_normaliser, log_density),
    )
    return partial(sampled, distribution)


POTENTIALS: dict[str, Callable[..., DensityData]] = {
    potential.__name__: _potential_data(potential) for potential in (potential_1, potential_2, potential_3, potential_4)
}

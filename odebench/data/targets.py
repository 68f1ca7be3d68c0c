r"""Unnormalised densities exp(-U(z)) in the plane: U1 to U4 of Rezende and Mohamed (2015), Table 1.

    U1 = ((|z| - 2) / 0.4)^2 / 2 - ln(exp(-((z1 - 2) / 0.6)^2 / 2) + exp(-((z1 + 2) / 0.6)^2 / 2))
    U2 = ((z2 - w1) / 0.4)^2 / 2 + wall
    U3 = -ln(exp(-((z2 - w1) / 0.35)^2 / 2) + exp(-((z2 - w1 + w2) / 0.35)^2 / 2)) + wall
    U4 = -ln(exp(-((z2 - w1) / 0.4)^2 / 2) + exp(-((z2 - w1 + w3) / 0.35)^2 / 2)) + wall

    w1 = sin(pi z1 / 2)    w2 = 3 exp(-((z1 - 1) / 0.6)^2 / 2)    w3 = 3 sigmoid((z1 - 1) / 0.3)
    wall = (max(|z1| - 4, 0) / 0.4)^2 / 2

The wall is ours: without it U2 to U4 do not grow along z1, so that exp(-U) has no integral and the divergence
of a model from it no bound below. It is zero where the paper's figures look, up to |z1| = 4.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from odebench.data.density import DensityData, Distribution, sampled

LogDensity = Callable[[Tensor], Tensor]

BOX = 8.0
"""All four lie within |z1|, |z2| < BOX but for a share of less than exp(-40)."""

GRID = 801  # points a side


def potential_1(z: Tensor) -> Tensor:
    """-U1: a ring that is dense on its left and its right."""
    ring = -_half_square(torch.linalg.vector_norm(z, dim=-1) - 2, 0.4)
    return ring + torch.logaddexp(-_half_square(z[..., 0] - 2, 0.6), -_half_square(z[..., 0] + 2, 0.6))


def potential_2(z: Tensor) -> Tensor:
    """-U2: a wave."""
    return -_half_square(z[..., 1] - _w1(z), 0.4) - _wall(z)


def potential_3(z: Tensor) -> Tensor:
    """-U3: a wave that parts and joins again."""
    w2 = 3 * torch.exp(-_half_square(z[..., 0] - 1, 0.6))
    return _two_waves(z[..., 1] - _w1(z), w2, 0.35) - _wall(z)


def potential_4(z: Tensor) -> Tensor:
    """-U4: a wave that parts."""
    w3 = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    return _two_waves(z[..., 1] - _w1(z), w3, 0.4) - _wall(z)


def _two_waves(height: Tensor, apart: Tensor, std: float) -> Tensor:
    return torch.logaddexp(-_half_square(height, std), -_half_square(height + apart, 0.35))


def _w1(z: Tensor) -> Tensor:
    return torch.sin(math.pi / 2 * z[..., 0])


def _wall(z: Tensor) -> Tensor:
    return _half_square((z[..., 0].abs() - 4).relu(), 0.4)


def _half_square(x: Tensor, std: float) -> Tensor:
    return (x / std).square() / 2


@cache
def log_normaliser(log_density: LogDensity) -> float:
    """Log of the integral over the box, by the trapezoidal rule in float64."""
    # At the border the density is nil, so the rule is a plain sum, and exact to rounding where it is smooth.
    return (_on_grid(log_density).logsumexp((0, 1)) + 2 * math.log(2 * BOX / (GRID - 1))).item()


@cache
def peak(log_density: LogDensity) -> float:
    """An upper bound of the log density, close to its greatest value."""
    # Curvatures at the greatest values are below 200, and the grid's points 0.02 apart.
    return _on_grid(log_density).max().item() + 0.05


def sample(log_density: LogDensity, num: int, random: np.random.RandomState) -> np.ndarray:
    """Independent points [num, 2] of the density, exactly: uniform ones in the box, kept by rejection."""
    kept = np.empty((0, 2))
    share = math.exp(log_normaliser(log_density) - peak(log_density)) / (2 * BOX) ** 2
    while len(kept) < num:
        tries = math.ceil(1.1 * (num - len(kept)) / share)
        points = random.uniform(-BOX, BOX, (tries, 2))
        level = log_density(torch.from_numpy(points)).numpy() - peak(log_density)
        kept = np.concatenate([kept, points[random.rand(tries) < np.exp(level)]])
    return kept[:num]


def _on_grid(log_density: LogDensity) -> Tensor:
    side = torch.linspace(-BOX, BOX, GRID, dtype=torch.float64)
    return log_density(torch.cartesian_prod(side, side)).view(GRID, GRID)


def _target(log_density: LogDensity) -> Callable[..., DensityData]:
    distribution = Distribution(
        source="Rezende, Mohamed: Variational inference with normalizing flows, ICML 2015, Table 1; U2 to U4 walled",
        sample=partial(sample, log_density),
        log_density=log_density,
        log_normaliser=partial(log_normaliser, log_density),
    )
    return partial(sampled, distribution)


TARGETS: dict[str, Callable[..., DensityData]] = {
    target.__name__: _target(target) for target in (potential_1, potential_2, potential_3, potential_4)
}

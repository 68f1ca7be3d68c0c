"""Eight densities in the plane for demonstrations of density models.

Shapes and scales are those of FFJORD's public toy set (Grathwohl et al. 2019); all points are independent. The sampling
functions take (num, random, options) and return float64 [num, 2]. The log density, where it has a closed form, maps
[N, 2] to [N]. ``noise`` is the standard deviation of the noise added to a curve or centre, in the units that the
published code has before it scales the points.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odebench.data.density import DensityData, Distribution, sampled

RandomState = np.random.RandomState

NUM_GAUSSIANS, GAUSSIANS_RADIUS, GAUSSIANS_SCALE = 8, 4.0, 1.414
CHECKERBOARD_AREA = 32.0


def two_circles(num: int, random: RandomState, *, noise: float, scale: float) -> np.ndarray:
    """Circles of radius scale and scale / 2."""
    from sklearn.datasets import make_circles  # takes a second

    return scale * make_circles(_fine(num), noise=noise, factor=0.5, random_state=random)[0][:num]


def two_moons(num: int, random: RandomState, *, noise: float, scale: float) -> np.ndarray:
    """Interleaved half circles of radius scale."""
    from sklearn.datasets import make_moons  # takes a second

    return scale * (make_moons(_fine(num), noise=noise, random_state=random)[0][:num] - (0.5, 0.1))


def swissroll(num: int, random: RandomState, *, noise: float) -> np.ndarray:
    """A spiral of one and a half turns, the cross-section of the swiss roll."""
    from sklearn.datasets import make_swiss_roll  # takes a second

    return make_swiss_roll(num, noise=noise, random_state=random)[0][:, [0, 2]] / 5


def eight_gaussians(num: int, random: RandomState, *, noise: float) -> np.ndarray:
    """An equal mixture of Gaussians on a circle of radius 4 / 1.414."""
    angles = 2 * np.pi / NUM_GAUSSIANS * random.randint(NUM_GAUSSIANS, size=num)
    return (GAUSSIANS_RADIUS * _on_circle(angles) + noise * random.randn(num, 2)) / GAUSSIANS_SCALE


def eight_gaussians_log_density(x: Tensor, *, noise: float) -> Tensor:
    """Log density of ``eight_gaussians``, normalised."""
    angles = 2 * math.pi / NUM_GAUSSIANS * torch.arange(NUM_GAUSSIANS, dtype=x.dtype, device=x.device)
    centres = GAUSSIANS_RADIUS / GAUSSIANS_SCALE * torch.stack([angles.cos(), angles.sin()], dim=-1)
    std = noise / GAUSSIANS_SCALE
    exponents = -((x[:, None] - centres) / std).square().sum(-1) / 2
    return exponents.logsumexp(-1) - math.log(NUM_GAUSSIANS * 2 * math.pi * std**2)


def pinwheel(num: int, random: RandomState) -> np.ndarray:
    """Five bent arms (Johnson et al. 2016): Gaussians, each turned by an angle that grows with the radius."""
    along, across = 1 + 0.3 * random.randn(num), 0.1 * random.randn(num)
    angles = 2 * np.pi / 5 * random.randint(5, size=num) + 0.25 * np.exp(along)
    cos, sin = np.cos(angles), np.sin(angles)
    return 2 * np.stack([along * cos + across * sin, across * cos - along * sin], axis=1)


def two_spirals(num: int, random: RandomState, *, noise: float) -> np.ndarray:
    """Two spirals of one and a half turns, point reflections of each other."""
    angles = 3 * np.pi * np.sqrt(random.rand(num))
    arm = np.stack([-np.cos(angles), np.sin(angles)], axis=1) * angles[:, None] + 0.5 * random.rand(num, 2)
    side = random.choice([-1, 1], size=(num, 1))
    return side * arm / 3 + noise * random.randn(num, 2)


def checkerboard(num: int, random: RandomState) -> np.ndarray:
    """Uniform on eight squares of side 2 of the checkerboard on [-4, 4]^2."""
    # Odd multiples of 2^-21 are exact in float32, so that rounding moves no point over the edge of its square.
    x, y = (random.randint(2**20, size=(2, num)) + 0.5) / 2**20
    x = 4 * x - 2
    y = y - 2 * random.randint(2, size=num) + np.floor(x) % 2
    return 2 * np.stack([x, y], axis=1)


def checkerboard_log_density(x: Tensor) -> Tensor:
    """Log density of ``checkerboard``, normalised; minus infinity outside the eight squares."""
    dark = ((x / 2).floor().sum(-1) % 2 == 0) & (x.abs().amax(-1) < 4)
    return torch.full_like(x[:, 0], -math.log(CHECKERBOARD_AREA)).masked_fill(~dark, -math.inf)


def rings(num: int, random: RandomState, *, noise: float) -> np.ndarray:
    """Four circles with radii from 0.75 to 3, each with a quarter of the points."""
    radii = random.choice([0.75, 1.5, 2.25, 3.0], size=(num, 1))
    return radii * _on_circle(2 * np.pi * random.rand(num)) + noise * random.randn(num, 2)


def _fine(num: int) -> int:
    # scikit-learn spaces its points evenly along the curve. A random choice from many of them looks independent.
    return max(num, 10_000)


def _on_circle(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _toy(sample: Callable[..., np.ndarray], **density: Any) -> Callable[..., DensityData]:
    return partial(sampled, Distribution("the toy set of Grathwohl et al.: FFJORD, ICLR 2019", sample, **density))


TOY_DENSITIES: dict[str, Callable[..., DensityData]] = {
    "two_circles": _toy(two_circles),
    "two_moons": _toy(two_moons),
    "swissroll": _toy(swissroll),
    "eight_gaussians": _toy(eight_gaussians, log_density=eight_gaussians_log_density, log_normaliser=lambda: 0.0),
    "pinwheel": _toy(pinwheel),
    "two_spirals": _toy(two_spirals),
    "checkerboard": _toy(checkerboard, log_density=checkerboard_log_density, log_normaliser=lambda: 0.0),
    "rings": _toy(rings),
}

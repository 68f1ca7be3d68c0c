"""The toy densities: their shapes, and the two whose density is known."""

import math

import numpy as np
import pytest
import torch

from odebench.data.toy_densities import TOY_DENSITIES
from odebench.errors import UsageError

SIZES = {"seed": 0, "samples": 20_000, "fresh": True, "validation": 10, "test": 10}
OPTIONS = {
    "two_circles": {"noise": 0.06, "scale": 3.0},
    "two_moons": {"noise": 0.1, "scale": 2.0},
    "swissroll": {"noise": 1.0},
    "eight_gaussians": {"noise": 0.5},
    "pinwheel": {},
    "two_spirals": {"noise": 0.1},
    "checkerboard": {},
    "rings": {"noise": 0.08},
}
TINY_NOISE = {"two_circles": 1e-6, "two_moons": 1e-6, "two_spirals": 1e-6, "rings": 1e-6, "swissroll": 1e-6}


def load(name, **changes):
    return TOY_DENSITIES[name](**(SIZES | OPTIONS[name] | changes))


def noiseless(name) -> tuple[torch.Tensor, torch.Tensor]:
    return load(name, noise=TINY_NOISE[name]).train.double().unbind(-1)


def grid(half_width, num) -> tuple[torch.Tensor, float]:
    """Midpoints of num^2 squares of a grid, and their area."""
    side = (torch.arange(num, dtype=torch.float64) + 0.5) * 2 * half_width / num - half_width
    return torch.cartesian_prod(side, side), (2 * half_width / num) ** 2


@pytest.mark.parametrize("name", TOY_DENSITIES)
def test_all_samples_are_in_the_range_of_the_published_figures(name):
    x = load(name).train
    assert x.shape == (20_000, 2)
    assert ((x.abs() < 4).all(-1)).double().mean() > 0.99
    assert 2 < x.abs().max() < 5


@pytest.mark.parametrize("name", TOY_DENSITIES)
def test_small_batches_of_samples_have_the_same_distribution(name):
    draw, random = load(name, samples=10).draw, np.random.RandomState(0)
    few = torch.cat([draw(2, random) for _ in range(300)])
    many = load(name).train
    error = many.std(0) / math.sqrt(600)
    assert ((few.mean(0) - many.mean(0)).abs() < 4 * error).all()
    assert ((few.std(0) / many.std(0) - 1).abs() < 0.15).all()
    assert len(few.unique(dim=0)) == 600


def test_the_circles_have_radius_3_and_half_of_it():
    x, y = noiseless("two_circles")
    radius = torch.hypot(x, y)
    outer = radius > 2
    assert outer.double().mean() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(radius, torch.where(outer, 3.0, 1.5).double(), atol=1e-4, rtol=0)


def test_the_circles_of_scale_1_are_those_of_scikit_learn():
    assert load("two_circles", scale=1.0).train.norm(dim=-1).max() == pytest.approx(1.2, abs=0.1)


def test_the_moons_are_half_circles_and_reflections_of_each_other():
    x, y = noiseless("two_moons")
    upper = ((torch.hypot(x + 1, y + 0.2) - 2).abs() < 1e-4) & (y > -0.201)
    lower = ((torch.hypot(x - 1, y - 0.8) - 2).abs() < 1e-4) & (y < 0.801)
    assert (upper | lower).all()
    assert upper.double().mean() == pytest.approx(0.5, abs=0.01)


def test_the_rings_have_a_quarter_of_the_points_each():
    x, y = noiseless("rings")
    counts = np.bincount((torch.hypot(x, y) / 0.75).round().int().numpy())
    np.testing.assert_allclose(counts / 20_000, [0, 0.25, 0.25, 0.25, 0.25], atol=0.015)


def test_the_swiss_roll_is_a_spiral():
    x, y = noiseless("swissroll")
    angle = 5 * torch.hypot(x, y)
    torch.testing.assert_close(
        torch.stack([x, y]), angle * torch.stack([angle.cos(), angle.sin()]) / 5, atol=1e-4, rtol=0
    )


def test_the_two_spirals_are_mirror_images():
    x, y = load("two_spirals").train.unbind(-1)
    near = torch.hypot(x, y) < 1.2
    assert torch.stack([x, y]).mean(1).abs().max() < 0.05
    assert near.double().mean() == pytest.approx((1.2 / math.pi) ** 2, abs=0.05)


def test_the_pinwheel_is_invariant_under_a_fifth_of_a_turn():
    x = load("pinwheel").train
    cos, sin = math.cos(2 * math.pi / 5), math.sin(2 * math.pi / 5)
    turned = x @ torch.tensor([[cos, -sin], [sin, cos]])
    counts = [np.histogram2d(*points.T.numpy(), bins=10, range=[[-4, 4]] * 2)[0] for points in (x, turned)]
    assert np.abs(counts[0] - counts[1]).sum() / 20_000 < 0.12
    assert np.abs(counts[0] - counts[0].T).sum() / 20_000 > 0.3


@pytest.mark.parametrize("name", ["eight_gaussians", "checkerboard"])
def test_a_known_density_integrates_to_one(name):
    data = load(name)
    points, area = grid(8.0, 400)
    assert data.log_density(points).exp().sum() * area == pytest.approx(1, abs=1e-9)
    assert data.log_normaliser == 0


@pytest.mark.parametrize("name", ["eight_gaussians", "checkerboard"])
def test_a_known_density_is_that_of_the_samples(name):
    data = load(name, samples=100_000)
    points, area = grid(4.0, 40)
    counts, _, _ = np.histogram2d(*data.train.T.numpy(), bins=40, range=[[-4, 4]] * 2)
    expected = data.log_density(points).exp().view(40, 40).numpy() * area * 100_000
    # Chi-square per cell; 1.3 and not 1, as the density is not constant within the cells.
    filled = expected > 20
    assert filled.sum() > 300
    assert (((counts - expected) ** 2 / np.maximum(expected, 1))[filled]).mean() < 1.3
    assert counts[expected == 0].sum() == 0


def test_a_narrower_mixture_has_a_narrower_density():
    assert load("eight_gaussians", noise=0.1).log_density(torch.tensor([[4 / 1.414, 0.0]])).item() == pytest.approx(
        -math.log(8 * 2 * math.pi * (0.1 / 1.414) ** 2), abs=1e-4
    )


def test_the_checkerboard_is_no_target_for_density_matching():
    load("eight_gaussians").check_density_matching_target()
    with pytest.raises(UsageError, match="log_density is -inf at"):
        load("checkerboard").check_density_matching_target()

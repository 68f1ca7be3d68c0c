"""The unnormalised densities exp(-U): formulas, integrals, exact samples."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from odebench.data import potentials
from odebench.data.potentials import POTENTIALS, potential_1, potential_2, potential_3, potential_4

DENSITIES = [potential_1, potential_2, potential_3, potential_4]
SIZES = {"seed": 0, "samples": 10, "fresh": False, "validation": 10, "test": 4000}

# Of U2 to U4 each slice along z2 is one Gaussian or two; the wall leaves a plateau of 8 with half a Gaussian each side.
PLATEAU = 8 + 0.4 * math.sqrt(2 * math.pi)
EXACT = {
    potential_2: 0.4 * math.sqrt(2 * math.pi) * PLATEAU,
    potential_3: (0.35 + 0.35) * math.sqrt(2 * math.pi) * PLATEAU,
    potential_4: (0.4 + 0.35) * math.sqrt(2 * math.pi) * PLATEAU,
}


def density_1(angle, radius) -> float:
    """exp(-U1) in polar coordinates, times the radius."""
    z1 = radius * math.cos(angle)
    sides = math.exp(-(((z1 - 2) / 0.6) ** 2) / 2) + math.exp(-(((z1 + 2) / 0.6) ** 2) / 2)
    return radius * math.exp(-(((radius - 2) / 0.4) ** 2) / 2) * sides


def test_the_normaliser_of_the_ring_is_that_of_quadrature_in_polar_coordinates():
    exact, _ = integrate.dblquad(density_1, 0, 6, 0, 2 * math.pi, epsabs=1e-9)
    assert potentials.log_normaliser(potential_1) == pytest.approx(math.log(exact), abs=1e-8)


@pytest.mark.parametrize("potential", EXACT)
def test_the_normaliser_of_the_waves_is_that_of_their_slices(potential):
    assert potentials.log_normaliser(potential) == pytest.approx(math.log(EXACT[potential]), abs=1e-6)


def test_the_formulas_at_a_point():
    z = torch.tensor([[1.0, -1.5]], dtype=torch.float64)
    w1, w2, w3 = 1.0, 3.0, 1.5
    waves = {0.4: -1.5 - w1, 0.35: -1.5 - w1 + w2}
    bell = [math.exp(-((height / std) ** 2) / 2) for std, height in waves.items()]
    assert potential_2(z).item() == pytest.approx(-((2.5 / 0.4) ** 2) / 2)
    assert potential_3(z).item() == pytest.approx(math.log(math.exp(-((2.5 / 0.35) ** 2) / 2) + bell[1]))
    assert potential_4(z).item() == pytest.approx(math.log(bell[0] + math.exp(-(((-2.5 + w3) / 0.35) ** 2) / 2)))
    assert potential_1(z).item() == pytest.approx(math.log(density_1(math.atan2(-1.5, 1), 3.25**0.5) / 3.25**0.5))


@pytest.mark.parametrize("potential", EXACT)
def test_the_wall_is_smooth_at_4_and_closes_both_sides(potential):
    edge = torch.tensor([[4 - 1e-6, 0.0], [4 + 1e-6, 0.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(potential(edge).sum(), edge)
    torch.testing.assert_close(slope[0], slope[1], atol=1e-3, rtol=0)
    assert (potential(torch.tensor([[-8.0, 0.0], [8.0, 0.0]])) < -45).all()


def test_the_wall_is_zero_up_to_4():
    crests = torch.tensor([[z1, math.sin(math.pi / 2 * z1)] for z1 in (-4, -3, 0, 1, 4)], dtype=torch.float64)
    torch.testing.assert_close(potential_2(crests), torch.zeros(5).double())


@pytest.mark.parametrize("potential", DENSITIES)
def test_density_and_gradient_are_finite_everywhere_in_the_box(potential):
    far = 10.0 ** torch.arange(-3, 8)
    side = torch.cat([-far, torch.zeros(1), far])
    z = torch.cartesian_prod(side, side).requires_grad_()
    log_density = potential(z)
    assert log_density.isfinite().all()
    assert torch.autograd.grad(log_density.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("potential", DENSITIES)
def test_the_log_density_bound_holds_between_the_points_of_the_grid(potential):
    bound = potentials.log_density_bound(potential)
    z = torch.from_numpy(potentials.rejection_sample(potential, 2000, np.random.RandomState(1))).requires_grad_()
    ascent = torch.optim.Adam([z], lr=0.02)
    for _ in range(60):
        ascent.zero_grad()
        (-potential(z).sum()).backward()
        ascent.step()
    assert bound - 0.06 < potential(z).max() <= bound


@pytest.mark.parametrize("potential", EXACT)
def test_samples_along_z1_are_flat_between_half_gaussians(potential):
    # Each slice has the same integral, so the distribution of z1 depends on the wall alone.
    z1 = potentials.rejection_sample(potential, 4000, np.random.RandomState(2))[:, 0]
    outside = 0.4 * math.sqrt(2 * math.pi) * stats.norm.cdf(z1 - np.clip(z1, -4, 4), scale=0.4)
    cdf = (outside + np.clip(z1, -4, 4) + 4) / PLATEAU
    assert stats.kstest(cdf, "uniform").pvalue > 0.01


def test_samples_along_z2_are_gaussian_about_the_wave():
    z1, z2 = potentials.rejection_sample(potential_2, 4000, np.random.RandomState(3)).T
    assert stats.kstest((z2 - np.sin(math.pi / 2 * z1)) / 0.4, "norm").pvalue > 0.01


@pytest.mark.parametrize("potential", DENSITIES)
def test_the_mean_log_density_of_samples_is_minus_the_entropy(potential):
    side = torch.linspace(-7, 7, 700, dtype=torch.float64)
    values = potential(torch.cartesian_prod(side, side))
    p = (values - values.logsumexp(0)).exp()
    mean = (p * values).sum()
    std = ((p * values.square()).sum() - mean.square()).sqrt()
    sampled = potential(torch.from_numpy(potentials.rejection_sample(potential, 4000, np.random.RandomState(4))))
    assert abs(sampled.mean() - mean) < 4 * std / math.sqrt(4000)


@pytest.mark.parametrize("name", POTENTIALS)
def test_a_potential_is_a_target_for_density_matching(name):
    data = POTENTIALS[name](**SIZES)
    data.check_density_matching_target()
    assert data.log_normaliser == potentials.log_normaliser(getattr(potentials, name))
    torch.testing.assert_close(data.log_density(data.test), getattr(potentials, name)(data.test))


def test_no_density_has_a_negative_divergence():
    """KL(q || p) of Gaussians q with several centres and widths; a wrong normaliser would make some negative."""
    side = torch.linspace(-7.9, 7.9, 400, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    for potential in DENSITIES:
        divergences = []
        for centre in ([0.0, 0.0], [2.0, 0.0], [-3.0, 1.0]):
            for std in (0.4, 0.8, 1.5):
                log_q = -((z - torch.tensor(centre)) / std).square().sum(-1) / 2
                log_q = log_q - log_q.logsumexp(0)
                log_p = potential(z) - potentials.log_normaliser(potential) + 2 * math.log(side[1] - side[0])
                divergences.append((log_q.exp() * (log_q - log_p)).sum().item())
        assert min(divergences) > 0

"""Planar flows, in the closed direction and by root finding."""

import pytest
import torch

from odebench.errors import UsageError
from odebench.models.planar_flow import PlanarFlow, invert_planar_layer

DIRECTIONS = ["sampling", "likelihood"]


def planar(closed, layers=5, size=2):
    """A flow with random weights, whose layers would not all be invertible without the constraint."""
    torch.manual_seed(0)
    flow = PlanarFlow((size,), layers, closed, base_variance=0.5).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.normal_(std=1.5)
        (chain,) = flow.transforms
        assert (chain.w * chain.u).sum(1).min() < -1
    return flow


@pytest.mark.parametrize("closed", DIRECTIONS)
def test_data_goes_to_the_base_and_back(closed):
    flow, x = planar(closed), 3 * torch.randn(200, 2).double()
    z, log_det, solves = flow.to_base(x)
    back, log_det_back, _ = flow.from_base(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-8)
    assert solves == ()


@pytest.mark.parametrize("closed", DIRECTIONS)
@pytest.mark.parametrize("way", ["to_base", "from_base"])
def test_the_log_determinant_is_that_of_the_jacobian(closed, way):
    move = getattr(planar(closed, size=3), way)
    x = torch.randn(1, 3).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: move(x)[0], x).reshape(3, 3)
    assert move(x)[1].item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-9)


@pytest.mark.parametrize("closed", DIRECTIONS)
@torch.no_grad()
def test_the_density_integrates_to_one(closed):
    flow, axis = planar(closed, layers=3), torch.linspace(-6, 6, 121).double()
    for parameter in flow.parameters():
        parameter.mul_(0.5)  # smooth enough for quadrature on the grid
    log_prob, _ = flow.log_prob(torch.cartesian_prod(axis, axis))
    assert log_prob.exp().sum().item() * 0.1**2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("closed", DIRECTIONS)
def test_the_inverse_of_the_inverse_does_not_depend_on_the_parameters(closed):
    flow, z = planar(closed), torch.randn(20, 2).double()
    x, log_det, _ = flow.from_base(z)
    back, log_det_back, _ = flow.to_base(x)
    (back.sin().sum() + (log_det + log_det_back).sum()).backward()
    for parameter in flow.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter), rtol=0, atol=1e-7)


@pytest.mark.parametrize("c", [-0.999, -0.5, 0.0, 3.0, 300.0])
def test_the_root_is_exact_however_steep_or_flat(c):
    a = torch.cat([torch.linspace(-30, 30, 101), torch.tensor([-1e4, -1e-3, 1e-3, 1e4])]).double()
    c = torch.tensor(c).double()
    r = a + c * torch.tanh(a)
    found = invert_planar_layer(c, r)
    torch.testing.assert_close(found + c * torch.tanh(found), r, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found, a, rtol=1e-9, atol=1e-9)


def test_the_root_has_the_gradient_of_finite_differences():
    c, r = torch.tensor(-0.7).double().requires_grad_(), torch.linspace(-3, 3, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(invert_planar_layer, (c, r))


def test_float32_is_accurate_to_rounding():
    flow, x = planar("sampling"), torch.randn(200, 2).double()
    exact = flow.log_prob(x)[0]
    torch.testing.assert_close(flow.float().log_prob(x.float())[0].double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("closed", DIRECTIONS)
@torch.no_grad()
def test_the_path_passes_through_the_output_of_each_layer(closed):
    flow, z = planar(closed), torch.randn(6, 2).double()
    path, _ = flow.path(z, [0.0, 0.5, 1.0, 5.0])
    torch.testing.assert_close(path[0], z)
    torch.testing.assert_close(path[1], (path[0] + path[2]) / 2)
    torch.testing.assert_close(path[3], flow.from_base(z)[0])
    assert flow.end_time == 5
    # The first layer from the base is the first of the closed form in the sampling direction, else the last.
    (chain,) = flow.transforms
    index = 0 if closed == "sampling" else -1
    one = PlanarFlow((2,), 1, closed, base_variance=0.5).double()
    for mine, theirs in zip(one.parameters(), chain.parameters(), strict=True):
        mine.copy_(theirs[index : len(theirs) if index else 1])
    torch.testing.assert_close(path[2], one.from_base(z)[0])


def test_images_raise_an_error():
    with pytest.raises(UsageError, match=r"model=planar_nf is for vectors"):
        PlanarFlow((1, 8, 8), 2, "sampling", 1.0)

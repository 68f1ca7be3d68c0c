"""The CNF of Chen et al. 2018."""

from functools import partial

import pytest
import torch

from odebench import ode
from odebench.errors import UsageError
from odebench.models.cnf import CNF, GatedField

SOLVE = partial(ode.solve, rtol=1e-8, atol=1e-8)


def field(size=3, width=7):
    """A field with random weights, large enough that tanh saturates."""
    torch.manual_seed(0)
    made = GatedField(size, width, hidden=5).double()
    with torch.no_grad():
        made.hypernetwork[-1].weight.mul_(8)
    return made


def test_the_field_is_the_papers_sum_of_gated_units():
    f, t, z = field(), torch.tensor(0.4).double(), torch.randn(5, 3).double()
    made = f.hypernetwork(t[None]).view(8, 7)
    w, b, u, gates = made[:3], made[3], made[4:7], torch.sigmoid(made[7])
    units = [gates[m] * u[:, m] * torch.tanh(z @ w[:, m] + b[m])[:, None] for m in range(7)]
    torch.testing.assert_close(f(t, z), sum(units) / 7)


@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.linspace(0, 2, 5)], ids=["one time", "a time a row"])
def test_the_closed_form_trace_equals_autograds(t):
    f, t, z = field(), t.double(), torch.randn(5, 3).double()
    dz, trace = f.divergence(t, z)
    jacobian = torch.autograd.functional.jacobian(lambda z: f(t, z).sum(0), z).transpose(0, 1)
    torch.testing.assert_close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(1))
    torch.testing.assert_close(dz, f(t, z))


def test_a_vector_of_times_applies_row_by_row():
    f, t, z = field(), torch.linspace(0, 2, 5).double(), torch.randn(5, 3).double()
    rows = [f(time, row[None])[0] for time, row in zip(t, z, strict=True)]
    torch.testing.assert_close(f(t, z), torch.stack(rows))


def flow():
    torch.manual_seed(0)
    made = CNF((2,), width=6, hidden=8, end_time=2.0, base_variance=0.5).double()
    with torch.no_grad():
        made.transforms[0].field.hypernetwork[-1].weight.mul_(6)
    return made


@torch.no_grad()
def test_the_density_integrates_to_one():
    axis = torch.linspace(-5, 5, 101).double()
    grid = torch.cartesian_prod(axis, axis)
    log_prob, _ = flow().log_prob(grid, SOLVE)
    assert log_prob.exp().sum().item() * 0.1**2 == pytest.approx(1, abs=1e-5)
    # The density is not Gaussian.
    assert (log_prob - flow().base_log_prob(grid)).abs().max() > 0.5


def test_data_goes_to_the_base_and_back():
    x = torch.randn(6, 2).double()
    z, log_det, _ = flow().to_base(x, SOLVE)
    back, log_det_back, _ = flow().from_base(z, SOLVE)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
def test_every_parameter_is_trained(gradient):
    model = CNF((2,), width=4, hidden=3, end_time=1.0, base_variance=0.1)
    log_prob, _ = model.log_prob(torch.randn(6, 2), partial(ode.solve, gradient=gradient))
    log_prob.mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_images_raise_an_error():
    with pytest.raises(UsageError, match=r"model=cnf is for vectors"):
        CNF((1, 8, 8), width=4, hidden=3, end_time=1.0, base_variance=0.1)

"""The gradient with respect to times over fixed steps: that of the discrete solve, which large steps tell from that of
the exact solution."""

import pytest
import torch
from torch import nn

from odebench.ode import odeint, solve

TIMES = torch.tensor([0.1, 0.6, 1.7], dtype=torch.float64)
Y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.1]], dtype=torch.float64)
METHODS = ["euler", "rk4", "dopri5", "reversible_bosh3", "gl4", "sdirk2"]


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(3)

    def forward(self, t, y):
        return self.layers(torch.cat([y, t.expand(len(y), 1)], 1))


def loss_of(y):
    return (y[1:] ** 2).sum() + y[1].sin().sum()


def time_gradient(integrate, times):
    """The gradient of the loss of states ``integrate(t)`` [T, ...]."""
    t = times.clone().requires_grad_()
    return torch.autograd.grad(loss_of(integrate(t)), t)[0]


def finite_differences(integrate, times, eps=1e-5):
    with torch.no_grad():
        losses = [[loss_of(integrate(times + sign * d)) for sign in (1, -1)] for d in eps * torch.eye(3).double()]
    return torch.tensor([(above - below) / (2 * eps) for above, below in losses], dtype=torch.float64)


@pytest.mark.parametrize("times", [TIMES, -TIMES], ids=["forward", "backward"])
@pytest.mark.parametrize("kwargs", [{}, {"step_t": [0.7, -0.7, 5.0]}], ids=["", "step_t"])
@pytest.mark.parametrize("method", METHODS)
def test_equal_to_finite_differences(method, kwargs, times):
    field = Field()

    def integrate(t):
        return solve(field, Y0, t, method=method, steps=4, **kwargs).y

    expected = finite_differences(integrate, times)
    torch.testing.assert_close(time_gradient(integrate, times), expected, rtol=1e-6, atol=1e-7)
    exact = time_gradient(lambda t: solve(field, Y0, t, rtol=1e-9, atol=1e-9).y, times)
    assert (exact - expected).abs().max() > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_states_and_evaluations_are_the_same_to_the_last_bit_as_without_a_gradient(method):
    field, solutions = Field(), []
    for requires_grad in (False, True):
        y0, t = Y0.clone().requires_grad_(), TIMES.clone().requires_grad_(requires_grad)
        solutions.append(solve(field, y0, t, method=method, steps=9))
    assert torch.equal(*[solution.y for solution in solutions])
    assert solutions[0].stats.nfe == solutions[1].stats.nfe


@pytest.mark.parametrize("times", [TIMES, TIMES.flip(0)], ids=["forward", "backward"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_the_drop_in_equals_torchdiffeq(method, times):
    torchdiffeq, field = pytest.importorskip("torchdiffeq"), Field()
    found, expected = (
        time_gradient(lambda t, f=f: f(field, Y0, t, method=method), times) for f in (odeint, torchdiffeq.odeint)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_field_that_takes_numbers_from_t_is_a_constant_of_time():
    """As documented, and as in torchdiffeq."""
    with pytest.raises(RuntimeError, match="requires grad"):
        time_gradient(lambda t: solve(lambda t, y: y * float(t.numpy()), Y0, t, method="rk4", steps=4).y, TIMES)
    found, expected = (
        time_gradient(lambda t, read=read: solve(lambda t, y: y * read(t), Y0, t, method="rk4", steps=4).y, TIMES)
        for read in (torch.Tensor.item, torch.Tensor.detach)
    )
    torch.testing.assert_close(found, expected)

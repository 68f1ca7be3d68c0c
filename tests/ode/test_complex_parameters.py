"""Complex parameters and arguments of fields with real and with complex states, in every gradient mode."""

import pytest
import torch
from torch import nn

from odebench.ode import Adjoint, Checkpoint, InterpolatedAdjoint, odeint_adjoint, solve

TIMES = [0.0, 0.4, 1.0]
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
MODES = {
    "checkpoint": {"gradient": "checkpoint"},
    "checkpoint, keep graphs": {"gradient": Checkpoint(keep="graphs")},
    "adjoint": {"gradient": "adjoint"},
    "adjoint, full norm": {"gradient": Adjoint(norm="full")},
    "adjoint, a tolerance per element": {"gradient": Adjoint(norm="full"), "rtol": "each"},
    "adjoint, implicit": {"gradient": "adjoint", "method": "kvaerno5"},
    "adjoint, multistep": {"gradient": "adjoint", "method": "adams"},
    "adjoint, SciPy": {"gradient": "adjoint", "method": "scipy_dop853"},
    "interpolated adjoint, full norm": {"gradient": InterpolatedAdjoint(norm="full")},
    "reversible": {"gradient": "reversible", "method": "reversible_dopri5", "rtol": 1e-7, "atol": 1e-7},
}


class Rotating(nn.Module):
    """Complex weights for real and complex states, and a real scale."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3 + 0.5j, -0.8], [0.4j, 0.6 - 0.2j]], dtype=torch.complex128))
        self.scale = nn.Parameter(torch.tensor([1.2, 0.7], dtype=torch.float64))

    def forward(self, t, y, phase=1.0):
        z = y if y.is_complex() else torch.view_as_complex(y)
        # Not holomorphic, so that a missing conjugation shows.
        z = torch.view_as_complex(torch.tanh(torch.view_as_real(z @ self.weight * phase)))
        z = z * self.scale * (1 + 0.3 * t)
        return z if y.is_complex() else torch.view_as_real(z)


@pytest.fixture(params=["real", "complex"])
def y0(request):
    z = torch.tensor([[1 + 0.5j, -0.3], [0.2j, 0.8 - 1j], [0.1, -0.6]], dtype=torch.complex128)
    return (z if request.param == "complex" else torch.view_as_real(z)).clone().requires_grad_()


def loss_of(y):
    y = torch.view_as_real(y) if y.is_complex() else y
    return (y[1:] ** 2 * torch.tensor([1.0, 0.3], dtype=torch.float64)).sum() + y[1].sin().sum()


def gradients(y0, **kwargs):
    kwargs = TIGHT | kwargs
    if kwargs["rtol"] == "each":
        kwargs["rtol"] = torch.full_like(y0.real, 1e-9)
    field, phase = Rotating(), torch.tensor(0.8 + 0.5j, dtype=torch.complex128, requires_grad=True)
    y = solve(field, y0, TIMES, args=(phase,), **kwargs).y
    return torch.autograd.grad(loss_of(y), [y0, phase, *field.parameters()])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_complex_parameters_agree_with_backprop(mode, y0):
    for found, expected in zip(gradients(y0, **MODES[mode]), gradients(y0), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [{}, {"norm": "seminorm"}, {"norm": lambda z: max(part.abs().max() for part in z)}])
def test_odeint_adjoint_agrees_with_backprop(norm, y0):
    field = Rotating()
    y = odeint_adjoint(field, y0, torch.tensor(TIMES, dtype=torch.float64), **TIGHT, adjoint_options=norm)
    found = torch.autograd.grad(loss_of(y), list(field.parameters()))
    expected = torch.autograd.grad(loss_of(solve(field, y0, TIMES, **TIGHT).y), list(field.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)

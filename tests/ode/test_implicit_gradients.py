"""Gradients through implicit methods, in every gradient mode that supports them."""

import math

import pytest
import torch
from torch import nn

from odebench.ode import METHODS, Adjoint, InterpolatedAdjoint, solve
from odebench.ode.methods import jacobian, newton, rosenbrock_stepper
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.rosenbrock import Rosenbrock

IMPLICIT = [name for name, method in METHODS.items() if isinstance(method, ImplicitTableau | Rosenbrock)]
QUICK = ["trapezoid", "gl4", "radauIIA3", "kvaerno5", "rodas4"]


@pytest.fixture
def matrix_free(monkeypatch):
    """Compute no Jacobian matrices, as for large states."""
    for module in (jacobian, newton, rosenbrock_stepper):
        monkeypatch.setattr(module, "MAX_DENSE_SIZE", 1)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


class Relaxing(nn.Module):
    """Stiff, nonlinear and dependent on time, with parameters."""

    def __init__(self, rate=20.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.rate = nn.Parameter(double(rate)[0])

    def forward(self, t, y, scale):
        return scale * self.layers(torch.cat((y, t.expand(1)))) - self.rate * torch.tanh(y - torch.cos(t))


def inputs(rate=20.0):
    field = Relaxing(rate)
    y0 = double(1.2, -0.5).requires_grad_()
    scale = double(1.3)[0].requires_grad_()
    return field, y0, scale, [y0, scale, *field.parameters()]


def loss_of(field, y0, scale, **kwargs):
    y = solve(field, y0, [0.0, 0.3, 1.0], args=(scale,), **kwargs).y
    return (y[1:] ** 2).sum() + torch.sin(y[1]).sum()


def slope_along(loss, tensors, directions, eps=1e-5):
    """Central difference of loss() along directions in the tensors, changed in place."""

    def shifted(distance):
        with torch.no_grad():
            for tensor, direction in zip(tensors, directions, strict=True):
                tensor.add_(distance * direction)

    shifted(eps)
    above = float(loss().detach())
    shifted(-2 * eps)
    below = float(loss().detach())
    shifted(eps)
    return (above - below) / (2 * eps)


@pytest.mark.parametrize("name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in IMPLICIT])
def test_backprop_is_the_gradient_of_the_discrete_solve(name):
    field, y0, scale, tensors = inputs()
    kwargs = {"method": name, "steps": 5}
    gradients = torch.autograd.grad(loss_of(field, y0, scale, **kwargs), tensors)
    for _ in range(2):
        # Every tensor has the same weight, however small its gradient.
        directions = [torch.randn_like(g) / g.norm() for g in gradients]
        expected = sum(float((g * direction).sum()) for g, direction in zip(gradients, directions, strict=True))
        measured = slope_along(lambda: loss_of(field, y0, scale, **kwargs), tensors, directions, eps=1e-6)
        assert measured == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["kvaerno5", "radauIIA5", "trapezoid"])
def test_matrix_free_gradient_is_the_one_with_the_matrix(name, request):
    field, y0, scale, tensors = inputs()
    kwargs = {"method": name, "steps": 5}
    dense = torch.autograd.grad(loss_of(field, y0, scale, **kwargs), tensors)
    request.getfixturevalue("matrix_free")
    free = torch.autograd.grad(loss_of(field, y0, scale, **kwargs), tensors)
    for a, b in zip(dense, free, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def test_a_second_derivative_raises_except_for_rosenbrock_methods():
    field, y0, scale, _ = inputs()

    def second(name):
        loss = loss_of(field, y0, scale, method=name, steps=4)
        (first,) = torch.autograd.grad(loss, y0, create_graph=True)
        return torch.autograd.grad(first[0], y0)[0]

    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        second("kvaerno5")

    def first(name):
        (gradient,) = torch.autograd.grad(loss_of(field, y0, scale, method=name, steps=4), y0)
        return gradient[0]

    curvature, eps = second("rodas4"), 1e-5
    with torch.no_grad():
        y0[1] += eps
    above = first("rodas4")
    with torch.no_grad():
        y0[1] -= 2 * eps
    assert float((above - first("rodas4")) / (2 * eps)) == pytest.approx(float(curvature[1]), rel=1e-5)


def test_a_large_state_has_no_graph_through_a_rosenbrock_method():
    with pytest.raises(ValueError, match="kvaerno5"):
        solve(lambda t, y: -y, torch.ones(300), [0, 1], method="rodas4", steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["checkpoint", "adjoint", "interpolated_adjoint", "full"])
@pytest.mark.parametrize("name", ["kvaerno5", "rodas4", "radauIIA5"])
def test_other_gradient_modes_give_the_gradient_to_the_tolerance(name, mode):
    field, y0, scale, tensors = inputs(rate=5.0)
    exact = torch.autograd.grad(loss_of(field, y0, scale, rtol=1e-8, atol=1e-8), tensors)
    gradient = Adjoint(norm="full") if mode == "full" else mode
    kwargs = {"method": name, "rtol": 1e-6, "atol": 1e-6, "gradient": gradient}
    found = torch.autograd.grad(loss_of(field, y0, scale, **kwargs), tensors)
    total = math.sqrt(sum(float(g.norm()) ** 2 for g in exact))
    assert math.sqrt(sum(float((a - b).norm()) ** 2 for a, b in zip(exact, found, strict=True))) < 2e-5 * total


def test_the_interpolated_adjoint_of_a_stiff_solve_takes_few_steps():
    """Backward in time y is unstable at the rate 1000, so that it must be interpolated from the forward solve."""
    field, y0, scale, tensors = inputs(rate=1000.0)
    kwargs = {"method": "kvaerno5", "rtol": 1e-5, "atol": 1e-5}
    exact = torch.autograd.grad(loss_of(field, y0, scale, **kwargs), tensors)
    solution = solve(field, y0, [0.0, 0.3, 1.0], args=(scale,), gradient=InterpolatedAdjoint(), **kwargs)
    loss = (solution.y[1:] ** 2).sum() + torch.sin(solution.y[1]).sum()
    found = torch.autograd.grad(loss, tensors)
    # y0 is forgotten at the rate 1000.
    for a, b in list(zip(exact, found, strict=True))[1:]:
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)
    backward = solution.stats.backward
    assert backward.accepted + backward.rejected < 150
    assert backward.jacobians > 0


@pytest.mark.parametrize("name", ["kvaerno5", "rodas4"])
def test_matrix_free_adjoint(name, matrix_free):
    field, y0, scale, tensors = inputs(rate=5.0)
    exact = torch.autograd.grad(loss_of(field, y0, scale, rtol=1e-7, atol=1e-7), tensors)
    kwargs = {"method": name, "rtol": 1e-4, "atol": 1e-4, "gradient": "adjoint"}
    found = torch.autograd.grad(loss_of(field, y0, scale, **kwargs), tensors)
    for a, b in zip(exact, found, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["kvaerno5", "rodas4"])
def test_the_gradient_of_complex_states(name):
    weight = torch.tensor(2j - 0.1, dtype=torch.complex128, requires_grad=True)
    z0 = torch.tensor([1 + 1j, 0.5 - 2j], dtype=torch.complex128, requires_grad=True)

    def gradients(**kwargs):
        z = solve(lambda t, y, w: w * y + 0.3 * y.conj(), z0, [0, 1], args=(weight,), **kwargs).y[-1]
        return torch.autograd.grad(z.abs().sum(), [z0, weight])

    exact = gradients(rtol=1e-8, atol=1e-8)
    for gradient in ("backprop", "adjoint"):
        found = gradients(method=name, rtol=1e-6, atol=1e-6, gradient=gradient)
        for a, b in zip(exact, found, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("method", IMPLICIT)
def test_states_have_a_graph_only_if_something_requires_a_gradient(method):
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    kwargs = {"method": method, "steps": 4}
    start = torch.ones(2, dtype=torch.float64)
    assert not solve(lambda t, y: -y * y, start, [0.0, 0.1], **kwargs).y.requires_grad
    assert solve(lambda t, y: -weight * y * y, start, [0.0, 0.1], **kwargs).y.requires_grad
    # A parameter that f uses only at later times.
    late = solve(lambda t, y: -y * y - (weight if t > 0.06 else 0.0), start, [0.0, 0.1], **kwargs)
    (gradient,) = torch.autograd.grad(late.y[-1].sum(), weight)
    # Of two components 0.04 each, as well as steps of 0.025 see it.
    assert -0.14 < gradient.item() < -0.04


@pytest.mark.parametrize("method", ["rodas4", "kvaerno5"])
def test_gradients_in_half_precision_are_those_in_single(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
    start = torch.randn(3, 4)

    def gradients(dtype, method):
        field, y = net.to(dtype), start.to(dtype).requires_grad_()
        states = solve(lambda t, y: field(y) - 0.5 * y, y, [0.0, 0.5, 1.0], method=method, rtol=1e-3, atol=1e-3).y
        found = torch.autograd.grad(states.float().square().sum(), [y, *field.parameters()])
        return torch.cat([g.float().reshape(-1) for g in found])

    single, half = gradients(torch.float32, "dopri5"), gradients(torch.bfloat16, method)
    assert (half - single).norm() < 0.01 * single.norm()

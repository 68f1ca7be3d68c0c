"""The gradient with respect to times over fixed steps: that of the discrete solve, which large steps tell from that of
the exact solution."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from odebench.ode import odeint, odeint_adjoint, solve
from odebench.ode.methods import METHODS as ALL_METHODS
from odebench.ode.methods.scipy_methods import SciPyMethod

TIMES = torch.tensor([0.1, 0.6, 1.7], dtype=torch.float64)
Y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.1]], dtype=torch.float64)
METHODS = [name for name, method in ALL_METHODS.items() if name != "adams" and not isinstance(method, SciPyMethod)]


QUICK = ["rk4", "dopri5", "implicit_adams", "alf", "reversible_heun", "gl4", "kvaerno5", "rodas4"]


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
        shifts = eps * torch.eye(len(times), dtype=torch.float64)
        losses = [[loss_of(integrate(times + sign * shift)) for sign in (1, -1)] for shift in shifts]
    return torch.tensor([(above - below) / (2 * eps) for above, below in losses], dtype=torch.float64)


@pytest.mark.parametrize("times", [TIMES, -TIMES], ids=["forward", "backward"])
@pytest.mark.parametrize("method", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in METHODS])
def test_equal_to_finite_differences(method, times):
    """Also with stops that do not move."""
    field, stops = Field(), {"step_t": [0.7, -0.7], "jump_t": [] if method == "kvaerno5" else [1.2, -1.2, 5.0]}

    def integrate(t):
        return solve(field, Y0, t, method=method, steps=4, **stops).y

    expected = finite_differences(integrate, times)
    torch.testing.assert_close(time_gradient(integrate, times), expected, rtol=1e-6, atol=1e-7)
    exact = time_gradient(lambda t: solve(field, Y0, t, rtol=1e-9, atol=1e-9).y, times)
    assert (exact - expected).abs().max() > 1e-5 or ALL_METHODS[method].order > 6


@pytest.mark.parametrize("method", METHODS)
def test_states_and_evaluations_are_the_same_to_the_last_bit_as_without_a_gradient(method):
    field, solutions = Field(), []
    for requires_grad in (False, True):
        y0, t = Y0.clone().requires_grad_(), TIMES.clone().requires_grad_(requires_grad)
        solutions.append(solve(field, y0, t, method=method, steps=9))
    assert torch.equal(*[solution.y for solution in solutions])
    assert solutions[0].stats.nfe == solutions[1].stats.nfe


@pytest.mark.parametrize("order", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["explicit_adams", "implicit_adams"])
def test_adams_methods_of_every_order(name, order):
    """Their weights depend on the times of slopes from earlier intervals, here up to seven."""
    method = dataclasses.replace(ALL_METHODS[name], order=order, rtol=1e-13, atol=1e-13)
    times = torch.tensor([0.1, 0.3, 0.55, 0.65, 0.9, 1.0, 1.05, 1.2, 1.5, 1.6], dtype=torch.float64)

    def integrate(t):
        return solve(Field(), Y0, t, method=method, step_size=0.13).y

    torch.testing.assert_close(
        time_gradient(integrate, times), finite_differences(integrate, times), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("method", ["rk4", "alf", "rodas4", "explicit_adams"])
def test_second_derivatives(method):
    inputs = [x.clone().requires_grad_() for x in (TIMES, Y0[0])]
    torch.autograd.gradgradcheck(
        lambda t, y0: solve(lambda t, y: torch.cos(t * y), y0, t, method=method, steps=5).y, inputs
    )


def uneven_grid(func, y0, t):
    start, middle, end = t.split(1)
    return torch.cat([start, middle + 0.1 * (start - middle) ** 2, 0.9 * middle + 0.1 * end, end])


@pytest.mark.parametrize("times", [TIMES, TIMES.flip(0)], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "options",
    [{}, {"perturb": True}, {"step_size": 0.37}, {"step_size": 9.0}, {"grid_constructor": uneven_grid}],
    ids=["", "perturb", "steps", "step", "grid"],
)
@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_the_drop_in_equals_torchdiffeq(method, interp, options, times):
    torchdiffeq, field = pytest.importorskip("torchdiffeq"), Field()
    options = {**options, "interp": interp}
    found, expected = (
        time_gradient(lambda t, f=f: f(field, Y0, t, method=method, options=options), times)
        for f in (odeint, torchdiffeq.odeint)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


INTERPOLATED = torch.tensor([0.1, 0.6, 1.6, 1.71, 1.75], dtype=torch.float64)


@pytest.mark.parametrize("times", [INTERPOLATED, -INTERPOLATED], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("method", "interp"),
    [
        *itertools.product(["rk4", "reversible_rk4", "trapezoid", "gl4"], ["linear", "cubic"]),
        *itertools.product(["explicit_adams", "implicit_adams"], ["linear"]),
    ],
)
def test_outputs_inside_steps_are_equal_to_finite_differences(method, interp, times):
    field, options = Field(), {"step_size": 0.2, "interp": interp}
    if method == "implicit_adams":
        options["max_iters"] = 99

    def integrate(t):
        return odeint(field, Y0, t, method=method, options=options, rtol=1e-13, atol=1e-13)

    assert torch.equal(integrate(times), integrate(times.clone().requires_grad_()))
    expected = finite_differences(integrate, times)
    torch.testing.assert_close(time_gradient(integrate, times), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_an_output_at_the_end_of_a_step_moves_along_that_step(interp):
    """torchdiffeq does not move it along straight lines."""
    field, times = Field(), torch.tensor([0.25, 0.5, 1.0, 1.5], dtype=torch.float64)

    def integrate(t):
        return odeint(field, Y0, t, method="rk4", options={"step_size": 0.25, "interp": interp})

    shift = torch.tensor([0, 1e-7, 1e-7, 0], dtype=torch.float64)
    before = (loss_of(integrate(times)) - loss_of(integrate(times - shift))) / 1e-7
    torch.testing.assert_close(time_gradient(integrate, times)[1:3].sum(), before, rtol=1e-5, atol=0)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("function", [odeint, odeint_adjoint])
def test_a_grid_is_constructed_once(function, requires_grad):
    """It may be random. The backward solve makes its own."""
    calls = []

    def grid(func, y0, t):
        calls.append(t)
        return uneven_grid(func, y0, t)

    t = TIMES.clone().requires_grad_(requires_grad)
    function(Field(), Y0, t, method="rk4", options={"grid_constructor": grid})
    assert len(calls) == 1


def test_a_constructed_grid_without_graph_moves_at_its_ends():
    def grid(func, y0, t):
        return torch.cat([t[:1].detach(), torch.tensor([0.4, 0.9], dtype=torch.float64), t[-1:].detach()])

    def integrate(t):
        return odeint(Field(), Y0, t, method="midpoint", options={"grid_constructor": grid})

    torch.testing.assert_close(time_gradient(integrate, TIMES), finite_differences(integrate, TIMES))


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_second_derivatives_of_outputs_inside_steps(interp):
    options = {"step_size": 0.9, "interp": interp}
    inputs = [x.clone().requires_grad_() for x in (TIMES, Y0[0])]
    torch.autograd.gradgradcheck(
        lambda t, y0: odeint(lambda t, y: torch.cos(t * y), y0, t, method="midpoint", options=options), inputs
    )


@pytest.mark.parametrize(
    "kwargs", [{"gradient": "checkpoint"}, {"gradient": "adjoint"}, {"dense": True}, {"event": lambda t, y: t + 9}]
)
def test_other_solves_give_the_gradient_of_the_exact_solution(kwargs):
    check_exact(lambda *problem: solve(*problem, method="rk4", steps=4, **kwargs).y)


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint", "backprop"])
def test_a_state_that_is_not_finite_from_the_start_gives_one_state_for_each_time(gradient):
    t = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    y0 = torch.tensor([math.nan, 1.0])
    solution = solve(lambda t, y: -y, y0, t, steps=4, gradient=gradient, throw=False)
    assert solution.y.shape == (3, 2)
    assert solution.status.name == "non_finite"


@pytest.mark.parametrize("options", [{"step_size": 0.37}, {"grid_constructor": uneven_grid}], ids=["steps", "grid"])
def test_cubic_outputs_inside_adams_steps_give_the_gradient_of_the_exact_solution(options):
    options = {**options, "interp": "cubic"}
    check_exact(lambda *problem: odeint(*problem, method="explicit_adams", options=options))


def check_exact(integrate):
    """dL/dt_i = <dL/dy_i, f(t_i, y_i)>, with f held constant."""
    field, t = Field(), TIMES.clone().requires_grad_()
    y = integrate(field, Y0, t)
    found, by_y = torch.autograd.grad(loss_of(y), [t, y])
    expected = torch.stack([(field(*at) * gradient).sum() for *at, gradient in zip(t, y, by_y, strict=True)])
    torch.testing.assert_close(found[1:], expected[1:])


def test_a_field_that_takes_numbers_from_t_is_a_constant_of_time():
    """As documented, and as in torchdiffeq."""
    with pytest.raises(RuntimeError, match="requires grad"):
        time_gradient(lambda t: solve(lambda t, y: y * float(t.numpy()), Y0, t, method="rk4", steps=4).y, TIMES)
    found, expected = (
        time_gradient(lambda t, read=read: solve(lambda t, y: y * read(t), Y0, t, method="rk4", steps=4).y, TIMES)
        for read in (torch.Tensor.item, torch.Tensor.detach)
    )
    torch.testing.assert_close(found, expected)

"""Dense output: the order of every interpolant, times in any order, gradients, and saved files."""

import collections
import math

import numpy as np
import pytest
import torch
from convergence import convergence_order

from odebench.ode import METHODS, Status, solve
from odebench.ode.dense import DenseOutput

WITH_INTERPOLANT = [name for name, method in METHODS.items() if getattr(method, "dense_order", None)]
# These choose their steps themselves; the others are interpolated between fixed steps by cubic Hermite polynomials.
VARIABLE_STEPS = ("adams", "scipy_", "vode_")
FIXED_STEPS = [
    pytest.param(name, marks=[pytest.mark.slow] if method.stiff and method.adaptive else [])
    for name, method in METHODS.items()
    if not name.startswith(VARIABLE_STEPS)
]
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
START = 0.3


def field(t, y):
    """u = exp(sin s), v = exp(cos s) with s = t^2: nonlinear, dependent on time, and known."""
    return 2 * t * torch.stack((y[0] * torch.log(y[1]), -y[1] * torch.log(y[0])))


def exact(times):
    s = torch.as_tensor(times, dtype=torch.float64) ** 2
    return torch.stack((torch.exp(torch.sin(s)), torch.exp(torch.cos(s))), -1)


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_INTERPOLANT)
def test_the_interpolant_of_one_step_has_the_order_it_claims(name):
    """From an exact state the error inside one step is O(h^(order + 1)), and the derivative's O(h^order)."""
    order = METHODS[name].dense_order
    sizes = [0.4 / 1.5**i for i in range(4)] if order > 4 else [0.08 / 1.7**i for i in range(4)]
    thetas = torch.tensor([0.15, 0.3, 0.45, 0.6, 0.75, 0.9], dtype=torch.float64)
    errors, rate_errors = [], []
    for h in sizes:
        # A step of the smallest size is accepted; implicit methods solve their equations to a part of the tolerance.
        how = {"rtol": 1e-12, "atol": 1e-12, "min_step": 2 * h}
        solution = solve(field, exact(START), [START, START + h], method=name, dense=True, **how)
        assert solution.stats.accepted == 1
        dense = solution.dense
        times = START + h * thetas
        errors.append(float((dense(times) - exact(times)).norm()))
        rates = torch.stack([field(t, y) for t, y in zip(times, exact(times), strict=True)])
        rate_errors.append(float((dense.derivative(times) - rates).norm()))
    assert convergence_order([1 / h for h in sizes], errors) > order + 1 - 0.35
    assert convergence_order([1 / h for h in sizes], rate_errors) > order - 0.35


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED_STEPS)
def test_between_fixed_steps_the_order_is_the_methods_or_that_of_cubic_interpolation(name):
    steps, points = [16, 25, 40], torch.linspace(START, 2.0, 101, dtype=torch.float64)
    errors = []
    for n in steps:
        dense = solve(field, exact(START), [START, 2.0], method=name, steps=n, dense=True).dense
        errors.append(float((dense(points) - exact(points)).abs().max()))
    assert convergence_order(steps, errors) > min(METHODS[name].order, 4) - 0.4


@pytest.mark.parametrize("end", [2.0, -2.0], ids=["forward", "backward"])
def test_times_may_come_in_any_order_and_any_kind(end):
    solution = solve(field, exact(START), [START, end], dense=True, **TIGHT)
    times = [START, end, 0.4 * end, 0.9 * end, 0.2 * end, 0.9 * end, *solution_times(solution)[1:4]]
    assert solution.dense.span == (START, end)
    torch.testing.assert_close(solution.dense(times), exact(times), rtol=1e-6, atol=1e-6)
    assert torch.equal(solution.dense(torch.tensor(times, dtype=torch.float64)), solution.dense(times))
    assert torch.equal(solution.dense(times[3]), solution.dense(times)[3])
    assert torch.equal(solution.dense(torch.tensor(times[3], dtype=torch.float64)), solution.dense(times)[3])
    assert solution.dense([]).shape == (0, 2)
    for time in (np.float64(times[3]), np.array(times[3])):
        assert torch.equal(solution.dense(time), solution.dense(times)[3])
    assert torch.equal(solution.dense(np.array(times)), solution.dense(times))
    with pytest.raises(TypeError, match="t must be a number, got None"):
        solution.dense(None)


def solution_times(solution):
    """Where the accepted steps start."""
    sizes = torch.tensor([0.0, *solution.stats.step_sizes], dtype=torch.float64)
    return (float(solution.t[0]) + sizes.cumsum(0)).tolist()


@pytest.mark.parametrize("how", [{}, {"method": "rk4", "steps": 7}], ids=["dopri5", "rk4"])
def test_at_output_times_it_gives_the_states_of_the_solve(how):
    times = torch.linspace(START, 2, 9, dtype=torch.float64)
    solution = solve(field, exact(START), times, dense=True, **how)
    torch.testing.assert_close(solution.dense(times), solution.y, rtol=0, atol=1e-13)


def test_times_outside_of_the_span_are_refused_and_rounded_ones_are_not():
    dense = solve(field, exact(START), [START, 1.1], dense=True).dense
    for time in (START - 1e-4, 1.1 + 1e-4, math.nan):
        with pytest.raises(ValueError, match=r"outside the solution's span \[0.3, 1.1\]"):
            dense(time)
    rounded = torch.tensor([0.3, 1.1], dtype=torch.float32)
    assert float(rounded[1]) > 1.1
    assert dense(rounded).isfinite().all()
    with pytest.raises(ValueError, match="one dimension"):
        dense(torch.zeros(1, 1))


@pytest.mark.parametrize("how", [TIGHT, {"method": "rk4", "steps": 60}], ids=["dopri5", "rk4"])
def test_gradients_flow_to_the_start_to_arguments_and_to_the_time(how):
    """y = y0 exp(rate t): dy/dy0 = exp(rate t), dy/drate = t y, dy/dt = rate y."""
    y0 = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.9, 0.2, 0.55], dtype=torch.float64, requires_grad=True)
    dense = solve(lambda t, y, rate: rate * y, y0, [0.0, 1.0], args=(rate,), dense=True, **how).dense
    got = torch.autograd.grad(dense(times).sum(), [y0, rate, times])
    y = y0 * torch.exp(rate * times)
    expected = torch.autograd.grad(y.sum(), [y0, rate, times])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dense.derivative(times.detach())[:, 0], rate * y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["checkpoint", "adjoint", "interpolated_adjoint"])
def test_differentiating_it_raises_if_the_gradient_would_be_lost(mode):
    """Next to a loss of output states, this part of the gradient would be missing silently."""
    start = torch.tensor([0.9, 1.2], dtype=torch.float64, requires_grad=True)
    solution = solve(lambda t, y: -y, start, [0.0, 1.0], dense=True, gradient=mode)
    for read in (solution.dense, solution.dense.derivative):
        with pytest.raises(RuntimeError, match="dense output is differentiable only with gradient='backprop'"):
            (solution.y[-1].sum() + read(0.4).sum()).backward()
    assert start.grad is None
    with torch.no_grad():
        assert not solution.dense(0.4).requires_grad
    assert not DenseOutput.from_state_dict(solution.dense.state_dict())(0.4).requires_grad
    time = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(solution.dense(time).sum(), time)
    assert float(slope) == pytest.approx(-2.1 * math.exp(-0.4), rel=1e-3)


def test_a_failed_solve_has_dense_output_up_to_where_it_failed():
    how = {"dense": True, "throw": False, "rtol": 1e-8, "atol": 1e-8}
    y0 = torch.ones(1, dtype=torch.float64)
    solution = solve(lambda t, y: y * y, y0, [0.0, 2.0], **how)
    assert solution.status is Status.step_underflow
    start, end = solution.dense.span
    assert (start, end) == (0.0, pytest.approx(1.0, abs=1e-6))
    torch.testing.assert_close(solution.dense(0.9), torch.tensor([10.0], dtype=torch.float64), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="outside"):
        solution.dense(1.5)
    nothing = solve(lambda t, y: y * math.nan, y0, [0.0, 1.0], **how)
    assert nothing.dense is None


def test_later_changes_of_the_start_leave_it_alone():
    y0 = torch.ones(2)
    with torch.no_grad():
        dense = solve(lambda t, y: -y, y0, [0.0, 1.0], dense=True).dense
    before = dense(0.0)
    y0.zero_()
    assert torch.equal(dense(0.0), before)


@pytest.mark.parametrize("end", [1.0, -1.0], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_a_saved_one_gives_the_same_numbers_in_the_same_structure(tmp_path, dtype, end):
    y0 = {"b": (torch.ones(2, 3, dtype=dtype), [torch.ones((), dtype=dtype)]), "a": torch.ones(0, dtype=dtype), 3: ()}

    def decay(t, y):
        (matrix, (number,)), t = y["b"], t.to(dtype)
        return {"b": (-matrix * t, [number - t]), "a": y["a"], 3: ()}

    dense = solve(decay, y0, [0.0, end], dense=True, rtol=1e-2, atol=1e-2).dense
    dense.save(tmp_path / "dense.pt")
    loaded = DenseOutput.load(tmp_path / "dense.pt")
    times = [0.3 * end, 0.0, end]
    before, after = dense(times), loaded(times)
    assert list(after) == ["b", "a", 3]
    assert (type(after["b"]), type(after["b"][1]), after[3]) == (tuple, list, ())
    assert (after["b"][0].dtype, after["b"][0].shape, after["a"].shape) == (dtype, (3, 2, 3), (3, 0))
    assert loaded.span == dense.span
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    again = DenseOutput.from_state_dict(loaded.state_dict())
    torch.testing.assert_close(again(times), before, rtol=0, atol=0)


def test_it_is_saved_without_its_graph_and_only_for_standard_containers(tmp_path):
    y0 = torch.ones(1, requires_grad=True)
    solution = solve(lambda t, y: -y, y0, [0.0, 1.0], dense=True, event=lambda t, y: y[0] - 0.5)
    dense = solution.dense
    assert dense(0.2).requires_grad
    assert not solution.detached().dense(0.2).requires_grad
    assert torch.equal(solution.detached().dense(0.2), dense(0.2))
    dense.save(tmp_path / "dense.pt")
    loaded = DenseOutput.load(tmp_path / "dense.pt")
    assert not loaded(0.2).requires_grad
    assert loaded.span == dense.span == (0.0, pytest.approx(math.log(2), abs=1e-3))
    pair = collections.namedtuple("pair", "x")
    named = solve(lambda t, y: pair(-y.x), pair(y0), [0.0, 1.0], dense=True).dense
    with pytest.raises(TypeError, match="tuples, lists and dicts, got pair"):
        named.state_dict()


def test_it_is_differentiable_once_with_respect_to_time():
    start = torch.ones(1, dtype=torch.float64)
    dense = solve(lambda t, y: -y, start, [0.0, 2.0], dense=True, rtol=1e-9, atol=1e-9).dense
    t = torch.tensor([1.3, 0.4], dtype=torch.float64, requires_grad=True)
    expected = torch.exp(-t.detach())
    (of_states,) = torch.autograd.grad(dense(t).sum(), t, create_graph=True)
    (of_rates,) = torch.autograd.grad(dense.derivative(t).sum(), t)
    torch.testing.assert_close(of_states, -expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(of_rates, expected, rtol=1e-3, atol=0)
    with pytest.raises(RuntimeError, match="with respect to t, cannot be differentiated again"):
        torch.autograd.grad(of_states.sum(), t)
    _, tangent = torch.func.jvp(lambda t: dense(t)[:, 0], (t.detach(),), (torch.ones_like(expected),))
    torch.testing.assert_close(tangent, -expected, rtol=1e-5, atol=0)

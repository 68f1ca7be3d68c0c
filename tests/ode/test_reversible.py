"""Reversible methods: their steps can be undone, and doing so gives the gradient of backpropagation."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from odebench.ode import GRADIENTS, METHODS, SolveError, Stats, Status, solve
from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients.captured_tensors import GradientAccumulator
from odebench.ode.gradients.reversible import REVERSE_STEPPERS, BackwardField
from odebench.ode.methods.explicit import BOSH3, DOPRI5, MIDPOINT, RK4
from odebench.ode.methods.explicit_high_order import DOPRI8
from odebench.ode.methods.reversible import AsynchronousLeapfrog, ReversibleHeun, ReversibleRungeKutta
from odebench.ode.methods.steppers import make_stepper
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem
from odebench.record.profiling import _TensorMemoryTracker

NAMES = [name for name, method in METHODS.items() if method.reversible]
# Other options than the defaults, which almost hide some terms.
CASES = {name: METHODS[name] for name in NAMES} | {
    "damped alf": AsynchronousLeapfrog(damping=0.9),
    "rk4, coupling 0.8": ReversibleRungeKutta(RK4, coupling=0.8),
    "dopri5, coupling 0.9": ReversibleRungeKutta(DOPRI5, coupling=0.9),
}
ADAPTIVE = {name: method for name, method in CASES.items() if method.adaptive and "alf" not in name}
TIMES = [0.0, 0.4, 1.1, 2.0]
EPS32 = torch.finfo(torch.float32).eps


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t, y, scale=1.0):
        return scale * self.layers(torch.cat((y, t.expand(*y.shape[:-1], 1)), -1))


@pytest.fixture
def field():
    torch.manual_seed(0)
    field = Field()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(2)
    return field


@pytest.fixture
def y0():
    return torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.1]], dtype=torch.float64, requires_grad=True)


def loss_of(y):
    """Nonlinear, with a weight for every output time."""
    return (y**2).sum() + torch.sin(y[1]).sum()


def gradients(field, y0, times=TIMES, **kwargs):
    """With respect to y0, the parameters and an argument."""
    scale = torch.tensor(1.3, dtype=y0.dtype, requires_grad=True)
    y = solve(field, y0, times, args=(scale,), **kwargs).y
    return torch.autograd.grad(loss_of(y), [y0, *field.parameters(), scale])


def largest_difference(found, expected):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def decay(t, y):
    return -y


# The methods.


@pytest.mark.parametrize(
    ("method", "order"),
    [
        (AsynchronousLeapfrog(0.8), 1),
        (ReversibleRungeKutta(MIDPOINT, 0.5), 2),
        (ReversibleRungeKutta(RK4, 0.5), 4),
        (ReversibleHeun(), 2),
    ],
    ids=["damped alf", "midpoint", "rk4", "heun"],
)
def test_order_with_strong_damping_or_small_coupling(method, order):
    assert method.order == order
    errors = []
    for steps in (20, 40, 80):
        y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
        y = solve(lambda t, y: torch.cos(t) * y.flip(0), y0, [0, 1], method=method, steps=steps).y[-1]
        exact = 0.75 * math.exp(math.sin(1)) + 0.25 * math.exp(-math.sin(1)) * torch.tensor([1, -1.0]).double()
        errors.append(float((y - exact).norm()))
    slopes = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert slopes == pytest.approx([order] * 2, abs=0.25)


@pytest.mark.parametrize("method", [*ADAPTIVE.values(), ReversibleRungeKutta(DOPRI8)], ids=[*ADAPTIVE, "dopri8"])
def test_outputs_inside_steps_are_as_accurate_as_those_at_their_ends(method, field, y0):
    times = torch.linspace(0, 1, 31).tolist()
    tol = 1e-6 if method.order > 2 else 1e-4
    with torch.no_grad():
        exact = solve(field, y0, times, rtol=1e-12, atol=1e-12).y
        solution = solve(field, y0, times, method=method, rtol=tol, atol=tol)
    assert solution.stats.accepted < 31 or method.order < 5
    assert float((solution.y - exact).abs().max()) < 30 * tol


def test_alf_meets_its_tolerance_with_the_error_estimate_of_euler(field, y0):
    with torch.no_grad():
        exact = solve(field, y0, TIMES, rtol=1e-12, atol=1e-12).y
        for damping, tol, bound in ((1.0, 1e-3, 0.01), (1.0, 1e-4, 0.001), (0.8, 1e-3, 0.05), (0.8, 1e-4, 0.02)):
            y = solve(field, y0, TIMES, method=AsynchronousLeapfrog(damping), rtol=tol, atol=tol).y
            assert float((y - exact).abs().max()) < bound


@pytest.mark.parametrize("method", CASES.values(), ids=CASES)
def test_evaluations_of_a_step(method, field, y0):
    stats = solve(field, y0, [0.0, 1.0], method=method, steps=10).stats
    assert stats.nfe == method.stages * 10 + (method.stages == 1)


@pytest.mark.parametrize("method", CASES.values(), ids=CASES)
def test_a_field_may_overwrite_its_memory(method):
    memory = torch.empty(2, dtype=torch.float64)
    start = torch.tensor([1.0, 0.5], dtype=torch.float64)
    times = [0.0, 0.3, 0.8] if method.adaptive else [0.0, 0.4, 0.8]
    kwargs = {"rtol": 1e-4, "atol": 1e-4} if method.adaptive else {"steps": 10}

    def f(t, y):
        return torch.cos(t) * y.flip(0)

    fresh = solve(f, start, times, method=method, **kwargs).y
    assert torch.equal(solve(lambda t, y: memory.copy_(f(t, y)), start, times, method=method, **kwargs).y, fresh)


# Stability.


@pytest.mark.parametrize(("h", "stable"), [(0.09, True), (0.13, False)])
def test_the_coupling_is_stable_up_to_its_logarithm(h, stable):
    """At c = 0.9 the parasitic solution grows if h > -log c = 0.105."""
    steps = 600
    solution = solve(
        decay,
        torch.ones(1, dtype=torch.float64),
        [0.0, steps * h],
        method=ReversibleRungeKutta(RK4, 0.9),
        steps=steps,
        throw=False,
    )
    if stable:
        assert float(solution.y[-1].abs()) < 1e-9
    else:
        assert solution.status is Status.unstable or float(solution.y[-1].abs()) > 1e-3


@pytest.mark.parametrize("name", ["reversible_heun", "reversible_rk4", "alf"])
def test_fixed_steps_that_drift_apart_have_the_status_unstable(name):
    with pytest.raises(SolveError, match="unstable") as caught:
        solve(decay, torch.ones(1, dtype=torch.float64), [0.0, 50.0, 100.0], method=name, steps=400)
    assert 2 < caught.value.outcome.time < 60
    assert caught.value.solution.y.isfinite().all(dim=-1).tolist() in ([True, False, False], [True, True, False])


@pytest.mark.parametrize("method", ADAPTIVE.values(), ids=ADAPTIVE)
def test_adaptive_steps_are_accurate_or_have_the_status_unstable(method):
    start = torch.ones(1, dtype=torch.float64)
    statuses = []
    for end in (3.0, 6.0, 10.0, 30.0):
        solution = solve(
            lambda t, y: -(y - torch.cos(t)), start, [0.0, end], method=method, rtol=1e-4, atol=1e-4, throw=False
        )
        exact = (math.exp(-end) + math.cos(end) + math.sin(end)) / 2
        statuses.append(solution.status)
        if solution.status is Status.success:
            assert float(solution.y[-1]) == pytest.approx(exact, abs=400e-4)
    assert statuses[0] is Status.success
    assert statuses[-1] is Status.unstable
    assert set(statuses) == {Status.success, Status.unstable}


def test_a_smaller_coupling_is_stable_over_a_long_contraction():
    start = torch.ones(1, dtype=torch.float64)
    y = solve(
        lambda t, y: -(y - torch.cos(t)),
        start,
        [0.0, 30.0],
        method=ReversibleRungeKutta(BOSH3, 0.8),
        rtol=1e-5,
        atol=1e-5,
    ).y
    assert float(y[-1]) == pytest.approx((math.cos(30) + math.sin(30)) / 2, abs=2e-4)


def test_options_out_of_range_raise():
    for coupling in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="coupling must lie between 0 and 1"):
            ReversibleRungeKutta(RK4, coupling)
    for damping in (0.5, 1.1):
        with pytest.raises(ValueError, match=r"damping must lie above 0\.5"):
            AsynchronousLeapfrog(damping)


# Undoing steps.


def forward_and_undo(method, f, start, sizes):
    """State and auxiliary state after uneven steps and undoing them, and at the start."""
    method = method.for_fixed_steps()
    problem = InitialValueProblem(f, start, [0.0, sum(sizes)], ())
    with torch.no_grad():
        stepper = make_stepper(method, problem, problem.y0)
        stepper.start(0.0, problem.y0, None)
        before = (problem.y0, stepper.auxiliary_next)
        y, t, steps = problem.y0, 0.0, []
        for h in sizes:
            steps.append((t, h))
            y = stepper.attempt(t, h, y, False)
            t += h
            stepper.accept(t, y, False)
        assert stepper.failure is None
        field = BackwardField(problem, GradientAccumulator(problem, "reversible", [], [], captured=[]), Stats())
        back = REVERSE_STEPPERS[type(method)](method, field, t, y, stepper.auxiliary_next, torch.zeros_like(y))
        for step in reversed(steps):
            back.undo(*step)
    return (back.y, back.auxiliary), before


def damped_pendulum(t, y):
    return torch.stack((y[1], -torch.sin(y[0]) - 0.2 * y[1] + 0.5 * torch.cos(t)))


@pytest.mark.parametrize("sign", [1, -1], ids=["forward", "reversed"])
@pytest.mark.parametrize("method", CASES.values(), ids=CASES)
def test_undoing_steps_returns_to_the_start(method, sign):
    start = torch.tensor([1.0, 0.3], dtype=torch.float64)
    sizes = [sign * 0.05 * (1 + 0.5 * math.sin(n)) for n in range(20)]
    after, before = forward_and_undo(method, damped_pendulum, start, sizes)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("coupling", [0.999, 0.99, 0.9, 0.8])
def test_undoing_amplifies_float32_round_off_by_powers_of_the_coupling(coupling):
    steps = 50
    start = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    after, before = forward_and_undo(ReversibleRungeKutta(RK4, coupling), damped_pendulum, start, [0.02] * steps)
    error = float((after[0] - before[0]).norm() / before[0].norm())
    amplified = EPS32 * coupling**-steps
    assert amplified / 20 < error < 20 * amplified


# The gradient.


@pytest.mark.parametrize("times", [TIMES, TIMES[::-1]], ids=["forward", "reversed"])
@pytest.mark.parametrize(
    ("method", "adaptive"),
    [
        *(pytest.param(method, False, id=f"{name}-fixed") for name, method in CASES.items()),
        *(pytest.param(method, True, id=f"{name}-adaptive") for name, method in CASES.items() if method.adaptive),
    ],
)
def test_gradients_equal_those_of_backpropagation(method, adaptive, times, field, y0):
    # The reversible mode ends steps at the outputs; make backprop do so, too.
    tol = 1e-2 if method.order < 3 else 1e-4
    kwargs = {"rtol": tol, "atol": tol, "step_t": times} if adaptive else {"steps": 12}
    found = gradients(field, y0, times, method=method, gradient="reversible", **kwargs)
    expected = gradients(field, y0, times, method=method, gradient="backprop", **kwargs)
    assert largest_difference(found, expected) < 1e-10


@pytest.mark.parametrize("method", CASES.values(), ids=CASES)
def test_gradients_equal_finite_differences(method, field, y0):
    tensors = [y0, *field.parameters()]
    y = solve(field, y0, TIMES, method=method, steps=12, gradient="reversible").y
    found = torch.autograd.grad(loss_of(y), tensors)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(tensor.shape, dtype=torch.float64, generator=generator) for tensor in tensors]
    losses = []
    with torch.no_grad():
        for move in (1e-5, -2e-5):
            torch._foreach_add_(tensors, direction, alpha=move)
            losses.append(float(loss_of(solve(field, y0, TIMES, method=method, steps=12).y)))
    slope = (losses[0] - losses[1]) / 2e-5
    assert sum(float((g * d).sum()) for g, d in zip(found, direction, strict=True)) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_tuple_states_and_parameters_in_closures(name, field, y0):
    def halves(t, y):
        rate = field(t, torch.stack(y, -1))
        return rate[..., 0], rate[..., 1]

    found = {}
    for mode in ("reversible", "backprop"):
        y = torch.stack(solve(halves, (y0[:, 0], y0[:, 1]), TIMES, method=name, steps=12, gradient=mode).y, -1)
        found[mode] = torch.autograd.grad(loss_of(y), [y0, *field.parameters()])
    assert largest_difference(found["reversible"], found["backprop"]) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_complex_states(name):
    rate = torch.tensor(-0.3 + 1j, dtype=torch.complex128, requires_grad=True)
    start = torch.tensor([1.0 + 0.5j], dtype=torch.complex128, requires_grad=True)
    found = {}
    for mode in ("reversible", "backprop"):
        y = solve(lambda t, y: rate * y, start, TIMES, method=name, steps=12, gradient=mode).y
        found[mode] = torch.autograd.grad(y.abs().square().sum(), [start, rate])
    assert largest_difference(found["reversible"], found["backprop"]) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_gradients_with_respect_to_times_are_those_of_the_exact_solution(name, field, y0):
    """dL/dt_i = <dL/dy_i, f(t_i, y_i)>; dL/dt_0 = -<dL/dy0, f(t_0, y0)> without the output at t_0."""
    times = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    y = solve(field, y0, times, method=name, steps=12, gradient="reversible").y
    by_times, by_start, by_y = torch.autograd.grad(loss_of(y), [times, y0, y])
    rates = torch.stack([field(time, state) for time, state in zip(times, y, strict=True)])
    expected = torch.stack([(gradient * rate).sum() for gradient, rate in zip(by_y, rates, strict=True)])
    expected[0] = -((by_start - by_y[0]) * rates[0]).sum()
    torch.testing.assert_close(by_times, expected.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_reached_states_of_a_failed_solve_are_differentiable(name):
    """y(t) = 1 / (1 / y0 - t) is 2 at t = 1/2 and not finite at t = 1."""
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    kwargs = {"rtol": 1e-3, "atol": 1e-3, "max_steps": 2000} if METHODS[name].adaptive else {"step_size": 0.01}
    solution = solve(lambda t, y: y * y, y0, [0.0, 0.5, 2.0], method=name, gradient="reversible", throw=False, **kwargs)
    assert solution.outcome.reached == 2
    assert solution.y[:2].isfinite().all()
    (gradient,) = torch.autograd.grad(solution.y[1].sum(), y0)
    assert float(gradient) == pytest.approx(4.0, rel=1e-2)


def test_a_solve_without_gradient_takes_the_same_steps(field, y0):
    kwargs = {"method": "reversible_dopri5", "gradient": "reversible", "rtol": 1e-4, "atol": 1e-4}
    with_graph = solve(field, y0, TIMES, **kwargs)
    with torch.no_grad():
        assert torch.equal(solve(field, y0, TIMES, **kwargs).y, with_graph.y)


@pytest.mark.parametrize("times", [[0.0, 0.4, 2.0], [2.0, 0.4, 0.0]], ids=["forward", "backward"])
def test_fixed_grids_are_extended_by_the_output_times(times, field, y0):
    """odeint steps through a different grid."""
    plan = SolvePlan(METHODS["alf"].for_fixed_steps(), None, lambda times: [times[0], 0.5, times[-1]])
    problem = InitialValueProblem(field, y0, times, ())
    GRADIENTS["reversible"]().solve_with_gradient(ForwardSolve(problem, plan))
    steps = [later - earlier for earlier, later in pairwise(sorted([0.0, 0.4, 0.5, 2.0], reverse=times[0] > 0))]
    assert problem.stats.step_sizes == steps


def test_one_solve_allows_several_backward_passes(field, y0):
    y = solve(field, y0, TIMES, method="reversible_heun", steps=20, gradient="reversible").y
    passes = [torch.autograd.grad(loss_of(y), y0, retain_graph=True)[0] for _ in range(3)]
    assert torch.equal(passes[0], passes[2])


def test_a_second_derivative_raises(field, y0):
    y = solve(field, y0, TIMES, method="alf", steps=20, gradient="reversible").y
    (gradient,) = torch.autograd.grad(loss_of(y), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        gradient.sum().backward()


# Cost.


@pytest.mark.parametrize("method", CASES.values(), ids=CASES)
def test_evaluations_of_the_backward_pass(method, field, y0):
    solution = solve(field, y0, [0.0, 1.0], method=method, steps=20, gradient="reversible")
    assert solution.stats.backward is None
    loss_of(solution.y).backward()
    assert solution.stats.nfe == solution.stats.backward.nfe == 20 * method.stages + (method.stages == 1)


@pytest.mark.parametrize("name", ["alf", "reversible_heun", "reversible_bosh3"])
def test_memory_does_not_grow_with_the_steps(name):
    """It grows by less than 1 % of a state per step."""
    weight = torch.tensor([0.9], requires_grad=True)
    start = torch.linspace(-1, 1, 10_000).requires_grad_()

    def peak_states(mode, steps):
        def step():
            y = solve(lambda t, y: torch.sin(weight * y), start, [0.0, 1.0], method=name, steps=steps, gradient=mode).y
            torch.autograd.grad(y[-1].sum(), [start, weight])

        with _TensorMemoryTracker() as memory:
            step()
        return memory.peak_bytes / start.nbytes

    assert peak_states("reversible", 25) - peak_states("reversible", 5) < 0.2
    assert peak_states("backprop", 6) - peak_states("backprop", 2) > 4


# Unsupported options.


def test_other_methods_raise_with_alternatives(field, y0):
    with pytest.raises(ValueError, match=r"dopri5 cannot be undone; choose gradient='checkpoint'.*reversible_heun"):
        solve(field, y0, TIMES, gradient="reversible")


def test_dense_output_and_jumps_raise(field, y0):
    kwargs = {"method": "reversible_dopri5", "gradient": "reversible"}
    with pytest.raises(ValueError, match="has no dense output"):
        solve(field, y0, TIMES, dense=True, **kwargs)
    with pytest.raises(ValueError, match="has no jump_t"):
        solve(field, y0, TIMES, jump_t=[0.7], **kwargs)


@pytest.mark.parametrize("method", ADAPTIVE.values(), ids=ADAPTIVE)
def test_jumps_reset_the_auxiliary_state_with_backpropagation(method):
    """dy/dt = -1 before t = 1 and 2 y after it."""
    y0 = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def f(t, y):
        return -torch.ones_like(y) if float(t) < 1 else rate * y

    y = solve(f, y0, [0.0, 1.5], method=method, rtol=1e-5, atol=1e-5, jump_t=[1.0]).y[-1]
    assert y.item() == pytest.approx(math.e, rel=1e-3)
    by_start, by_rate = torch.autograd.grad(y.sum(), [y0, rate])
    assert (float(by_start), float(by_rate)) == pytest.approx((math.e, math.e / 2), rel=1e-3)


def test_methods_are_hashable_dataclasses():
    method = ReversibleRungeKutta(DOPRI5)
    assert (method.name, method.order, method.stages, method.adaptive) == ("reversible_dopri5", 5, 12, True)
    assert dataclasses.replace(method, coupling=0.9) == ReversibleRungeKutta(DOPRI5, 0.9)
    assert not method.for_fixed_steps().adaptive
    assert hash(method) == hash(ReversibleRungeKutta(DOPRI5))

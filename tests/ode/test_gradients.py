"""Each gradient mode against float64 finite differences, the other modes, and exact derivatives."""

import itertools
import math

import pytest
import torch
from torch import nn

from odebench.ode import Adjoint, Checkpoint, SolveError, solve

TIMES = [0.0, 0.4, 1.1, 2.0]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
METHOD_KWARGS = {
    "dopri5": TIGHT,
    "tsit5": {"method": "tsit5", **TIGHT},
    "bosh3": {"method": "bosh3", "rtol": 1e-7, "atol": 1e-7},
    "rk4": {"method": "rk4", "steps": 200},
    "midpoint": {"method": "midpoint", "steps": 300},
    "dopri5 at fixed steps": {"method": "dopri5", "steps": 80},
}


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
            parameter.mul_(3)  # large enough for the tolerance to matter
    return field


@pytest.fixture
def y0():
    return torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.1]], dtype=torch.float64, requires_grad=True)


def loss_of(y):
    """Nonlinear, with a weight for every output time."""
    return (y[1:] ** 2).sum() + torch.sin(y[1]).sum()


def gradients(field, y0, times=TIMES, scale=None, **kwargs):
    tensors = [y0, *field.parameters(), *([] if scale is None else [scale])]
    args = () if scale is None else (scale,)
    return torch.autograd.grad(loss_of(solve(field, y0, times, args=args, **kwargs).y), tensors)


def finite_difference(loss, tensor, direction, eps=1e-5):
    """Central difference of loss() along a direction in one tensor, changed in place."""
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            tensor.add_(direction, alpha=sign * eps)
            values.append(float(loss()))
            tensor.sub_(direction, alpha=sign * eps)
    return (values[0] - values[1]) / (2 * eps)


# Tested with every mode in test_gradient_modes.
SLOW_METHODS = {"tsit5", "bosh3", "midpoint"}


@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param(kwargs, marks=[pytest.mark.slow] * (name in SLOW_METHODS), id=name)
        for name, kwargs in METHOD_KWARGS.items()
    ],
)
@pytest.mark.parametrize(
    "times", [TIMES, pytest.param(TIMES[::-1], marks=pytest.mark.slow)], ids=["forward", "reversed"]
)
@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_gradients_equal_finite_differences(mode, times, kwargs, field, y0):
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    tensors = [y0, *field.parameters(), scale]
    found = gradients(field, y0, times, scale, gradient=mode, **kwargs)
    generator = torch.Generator().manual_seed(1)
    # Adaptive: the step sizes of the two solves differ. Adjoint: it has a discretisation error.
    bound = {"bosh3": 1e-4, "midpoint": 1e-3 if mode == "adjoint" else 1e-6}.get(kwargs.get("method", ""), 1e-6)
    for tensor, gradient in zip(tensors, found, strict=True):
        direction = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
        slope = finite_difference(
            lambda: loss_of(solve(field, y0, times, args=(scale,), **kwargs).y), tensor, direction
        )
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=bound, abs=bound)


def test_the_adjoint_approaches_the_true_gradient_as_the_tolerance_falls(field, y0):
    reference = torch.cat([g.flatten() for g in gradients(field, y0, rtol=1e-12, atol=1e-12)])
    errors = []
    for tol in (1e-3, 1e-5, 1e-7, 1e-9):
        found = gradients(field, y0, gradient="adjoint", rtol=tol, atol=tol)
        errors.append(float((torch.cat([g.flatten() for g in found]) - reference).norm() / reference.norm()))
    assert errors[0] < 1e-2
    assert all(later < earlier / 5 for earlier, later in itertools.pairwise(errors))


def test_backward_tolerances_determine_the_error_of_the_gradient(field, y0):
    reference = torch.cat([g.flatten() for g in gradients(field, y0, **TIGHT)])

    def error(mode):
        found = gradients(field, y0, gradient=mode, rtol=1e-4, atol=1e-4)
        return float((torch.cat([g.flatten() for g in found]) - reference).norm())

    assert error(Adjoint(rtol=1e-2, atol=1e-2)) > 3 * error(Adjoint(rtol=1e-7, atol=1e-7))


def test_the_backward_solve_takes_no_larger_steps_than_the_forward_solve_unless_it_has_other_tolerances():
    def largest(mode):
        y = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
        solution = solve(lambda t, y: -4 * y * torch.exp(-t), y, [0.0, 6.0], gradient=mode, rtol=1e-3, atol=1e-3)
        solution.y[-1].sum().backward()
        return [max(map(abs, stats.step_sizes)) for stats in (solution.stats, solution.stats.backward)]

    forward, backward = largest(Adjoint())
    assert backward <= forward
    forward, backward = largest(Adjoint(rtol=1e-2, atol=1e-2))
    assert backward > forward


@pytest.mark.parametrize(
    ("mode", "kwargs", "taken"),
    [
        (Adjoint(steps=8), {}, 8),
        (Adjoint(steps=3), {}, 4),  # at least one between two times
        (Adjoint(rtol=1e-10, atol=1e-10), {"method": "rk4", "steps": 20}, 20),
        (Adjoint(method="dopri5", rtol=1e-10, atol=1e-10), {"method": "rk4", "steps": 20}, 20),
    ],
)
def test_steps_is_the_number_of_backward_steps_over_the_whole_span(mode, kwargs, taken, field, y0):
    solution = solve(field, y0, [0.0, 0.5, 1.0, 1.5, 2.0], gradient=mode, **kwargs)
    loss_of(solution.y).backward()
    assert solution.stats.backward.accepted == taken


@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_gradients_with_respect_to_times(mode, field, y0):
    times = torch.tensor(TIMES, dtype=torch.float64, requires_grad=True)
    loss = loss_of(solve(field, y0, times, gradient=mode, **TIGHT).y)
    (found,) = torch.autograd.grad(loss, times)
    for i in range(len(TIMES)):
        direction = torch.zeros(len(TIMES), dtype=torch.float64)
        direction[i] = 1
        slope = finite_difference(lambda: loss_of(solve(field, y0, times, **TIGHT).y), times, direction)
        assert float(found[i]) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_backprop_is_differentiable_twice(y0):
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def final(w):
        return solve(lambda t, y: w * torch.sin(y), y0.detach(), [0.0, 1.0], method="rk4", steps=10).y[-1].sum()

    assert torch.autograd.gradcheck(final, (weight,))
    assert torch.autograd.gradgradcheck(final, (weight,))


def test_a_second_derivative_through_the_adjoint_raises(field, y0):
    (gradient,) = torch.autograd.grad(loss_of(solve(field, y0, TIMES, gradient="adjoint").y), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("mode", "method"),
    [
        ("adjoint", "dopri5"),
        ("interpolated_adjoint", "dopri5"),
        ("checkpoint", "dopri5"),
        ("reversible", "reversible_heun"),
        ("backprop", "gl4"),
    ],
)
def test_a_second_derivative_of_a_linear_loss_raises_too(mode, method):
    """The incoming gradient then has no graph: the penalty would silently have no gradient."""
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    start = torch.ones(2, dtype=torch.float64, requires_grad=True)
    steps = 5 if method == "gl4" else None
    y = solve(lambda t, y: torch.sin(weight * y), start, [0.0, 1.0], method=method, steps=steps, gradient=mode).y
    (gradient,) = torch.autograd.grad(y.sum(), start, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        (gradient**2).sum().backward()


@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_tuple_states_have_the_gradients_of_the_flat_state(mode, field, y0):
    def halves(t, y):
        rate = field(t, torch.stack(y, -1))
        return rate[..., 0], rate[..., 1]

    solution = solve(halves, (y0[:, 0], y0[:, 1]), TIMES, gradient=mode, **TIGHT)
    found = torch.autograd.grad(loss_of(torch.stack(solution.y, -1)), [y0, *field.parameters()])
    for found_part, flat in zip(found, gradients(field, y0, gradient=mode, **TIGHT), strict=True):
        torch.testing.assert_close(found_part, flat, rtol=1e-7, atol=1e-7)


# The adjoint and the tensors that f captures: they get their gradient, or an error is raised.


def test_parameters_in_closures_get_their_gradients():
    rate = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    start = torch.ones(2, dtype=torch.float64)
    solve(lambda t, y: -rate * y, start, [0.0, 1.5], gradient="adjoint", **TIGHT).y[-1].sum().backward()
    torch.testing.assert_close(rate.grad, -1.5 * torch.exp(-1.5 * rate.detach()))


def test_a_tensor_computed_outside_the_field_raises():
    rate = torch.tensor([0.5, 2.0], requires_grad=True)
    doubled = 2 * rate
    with pytest.raises(ValueError, match=r"computed outside of it \(by MulBackward0\).*pass it through args"):
        solve(lambda t, y: -doubled * y, torch.ones(2), [0.0, 1.0], gradient="adjoint")


def test_a_computed_tensor_in_args_passes_its_gradient_on():
    rate = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    start = torch.ones(2, dtype=torch.float64)

    def decay(t, y, options):
        return -options["rate"] * y

    solution = solve(decay, start, [0.0, 1.5], args=({"rate": 2 * rate, "unused": 3},), gradient="adjoint", **TIGHT)
    solution.y[-1].sum().backward()
    torch.testing.assert_close(rate.grad, -3 * torch.exp(-3 * rate.detach()))


def test_frozen_parameters_and_unused_ones_do_no_harm(field, y0):
    field.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    field.layers[0].bias.requires_grad_(False)
    loss_of(solve(field, y0, TIMES, gradient="adjoint").y).backward()
    assert field.layers[0].bias.grad is None
    assert field.layers[0].weight.grad.abs().sum() > 0
    assert field.unused.grad is None or not field.unused.grad.any()


def test_a_state_that_is_computed_passes_its_gradient_on(field, y0):
    found = {}
    for mode in ("backprop", "adjoint"):
        (found[mode],) = torch.autograd.grad(loss_of(solve(field, torch.tanh(y0), TIMES, gradient=mode, **TIGHT).y), y0)
    torch.testing.assert_close(found["adjoint"], found["backprop"], rtol=1e-6, atol=1e-7)


def test_a_parameter_that_f_uses_only_later_gets_its_gradient_in_a_module_and_raises_elsewhere():
    early, late = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()

    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.late = early, late

        def forward(self, t, y):
            return self.early(y) if t < 0.5 else self.late(y)

    start = torch.ones(2, dtype=torch.float64)
    norms = {}
    for mode in ("backprop", "adjoint"):
        y = solve(Switch(), start, [0.0, 1.0], method="rk4", steps=200, gradient=mode).y
        norms[mode] = torch.autograd.grad(y[-1].sum(), late.weight)[0].norm().item()
    assert norms["adjoint"] == pytest.approx(norms["backprop"], rel=1e-2)
    switch = Switch()
    y = solve(lambda t, y: switch(t, y), start, [0.0, 1.0], method="rk4", steps=20, gradient="adjoint").y
    with pytest.raises(ValueError, match=r"a tensor at t=.* not use at the first time"):
        y[-1].sum().backward()


def test_a_parameter_with_a_gradient_hook_raises():
    rate = torch.tensor([0.5, 2.0], requires_grad=True)
    rate.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(ValueError, match="gradient hook"):
        solve(lambda t, y: -rate * y, torch.ones(2), [0.0, 1.0], gradient="adjoint")


@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e6])
def test_the_adjoint_does_not_depend_on_the_scale_of_the_loss(factor):
    """At an equilibrium only the adjoint changes, so that only its error controls the steps."""
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    y = solve(
        lambda t, y: -20 * (y - mean), mean.detach().clone(), [0.0, 1.0], rtol=1e-3, atol=1e-3, gradient="adjoint"
    ).y
    (gradient,) = torch.autograd.grad(factor * y[-1].sum(), mean)
    torch.testing.assert_close(gradient / factor, torch.ones_like(gradient), rtol=1e-2, atol=0)


def test_the_adjoint_takes_gradients_whose_squares_overflow():
    start = torch.ones(2, requires_grad=True)
    states = solve(lambda t, y: -y, start, [0.0, 1.0], rtol=1e-5, atol=1e-5, gradient="adjoint").y
    (gradient,) = torch.autograd.grad(1e30 * states[-1].sum(), start)
    torch.testing.assert_close(gradient, torch.full((2,), 1e30 * math.exp(-1)), rtol=1e-4, atol=0)


def test_several_backward_passes_go_through_one_solve(field, y0):
    y = solve(field, y0, TIMES, method="rk4", steps=20, max_steps=25, gradient="adjoint").y
    passes = [torch.autograd.grad(loss_of(y), y0, retain_graph=True)[0] for _ in range(3)]
    assert torch.equal(passes[0], passes[2])


@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_the_reached_states_of_a_failed_solve_are_differentiable(mode):
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    solution = solve(lambda t, y: y * y, y0, times, rtol=1e-8, atol=1e-8, gradient=mode, throw=False)
    assert solution.outcome.reached == 2
    by_state, by_time = torch.autograd.grad(solution.y[1].sum(), (y0, times))
    assert float(by_state) == pytest.approx(4.0, rel=1e-4)  # y(t) = 1 / (1 / y0 - t)
    assert by_time.tolist() == pytest.approx([-4.0, 4.0, 0.0], rel=1e-4)


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        *itertools.product(["euler", "rk4", "dopri5"], ["backprop", "checkpoint", Checkpoint(keep="graphs")]),
        ("rk4", Checkpoint(checkpoints=2)),
        ("implicit_midpoint", "checkpoint"),
        ("explicit_adams", "backprop"),
        ("reversible_rk4", "reversible"),
    ],
)
@pytest.mark.parametrize("times", [[0.0, 0.2, 0.4, 3.0, 6.0], [0.0, 3.0]])
def test_fixed_steps_through_nan_keep_the_reached_states_differentiable(method, mode, times):
    def gradients(times, reached):
        y0, rate = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
        kwargs = {"method": method, "step_size": 0.05, "gradient": mode, "throw": False}
        solution = solve(lambda t, y, a: a * y**3, y0, times, args=(rate,), **kwargs)
        assert solution.outcome.reached == reached
        return torch.autograd.grad(solution.y[:reached].sum(), (y0, rate), allow_unused=True, materialize_grads=True)

    if len(times) == 2:
        assert [one.item() for one in gradients(times, 1)] == [1.0, 0.0]
    else:
        torch.testing.assert_close(gradients(times, 3), gradients(times[:3], 3))


@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_autocast_applies_to_the_field_only(mode):
    layer = nn.Linear(4, 4)
    seen = []

    def f(t, y):
        out = torch.tanh(layer(y))
        seen.append((y.dtype, out.dtype))
        return out

    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(1, 4))  # fills autocast's cache of the weights, with their graph
        solutions = [solve(f, torch.ones(2, 4), [0.0, 0.3, 1.0], gradient=mode, rtol=1e-3, atol=1e-3) for _ in range(2)]
    sum(solution.y.sum() for solution in solutions).backward()
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert {solution.y.dtype for solution in solutions} == {torch.float32}
    assert layer.weight.grad.abs().sum() > 0


def test_a_trainable_end_time_inside_a_list_gets_its_gradient():
    end = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    y = solve(lambda t, y: -y, torch.ones(1, dtype=torch.float64), [0.0, end], **TIGHT).y
    y[-1].sum().backward()
    assert float(end.grad) == pytest.approx(-math.exp(-1.5), rel=1e-6)


# Cost of the backward pass.


def test_adjoint_statistics_count_the_backward_solve(field, y0):
    calls = 0

    def counted(t, y):
        nonlocal calls
        calls += 1
        return field(t, y)

    solution = solve(counted, y0, TIMES, gradient="adjoint", rtol=1e-6, atol=1e-6)
    forward = calls
    assert solution.stats.nfe == forward
    assert solution.stats.backward is None
    loss_of(solution.y).backward()
    backward = solution.stats.backward
    assert solution.stats.nfe == forward
    assert backward.nfe == calls - forward
    # Each interval starts with one evaluation, as the adjoint jumps there, and without a search for the first step.
    assert backward.nfe == (len(TIMES) - 1) + 6 * (backward.accepted + backward.rejected)
    assert sum(backward.step_sizes) == pytest.approx(TIMES[0] - TIMES[-1])


def test_adjoint_memory_does_not_grow_with_the_steps(field, y0):
    from torch.autograd.graph import saved_tensors_hooks

    def bytes_saved(mode, steps):
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            solve(field, y0, [0.0, 1.0], method="rk4", steps=steps, gradient=mode)
        return saved

    assert bytes_saved("adjoint", 10) == bytes_saved("adjoint", 80)
    assert bytes_saved("backprop", 80) > 7 * bytes_saved("backprop", 10)


def test_a_failed_backward_solve_raises():
    class BreaksLater(nn.Module):
        broken = False

        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(1))

        def forward(self, t, y):
            return self.rate * y * (float("nan") if self.broken else 1.0)

    f = BreaksLater()
    y = solve(f, torch.ones(1), [0.0, 1.0], gradient="adjoint").y
    f.broken = True
    with pytest.raises(SolveError, match="backward solve of the adjoint failed: non_finite"):
        y[-1].sum().backward()


@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_solves_repeat_to_the_last_bit(mode, field, y0):
    first, second = (gradients(field, y0, gradient=mode) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_a_gpu_gives_the_numbers_of_the_cpu(mode, field, y0):
    found = gradients(field, y0, gradient=mode, rtol=1e-8, atol=1e-8)
    there = y0.detach().cuda().requires_grad_()
    on_gpu = gradients(field.cuda(), there, gradient=mode, rtol=1e-8, atol=1e-8)
    for found_part, theirs in zip(found, on_gpu, strict=True):
        torch.testing.assert_close(found_part, theirs.cpu(), rtol=1e-6, atol=1e-8)

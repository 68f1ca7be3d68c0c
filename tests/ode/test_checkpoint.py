"""The checkpoint mode gives the gradient of backpropagation with the documented memory and work."""

import math

import pytest
import torch
from torch import nn

from odebench import ode
from odebench.ode import Checkpoint, SolveError, Tableau, solve
from odebench.ode.gradients.step_history import StateHistory, reversed_states

TABLEAUS = [name for name, method in ode.METHODS.items() if isinstance(method, Tableau)]
ADAPTIVE = [name for name in TABLEAUS if ode.METHODS[name].adaptive]
MODES = {
    "states": Checkpoint(),
    "one": Checkpoint(checkpoints=1),
    "three": Checkpoint(checkpoints=3),
    "stage": Checkpoint(recompute="stage"),
    "graphs": Checkpoint(keep="graphs"),
}
# All outputs at the ends of steps; several inside one step; backward in time.
TIMES = {"ends": (0.0, 2.0), "inside": (0.0, 0.1, 0.15, 0.2, 1.0, 1.01, 2.0, 2.2), "backward": (2.0, 1.9, 0.0)}


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, t, y, scale):
        return scale * self.outer(torch.tanh(self.inner(y) * (1 + 0.1 * t)))


@pytest.fixture(scope="module")
def field():
    torch.manual_seed(0)
    return Field().double()


def solve_and_differentiate(field, method, gradient, times, **options):
    """The solution, and the gradients of a loss with a different weight for every element."""
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(times, dtype=torch.float64, requires_grad=True)
    options = {"rtol": 1e-4, "atol": 1e-4} | options
    solution = solve(field, y0, t, args=(scale,), method=method, gradient=gradient, **options)
    weights = torch.arange(solution.y.numel(), dtype=torch.float64).reshape(solution.y.shape).cos()
    loss = (solution.y**2 * weights).sum()
    return solution, list(torch.autograd.grad(loss, [y0, scale, t, *field.parameters()]))


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("span", TIMES)
@pytest.mark.parametrize("method", ["dopri5", "vern7", pytest.param("dopri8", marks=pytest.mark.slow), "bosh3"])
def test_adaptive_gradients_equal_backpropagation(field, method, span, mode):
    _, expected = solve_and_differentiate(field, method, "backprop", TIMES[span])
    solution, found = solve_and_differentiate(field, method, MODES[mode], TIMES[span])
    assert solution.stats.accepted > 1
    assert_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["states", "graphs"])
@pytest.mark.parametrize("method", TABLEAUS)
def test_fixed_step_gradients_equal_backpropagation(field, method, mode):
    _, expected = solve_and_differentiate(field, method, "backprop", TIMES["inside"], steps=5)
    _, found = solve_and_differentiate(field, method, MODES[mode], TIMES["inside"], steps=5)
    for gradients in (expected, found):
        # That with respect to times: of the discrete solve by backprop, of the exact solution by checkpoint.
        del gradients[2]
    assert_equal(found, expected)


@pytest.mark.parametrize("mode", MODES)
def test_rejected_steps_do_not_affect_the_gradient(field, mode):
    options = {"first_step": 2.0, "rtol": 1e-7}
    _, expected = solve_and_differentiate(field, "tsit5", "backprop", TIMES["inside"], **options)
    solution, found = solve_and_differentiate(field, "tsit5", MODES[mode], TIMES["inside"], **options)
    assert solution.stats.rejected > 0
    assert_equal(found, expected)


@pytest.mark.parametrize("mode", ["states", "three", "stage"])
def test_a_jump_of_the_field_is_evaluated_on_both_sides(mode):
    """Outputs inside the steps next to the jump use stages of both sides."""
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def field(t, y):
        return -rate * y if t <= 1 else rate * y

    def gradient(mode):
        y0 = torch.ones(1, dtype=torch.float64)
        times = [0.0, 0.9, 0.95, 1.05, 1.1, 2.0]
        y = solve(field, y0, times, gradient=mode, jump_t=[1.0], rtol=1e-9, atol=1e-9).y
        return torch.autograd.grad(y.sum(), rate)[0], y

    found, y = gradient(MODES[mode])
    expected, _ = gradient("backprop")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert y[-1].item() == pytest.approx(1.0, abs=1e-8)


def test_backward_evaluations_are_as_documented(field):
    """dopri5: six evaluations per step; backward the same number again, twice that by stage, none with graphs."""
    nfe = {}
    for name, mode in MODES.items():
        solution, _ = solve_and_differentiate(field, "dopri5", mode, TIMES["ends"], first_step=0.3)
        backward = solution.stats.backward
        nfe[name] = backward.nfe if backward else 0
        steps = solution.stats.accepted
    assert nfe["states"] == 6 * steps
    assert nfe["stage"] == 12 * steps
    assert nfe["graphs"] == 0
    assert nfe["one"] == 6 * steps + 6 * sum(range(steps))


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 40])
def test_no_more_states_are_stored_than_checkpoints(limit, num_steps):
    """Every step comes once, the last first, with its own state, whatever was stored."""
    history = StateHistory(limit)
    for n in range(num_steps):
        history.accept(float(n), torch.tensor(n), 1.0)
        assert 1 <= len(history.checkpoints) <= limit
    recomputed = []

    def advance(step, y):
        assert int(y) == step.t
        recomputed.append(step.t)
        return y + 1

    visited = [(n, int(y)) for n, y in history.reversed_steps(advance)]
    assert visited == [(n, n) for n in reversed(range(num_steps))]
    if limit >= num_steps:
        assert not recomputed


def test_steps_are_repeated_no_more_often_than_revolve_needs():
    """With m stored states, binomial(m + r, m) steps need at most r - 1 repeats each (Griewank & Walther 2000)."""
    for num_free, repeats in [(2, 2), (3, 3), (4, 2)]:
        length = math.comb(num_free + 1 + repeats, repeats)
        recomputed = []

        def advance(n, y, recomputed=recomputed):
            recomputed.append(n)
            return y + 1

        assert [n for n, _ in reversed_states(0, length, 0, num_free, advance)] == list(reversed(range(length)))
        assert max(recomputed.count(n) for n in range(length)) <= repeats


def test_peak_memory_is_one_state_per_step_or_constant(field):
    from odebench.record.profiling import measure_step

    wide = nn.Sequential(nn.Linear(1000, 4), nn.Tanh(), nn.Linear(4, 1000)).double()

    def peak(mode, steps):
        def step():
            y0 = torch.ones(1000, dtype=torch.float64, requires_grad=True)
            y = solve(lambda t, y: wide(y), y0, [0.0, 1.0], method="rk4", steps=steps, gradient=mode).y
            y[-1].sum().backward()

        step()
        return measure_step(step, torch.device("cpu"))["memory/peak_mib"] * 2**20 / (1000 * 8)

    def growth(mode):
        return (peak(mode, 24) - peak(mode, 12)) / 12

    assert growth(Checkpoint()) == pytest.approx(1, abs=0.1)
    assert peak(Checkpoint(checkpoints=4), 24) < peak(Checkpoint(checkpoints=4), 12) + 3
    assert growth("backprop") > 3


def test_a_failed_solve_has_the_gradient_of_the_reached_states():
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    solution = solve(
        lambda t, y: y**2, y0, [0.0, 0.5, 2.0], gradient="checkpoint", max_steps=40, rtol=1e-9, atol=1e-9, throw=False
    )
    assert solution.status is not ode.Status.success
    assert solution.outcome.reached == 2
    solution.y[1].sum().backward()
    assert y0.grad.item() == pytest.approx(1 / (1 - 0.5) ** 2, rel=1e-6)


def test_lost_gradients_and_invalid_options_raise():
    weight = torch.ones(1, requires_grad=True)
    outside = weight * 2
    with pytest.raises(ValueError, match="computed outside of it"):
        solve(lambda t, y: -outside * y, torch.ones(1), [0.0, 1.0], gradient="checkpoint")
    with pytest.raises(ValueError, match="leave checkpoints and recompute out"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], gradient=Checkpoint(checkpoints=2, keep="graphs"))
    with pytest.raises(ValueError, match="checkpoints must be positive, got 0"):
        Checkpoint(checkpoints=0)
    solution = solve(lambda t, y: -weight * y, torch.ones(1), [0.0, 1.0], gradient=Checkpoint(keep="graphs"))
    solution.y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can run backward only once"):
        solution.y.sum().backward()


def test_an_unstable_solve_raises_and_leaves_no_gradient():
    y0 = torch.ones(1, requires_grad=True)
    with pytest.raises(SolveError, match="non_finite"):
        solve(lambda t, y: y / (y - y), y0, [0.0, 1.0], gradient="checkpoint")
    assert y0.grad is None

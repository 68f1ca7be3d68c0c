"""Events: where they are found, in which order, and their derivatives against closed forms and finite differences."""

import math

import pytest
import torch
from torch import nn

from odebench.ode import Rows, Status, solve
from odebench.ode.events import Event, find_zero

TIGHT = {"rtol": 1e-11, "atol": 1e-11}
MODES = ["backprop", "checkpoint", "adjoint", "interpolated_adjoint"]


def oscillate(t, y):
    """y = (sin t, cos t) from (0, 1)."""
    return torch.stack((y[1], -y[0]))


def oscillate_rows(t, y):
    """``oscillate`` for a batch [B, 2]."""
    return torch.stack((y[:, 1], -y[:, 0]), 1)


START = torch.tensor([0.0, 1.0], dtype=torch.float64)


def number(value, grad=True):
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


# Location of zeros.


@pytest.mark.parametrize(
    ("function", "zero"),
    [
        (lambda x: x - 0.3, 0.3),
        (lambda x: (x - 0.3) ** 9, 0.3),
        (lambda x: math.exp(20 * x) - math.exp(3), 0.15),
        (lambda x: math.copysign(1, x - 0.7), 0.7),
        (lambda x: math.atan(1e6 * (x - 1e-3)), 1e-3),
        (lambda x: 1e200 * (x - 0.6) ** 3, 0.6),
        (lambda x: math.nan if x > 0.4 else -1.0, 0.4),
        (lambda x: 1 / (0.25 - x) if x != 0.25 else math.inf, 0.25),
    ],
    ids=["line", "flat", "steep", "jump", "kink", "huge", "nan", "pole"],
)
def test_a_zero_is_found_to_the_tolerance_in_few_evaluations(function, zero):
    calls = []

    def counted(x):
        calls.append(x)
        return function(x)

    end = function(1.0)
    for tolerance in (1e-3, 1e-9, 1e-14):
        calls.clear()
        found = find_zero(counted, (0.0, function(0.0)), (1.0, 1.0 if math.isnan(end) else end), tolerance)
        assert found == pytest.approx(zero, abs=2 * tolerance) or function(found) == 0
        assert len(calls) <= 3 * math.log2(1 / tolerance)
        assert all(0 < x < 1 for x in calls)


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [({}, 1e-3), (TIGHT, 1e-9), ({"method": "rk4", "steps": 400}, 1e-7), ({"method": "euler", "steps": 9_000}, 1e-2)],
    ids=["dopri5", "dopri5 tight", "rk4", "euler"],
)
def test_a_terminal_event_ends_the_solve(how, tolerance):
    times = [0.0, 1.0, 3.0, 4.0, 9.0]
    solution = solve(oscillate, START, times, event=lambda t, y: y[0], **how)
    assert solution.status is Status.event
    assert float(solution.events[0].t) == pytest.approx(math.pi, abs=tolerance)
    assert solution.outcome.time == pytest.approx(math.pi, abs=tolerance)
    assert solution.outcome.reached == 3
    assert "a terminal event at t=3.14" in solution.outcome.message()
    torch.testing.assert_close(solution.events[0].y, -START.unsqueeze(0), rtol=0, atol=tolerance)
    assert solution.y[:3].isfinite().all()
    assert solution.y[3:].isnan().all()


def test_a_solve_without_a_zero_of_its_event_succeeds():
    solution = solve(oscillate, START, [0.0, 2.0], event=[Event(lambda t, y: y[0] - 2), Event(lambda t, y: y[0] + 2)])
    assert solution.status is Status.success
    assert [(hits.t.shape, hits.y.shape) for hits in solution.events] == [((0,), (0, 2))] * 2


def test_events_that_are_not_terminal_do_not_change_the_solve():
    times = torch.linspace(0, 20, 7, dtype=torch.float64)
    plain = solve(oscillate, START, times)
    found = solve(oscillate, START, times, event=Event(lambda t, y: y[0], terminal=False))
    assert found.status is Status.success
    assert found.stats == plain.stats
    assert torch.equal(found.y, plain.y)
    assert found.outcome == plain.outcome
    expected = math.pi * torch.arange(1, 7, dtype=torch.float64)
    torch.testing.assert_close(found.events[0].t, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("direction", [1, -1, 0])
@pytest.mark.parametrize("sign", [1, -1], ids=["forward", "backward"])
def test_only_zeros_of_the_direction_count(direction, sign):
    event = Event(lambda t, y: y[0], terminal=False, direction=direction)
    solution = solve(lambda t, y: sign * oscillate(t, y), START, [0.0, sign * 10.0], event=event, **TIGHT)
    # The sine falls first, at pi, in both directions.
    zeros = {1: [2], -1: [1, 3], 0: [1, 2, 3]}[direction]
    expected = [sign * math.pi * n for n in zeros]
    torch.testing.assert_close(solution.events[0].t, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forward", "backward"])
def test_zeros_inside_one_step_are_ordered_up_to_the_first_terminal_one(sign):
    levels = [0.8, 0.2, 0.6, 0.4]
    events = [Event(lambda t, y, c=c: y - sign * c, terminal=c in (0.6, 0.8)) for c in levels]
    one_step = {"first_step": 1.0, "method": "dopri5"}
    y0 = torch.zeros((), dtype=torch.float64)
    solution = solve(lambda t, y: torch.ones_like(y), y0, [0.0, sign * 0.5, sign], event=events, **one_step)
    assert solution.stats.accepted == 1
    assert solution.status is Status.event
    found = [hits.t.tolist() for hits in solution.events]
    assert found == [[], [pytest.approx(sign * 0.2)], [pytest.approx(sign * 0.6)], [pytest.approx(sign * 0.4)]]
    torch.testing.assert_close(solution.y, torch.tensor([0, sign * 0.5, math.nan], dtype=torch.float64), equal_nan=True)


def test_any_element_of_an_event_function_may_cross():
    levels = torch.tensor([[0.9, 0.5], [2.0, 0.7]], dtype=torch.float64)
    for terminal, crossed in {True: [0.5], False: [0.5, 0.7, 0.9]}.items():
        expected = torch.tensor(crossed, dtype=torch.float64)
        event = Event(lambda t, y: y[0] - levels, terminal, direction=1)
        solution = solve(oscillate, START, [0.0, 1.5], event=event, **TIGHT)
        torch.testing.assert_close(solution.events[0].t, expected.asin(), rtol=0, atol=1e-8)
        torch.testing.assert_close(solution.events[0].y[:, 0], expected, rtol=0, atol=1e-8)


def test_a_ball_that_leaves_the_floor_comes_back_to_it_though_its_step_spans_the_whole_flight():
    """Height and zero of the first step's start are exact zeros: they do not count, and do not hide the next one."""
    y0 = torch.tensor([0.0, 3.0], dtype=torch.float64)

    def fall(t, y):
        return torch.stack((y[1], torch.full_like(y[1], -9.81)))

    solution = solve(fall, y0, [0.0, 5.0], event=lambda t, y: y[0], first_step=5.0)
    assert solution.stats.accepted == 1
    torch.testing.assert_close(
        solution.events[0].t, torch.tensor([2 * 3 / 9.81], dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_a_zero_reached_at_the_end_of_a_step_counts_once():
    event = Event(lambda t, y: t - 0.5, terminal=False)
    y0 = torch.ones(2, dtype=torch.float64)
    solution = solve(lambda t, y: -y, y0, [0.0, 0.25, 0.5, 1.0], method="rk4", step_size=0.25, event=event)
    assert solution.events[0].t.tolist() == [0.5]
    assert torch.equal(solution.events[0].y[0], solution.y[2])
    ended = solve(lambda t, y: -y, y0, [0.0, 0.5, 1.0], method="rk4", step_size=0.25, event=event.function)
    assert ended.outcome.reached == 2
    assert torch.equal(ended.events[0].y[0], ended.y[1])


def test_max_step_finds_what_a_long_step_misses():
    event = Event(lambda t, y: (y - 0.5) ** 2 - 0.01, terminal=False)
    y0 = torch.zeros((), dtype=torch.float64)
    for max_step, count in ((math.inf, 0), (0.1, 2)):
        steps = {"first_step": 1.0, "max_step": max_step}
        solution = solve(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], event=event, **steps)
        assert len(solution.events[0].t) == count


def test_low_precision_and_structure_are_those_of_the_solve():
    y0 = {"height": torch.ones(1, 1), "rest": [torch.zeros(2)]}

    def field(t, y):
        return {"height": -torch.ones(1, 1), "rest": [torch.ones(2)]}

    solution = solve(field, y0, torch.tensor([0.0, 3.0]), event=Event(lambda t, y: y["height"]))
    hits = solution.events[0]
    assert (hits.t.dtype, hits.t.shape) == (torch.float32, (1,))
    assert (hits.y["height"].shape, hits.y["rest"][0].shape) == ((1, 1, 1), (1, 2))
    torch.testing.assert_close(hits.t, torch.ones(1))
    torch.testing.assert_close(hits.y["rest"][0], torch.ones(1, 2))


def test_dense_output_ends_at_a_terminal_event():
    solution = solve(oscillate, START, [0.0, 9.0], event=lambda t, y: y[0], dense=True, **TIGHT)
    end = float(solution.events[0].t)
    assert solution.dense.span == (0.0, end)
    torch.testing.assert_close(solution.dense(end), solution.events[0].y[0], rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="outside"):
        solution.dense(end + 1e-3)


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        (lambda t, y: 1.0, TypeError, "must return a tensor of floats or booleans, got float"),
        (lambda t, y: y[0] + 1j, TypeError, "must return a tensor of floats or booleans, got torch.complex128"),
        (lambda t, y: (y[0] > 0.5).long(), TypeError, "got torch.int64; a comparison, such as y > 3, gives booleans"),
        (lambda t, y: y[: 1 + int(t > 0)], ValueError, "always return the same number of elements"),
        ("floor", TypeError, "an event must be callable"),
    ],
    ids=["float", "complex", "integer", "growing", "string"],
)
def test_invalid_events_raise(event, error, message):
    with pytest.raises(error, match=message):
        solve(oscillate, START, [0.0, 1.0], event=[event])


@pytest.mark.parametrize("how", [TIGHT, {**TIGHT, "stepping": "per_sample"}], ids=["shared", "per_sample"])
@pytest.mark.parametrize(("direction", "angle"), [(1, 1 / 6), (-1, 5 / 6), (0, 1 / 6)])
def test_a_boolean_event_is_found_where_it_changes(how, direction, angle):
    """sin t > 1/2 from pi/6 to 5 pi/6."""
    event = Event(lambda t, y: y[:, 0] > 0.5, direction=direction)
    solution = solve(oscillate_rows, START.unsqueeze(0), [0.0, 9.0], event=event, **how)
    assert solution.events[0].t.tolist() == [pytest.approx(math.pi * angle, abs=1e-9)]
    torch.testing.assert_close(solution.events[0].y[0].reshape(-1)[0], number(0.5, grad=False), rtol=0, atol=1e-9)


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
def test_event_functions_receive_args(stepping):
    """y' = -rate y from 1 falls to a level at t = -ln(level) / rate; with per-sample steps each row has its own."""
    rate, level = number(0.5), number([0.5, 0.25])
    args = (Rows(level) if stepping == "per_sample" else level[:1], {"rate": rate})

    def event(t, y, level, options):
        assert options["rate"] is rate
        return y[:, 0] - level

    start = torch.ones(2 if stepping == "per_sample" else 1, 1, dtype=torch.float64)
    how = {**TIGHT, "stepping": stepping, "args": args}
    solution = solve(lambda t, y, level, options: -options["rate"] * y, start, [0.0, 9.0], event=event, **how)
    expected = -level[: len(start)].log() / rate
    torch.testing.assert_close(solution.events[0].t, expected, rtol=1e-9, atol=0)
    got, want = (torch.autograd.grad(t.sum(), (level, rate)) for t in (solution.events[0].t, expected))
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)
    with pytest.raises(
        TypeError, match=r"must take the args of the solve \(here 2\), as f does: event\(t, y, \*args\)"
    ):
        solve(lambda t, y, *args: -y, start, [0.0, 9.0], event=lambda t, y: y[:, 0], **how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0.0, 1000.0])
@pytest.mark.parametrize("how", [{}, {"method": "rk4", "steps": 7}, {"first_step": 0.11}], ids=str)
@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
def test_an_event_at_an_output_time_does_not_make_that_output_nan(stepping, how, start, dtype):
    y0 = START.to(dtype).unsqueeze(0)
    for offsets in ([0.0, 0.3], [0.0, 0.5, 1.0], [0.0, 0.1, 0.7, 0.9]):
        for i, sign in ((1, 1), (len(offsets) - 1, 1), (1, -1)):
            times = [sign * (start + offset) for offset in offsets]
            event = Event(lambda t, y, at=times[i]: (t - at).expand(y.shape[:1]))
            solution = solve(oscillate_rows, y0, times, event=event, stepping=stepping, **how)
            assert solution.status is Status.event
            assert solution.y[: i + 1].isfinite().all()
            assert solution.y[i + 1 :].isnan().all()
            time = solution.events[0].t
            torch.testing.assert_close(time, torch.full_like(time, times[i]), rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_an_invalid_direction_raises():
    with pytest.raises(ValueError, match="direction must be -1, 0 or 1"):
        Event(lambda t, y: y, direction=2)


# Derivatives.


class Fall(nn.Module):
    def __init__(self, gravity):
        super().__init__()
        self.gravity = nn.Parameter(gravity)

    def forward(self, t, y):
        return torch.stack((y[1], -self.gravity.expand(())))


@pytest.mark.parametrize("how", [TIGHT, {"method": "rk4", "steps": 7}], ids=["dopri5", "rk4"])
@pytest.mark.parametrize("gradient", MODES)
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "passing"])
def test_the_fall_to_a_floor_has_its_exact_derivatives(gradient, how, terminal):
    """t* = sqrt(2 (h - c) / g) and v* = -sqrt(2 g (h - c)) for every method that is exact for parabolas."""
    height, floor, field = number(3.0), number(0.5), Fall(torch.tensor(9.81, dtype=torch.float64))
    y0 = torch.stack((height, torch.zeros_like(height)))
    event = Event(lambda t, y: y[0] - floor, terminal)
    solution = solve(field, y0, [0.0, 0.3, 1.0], event=event, gradient=gradient, **how)
    (hits,) = solution.events
    wanted = [height, floor, field.gravity]
    drop = (height - floor) * 2
    closed = {"t": (drop / field.gravity).sqrt(), "v": -(drop * field.gravity).sqrt(), "y": floor * 1.0}
    for name, found in {"t": hits.t[0], "v": hits.y[0, 1], "y": hits.y[0, 0]}.items():
        torch.testing.assert_close(found, closed[name], rtol=1e-9, atol=1e-9)
        got = torch.autograd.grad(found, wanted, retain_graph=True, materialize_grads=True, allow_unused=True)
        want = torch.autograd.grad(closed[name], wanted, retain_graph=True, materialize_grads=True, allow_unused=True)
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


class Field(nn.Module):
    """Nonlinear, dependent on time, with parameters."""

    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([5.0, 0.2], dtype=torch.float64))

    def forward(self, t, y, push):
        return torch.stack((y[1], -self.rates[0] * torch.sin(y[0]) - self.rates[1] * y[1] + push * torch.cos(t)))


def loss_of(solution):
    """Weighs times and states of all hits, and the outputs."""
    passing, ending = solution.events
    assert len(passing.t) >= 2
    assert len(ending.t) == 1
    total = (passing.t**2).sum() + (passing.y[..., 1] * passing.t).sum() + torch.sin(ending.t).sum()
    return total + (ending.y**2).sum() + solution.y[: solution.outcome.reached].square().sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "end", "tolerance"),
    # The speed at a hit is f's, not that of the interpolating polynomial, which is less exact.
    [({"rtol": 1e-9, "atol": 1e-9}, 4.5, 1e-6), ({"method": "rk4", "steps": 200}, -4.5, 2e-5)],
    ids=["dopri5 forward", "rk4 backward"],
)
@pytest.mark.parametrize("gradient", MODES)
def test_gradients_through_events_are_those_of_finite_differences(gradient, how, end, tolerance):
    field, push = Field(), number([0.3])[0].detach().requires_grad_()
    y0, level = number([1.2, 0.1]), number(0.25)
    events = [
        Event(lambda t, y, push: y[0] - level * torch.cos(t), terminal=False),
        # Time-dependent too; it comes after several zeros of the first.
        Event(lambda t, y, push: t**2 - 30 * level - y[1] - 5),
    ]
    wanted = [field.rates, push, y0, level]

    def loss(**how):
        return loss_of(solve(field, y0, [0.0, end / 9, end / 3, end], args=(push,), event=events, **how))

    got = torch.autograd.grad(loss(gradient=gradient, **how), wanted)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in wanted]
    with torch.no_grad():
        torch._foreach_add_(wanted, direction, alpha=1e-5)
        above = loss(**how)
        torch._foreach_add_(wanted, direction, alpha=-2e-5)
        below = loss(**how)
    found = sum(float((g * d).sum()) for g, d in zip(got, direction, strict=True))
    assert found == pytest.approx(float((above - below) / 2e-5), rel=tolerance)


@pytest.mark.parametrize("gradient", MODES)
def test_zeros_at_one_time_share_their_state(gradient):
    """Also where it is an output's: the derivative of each is its own."""
    y0, levels = number([2.0]), [number(1.0), number(1.0)]
    events = [Event(lambda t, y, c=c: y[0] - c, terminal=False) for c in levels]
    how = {"method": "rk4", "steps": 3, "gradient": gradient}
    solution = solve(lambda t, y: -torch.ones_like(y), y0, [0.0, 1.0, 3.0], event=events, **how)
    for hits, level in zip(solution.events, levels, strict=True):
        torch.testing.assert_close(hits.t, number([1.0]))
        got = torch.autograd.grad(hits.t.sum() + hits.y.sum(), [level, y0], retain_graph=True)
        # t* = y0 - c, y* = c.
        torch.testing.assert_close(got, (number(0.0), number([1.0])), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gradient", MODES)
def test_an_event_moves_with_the_start_time(gradient):
    t = number([0.5, 6.0])
    solution = solve(oscillate, START, t, event=lambda t, y: y[0], gradient=gradient, **TIGHT)
    (shift,) = torch.autograd.grad(solution.events[0].t.sum(), t)
    torch.testing.assert_close(shift, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-7)


def test_a_complex_state_has_events():
    """z = exp(i w t) is real again at w t = pi."""
    frequency = number(2.0)
    z0 = torch.ones(1, dtype=torch.complex128)
    solution = solve(lambda t, z: 1j * frequency * z, z0, [0.0, 3.0], event=lambda t, z: z.imag, **TIGHT)
    time = solution.events[0].t
    torch.testing.assert_close(time, torch.tensor([math.pi / 2], dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(time.sum(), frequency)[0], number(-math.pi / 4), rtol=0, atol=1e-8)


def test_evaluations_for_events_are_counted():
    calls = 0

    def counted(t, y):
        nonlocal calls
        calls += 1
        return oscillate(t, y)

    event = Event(lambda t, y: y[0], terminal=False)
    y0 = START.clone().requires_grad_()
    solution = solve(counted, y0, [0.0, 10.0], event=event, method="rk4", steps=50)
    assert calls == solution.stats.nfe
    # f at the end of a step serves the interpolant and the next step; each of the three hits' derivatives costs one.
    assert calls == 50 * 4 + 1 + 3


def test_where_the_function_only_touches_zero_the_derivative_is_infinite():
    """(t - 1)^3 + offset is zero at 1 - offset^(1/3)."""
    offset = number(0.0)
    y0 = -torch.ones(1, dtype=torch.float64)
    event = Event(lambda t, y: y**3 + offset)
    solution = solve(lambda t, y: torch.ones_like(y), y0, [0.0, 2.0], method="rk4", steps=2, event=event)
    assert solution.events[0].t.tolist() == [1.0]
    assert solution.events[0].y.tolist() == [[0.0]]
    assert torch.autograd.grad(solution.events[0].t.sum(), offset)[0] < -1e300


@pytest.mark.parametrize("how", [{}, {"stepping": "per_sample"}])
def test_second_derivatives_of_events_and_of_times_raise(how):
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    start, times = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.0, 9.0], dtype=torch.float64)
    solution = solve(lambda t, y: -rate * y, start, times, event=lambda t, y: (y - rate / 2).reshape(-1), **how)
    (gradient,) = torch.autograd.grad(solution.events[0].t.sum(), rate, create_graph=True)
    message = "an event's time and state, and with respect to t, cannot be differentiated again"
    with pytest.raises(RuntimeError, match=message):
        torch.autograd.grad(gradient, rate)
    times.requires_grad_()
    states = solve(lambda t, y: -rate * y, start, times, **how).y
    of_times, of_rate = torch.autograd.grad(states[-1].sum(), (times, rate), create_graph=True)
    for at in of_times:
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(at, rate, retain_graph=True)
    # What does not come through the times has all its derivatives.
    (second,) = torch.autograd.grad(of_rate, rate)
    torch.testing.assert_close(second, 81 * torch.exp(-9 * rate.detach()), rtol=1e-3, atol=0)


def test_rows_with_an_event_of_zero_derivative_keep_its_time():
    start = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    solution = solve(
        lambda t, y: -y, start, [0.0, 3.0], event=lambda t, y: (y[:, 0] < 0.5).double() - 0.5, stepping="per_sample"
    )
    torch.testing.assert_close(
        solution.events[0].t.exp(), torch.tensor([2.0, 4.0], dtype=torch.float64), rtol=1e-3, atol=0
    )

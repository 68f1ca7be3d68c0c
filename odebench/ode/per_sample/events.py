"""Events of single rows: where a function of the row's solution crosses zero, the row ends."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odebench.ode.events import JUST_AFTER, Event
from odebench.ode.once_differentiable import first_derivative_only
from odebench.ode.per_sample.problem import RowProblem, pick
from odebench.ode.per_sample.stepping import RowStepper, Step, states_at
from odebench.ode.solution import EventHits
from odebench.ode.transforms import transform_active

# Zeros are found to this part of a step. Bisection alone would need MAX_SEARCH evaluations less one.
EPSILON = 1e-15
MAX_SEARCH = 51


class RowWatch:
    """Looks for each row's first zero of one event function, which ends the row."""

    def __init__(self, event: Event, problem: RowProblem) -> None:
        self._event, self._problem = event, problem
        self._g = torch.empty(0)
        self._like = problem.t.detach() if problem.t.is_floating_point() else problem.t.double()
        self._found: list[tuple[Tensor, Tensor, Tensor]] = []

    @classmethod
    def of(cls, event: Any, problem: RowProblem) -> "RowWatch | None":
        """The watch for what ``solve`` got, None for nothing."""
        if isinstance(event, Sequence) and len(event) == 1:
            event = event[0]
        if event is None:
            return None
        if callable(event):
            event = Event(event)
        if not isinstance(event, Event) or not event.terminal:
            raise ValueError("stepping='per_sample' takes one event, and a terminal one: rows end at it")
        return cls(event, problem)

    def start(self, t: Tensor, y: Tensor) -> None:
        """Begin at t [B], y [B, n]."""
        with torch.no_grad():
            self._g = self._value(t, y)

    def look(self, stepper: RowStepper, step: Step, t_next: Tensor, accepted: Tensor) -> Tensor:
        """Time of the event in the accepted rows of a step to t_next [b]; NaN for rows without, on the host."""
        with torch.no_grad():
            moved, g = accepted.to(self._g.device), self._value(self._problem.on_device(t_next), step.y_next)
            first, before = self._first_values(stepper, step, accepted)
            crossed = moved & (((before < 0) & (g >= 0)) | ((before > 0) & (g <= 0)))
            if self._event.direction:
                crossed &= before * self._event.direction < 0
            self._g = torch.where(moved, g, self._g)
        at = crossed.nonzero().squeeze(1).cpu()
        hits = torch.full_like(t_next, math.nan)
        if len(at):
            hits[at] = self._locate(stepper, step, at, pick(first, at), pick(before, at), pick(g, at))
        return hits

    def _first_values(self, stepper: RowStepper, step: Step, accepted: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the step to look first [b], on the host, and the values there: at its start, or just after it in
        rows that start at zero, which does not count."""
        first, before = torch.zeros_like(step.t), self._g
        at = (accepted & (before == 0).cpu()).nonzero().squeeze(1)
        if len(at):
            first[at] = JUST_AFTER
            before = before.index_copy(
                0, at.to(before.device), self._value_on(_Path(stepper, step, at), pick(first, at))
            )
        return first, before

    def select(self, rows: Tensor) -> None:
        """Go on with the rows at these positions."""
        self._g = pick(self._g, rows)

    def collect(self) -> tuple[EventHits, ...]:
        """Time [B] and state [B, ...] of each row's event; NaN where there is none."""
        problem = self._problem
        times = self._like.new_full((problem.num_rows,), math.nan)
        states = problem.y0.new_full(problem.y0.shape, math.nan)
        for rows, time, state in self._found:
            times = times.index_copy(0, rows.to(times.device), time)
            states = states.index_copy(0, rows.to(states.device), state)
        return (EventHits(times, problem.unflatten(states)),)

    def _locate(
        self, stepper: RowStepper, step: Step, at: Tensor, first: Tensor, before: Tensor, after: Tensor
    ) -> Tensor:
        """The event times [b'] of the rows at these positions, whose values change from ``before``, at theta =
        ``first``, to ``after`` at the end of the step."""
        path = _Path(stepper, step, at)
        with torch.no_grad():
            theta = find_zeros(lambda theta: self._value_on(path, theta), first, before, after)
        rows, time, state = pick(step.rows, at), path.t + theta * path.h, path.state(theta)
        found = time.to(self._like)
        if stepper.taped:
            found, state = self._differentiable(found, state, time, rows)
        self._found.append((rows, found, state))
        return time

    def _differentiable(self, found: Tensor, y: Tensor, time: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same times and states with the implicit function theorem's gradient, dt = -dg / (dg/dt + dg/dy f)."""
        t, fixed = self._problem.on_device(time).detach(), y.detach()
        slopes = self._slopes(t, fixed)
        if slopes is None:
            return found, y
        dg_dt, dg_dy = slopes
        with torch.no_grad():
            f = self._problem(t, fixed, rows)
            slope = dg_dt + (dg_dy.conj() * f).real.sum(1)
        g = self._value(t, y)
        # Where g only touches zero the derivative is infinite, while the value stays.
        shift = -(g - g.detach()) / torch.where(slope == 0, torch.finfo(slope.dtype).tiny, slope)
        shift = first_derivative_only(shift)
        return found + shift.to(found), y + shift.unsqueeze(1) * f

    def _slopes(self, t: Tensor, y: Tensor) -> Sequence[Tensor] | None:
        """dg/dt [b'] and dg/dy [b', n]; None where g moves with neither."""
        if transform_active():
            return torch.func.grad(lambda *at: self._value(*at).sum(), argnums=(0, 1))(t, y)
        leaves = (t.clone().requires_grad_(), y.clone().requires_grad_())
        g = self._value(*leaves)
        if not g.requires_grad:
            return None
        return torch.autograd.grad(g.sum(), leaves, allow_unused=True, materialize_grads=True)

    def _value_on(self, path: "_Path", theta: Tensor) -> Tensor:
        return self._value(self._problem.on_device(path.t + theta * path.h), path.state(theta))

    def _value(self, t: Tensor, y: Tensor) -> Tensor:
        value = self._event.function(t, self._problem.unflatten(y))
        if not isinstance(value, Tensor) or value.shape != t.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"event(t, y) must return one number a row: shape {tuple(t.shape)} expected, got {got}")
        return value


class _Path:
    """The way of the rows at some positions [b'] through their step: from t by h [b'], with the state inside."""

    def __init__(self, stepper: RowStepper, step: Step, at: Tensor) -> None:
        self.t, self.h, self._y = (pick(x, at) for x in (step.t, step.h, step.y))
        self._coefficients = stepper.interpolant(step, at)
        self._owners = torch.arange(len(at), device=self._y.device)

    def state(self, theta: Tensor) -> Tensor:
        """[b', n] at theta [b']."""
        return states_at(self._coefficients, self._y, self._owners, theta)


def find_zeros(value: Callable[[Tensor], Tensor], first: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The zeros [b] of b functions whose values have opposite signs at ``first`` and at 1: ``before`` and ``after``.

    The ITP method (Oliveira & Takahashi 2020, ACM Transactions on Mathematical Software 47), on the host in float64.
    """
    low, high = first, torch.ones_like(first)
    g_low, g_high = before.to("cpu", torch.float64), after.to("cpu", torch.float64)
    for radius in (math.ldexp(EPSILON, n) for n in range(MAX_SEARCH, 0, -1)):
        width, middle = high - low, 0.5 * (low + high)
        falsi = (g_high * low - g_low * high) / (g_high - g_low)
        falsi = torch.where(falsi.isfinite(), falsi, middle)
        side = torch.sign(middle - falsi)
        truncated = torch.minimum(0.2 * width * width, (middle - falsi).abs()) * side + falsi
        reach = radius - 0.5 * width
        theta = torch.minimum(torch.maximum(truncated, middle - reach), middle + reach)
        g = value(theta).to("cpu", torch.float64)
        short = torch.sign(g) == torch.sign(g_low)
        low, g_low = torch.where(short, theta, low), torch.where(short, g, g_low)
        high, g_high = torch.where(short, high, theta), torch.where(short, g_high, g)
        if bool(((high - low <= 2 * EPSILON) | (g_high == 0)).all()):
            break
    return high

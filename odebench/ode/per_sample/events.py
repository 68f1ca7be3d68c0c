"""Events of single rows: where a function of the row's solution crosses zero, the row ends."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odebench.ode.events import Event
from odebench.ode.per_sample.problem import RowProblem, pick
from odebench.ode.per_sample.stepping import RowStepper, Step, states_at
from odebench.ode.status import EventHits

# Zeros are found to this part of a step. Bisection alone would need MAX_SEARCH evaluations less one.
EPSILON = 1e-15
MAX_SEARCH = 51


class RowWatch:
    """Looks for each row's first zero of one event function, which ends the row."""

    def __init__(self, event: Event, problem: RowProblem) -> None:
        self._event, self._problem = event, problem
        self._g = torch.empty(0)
        # Event times are as exact as the device allows.
        self._dtype = torch.float64 if problem.y0.device.type != "mps" else torch.float32
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
            g = self._value(self._problem.on_device(t_next), step.y_next)
            before, after = torch.sign(self._g), torch.sign(g)
            # A zero where the row starts, or where its last step ended without it being one, is none.
            crossed = accepted.to(g.device) & (before * after <= 0) & (before != 0)
            if self._event.direction:
                crossed &= before * self._event.direction < 0
            before = self._g
            self._g = torch.where(accepted.to(g.device), g, before)
        at = crossed.nonzero().squeeze(1).cpu()
        hits = torch.full_like(t_next, math.nan)
        if len(at):
            hits[at] = self._locate(stepper, step, at, pick(before, at), pick(g, at))
        return hits

    def select(self, rows: Tensor) -> None:
        """Go on with the rows at these positions."""
        self._g = pick(self._g, rows)

    def collect(self) -> tuple[EventHits, ...]:
        """Time [B] and state [B, ...] of each row's event; NaN where there is none."""
        problem = self._problem
        times, states = (
            problem.y0.new_full((problem.num_rows,), math.nan, dtype=self._dtype),
            problem.y0.new_full(problem.y0.shape, math.nan),
        )
        for rows, time, state in self._found:
            times, states = times.index_copy(0, rows, time), states.index_copy(0, rows, state)
        return (EventHits(times, problem.unflatten(states)),)

    def _locate(self, stepper: RowStepper, step: Step, at: Tensor, g0: Tensor, g1: Tensor) -> Tensor:
        """The event times [b'] of the rows at these positions, whose values change from g0 to g1 over the step."""
        coefficients = stepper.extension(step, at)
        rows, t, h, y = (pick(x, at) for x in (step.rows, step.t, step.h, step.y))
        owners = torch.arange(len(at), device=y.device)

        def value(theta: Tensor) -> Tensor:
            return self._value(self._problem.on_device(t + theta * h), states_at(coefficients, y, owners, theta))

        with torch.no_grad():
            theta = find_zeros(value, g0, g1)
        time, state = t + theta * h, states_at(coefficients, y, owners, theta)
        found = time.to(y.device, self._dtype)
        if stepper.taped:
            found, state = self._differentiable(found, state, time, rows)
        self._found.append((rows.to(y.device), found, state))
        return time

    def _differentiable(self, found: Tensor, y: Tensor, time: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same times and states with the gradient of the implicit function theorem: dt = -dg / (dg/dt + dg/dy f)."""
        t = self._problem.on_device(time).requires_grad_()
        y_leaf = y.detach().requires_grad_()
        g = self._value(t, y_leaf)
        dg_dt, dg_dy = torch.autograd.grad(g.sum(), (t, y_leaf), allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            f = self._problem(t.detach(), y_leaf.detach(), rows)
            slope = dg_dt + (dg_dy.conj() * f).real.sum(1)
        g = self._value(t.detach(), y)
        found = found - ((g - g.detach()) / slope).to(found.dtype)
        shift = (found - found.detach()).to(slope.dtype)
        return found, y + shift.unsqueeze(1) * f

    def _value(self, t: Tensor, y: Tensor) -> Tensor:
        value = self._event.function(t, self._problem.unflatten(y))
        if not isinstance(value, Tensor) or value.shape != t.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"event(t, y) must return one number a row: shape {tuple(t.shape)} expected, got {got}")
        return value


def find_zeros(value: Callable[[Tensor], Tensor], g0: Tensor, g1: Tensor) -> Tensor:
    """The zeros [b] in [0, 1] of b functions whose values have opposite signs at its ends, g0 and g1; 1 where g1 is zero.

    The ITP method (Oliveira & Takahashi 2020, ACM Transactions on Mathematical Software 47), on the host in float64.
    """
    low, high = torch.zeros(len(g0), dtype=torch.float64), torch.ones(len(g0), dtype=torch.float64)
    g_low, g_high = g0.to("cpu", torch.float64), g1.to("cpu", torch.float64)
    for radius in (math.ldexp(EPSILON, n) for n in range(MAX_SEARCH, 0, -1)):
        width, middle = high - low, 0.5 * (low + high)
        falsi = (g_high * low - g_low * high) / (g_high - g_low)
        falsi = torch.where(falsi.isfinite(), falsi, middle)
        side = torch.sign(middle - falsi)
        truncated = torch.minimum(0.2 * width * width, (middle - falsi).abs()) * side + falsi
        reach = radius - 0.5 * width
        theta = torch.minimum(torch.maximum(truncated, middle - reach), middle + reach)
        g = value(theta).to("cpu", torch.float64)
        before = torch.sign(g) == torch.sign(g_low)
        low, g_low = torch.where(before, theta, low), torch.where(before, g, g_low)
        high, g_high = torch.where(before, high, theta), torch.where(before, g_high, g)
        if bool(((high - low <= 2 * EPSILON) | (g_high == 0)).all()):
            break
    return high

"""Events of single samples of a batch (rows): the solve of a row ends where a function of its solution crosses zero."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odebench.ode.events import THETA_AFTER_START, Event, as_event, as_signed, partial_derivatives
from odebench.ode.once_differentiable import first_derivative_only
from odebench.ode.per_sample.problem import RowProblem, put_rows, take_rows
from odebench.ode.per_sample.stepping import RowStep, RowStepper, interpolate
from odebench.ode.solution import EventHits

# The accuracy of a zero as a fraction of the step. Bisection alone would need MAX_ITERATIONS - 1 evaluations.
THETA_TOLERANCE = 1e-15
MAX_ITERATIONS = 51


class RowEventDetector:
    """Find the first zero of an event function in each row, at which the solve of the row ends."""

    def __init__(self, event: Event, problem: RowProblem) -> None:
        self._event, self._problem = event, problem
        self._g = torch.empty(0)
        self._like_times = problem.t.detach() if problem.t.is_floating_point() else problem.t.double()
        self._found: list[tuple[Tensor, Tensor, Tensor]] = []

    @classmethod
    def from_argument(cls, event: Any, problem: RowProblem) -> "RowEventDetector | None":
        """Make the detector for the ``event`` argument of ``solve``; return None if no event is given."""
        if isinstance(event, Sequence) and len(event) == 1:
            event = event[0]
        if event is None:
            return None
        if isinstance(event, Sequence) or (isinstance(event, Event) and not event.terminal):
            raise ValueError("stepping='per_sample' takes one event, and it must be terminal")
        return cls(as_event(event, problem.args_of(problem.all_rows())), problem)

    def start(self, t: Tensor, y: Tensor) -> None:
        """Begin at the times t [B] with the states y [B, n]."""
        with torch.no_grad():
            self._g = self._value(t, y, self._problem.all_rows())

    def detect(self, stepper: RowStepper, step: RowStep, t_next: Tensor, accepted: Tensor) -> Tensor:
        """Return the times [b] of the events in a step to t_next [b], on the host.

        The time is NaN for a row without an event and for a row that rejected the step.
        """
        with torch.no_grad():
            is_accepted = accepted.to(self._g.device, non_blocking=True)
            g = self._value(self._problem.on_device(t_next), step.y_next, step.rows)
            first, before = self._first_values(stepper, step, accepted)
            crossed = is_accepted & (((before < 0) & (g >= 0)) | ((before > 0) & (g <= 0)))
            if self._event.direction:
                crossed &= before * self._event.direction < 0
            self._g = torch.where(is_accepted, g, self._g)
        idx = crossed.nonzero().squeeze(1).cpu()
        times = torch.full_like(t_next, math.nan)
        if len(idx):
            times[idx] = self._locate(stepper, step, t_next, idx, *(take_rows(x, idx) for x in (first, before, g)))
        return times

    def _first_values(self, stepper: RowStepper, step: RowStep, accepted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions theta [b] at which the search starts, on the host, and the values there.

        The search starts at the start of the step. If the value of a row is zero there, which is no event, it starts
        just after this point.
        """
        first, before = torch.zeros_like(step.t), self._g
        idx = (accepted & (before == 0).cpu()).nonzero().squeeze(1)
        if len(idx):
            first[idx] = THETA_AFTER_START
            values = self._value_at(_RowInterpolant(stepper, step, idx), take_rows(first, idx))
            before = put_rows(before, idx, values)
            if stepper.with_graph:  # f at the end of the step was evaluated without a graph
                step.f_next_of_some = None
        return first, before

    def select(self, idx: Tensor) -> None:
        """Keep only the rows at the indices ``idx``."""
        self._g = take_rows(self._g, idx)

    def collect(self) -> tuple[EventHits, ...]:
        """Return the time [B] and the state [B, ...] of the event of each row; NaN for a row without an event."""
        problem = self._problem
        times = self._like_times.new_full((problem.num_rows,), math.nan)
        states = problem.y0.new_full(problem.y0.shape, math.nan)
        for rows, time, state in self._found:
            times = put_rows(times, rows, time)
            states = put_rows(states, rows, state)
        return (EventHits(times, problem.unflatten(states)),)

    def _locate(
        self,
        stepper: RowStepper,
        step: RowStep,
        t_next: Tensor,
        idx: Tensor,
        first: Tensor,
        before: Tensor,
        after: Tensor,
    ) -> Tensor:
        """Find the event times [b'] of the rows at the indices ``idx``, and record the events.

        The value of each row changes its sign: it is ``before`` at theta = ``first``, and ``after`` at the end of the
        step.
        """
        interpolant = _RowInterpolant(stepper, step, idx)
        with torch.no_grad():
            theta = find_zeros(lambda theta: self._value_at(interpolant, theta), first, before, after)
        rows, state = interpolant.rows, interpolant.state(theta)
        time = self._snap_to_outputs(interpolant.time(theta), interpolant, take_rows(t_next, idx))
        found = time.to(self._like_times)
        if stepper.with_graph:
            found, state = self._differentiable(found, state, time, rows)
        self._found.append((rows, found, state))
        return time

    def _snap_to_outputs(self, time: Tensor, interpolant: "_RowInterpolant", t_next: Tensor) -> Tensor:
        """Return the event times [b'], or an output time that lies just after an event.

        The output time is returned if it differs from the time of the event only by rounding.
        """
        eps = torch.finfo(self._problem.time_dtype).eps
        distance = 8 * eps * torch.maximum(interpolant.t.abs(), t_next.abs()).unsqueeze(1)
        outputs = take_rows(self._problem.row_times, interpolant.rows)
        after = (outputs - time.unsqueeze(1)) * torch.sign(interpolant.h).unsqueeze(1)
        near = (after > 0) & (after <= distance)
        return torch.where(near.any(1), outputs.gather(1, near.long().argmax(1, keepdim=True)).squeeze(1), time)

    def _differentiable(self, found: Tensor, y: Tensor, time: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give event times and states their gradient by the implicit function theorem, dt = -dg / (dg/dt + dg/dy f)."""
        t, fixed = self._problem.on_device(time).detach(), y.detach()
        slopes = partial_derivatives(lambda t, y: self._value(t, y, rows), t, fixed)
        if slopes is None:
            return found, y
        dg_dt, dg_dy = slopes
        with torch.no_grad():
            f = self._problem(t, fixed, rows)
            slope = dg_dt + (dg_dy.conj() * f).real.sum(1)
        g = self._value(t, y, rows)
        # If g only touches zero, the derivative is infinite; the value must stay finite.
        shift = -(g - g.detach()) / torch.where(slope == 0, torch.finfo(slope.dtype).tiny, slope)
        shift = first_derivative_only(shift)
        return found + shift.to(found), y + shift.unsqueeze(1) * f

    def _value_at(self, interpolant: "_RowInterpolant", theta: Tensor) -> Tensor:
        time = self._problem.on_device(interpolant.time(theta))
        return self._value(time, interpolant.state(theta), interpolant.rows)

    def _value(self, t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        value = as_signed(self._event.function(t, self._problem.unflatten(y), *self._problem.args_of(rows)))
        if value.shape != t.shape:
            raise ValueError(
                f"an event function must return one value per row: shape {tuple(t.shape)} expected, got "
                f"{tuple(value.shape)}"
            )
        return value


class _RowInterpolant:
    """The interpolant of a step, for the rows at the indices ``idx`` [b']."""

    def __init__(self, stepper: RowStepper, step: RowStep, idx: Tensor) -> None:
        self.rows, self.t, self.h, self._y = (take_rows(x, idx) for x in (step.rows, step.t, step.h, step.y))
        self._coefficients = stepper.interpolant(step, idx)
        self._all = torch.arange(len(idx), device=self._y.device)

    def time(self, theta: Tensor) -> Tensor:
        """Return the times [b'] at theta [b']."""
        return self.t + theta * self.h

    def state(self, theta: Tensor) -> Tensor:
        """Return the states [b', n] at theta [b']."""
        return interpolate(self._coefficients, self._y, self._all, theta)


def find_zeros(value: Callable[[Tensor], Tensor], first: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Find the zeros [b] of b functions, each between ``first`` and 1.

    value: computes all functions. before, after: their values at ``first`` and at 1, which have opposite signs.

    The ITP method (Oliveira & Takahashi 2020, ACM Transactions on Mathematical Software 47), on the host in float64.
    """
    low, high = first, torch.ones_like(first)
    g_low, g_high = before.to("cpu", torch.float64), after.to("cpu", torch.float64)
    for radius in (math.ldexp(THETA_TOLERANCE, n) for n in range(MAX_ITERATIONS, 0, -1)):
        width, middle = high - low, 0.5 * (low + high)
        falsi = (g_high * low - g_low * high) / (g_high - g_low)
        falsi = torch.where(falsi.isfinite(), falsi, middle)
        side = torch.sign(middle - falsi)
        truncated = torch.minimum(0.2 * width * width, (middle - falsi).abs()) * side + falsi
        max_distance = radius - 0.5 * width
        theta = torch.minimum(torch.maximum(truncated, middle - max_distance), middle + max_distance)
        g = value(theta).to("cpu", torch.float64)
        same_side = torch.sign(g) == torch.sign(g_low)
        low, g_low = torch.where(same_side, theta, low), torch.where(same_side, g, g_low)
        high, g_high = torch.where(same_side, high, theta), torch.where(same_side, g_high, g)
        if bool(((high - low <= 2 * THETA_TOLERANCE) | (g_high == 0)).all()):
            break
    return high

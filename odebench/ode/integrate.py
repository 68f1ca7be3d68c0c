"""The loops of fixed and adaptive steps over flat states.

Time, step sizes and tolerances are Python floats. The adaptive loop synchronises with the device once per step, when
it reads the error. The step itself is computed by a stepper; each family of methods has its own.
"""

import cmath
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from odebench.ode import control
from odebench.ode.dense import Interpolant
from odebench.ode.events import EventDetector, EventHit
from odebench.ode.methods.scipy_methods import SciPyMethod
from odebench.ode.methods.stepper import Field, Stepper, VariableOrderStepper
from odebench.ode.methods.steppers import make_stepper
from odebench.ode.output import OutputRecorder
from odebench.ode.plan import SolvePlan
from odebench.ode.scipy_bridge import solve_span
from odebench.ode.solution import SolveOutcome, Stats, Status
from odebench.ode.torch_func import to_list, under_vmap, without_autocast

# The largest time of a solve that only an event ends: products with a step must not overflow in float32.
LARGEST_TIME = 1e30


class Observer:
    """An object that follows the steps of a solve; by default it does nothing.

    Each step starts at the time t with the state y [N], and has the signed size h.
    """

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Called before a step is tried."""

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Called when the step just tried is accepted."""

    def reject(self, t: float, y: Tensor, h: float) -> None:
        """Called when the step just tried is rejected; it is then repeated with a smaller size."""


@dataclass
class IntegrationResult:
    """The result of an integration.

    states: the states [R, N] at the output times and at the zeros of event functions; NaN at times that were not
        reached.
    outcome: how the integration ended; ``outcome.reached`` is the number of the R states that were reached.
    next_step: the size of the step that would come next, positive.
    stepper: the stepper after the last step; None for SciPy's methods.
    times: the times of the R states, in the direction of the solve.
    output_rows: the indices of those states that belong to output times.
    hits: the zeros of event functions, in the direction of the solve.
    end_time: the end of the last accepted step, even if a terminal event ended the solve before it. If states of fixed
        steps became NaN or infinite, the time of the last finite state.
    interpolants: one for each accepted step if ``plan.dense``, else none.
    """

    states: Tensor
    outcome: SolveOutcome
    next_step: float
    stepper: Stepper | None
    times: list[float]
    output_rows: list[int]
    end_time: float
    hits: list[EventHit] = field(default_factory=list)
    interpolants: list[Interpolant] = field(default_factory=list)


def integrate(
    field: Field,
    y: Tensor,
    times: list[float],
    plan: SolvePlan,
    stats: Stats,
    *,
    f: Tensor | None = None,
    observers: Sequence[Observer] = (),
    detector: EventDetector | None = None,
    stepper: Stepper | None = None,
    output_shift: Callable[[float], Tensor] | None = None,
) -> IntegrationResult:
    """Solve from the first to the last of ``times``, starting with y [N].

    stats: counts the accepted and rejected steps. The field itself counts its evaluations.
    f: the value [N] of the field at the first time, if it was evaluated already.
    detector: finds the zeros of event functions.
    stepper: a stepper of the plan's method, given if the caller shares it with an observer; by default it is made here.
    output_shift: a function of an output time other than the last. It returns a tensor of value 0 whose gradient says
        how this time moves within its step.

    SciPy's methods run the whole solve themselves, and their steps are not observed.
    """
    if y.requires_grad and not torch.is_grad_enabled():
        # Under no_grad, f cannot differentiate with respect to a view of a tensor that requires grad.
        y = y.detach()
    if stats.start is None:
        stats.start = times[0]
    if isinstance(plan.method, SciPyMethod):
        return _integrate_with_scipy(plan.method, field, y, times, plan, stats)
    loop = _step_fixed if plan.tolerance is None else _step_adaptively
    with without_autocast(y.device.type):
        stepper = stepper or make_stepper(
            plan.method,
            field,
            y,
            compiled=plan.compile is True,
            with_stages=len(times) > 2 or plan.dense or detector is not None,
            side=plan.side(times[0], times[-1]),
            tolerance=plan.tolerance,
            norm=plan.norm,
            stats=stats,
        )
        stepper.start(times[0], y, f)
        recorder = OutputRecorder(stepper, y, times, plan.dense, plan.interpolation, detector, output_shift)
        outcome, next_step = loop(stepper, field, y, times, plan, stats, observers, recorder)
    recorder.fill_unreached()
    states = torch.cat(recorder.state_chunks)
    if plan.tolerance is None and outcome.status is Status.success and not under_vmap(states):
        states, outcome = _cut_non_finite(states, outcome, recorder)
    return IntegrationResult(
        states,
        outcome,
        next_step,
        stepper,
        recorder.times,
        recorder.output_rows,
        recorder.end_time,
        recorder.hits,
        recorder.interpolants,
    )


def _integrate_with_scipy(
    method: SciPyMethod,
    field: Field,
    y: Tensor,
    times: list[float],
    plan: SolvePlan,
    stats: Stats,
) -> IntegrationResult:
    with without_autocast(y.device.type):
        states, outcome, next_step = solve_span(method, field, y, times, plan, stats)
    return IntegrationResult(states, outcome, next_step, None, times, list(range(len(times))), outcome.time)


def _cut_non_finite(states: Tensor, outcome: SolveOutcome, recorder: OutputRecorder) -> tuple[Tensor, SolveOutcome]:
    """Set the status of the outcome if the states [R, N] of fixed steps became NaN or infinite.

    Returns the states and the outcome. From the first such state on, the states get no graph.
    """
    # The sum of all elements is finite only if they are; it takes a fraction of the time.
    if cmath.isfinite(states.detach().sum().item()):
        return states, outcome
    finite = to_list(torch.isfinite(states.detach()).all(dim=1))
    if all(finite):
        return states, outcome
    reached = finite.index(False)
    recorder.end_time = recorder.times[max(reached - 1, 0)]
    # Without a graph, since a backward pass through steps that are not finite turns a zero gradient into NaN.
    states = torch.cat([*_first_rows(recorder.state_chunks, reached), states[reached:].detach()])
    return states, replace(outcome, status=Status.non_finite, reached=reached, time=recorder.end_time)


def _first_rows(state_chunks: Sequence[Tensor], count: int) -> Iterator[Tensor]:
    """Yield the first ``count`` rows of the state chunks [m, N], without joining chunks."""
    for rows in state_chunks:
        if count <= 0:
            return
        yield rows[:count]
        count -= len(rows)


def _step_fixed(
    stepper: Stepper,
    field: Field,
    y: Tensor,
    times: list[float],
    plan: SolvePlan,
    stats: Stats,
    observers: Sequence[Observer],
    recorder: OutputRecorder,
) -> tuple[SolveOutcome, float]:
    """Take the steps of the plan's grid, which also end at ``plan.step_times``."""
    h = 0.0
    grid = grid_with_stops(times, plan)

    def outcome(status: Status, t: float) -> SolveOutcome:
        return SolveOutcome(status, len(recorder.times), t, h, math.nan, stats.nfe)

    for n, (t, t_next) in enumerate(itertools.pairwise(grid)):
        if n == plan.max_steps:
            return outcome(Status.max_steps, t), abs(h)
        h = t_next - t
        last = n == len(grid) - 2
        for observer in observers:
            observer.attempt(t, y, h)
        y_next = stepper.attempt(t, h, y, last)
        if stepper.failure is not None:
            return outcome(stepper.failure, t), abs(h)
        # Record before ``stepper.accept``, which may overwrite the slopes of the interpolant.
        event_time = recorder.record(t, t_next, y, y_next)
        for observer in observers:
            observer.accept(t, y, h)
        stats.accepted += 1
        stats.step_sizes.append(h)
        if event_time is not None:
            return outcome(Status.event, event_time), abs(h)
        stepper.accept(t_next, y_next, last)
        y = y_next
        if t_next in plan.jump_times and not last:
            stepper.start(t_next, y, None)
    return outcome(Status.success, times[-1]), abs(h)


def grid_with_stops(times: list[float], plan: SolvePlan) -> list[float]:
    """Return the grid of fixed steps, which goes through the output times and ``plan.step_times``."""
    assert plan.grid is not None
    if not plan.step_times:
        return plan.grid(times)
    start, end = times[0], times[-1]
    stops = plan.stop_times(start, end)
    grid = plan.grid(sorted({*times, *stops}, reverse=end < start))
    # A user's grid may leave out the stop times.
    return sorted({*grid, *stops}, reverse=end < start)


def _step_adaptively(
    stepper: Stepper,
    field: Field,
    y: Tensor,
    times: list[float],
    plan: SolvePlan,
    stats: Stats,
    observers: Sequence[Observer],
    recorder: OutputRecorder,
) -> tuple[SolveOutcome, float]:
    """Take steps as large as the tolerance allows; states at times inside a step are interpolated."""
    tolerance, controller = plan.tolerance, control.ControllerState(plan.controller)
    assert tolerance is not None
    t, end = times[0], times[-1]
    direction = 1.0 if end > t else -1.0
    stops = plan.stop_times(t, end)
    step = ratio = math.nan
    attempts = 0
    # Not isinstance: for a protocol it takes as long as some steps.
    variable: VariableOrderStepper | None = stepper if hasattr(stepper, "choose_order") else None  # type: ignore[assignment]

    def outcome(status: Status) -> SolveOutcome:
        return SolveOutcome(status, len(recorder.times), t, direction * step, ratio, stats.nfe, attempted=attempts > 0)

    h = plan.first_step or initial_step_size(field, t, y, stepper.slope(t, y), end, plan, stepper.order)
    if math.isnan(h):
        return outcome(Status.non_finite), h
    # The last time is infinite if only an event ends the solve.
    time_scale = max(abs(t), abs(end) if math.isfinite(end) else h)
    largest_time = math.inf if math.isfinite(end) else LARGEST_TIME
    error_norm = control.ScaledErrorNorm(tolerance, plan.norm, y)

    while True:
        h = max(h, plan.min_step)
        step = control.fit_to_end(h, abs(stops[0] - t), plan.max_step)
        at_stop = step == abs(stops[0] - t)
        last = at_stop and len(stops) == 1
        if step < control.SMALLEST_STEP * max(abs(t), control.SMALLEST_TIME * time_scale) and not at_stop:
            underflow = attempts == 0 or ratio < math.inf
            return outcome(Status.step_underflow if underflow else stepper.failure or Status.non_finite), h
        if attempts == plan.max_steps or abs(t + direction * step) > largest_time:
            return outcome(Status.max_steps), h
        attempts += 1

        for observer in observers:
            observer.attempt(t, y, direction * step)
        y_next = stepper.attempt(t, direction * step, y, last)
        if stepper.failure is Status.unstable:
            return outcome(Status.unstable), h
        ratio = error_norm.error_ratio(stepper.error(), y_next)
        # An error of NaN is rejected too.
        accepted = ratio <= 1 or (h <= plan.min_step and ratio < math.inf)
        ratio_next = ratio if variable is None else variable.choose_order(error_norm.remeasure, ratio, accepted)
        proposal = controller.propose(step, ratio_next, accepted, stepper.order)
        if not accepted:
            for observer in observers:
                observer.reject(t, y, direction * step)
            stats.rejected += 1
            stats.rejected_steps.append((t, direction * step))
            h = proposal
            continue

        for observer in observers:
            observer.accept(t, y, direction * step)
        stats.accepted += 1
        stats.step_sizes.append(direction * step)
        stats.error_ratios.append(ratio)
        stats.warm_step = stats.warm_step or proposal
        t_next = stops[0] if at_stop else t + direction * step
        event_time = recorder.record(t, t_next, y, y_next)
        # A step that was shortened to end at a stop time does not shrink the next one.
        h = max(proposal, h) if step < h else proposal
        t = t_next if event_time is None else event_time
        if last or event_time is not None:
            return outcome(Status.success if event_time is None else Status.event), h
        stepper.accept(t_next, y_next, last)
        error_norm.accept()
        y = y_next
        if at_stop and stops.pop(0) in plan.jump_times:
            stepper.start(t, y, None)


def initial_step_size(field: Field, t: float, y: Tensor, f: Tensor, end: float, plan: SolvePlan, order: int) -> float:
    """Return the size of the first step; see ``control.first_step``. f: f(t, y) [N], which may have a graph."""

    def evaluate(time: float, state: Tensor) -> Tensor:
        return field(field.time_tensors([time])[0], state, False)

    assert plan.tolerance is not None
    with torch.no_grad():
        return control.first_step(evaluate, t, y, f, end, order, plan.tolerance, plan.norm)

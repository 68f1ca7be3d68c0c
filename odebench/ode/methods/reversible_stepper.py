"""The steppers of the reversible methods; ``odebench.ode.gradients.reversible`` undoes their steps."""

from typing import Any

import torch
from torch import Tensor

from odebench.ode.dense import Interpolant
from odebench.ode.methods.explicit_stepper import StageBuffer, StageList, Stages
from odebench.ode.methods.reversible import AsynchronousLeapfrog, ReversibleHeun, ReversibleRungeKutta
from odebench.ode.methods.stepper import Stepper, StepperOptions, copy_without_graph, evaluate, stage_times
from odebench.ode.methods.tableau import Tableau
from odebench.ode.solution import Status

# With adaptive steps, the state and the auxiliary state may differ by MAX_DRIFT_ERRORS times the largest accepted error
# plus MAX_DRIFT_EPS units of round-off. This allows a contraction of exp(5) but not of exp(8).
MAX_DRIFT_ERRORS, MAX_DRIFT_EPS = 300.0, 1e3


class ReversibleRungeKuttaStepper(Stepper):
    """The stepper for the methods described by a ``ReversibleRungeKutta``, with the notation used there.

    Its slope is f(t, y), which is the first stage of the last increment of z.

    auxiliary_next: the auxiliary state z' [N] from the last attempt.
    """

    _slope: Tensor

    def __init__(self, method: ReversibleRungeKutta, field: Any, y: Tensor, options: StepperOptions) -> None:
        self._method, self._base, self._step = method, method.base, method.base.for_fixed_steps()
        self._field, self._side = field, options.side
        with_graph = torch.is_grad_enabled()
        base, step = self._base.dense_stages, self._step.dense_stages
        self._forward_stages: Stages = StageList() if with_graph else StageBuffer(base, y)
        self._backward_stages: Stages = StageList() if with_graph else StageBuffer(step, y)
        self._drift = _DriftMonitor(method.adaptive)
        self.order = method.order

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Start with the auxiliary state z = y."""
        self._auxiliary = self.auxiliary_next = y
        self._slope = copy_without_graph(evaluate(self._field, t, y, self._side) if f is None else f)
        self._at_start = True

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [N] at t + h."""
        if self.failure is not None:
            return y
        z, step, base, field = self._auxiliary, self._step, self._base, self._field
        forward, backward = self._forward_stages, self._backward_stages
        self._h = h
        slope = self._slope if self._at_start else None
        evaluate_stages(forward, step, field, stage_times(self._field, t, h, step.c, self._side), z, h, slope)
        y_next = torch.add(forward.combine(z, step.b, h), y - z, alpha=self._method.coupling)
        evaluate_stages(backward, step, field, stage_times(self._field, t + h, -h, step.c, self._side), y_next, -h)
        self.auxiliary_next = backward.combine(z, step.b, h)
        if base.end_stage is not None and base.end_stage < base.stages:
            # f was evaluated already, at a state that differs from that of the stage by c (y - z): far less than the
            # error.
            forward.set(base.end_stage, backward.get(0))
        return y_next

    def error(self) -> Tensor:
        """Return the error estimate [N] of the base method for z."""
        assert self._base.error is not None
        return self._forward_stages.error(self._base.error, self._h)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """Return the dense output y + theta (1 - c) (z - y) + h sum_i p_i(theta) k_i.

        The polynomials p_i are those of the base method, and c is the coupling. If the base method has no dense output,
        return linear or cubic Hermite interpolation.
        """
        base, h, z, forward = self._base, self._h, self._auxiliary, self._forward_stages
        end_slope = self._backward_stages.get(0)
        if base.dense is None:
            return self._hermite(t, t_next - t, y, y_next, interpolation, lambda: end_slope)
        times = stage_times(self._field, t, h, base.extra_c, self._side)
        for i, row in enumerate(base.extra_a, start=base.stages):
            stage = forward.combine(z, row, h)
            forward.set(i, end_slope if i == base.end_stage else self._field(times[i - base.stages], stage, False))
        slopes = [*forward.first(base.dense_stages), (z - y) / h]
        return Interpolant(t, h, y, slopes, (*base.dense, (1 - self._method.coupling,)))

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply f(t + h, y') by the factor."""
        self._backward_stages.set(0, self._backward_stages.get(0) * factor)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Replace z by z', and check the drift."""
        self._auxiliary, self._at_start = self.auxiliary_next, False
        self._slope = copy_without_graph(self._backward_stages.get(0))
        error = self.error() if self._method.adaptive else None
        self.failure = self._drift.check(y_next - self._auxiliary, y_next, error)


class AsynchronousLeapfrogStepper(Stepper):
    """The stepper for the methods described by an ``AsynchronousLeapfrog``, with the notation used there.

    Its slope is the velocity v.

    auxiliary_next: the velocity v' [N] from the last attempt.
    """

    order = 2  # of the error estimate
    _slope: Tensor

    def __init__(self, method: AsynchronousLeapfrog, field: Any, y: Tensor, options: StepperOptions) -> None:
        self._method, self._field, self._side = method, field, options.side
        # The error estimate of adaptive steps includes the drift of v; fixed steps need the monitor.
        self._drift = None if method.adaptive else _DriftMonitor(False)

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Start with the velocity v = f(t, y)."""
        f = evaluate(self._field, t, y, self._side) if f is None else f
        self._slope = self.auxiliary_next = copy_without_graph(f)

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [N] at t + h."""
        if self.failure is not None:
            return y
        self._h = h
        middle = torch.add(y, self._slope, alpha=h / 2)
        u = self._field(stage_times(self._field, t, h, (0.5,), self._side)[0], middle)
        self.auxiliary_next = torch.add(self._slope, u - self._slope, alpha=2 * self._method.damping)
        return torch.add(middle, self.auxiliary_next, alpha=h / 2)

    def error(self) -> Tensor:
        """Return the difference [N] between the result and that of Euler's method."""
        with torch.no_grad():
            return (self.auxiliary_next - self._slope).mul_(self._h / 2)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """Interpolate linearly, or by a cubic Hermite polynomial with the velocities as slopes."""
        return self._hermite(t, t_next - t, y, y_next, interpolation, lambda: self.auxiliary_next)

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply v' by the factor."""
        self.auxiliary_next = self.auxiliary_next * factor

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Replace v by v'; with fixed steps, check the drift."""
        if self._drift is not None:
            self.failure = self._drift.check(self.error(), y_next, None)
        self._slope = self.auxiliary_next


class ReversibleHeunStepper(Stepper):
    """The stepper for the methods described by a ``ReversibleHeun``, with the notation used there.

    Its slope is f(t, x).

    auxiliary_next: the auxiliary state x' [N] from the last attempt.
    """

    order = 2  # of the error estimate
    _slope: Tensor
    _end: Tensor

    def __init__(self, method: ReversibleHeun, field: Any, y: Tensor, options: StepperOptions) -> None:
        self._method, self._field, self._side = method, field, options.side
        self._drift = _DriftMonitor(method.adaptive)

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Start with the auxiliary state x = y."""
        self._auxiliary = self.auxiliary_next = y
        f = evaluate(self._field, t, y, self._side) if f is None else f
        self._slope = self._end = copy_without_graph(f)

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [N] at t + h."""
        if self.failure is not None:
            return y
        self._h = h
        middle = torch.add(y, self._slope, alpha=h / 2)
        self.auxiliary_next = 2 * middle - self._auxiliary
        (end,) = stage_times(self._field, t, h, (1.0,), self._side)
        self._end = copy_without_graph(self._field(end, self.auxiliary_next))
        return torch.add(middle, self._end, alpha=h / 2)

    def error(self) -> Tensor:
        """Return the difference [N] between the result and that of Euler's method."""
        with torch.no_grad():
            return (self._end - self._slope).mul_(self._h / 2)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """Interpolate linearly, or by a cubic Hermite polynomial with the values f(t, x) as slopes."""
        return self._hermite(t, t_next - t, y, y_next, interpolation, lambda: self._end)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Replace x by x', and check the drift."""
        error = self.error() if self._method.adaptive else None
        self.failure = self._drift.check(y_next - self.auxiliary_next, y_next, error)
        self._auxiliary, self._slope = self.auxiliary_next, self._end


class _DriftMonitor:
    """Check the distance between the state and the auxiliary state.

    With fixed steps, this distance may be as large as the norm of the largest state so far. With adaptive steps, it is
    bounded by a multiple of the largest accepted error. Each check synchronises with the device.
    """

    def __init__(self, adaptive: bool) -> None:
        self._adaptive = adaptive
        self._size = self._error = 0.0

    @torch.no_grad()
    def check(self, difference: Tensor, y: Tensor, error: Tensor | None) -> Status | None:
        """Return ``unstable`` if the difference is too large, else None.

        difference: how far the state and the auxiliary state are apart. y: the accepted state. error: the error of the
            step, with adaptive steps. All are [N].
        """
        tensors = (difference, y) if error is None else (difference, y, error)
        distance, size, *errors = torch.stack([torch.linalg.vector_norm(x) for x in tensors]).tolist()
        self._size, self._error = max(self._size, size), max(self._error, *errors, 0.0)
        allowed = self._size
        if self._adaptive:
            allowed = MAX_DRIFT_ERRORS * self._error + MAX_DRIFT_EPS * torch.finfo(y.dtype).eps * self._size
        return Status.unstable if distance > allowed else None


def evaluate_stages(
    stages: Stages, step: Tableau, field: Any, times: Any, y: Tensor, h: float, first: Tensor | None = None
) -> None:
    """Evaluate the stages of a step from y [N]; first: the first stage, if it was evaluated already."""
    stages.set(0, field(times[0], y) if first is None else first)
    for i in range(1, step.stages):
        stages.set(i, field(times[i], stages.combine(y, step.a[i], h)))

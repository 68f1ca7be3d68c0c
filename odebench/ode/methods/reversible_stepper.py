"""The steppers of the reversible methods; ``odebench.ode.gradients.reversible`` undoes their steps."""

import math
from typing import Any

import torch
from torch import Tensor

from odebench.ode.dense import HERMITE, LINEAR, Interpolant
from odebench.ode.methods.explicit_stepper import StageBuffer, StageList
from odebench.ode.methods.reversible import AsynchronousLeapfrog, ReversibleHeun, ReversibleRungeKutta
from odebench.ode.methods.tableau import Tableau
from odebench.ode.solution import Status

# With adaptive steps the state and the auxiliary state may differ by this many times the largest accepted error, which
# allows a contraction of exp(5) but not of exp(8), and by this many units of round-off.
MAX_DRIFT_ERRORS, MAX_DRIFT_EPS = 300.0, 1e3


class ReversibleRungeKuttaStepper:
    """The stepper of a ``ReversibleRungeKutta``; see ``odebench.ode.methods.steppers.Stepper``.

    auxiliary_next: z' [N] of the last attempt.
    """

    def __init__(
        self, method: ReversibleRungeKutta, field: Any, y: Tensor, *, compiled: bool, one_sided: float
    ) -> None:
        self._method, self._base, self._step = method, method.base, method.base.for_fixed_steps()
        self._field, self._stage_times = field, _StageTimes(field, one_sided)
        with_graph = torch.is_grad_enabled()
        self._forward_stages: StageBuffer | StageList = (
            StageList() if with_graph else StageBuffer(self._base.dense_stages, y)
        )
        self._backward_stages: StageBuffer | StageList = (
            StageList() if with_graph else StageBuffer(self._step.dense_stages, y)
        )
        self._drift = _DriftMonitor(method.adaptive)
        self.order = method.order
        self.failure: Status | None = None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """z = y."""
        self._auxiliary = self.auxiliary_next = y
        self._slope = _copy_without_graph(self._field(self._stage_times(t, 0.0, (0.0,))[0], y) if f is None else f)
        self._at_start = True

    def slope(self, t: float, y: Tensor) -> Tensor:
        """f(t, y), the first stage of the last increment of z."""
        return self._slope

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] at t + h."""
        if self.failure is not None:
            return y
        z, step, base, field = self._auxiliary, self._step, self._base, self._field
        forward, backward = self._forward_stages, self._backward_stages
        self._h = h
        slope = self._slope if self._at_start else None
        evaluate_stages(forward, step, field, self._stage_times(t, h, step.c), z, h, slope)
        y_next = torch.add(forward.combine(z, step.b, h), y - z, alpha=self._method.coupling)
        evaluate_stages(backward, step, field, self._stage_times(t + h, -h, step.c), y_next, -h)
        self.auxiliary_next = backward.combine(z, step.b, h)
        if base.end_stage is not None and base.end_stage < base.stages:
            # Evaluated already at a state that differs from that of the stage by c (y - z), far less than the error.
            forward.set(base.end_stage, backward.get(0))
        return y_next

    def error(self) -> Tensor:
        """The error estimate of the base method for z [N]."""
        if self.failure is not None:
            return torch.full_like(self._auxiliary, torch.inf)
        assert self._base.error is not None
        return self._forward_stages.error(self._base.error, self._h)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """The dense output of the base method with the coupling, y + theta (1 - c) (z - y) + h sum_i p_i(theta) k_i;
        linear or cubic Hermite if it has none."""
        base, h, z, forward = self._base, self._h, self._auxiliary, self._forward_stages
        end_slope = self._backward_stages.get(0)
        if base.dense is None:
            return _hermite(t, t_next - t, y, y_next, [self._slope, end_slope], interpolation)
        times = self._stage_times(t, h, base.extra_c)
        for i, row in enumerate(base.extra_a, start=base.stages):
            stage = forward.combine(z, row, h)
            forward.set(i, end_slope if i == base.end_stage else self._field(times[i - base.stages], stage, False))
        slopes = [*forward.first(base.dense_stages), (z - y) / h]
        return Interpolant(t, h, y, slopes, (*base.dense, (1 - self._method.coupling,)))

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply f(t + h, y')."""
        self._backward_stages.set(0, self._backward_stages.get(0) * factor)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """z = z'."""
        self._auxiliary, self._at_start = self.auxiliary_next, False
        self._slope = _copy_without_graph(self._backward_stages.get(0))
        error = self.error() if self._method.adaptive else None
        if self._drift.exceeds(y_next - self._auxiliary, y_next, error):
            self.failure = Status.unstable

    def stiffness(self) -> float | None:
        """No estimate."""
        return None


class AsynchronousLeapfrogStepper:
    """The stepper of an ``AsynchronousLeapfrog``; see ``odebench.ode.methods.steppers.Stepper``.

    auxiliary_next: v' [N] of the last attempt.
    """

    order = 2  # of the error estimate

    def __init__(
        self, method: AsynchronousLeapfrog, field: Any, y: Tensor, *, compiled: bool, one_sided: float
    ) -> None:
        self._method, self._field, self._stage_times = method, field, _StageTimes(field, one_sided)
        # The error estimate of adaptive steps includes the drift of v; fixed steps need the monitor.
        self._drift = None if method.adaptive else _DriftMonitor(False)
        self.failure: Status | None = None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """v = f(t, y)."""
        f = self._field(self._stage_times(t, 0.0, (0.0,))[0], y) if f is None else f
        self._auxiliary = self.auxiliary_next = _copy_without_graph(f)

    def slope(self, t: float, y: Tensor) -> Tensor:
        """v."""
        return self._auxiliary

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] at t + h."""
        if self.failure is not None:
            return y
        self._h = h
        middle = torch.add(y, self._auxiliary, alpha=h / 2)
        u = self._field(self._stage_times(t, h, (0.5,))[0], middle)
        self.auxiliary_next = torch.add(self._auxiliary, u - self._auxiliary, alpha=2 * self._method.damping)
        return torch.add(middle, self.auxiliary_next, alpha=h / 2)

    def error(self) -> Tensor:
        """The difference to Euler's method [N]."""
        with torch.no_grad():
            return (self.auxiliary_next - self._auxiliary).mul_(self._h / 2)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """Linear, or cubic Hermite with the velocities as slopes."""
        return _hermite(t, t_next - t, y, y_next, [self._auxiliary, self.auxiliary_next], interpolation)

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply v'."""
        self.auxiliary_next = self.auxiliary_next * factor

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """v = v'."""
        if self._drift is not None and self._drift.exceeds(self.error(), y_next, None):
            self.failure = Status.unstable
        self._auxiliary = self.auxiliary_next

    def stiffness(self) -> float | None:
        """No estimate."""
        return None


class ReversibleHeunStepper:
    """The stepper of a ``ReversibleHeun``; see ``odebench.ode.methods.steppers.Stepper``.

    auxiliary_next: x' [N] of the last attempt.
    """

    order = 2  # of the error estimate

    def __init__(self, method: ReversibleHeun, field: Any, y: Tensor, *, compiled: bool, one_sided: float) -> None:
        self._method, self._field, self._stage_times = method, field, _StageTimes(field, one_sided)
        self._drift = _DriftMonitor(method.adaptive)
        self.failure: Status | None = None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """x = y."""
        self._auxiliary = self.auxiliary_next = y
        f = self._field(self._stage_times(t, 0.0, (0.0,))[0], y) if f is None else f
        self._slope = self._slope_next = _copy_without_graph(f)

    def slope(self, t: float, y: Tensor) -> Tensor:
        """f(t, x)."""
        return self._slope

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] at t + h."""
        if self.failure is not None:
            return y
        self._h = h
        middle = torch.add(y, self._slope, alpha=h / 2)
        self.auxiliary_next = 2 * middle - self._auxiliary
        self._slope_next = _copy_without_graph(self._field(self._stage_times(t, h, (1.0,))[0], self.auxiliary_next))
        return torch.add(middle, self._slope_next, alpha=h / 2)

    def error(self) -> Tensor:
        """The difference to Euler's method [N]."""
        if self.failure is not None:
            return torch.full_like(self._auxiliary, torch.inf)
        with torch.no_grad():
            return (self._slope_next - self._slope).mul_(self._h / 2)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """Linear, or cubic Hermite with f(t, x) as slopes."""
        return _hermite(t, t_next - t, y, y_next, [self._slope, self._slope_next], interpolation)

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply f(t + h, x')."""
        self._slope_next = self._slope_next * factor

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """x = x'."""
        error = self.error() if self._method.adaptive else None
        if self._drift.exceeds(y_next - self.auxiliary_next, y_next, error):
            self.failure = Status.unstable
        self._auxiliary, self._slope = self.auxiliary_next, self._slope_next

    def stiffness(self) -> float | None:
        """No estimate."""
        return None


class _DriftMonitor:
    """Checks the distance between the state and the auxiliary state; synchronises with the device.

    With fixed steps it may be as large as the largest state so far; with adaptive steps it is bounded by the largest
    accepted error.
    """

    def __init__(self, adaptive: bool) -> None:
        self._adaptive = adaptive
        self._size = self._error = 0.0

    @torch.no_grad()
    def exceeds(self, difference: Tensor, y: Tensor, error: Tensor | None) -> bool:
        """Whether the difference between the accepted state y and the auxiliary state is too large; all [N]."""
        tensors = (difference, y) if error is None else (difference, y, error)
        distance, size, *errors = torch.stack([torch.linalg.vector_norm(x) for x in tensors]).tolist()
        self._size, self._error = max(self._size, size), max(self._error, *errors, 0.0)
        if not self._adaptive:
            return distance > self._size
        return distance > MAX_DRIFT_ERRORS * self._error + MAX_DRIFT_EPS * torch.finfo(y.dtype).eps * self._size


class _StageTimes:
    """The times t + c_i h of stages, as f gets them; unless ``one_sided``, the direction of time, is 0, those at the
    ends of the step are moved just inside it. A step of size 0 stands for the start of the first step."""

    def __init__(self, field: Any, one_sided: float) -> None:
        self._field, self._one_sided = field, one_sided

    def __call__(self, t: float, h: float, c: tuple[float, ...]) -> Any:
        times = self._field.time_tensors([t + c_i * h for c_i in c])
        if not self._one_sided:
            return times
        inward = math.copysign(math.inf, h or self._one_sided)
        targets = {0.0: inward, 1.0: -inward}
        return [
            torch.nextafter(time, torch.full_like(time, targets[c_i])) if c_i in targets else time
            for time, c_i in zip(times, c, strict=True)
        ]


def evaluate_stages(
    stages: StageBuffer | StageList,
    step: Tableau,
    field: Any,
    times: Any,
    y: Tensor,
    h: float,
    first: Tensor | None = None,
) -> None:
    """Evaluate the stages of a step from y [N]; ``first``: the first stage, if it is known."""
    for i in range(step.stages):
        if i == 0:
            k = field(times[0], y) if first is None else first
        else:
            k = field(times[i], stages.combine(y, step.a[i], h))
        stages.set(i, k)


def _hermite(t: float, h: float, y: Tensor, y_next: Tensor, slopes: list[Tensor], interpolation: str) -> Interpolant:
    """Linear interpolation, or cubic Hermite with the slopes at both ends."""
    mean = (y_next - y) / h
    if interpolation == "linear":
        return Interpolant(t, h, y, [mean], LINEAR)
    return Interpolant(t, h, y, [*slopes, mean], HERMITE)


def _copy_without_graph(k: Tensor) -> Tensor:
    """Copy a tensor without graph, whose memory f may overwrite in its next call."""
    return k if k.requires_grad else k.clone()

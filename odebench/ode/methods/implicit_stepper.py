"""The stepper of implicit Runge-Kutta methods.

The unknowns are W_i = h k_i rather than stage values: small values stay accurate, and k_i needs no evaluation of f,
which on a stiff field would amplify the remaining error of the iterations.
"""

import math
from typing import Any

import torch
from torch import Tensor

from odebench.ode.control import Norm, Tolerance, rms
from odebench.ode.dense import HERMITE, LINEAR, Interpolant
from odebench.ode.methods.implicit import ImplicitTableau, lagrange_weights
from odebench.ode.methods.jacobian import JacobianBlock, has_other_leaves, linearize
from odebench.ode.methods.newton import StageEquations, StageSystem, StageTolerance, with_implicit_gradient
from odebench.ode.solution import Stats, Status
from odebench.ode.transfer import constant, queued


class ImplicitRungeKuttaStepper:
    """The stepper of an ``ImplicitTableau``; see ``odebench.ode.methods.steppers.Stepper``.

    tolerance, norm: of adaptive steps; they determine how accurately the stages are solved.
    stats: counts Jacobians and linear solves.
    """

    def __init__(
        self,
        method: ImplicitTableau,
        field: Any,
        y: Tensor,
        *,
        compiled: bool = False,
        one_sided: float = 0.0,
        tolerance: Tolerance | None = None,
        norm: Norm = rms,
        stats: Stats | None = None,
    ) -> None:
        self._method, self._field, self._one_sided = method, field, one_sided
        self._accuracy = StageTolerance(tolerance, norm, torch.is_grad_enabled())
        self._stats = stats or Stats()
        self._a, self._b = constant(method.a, y.dtype, y.device), constant(method.b, y.dtype, y.device)
        self._error = None if method.error is None else constant(method.error, y.dtype, y.device)
        # Each group of stages, and their coefficients.
        self._groups = [
            (group, tuple(row[group.start : group.stop] for row in method.a[group.start : group.stop]))
            for group in method.groups
        ]
        self._attempted: tuple[float, float, Tensor] = (0.0, 0.0, y)
        self._w: Tensor = y.new_zeros(0)
        self._previous: tuple[float, Tensor] | None = None
        self._slope: Tensor | None = None
        self._end: Tensor | None = None
        self._blocks: list[JacobianBlock] | None = None
        self._systems: dict[tuple[tuple[float, ...], ...], StageSystem] = {}
        self.order = method.error_order or method.order
        self.failure: Status | None = None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Reset; f is evaluated when it is needed."""
        self._slope, self._end, self._blocks, self._previous = f, None, None, None

    def slope(self, t: float, y: Tensor) -> Tensor:
        """f at the start of the next step."""
        if self._slope is None:
            self._slope = self._field(self._start_time(t), y, True)
        return self._slope

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] at t + h; y if the stages were not solved, see ``failure``."""
        self.failure, self._end = None, None
        if h != self._attempted[1] or self._blocks is None:
            self._systems = {}
        self._attempted = (t, h, y)
        stage_times = self._stage_times(t, h)
        if self._method.a[0][0] == 0 and len(self._groups) > 1:
            self.slope(t, y)
        with torch.no_grad():
            w = self._solve(t, h, y.detach(), stage_times)
        if self.failure is not None:
            return y
        self._w = self._with_graph(h, y, w, stage_times) if torch.is_grad_enabled() else w
        return y + self._b @ self._w

    def error(self) -> Tensor:
        """The error estimate [N]; infinite after a failure."""
        t, h, y = self._attempted
        if self.failure is not None:
            return torch.full_like(y.detach(), math.inf)
        assert self._error is not None
        with torch.no_grad():
            error = self._error @ self._w
            if self._method.error_start:
                error = error + (h * self._method.error_start) * self.slope(t, y)
            if self._method.smoothing is None:
                return error
            system = self._system(((self._method.smoothing,),))
            return system.solve(error[None], self._accuracy.acceptable(y, y[None]))[0]

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """The dense output of the method; linear or cubic Hermite if it has none."""
        _, h, _ = self._attempted
        if self._method.dense is not None:
            return Interpolant(t, h, y, self._w / h, self._method.dense)
        mean = (y_next - y) / h
        if interpolation == "linear":
            return Interpolant(t, h, y, [mean], LINEAR)
        self._end = self._slope_at_end(t_next, y_next)
        return Interpolant(t, h, y, [self.slope(t, y), self._end, mean], HERMITE)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """The slope at the end, if it is known, becomes the one at the start."""
        if last:
            return
        _, h, _ = self._attempted
        self._previous = (h, self._w.detach())
        self._slope = self._w[-1] / h if self._method.stiffly_accurate else self._end
        self._blocks = None

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply the stages, the last of which may be the next slope, and the slope at the end, if it is known."""
        self._w = self._w * factor
        self._end = None if self._end is None else self._end * factor

    def quadrature_points(self) -> list[tuple[float, Tensor, Tensor]]:
        """List of (weight, time, state [N]); the sum of weight g(time, state) is the method's integral of g over the
        last attempt."""
        t, h, y = self._attempted
        stages = y + self._a @ self._w
        return [
            (h * b, time, stage)
            for b, time, stage in zip(self._method.b, self._stage_times(t, h), stages.unbind(), strict=True)
            if b
        ]

    def stiffness(self) -> float | None:
        """None: stiffness does not limit the steps."""
        return None

    def _solve(self, t: float, h: float, y: Tensor, stage_times: list[Tensor]) -> Tensor:
        """Solve for W [s, N], group by group."""
        w = y.new_zeros(self._method.stages, len(y))
        for group, rows in self._groups:
            here = slice(group.start, group.stop)
            a = self._a[here, here]
            base = y + self._a[here, : group.start] @ w[: group.start]
            if not self._method.a[group.start][group.start] and len(group) == 1:
                first = group.start == 0
                w[here] = h * (self.slope(t, y) if first else self._field(stage_times[group.start], base[0], True))
                continue
            stages = StageEquations(
                lambda i, stage, first=group.start: h * self._field(stage_times[first + i], stage, True),  # type: ignore[misc]
                base,
                a,
                self._system(rows),
                lambda values, a=a: StageSystem(  # type: ignore[misc]
                    linearize(self._field, stage_times[-1], values.mean(0), self._stats), h, a, self._stats
                ),
            )
            w[here], self.failure = stages.solve(y, self._guess(w, group, h), self._accuracy)
            if self.failure is not None:
                break
        return w

    def _with_graph(self, h: float, y: Tensor, w: Tensor, stage_times: list[Tensor]) -> Tensor:
        """W [s, N] with a graph, for first derivatives."""
        done: list[Tensor] = []
        for group, _ in self._groups:
            here = slice(group.start, group.stop)
            a = self._a[here, here]
            base = y.expand(len(group), -1)
            if done:
                base = base + self._a[here, : group.start] @ torch.cat(done)
            if not self._method.a[group.start][group.start] and len(group) == 1:
                slope = self._slope if group.start == 0 else self._field(stage_times[group.start], base[0], True)
                assert slope is not None
                done.append(h * slope[None])
                continue
            stages = list((base + a @ w[here]).unbind())
            leaves = [stage.requires_grad_() for stage in stages if not stage.requires_grad]
            slopes = [self._field(stage_times[i], stage, True) for i, stage in zip(group, stages, strict=True)]
            # A graph with only the leaves created here would be kept from step to step without use.
            needs_graph = len(leaves) < len(stages) or has_other_leaves(slopes, leaves)
            done.append(with_implicit_gradient(w[here], slopes, stages, h, a, self._stats) if needs_graph else w[here])
        return torch.cat(done)

    def _guess(self, w: Tensor, group: range, h: float) -> Tensor:
        """The initial W [m, N] of a group: extrapolated from earlier stages, or from those of the last step."""
        if group.start > 0:
            c, here = self._method.c, self._method.c[group.start]
            if here in c[: group.start]:
                return w[c.index(here)][None].clone()
            n = min(group.start, 3)
            return (constant(lagrange_weights(c[:n], here), w.dtype, w.device) @ w[:n])[None]
        if self._previous is None:
            return torch.zeros_like(w[group.start : group.stop])
        h_previous, w_previous = self._previous
        c = self._method.c
        weights = [lagrange_weights(c, 1 + c[i] * h / h_previous) for i in group]
        return queued(weights, w) @ w_previous * (h / h_previous)

    def _system(self, rows: tuple[tuple[float, ...], ...]) -> StageSystem:
        """The linear system of stages with these coefficients, linearized at the start of the step."""
        t, h, y = self._attempted
        if self._blocks is None:
            self._blocks = linearize(self._field, self._start_time(t), y.detach(), self._stats)
        if rows not in self._systems:
            self._systems[rows] = StageSystem(self._blocks, h, constant(rows, y.dtype, y.device), self._stats)
        return self._systems[rows]

    def _slope_at_end(self, t_next: float, y_next: Tensor) -> Tensor:
        if self._method.stiffly_accurate:
            return self._w[-1] / self._attempted[1]
        return self._field(self._start_time(t_next), y_next, True)

    def _start_time(self, t: float) -> Tensor:
        (time,) = self._field.time_tensors([t])
        return torch.nextafter(time, time + self._one_sided) if self._one_sided else time

    def _stage_times(self, t: float, h: float) -> list[Tensor]:
        c = self._method.c
        times = self._field.time_tensors([t + c_i * h for c_i in c])
        if not self._one_sided:
            return list(times)
        inward = {0.0: h, 1.0: -h}
        return [
            torch.nextafter(time, time + inward[c_i]) if c_i in inward else time
            for time, c_i in zip(times, c, strict=True)
        ]

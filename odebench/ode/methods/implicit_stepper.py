"""The stepper of implicit Runge-Kutta methods.

The unknowns are W_i = h k_i, not the stage values. Small values stay accurate this way, and k_i follows without another
evaluation of f, which on a stiff field would amplify the remaining error of the iterations.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odebench.ode.dense import Interpolant
from odebench.ode.methods.implicit import ImplicitTableau, lagrange_weights
from odebench.ode.methods.jacobian import JacobianBlock, has_other_leaves, linearize
from odebench.ode.methods.newton import StageEquations, StageSystem, StageTolerance, with_implicit_gradient
from odebench.ode.methods.stepper import Stepper, StepperOptions, evaluate, stage_times
from odebench.ode.solution import Stats
from odebench.ode.transfer import constant, queued

# The coefficients of a group that consists of one explicit stage.
EXPLICIT = ((0.0,),)


class ImplicitRungeKuttaStepper(Stepper):
    """The stepper of the methods described by an ``ImplicitTableau``."""

    def __init__(self, method: ImplicitTableau, field: Any, y: Tensor, options: StepperOptions) -> None:
        self._method, self._field, self._side = method, field, options.side
        # If the solution is differentiated, the stages are solved to round-off. Fixed steps cannot be retried with a
        # smaller size, and so may compute more Jacobians.
        exact, fixed = torch.is_grad_enabled(), options.tolerance is None
        max_jacobians = 20 if fixed else 3 if exact else 1
        self._accuracy = StageTolerance(None if exact else options.tolerance, options.norm, max_jacobians)
        self._stats = options.stats or Stats()
        self._a, self._b = constant(method.a, y.dtype, y.device), constant(method.b, y.dtype, y.device)
        self._error = None if method.error is None else constant(method.error, y.dtype, y.device)
        # The groups of stages that are solved together, each with its coefficients.
        self._groups = [(here, tuple(row[here] for row in method.a[here])) for here in method.groups]
        self._attempted: tuple[float, float, Tensor] = (0.0, 0.0, y)
        self._w: Tensor = y.new_zeros(0)
        self._previous: tuple[float, Tensor] | None = None
        self._blocks: list[JacobianBlock] | None = None
        self._systems: dict[tuple[tuple[float, ...], ...], StageSystem] = {}
        self.order = method.error_order or method.order

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Reset; f is evaluated later, when it is needed."""
        self._slope, self._end, self._blocks, self._previous = f, None, None, None

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [N] at t + h, or y if the stages could not be solved; see ``failure``."""
        self.failure, self._end = None, None
        if h != self._attempted[1] or self._blocks is None:
            self._systems = {}
        self._attempted = (t, h, y)
        times = stage_times(self._field, t, h, self._method.c, self._side)
        if self._groups[0][1] == EXPLICIT:
            self.slope(t, y)
        with torch.no_grad():
            w = self._solve(t, h, y.detach(), times)
        if self.failure is not None:
            return y
        self._w = self._with_graph(h, y, w, times) if torch.is_grad_enabled() else w
        return y + self._b @ self._w

    def error(self) -> Tensor:
        """Return the error estimate [N], which is infinite after a failure."""
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
        """Return the dense output of the method; linear or cubic Hermite interpolation if it has none."""
        _, h, _ = self._attempted
        if self._method.dense is not None:
            return Interpolant(t, h, y, self._w / h, self._method.dense)

        def slope_at_end() -> Tensor:
            if self._method.stiffly_accurate:
                return self._w[-1] / h
            return evaluate(self._field, t_next, y_next, self._side)

        return self._hermite(t, h, y, y_next, interpolation, slope_at_end)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Take the slope at the end of the step, if there is one, as the slope at the start of the next step."""
        if last:
            return
        _, h, _ = self._attempted
        self._previous = (h, self._w.detach())
        self._slope = self._w[-1] / h if self._method.stiffly_accurate else self._end
        self._blocks = None

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply the stages and, if there is one, the slope at the end by the factor.

        The last stage may be the slope at the start of the next step.
        """
        super().scale_slope(factor)
        self._w = self._w * factor

    def quadrature_points(self) -> list[tuple[float, Tensor, Tensor]]:
        """Return a list of (weight, time, state [N]) for integrals over the last attempt.

        The sum of weight * g(time, state) is the integral of g, up to an error of the order of the method.
        """
        t, h, y = self._attempted
        stages = y + self._a @ self._w
        times = stage_times(self._field, t, h, self._method.c, self._side)
        return [(h * b, time, y_i) for b, time, y_i in zip(self._method.b, times, stages, strict=True) if b]

    def _solve(self, t: float, h: float, y: Tensor, times: Sequence[Tensor]) -> Tensor:
        """Solve for the unknowns W [s, N], one group of stages after the other."""
        w = y.new_zeros(self._method.stages, len(y))
        for here, rows in self._groups:
            first, a = here.start, self._a[here, here]
            base = y + self._a[here, :first] @ w[:first]
            if rows == EXPLICIT:
                w[here] = h * (self.slope(t, y) if first == 0 else self._field(times[first], base[0], True))
                continue
            stages = StageEquations(
                lambda i, stage, first=first: h * self._field(times[first + i], stage, True),  # type: ignore[misc]
                base,
                a,
                self._system(rows),
                lambda values, a=a: StageSystem(  # type: ignore[misc]
                    linearize(self._field, times[-1], values.mean(0), self._stats), h, a, self._stats
                ),
            )
            w[here], self.failure = stages.solve(y, self._guess(w, here, h), self._accuracy)
            if self.failure is not None:
                break
        return w

    def _with_graph(self, h: float, y: Tensor, w: Tensor, times: Sequence[Tensor]) -> Tensor:
        """Return the unknowns W [s, N] with a graph for first derivatives; w: their values."""
        done: list[Tensor] = []
        for here, rows in self._groups:
            first, a = here.start, self._a[here, here]
            base = y.expand(len(rows), -1)
            if done:
                base = base + self._a[here, :first] @ torch.cat(done)
            if rows == EXPLICIT:
                slope = self._slope if first == 0 else self._field(times[first], base[0], True)
                assert slope is not None
                done.append(h * slope[None])
                continue
            stages = list((base + a @ w[here]).unbind())
            leaves = [stage.requires_grad_() for stage in stages if not stage.requires_grad]
            slopes = [self._field(time, stage, True) for time, stage in zip(times[here], stages, strict=True)]
            # A graph with only the leaves created here would be kept from step to step without use.
            needs_graph = len(leaves) < len(stages) or has_other_leaves(slopes, leaves)
            done.append(with_implicit_gradient(w[here], slopes, stages, h, a, self._stats) if needs_graph else w[here])
        return torch.cat(done)

    def _guess(self, w: Tensor, here: slice, h: float) -> Tensor:
        """Return the initial unknowns W [m, N] of a group.

        They are extrapolated from earlier stages of this step; for the first group, from the stages of the last step.
        """
        c, first = self._method.c, here.start
        if first > 0:
            node = c[first]
            if node in c[:first]:
                return w[c.index(node)][None].clone()
            n = min(first, 3)
            return (constant(lagrange_weights(c[:n], node), w.dtype, w.device) @ w[:n])[None]
        if self._previous is None:
            return torch.zeros_like(w[here])
        h_previous, w_previous = self._previous
        weights = [lagrange_weights(c, 1 + node * h / h_previous) for node in c[here]]
        return queued(weights, w) @ w_previous * (h / h_previous)

    def _system(self, rows: tuple[tuple[float, ...], ...]) -> StageSystem:
        """Return the linear system of stages with the coefficients ``rows``, linearized at the start of the step."""
        t, h, y = self._attempted
        if self._blocks is None:
            (start,) = stage_times(self._field, t, 0.0, (0.0,), self._side)
            self._blocks = linearize(self._field, start, y.detach(), self._stats)
        if rows not in self._systems:
            self._systems[rows] = StageSystem(self._blocks, h, constant(rows, y.dtype, y.device), self._stats)
        return self._systems[rows]

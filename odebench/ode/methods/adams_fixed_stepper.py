"""The stepper of Adams methods of fixed order."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odebench.ode.dense import Interpolant
from odebench.ode.methods import adams, explicit
from odebench.ode.methods.adams import FixedOrderAdams
from odebench.ode.methods.explicit_stepper import ExplicitRungeKuttaStepper
from odebench.ode.methods.slope_history import make_slope_history, scaled_nodes
from odebench.ode.methods.stepper import Stepper, StepperOptions, evaluate
from odebench.ode.solution import Status

# Methods up to this order start with steps of the 3/8 rule, whose local error has this order.
MAX_RK4_START_ORDER = 5


class FixedOrderAdamsStepper(Stepper):
    """The stepper of the methods described by a ``FixedOrderAdams``."""

    def __init__(self, method: FixedOrderAdams, field: Any, y: Tensor, options: StepperOptions) -> None:
        self._method, self._field, self._side = method, field, options.side
        self._slopes = make_slope_history(method.num_slopes, y)
        self._times: list[float] = []
        # How far each time moves relative to a step from the newest time; tensors if derivatives with respect to times
        # are needed.
        self._shifts: list[Tensor | float] = []
        self._t_next = 0.0
        self._starter = ExplicitRungeKuttaStepper(explicit.RK4, field, y, options)
        self._nodes: tuple[float, ...] = ()
        self._predictor: list[float] = []
        self._corrector: list[float] = []
        self.order = method.order

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Store the first slope. The next steps are starting steps."""
        self._slopes.clear()
        self._slopes.push(evaluate(self._field, t, y, self._side) if f is None else f)
        self._times, self._shifts = [t], [0.0]

    def slope(self, t: float, y: Tensor) -> Tensor:
        """Return the newest slope [N]."""
        return self._slopes.first(1, include_end=False)[0]

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [N] at t + h."""
        self.failure, self._end, self._t_next = None, None, t + h
        method, num_slopes = self._method, self._method.num_slopes
        if len(self._slopes) < (min(num_slopes, 3) if method.start == "growing" else num_slopes):
            self._nodes, f = (), self.slope(t, y)
            if method.order > MAX_RK4_START_ORDER and method.start == "accurate":
                return self._extrapolate(t, h, y, f, math.ceil((method.order - 1) / 2))
            self._starter.start(t, y, f)
            return self._starter.attempt(t, h, y, last=True)
        known = scaled_nodes(t, h, self._times)
        if known != self._nodes:
            self._nodes = known
            self._predictor = adams.integration_weights(known)
            if method.implicit:
                self._corrector = adams.integration_weights((1.0, *known)[: method.order])
        predicted = self._combine(y, h, self._predictor, self._weight_changes(h, known, self._shifts))
        return self._correct(t, h, y, predicted) if method.implicit else predicted

    def error(self) -> Tensor:
        """Raise AssertionError: fixed steps have no error estimate."""
        raise AssertionError("fixed steps have no error estimate")

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """Return the integral of the polynomial of the step; for a starting step, a Hermite interpolant.

        interpolation: "linear" interpolates linearly in every step.
        """
        h = t_next - t
        if interpolation == "linear" or not self._nodes:
            field, side = self._field, self._side
            return self._hermite(t, h, y, y_next, interpolation, lambda: evaluate(field, t_next, y_next, side))
        implicit = self._method.implicit
        known = (1.0, *self._nodes)[: self._method.order] if implicit else self._nodes
        weights = tuple(map(tuple, adams.lagrange_integrals(known)))
        return Interpolant(t, h, y, self._slopes.first(len(known), include_end=implicit), weights)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Store the slope at the end of the step."""
        if last:
            return
        self._slopes.push(self._slope_at_end(t_next, y_next))
        self._times = [t_next, *self._times][: self._method.num_slopes]
        self._shifts = [0.0, *self._shifts][: self._method.num_slopes]

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply the stored slopes by the factor, and rescale their times.

        The distance from the end of the step to the time of each slope is divided by the factor.
        """
        super().scale_slope(factor)
        self._slopes.scale(factor)
        distances = [time - self._t_next for time in self._times]
        self._shifts = [(d + shift) / factor - d for d, shift in zip(distances, self._shifts, strict=True)]

    def _correct(self, t: float, h: float, y: Tensor, y_next: Tensor) -> Tensor:
        """Solve y_next = y + h (w_0 f(t + h, y_next) + sum of known terms) by iteration; y_next: the prediction."""
        method, weights = self._method, self._corrector
        changes = self._weight_changes(h, (1.0, *self._nodes), (0.0, *self._shifts))
        known = self._combine(y, h, weights[1:], changes[1:]) if len(weights) > 1 else y
        for _ in range(method.max_iters):
            f = evaluate(self._field, t + h, y_next, self._side, ending_step=h)
            previous, y_next = y_next, torch.add(known, f, alpha=h * weights[0])
            if changes:
                y_next = y_next + changes[0] * f
            if self._converged(y, previous, y_next):
                break
        else:
            if not torch.isfinite(y_next.detach()).all():
                self.failure = Status.non_finite
            elif method.lenient:
                warnings.warn(f"{method.name}: the iteration did not converge at t={t + h:.6g}", stacklevel=2)
            else:
                self.failure = Status.not_converged
        self._slopes.set_end_slope(f)
        return y_next

    def _weight_changes(self, h: float, nodes: Sequence[float], shifts: Sequence[Tensor | float]) -> list[Tensor]:
        """Return the changes of h weights_i that shifts of the times cause; empty if no time is shifted.

        Each change has the value 0, and a graph for its derivatives.
        """
        if not isinstance(shifts[-1], Tensor):
            return []
        weights = adams.integration_weights([node + shift / h for node, shift in zip(nodes, shifts, strict=True)])
        return [h * (weight - weight.detach()) for weight in weights]

    def _combine(self, y: Tensor, h: float, weights: Sequence[float], changes: Sequence[Tensor]) -> Tensor:
        """Return y + sum_i (h weights_i + changes_i) slope_i, [N]; ``changes`` may be empty."""
        y = self._slopes.combine(y, [h * w for w in weights], include_end=False)
        if changes:
            for change, slope in zip(changes, self._slopes.first(len(changes), include_end=False), strict=True):
                y = y + change * slope
        return y

    def _converged(self, y: Tensor, previous: Tensor, current: Tensor) -> bool:
        """Return whether no component changed by more than the tolerance of the iteration."""
        method = self._method
        with torch.no_grad():
            size = torch.maximum((previous - y).abs(), (current - y).abs()).mul_(method.rtol)
            allowed = size.add_(y.abs(), alpha=4 * torch.finfo(y.dtype).eps).add_(method.atol)
            return bool(((current - previous).abs() <= allowed).all())

    def _extrapolate(self, t: float, h: float, y: Tensor, f: Tensor, count: int) -> Tensor:
        """Take one step of order ``2 * count`` by extrapolation of the midpoint rule.

        The step is divided into midpoint steps of the sizes h/2, h/4, ..., h/(2 count). The results are extrapolated
        in powers of h^2 (Hairer, Norsett & Wanner 1993, section II.9).
        """
        column: list[Tensor] = []
        for j in range(1, count + 1):
            n = 2 * j
            previous, current = y, torch.add(y, f, alpha=h / n)
            for i in range(1, n):
                rate = evaluate(self._field, t + i * h / n, current, self._side)
                previous, current = current, torch.add(previous, rate, alpha=2 * h / n)
            row = [current]
            for k, coarser in enumerate(column, start=1):
                factor = 1 / ((j / (j - k)) ** 2 - 1)
                row.append(row[-1] + (row[-1] - coarser) * factor)
            column = row
        return column[-1]

"""Steps of an Adams method of fixed order."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from odebench.ode.dense import HERMITE, LINEAR, Interpolant
from odebench.ode.methods import adams, explicit
from odebench.ode.methods.adams import FixedOrderAdams
from odebench.ode.methods.explicit_stepper import ExplicitRungeKuttaStepper
from odebench.ode.methods.slope_history import evaluate, make_slope_history, scaled_nodes
from odebench.ode.solution import Status

# Steps of the 3/8 rule start a method of up to this order: their local error is of this power of h.
MAX_RK4_START_ORDER = 5


class FixedOrderAdamsStepper:
    """The stepper of a ``FixedOrderAdams``; see ``odebench.ode.methods.steppers.Stepper``."""

    def __init__(self, method: FixedOrderAdams, field: Any, y: Tensor, *, compiled: bool, one_sided: float) -> None:
        self._method, self._field, self._one_sided = method, field, one_sided
        self._slopes = make_slope_history(method.num_slopes, y)
        self._times: list[float] = []
        self._starter = ExplicitRungeKuttaStepper(explicit.RK4, field, y, compiled=compiled, one_sided=one_sided)
        self._nodes: tuple[float, ...] = ()
        self._predictor: list[float] = []
        self._corrector: list[float] = []
        self._end: tuple[Tensor, Tensor] | None = None
        self.order = method.order
        self.failure: Status | None = None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Keep the first slope; the following steps are those of the start."""
        self._slopes.clear()
        self._slopes.push(self._evaluate(t, y) if f is None else f)
        self._times = [t]

    def slope(self, t: float, y: Tensor) -> Tensor:
        """The newest slope."""
        return self._slopes.first(1, include_end=False)[0]

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] at t + h."""
        self.failure, self._end = None, None
        wanted = self._method.num_slopes
        if len(self._slopes) < (min(wanted, 3) if self._method.start == "growing" else wanted):
            self._nodes = ()
            return self._start_step(t, h, y)
        known = scaled_nodes(t, h, self._times)
        if known != self._nodes:
            self._nodes = known
            self._predictor = adams.integration_weights(known)
            if self._method.implicit:
                self._corrector = adams.integration_weights((1.0, *known)[: self._method.order])
        predicted = self._slopes.combine(y, [h * w for w in self._predictor], include_end=False)
        return self._correct(t, h, y, predicted) if self._method.implicit else predicted

    def error(self) -> Tensor:
        """None: the steps are fixed."""
        raise AssertionError("fixed steps have no error estimate")

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """The integral of the polynomial that the step integrates; cubic Hermite in a step of the start."""
        h = t_next - t
        if interpolation == "linear" or not self._nodes:
            mean = (y_next - y) / h
            if interpolation == "linear":
                return Interpolant(t, h, y, [mean], LINEAR)
            f_next = self._evaluate(t_next, y_next)
            self._end = (y_next, f_next)
            return Interpolant(t, h, y, [self.slope(t, y), f_next, mean], HERMITE)
        implicit = self._method.implicit
        known = (1.0, *self._nodes)[: self._method.order] if implicit else self._nodes
        weights = tuple(map(tuple, adams.lagrange_integrals(known)))
        return Interpolant(t, h, y, self._slopes.first(len(known), include_end=implicit), weights)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Keep the slope at the end of the step."""
        if last:
            return
        evaluated = self._end is not None and self._end[0] is y_next
        self._slopes.push(self._end[1] if evaluated else self._evaluate(t_next, y_next))  # type: ignore[index]
        self._times = [t_next, *self._times][: self._method.num_slopes]

    def stiffness(self) -> None:
        """No estimate."""

    def _correct(self, t: float, h: float, y: Tensor, y_next: Tensor) -> Tensor:
        """The solution of y_next = y + h (w_0 f(t + h, y_next) + what is known), from a prediction of it."""
        method, weights = self._method, self._corrector
        known = self._slopes.combine(y, [h * w for w in weights[1:]], include_end=False) if len(weights) > 1 else y
        for _ in range(method.max_iters):
            f = self._evaluate(t + h, y_next, before=h)
            before, y_next = y_next, torch.add(known, f, alpha=h * weights[0])
            if self._converged(y, before, y_next):
                break
        else:
            self._give_up(t + h, y_next)
        self._slopes.set_end_slope(f)
        return y_next

    def _converged(self, y: Tensor, before: Tensor, after: Tensor) -> bool:
        """Whether no number of the increment of y changed by more than allowed, from one iterate to the next."""
        method = self._method
        with torch.no_grad():
            if not y.numel():
                return True
            size = torch.maximum((before - y).abs(), (after - y).abs()).mul_(method.rtol)
            allowed = size.add_(y.abs(), alpha=4 * torch.finfo(y.dtype).eps).add_(method.atol)
            return bool(((after - before).abs() <= allowed).all())

    def _give_up(self, t: float, y: Tensor) -> None:
        """Say that the iteration ended at t, y [N] without a solution."""
        if not torch.isfinite(y.detach()).all():
            self.failure = Status.non_finite
        elif self._method.lenient:
            warnings.warn(f"{self._method.name}: the iteration did not converge at t={t:.6g}", stacklevel=2)
        else:
            self.failure = Status.not_converged

    def _start_step(self, t: float, h: float, y: Tensor) -> Tensor:
        f = self.slope(t, y)
        if self._method.order > MAX_RK4_START_ORDER and self._method.start == "accurate":
            return self._extrapolate(t, h, y, f, math.ceil((self._method.order - 1) / 2))
        self._starter.start(t, y, f)
        return self._starter.attempt(t, h, y, last=True)

    def _extrapolate(self, t: float, h: float, y: Tensor, f: Tensor, count: int) -> Tensor:
        """A step of order 2 count: midpoint steps of size h/2, h/4, ..., h/(2 count), extrapolated in h^2 (Hairer,
        Norsett & Wanner 1993, section II.9)."""
        column: list[Tensor] = []
        for j in range(1, count + 1):
            n = 2 * j
            before, now = y, torch.add(y, f, alpha=h / n)
            for i in range(1, n):
                rate = self._evaluate(t + i * h / n, now)
                before, now = now, torch.add(before, rate, alpha=2 * h / n)
            row = [now]
            for k, coarser in enumerate(column, start=1):
                factor = 1 / ((j / (j - k)) ** 2 - 1)
                row.append(row[-1] + (row[-1] - coarser) * factor)
            column = row
        return column[-1]

    def _evaluate(self, t: float, y: Tensor, before: float = 0.0) -> Tensor:
        return evaluate(self._field, t, y, self._one_sided, before)

"""The stepper of the Adams method of variable order.

The predictor of order k integrates the polynomial through the last k slopes, and f is evaluated at the prediction; the
corrector, of order k + 1, includes that slope; f is evaluated again at its result. The error estimate is the difference
between the correctors of orders k + 1 and k, which omits the oldest slope, and similarly for other orders.

Shampine & Gordon 1975, Computer Solution of Ordinary Differential Equations, chapters 5 to 7.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odebench.ode.dense import Interpolant
from odebench.ode.methods import adams
from odebench.ode.methods.adams import VariableOrderAdams
from odebench.ode.methods.slope_history import evaluate, make_slope_history, scaled_nodes
from odebench.ode.solution import Status

# Largest growth of a step: on grids that grow faster, methods of high order are unstable.
MAX_GROWTH = 2.0
# Largest ratio of a retried step to the rejected one: the error estimates of high orders are rough, and a slightly
# smaller step tends to be rejected again.
MAX_RETRY_FACTOR = 0.7
# The controller's safety factor: an error of (SAFETY / factor)^order tolerances makes it propose that factor.
SAFETY = 0.9
# After this many rejections in a row the past slopes are useless, and the order restarts at 1.
MAX_REJECTIONS = 4


@dataclass(frozen=True)
class AdamsWeights:
    """Weights of the slopes in a step with given nodes.

    predictor: k weights of the past slopes.
    corrector: k + 1 weights, the first one of the slope at the predicted state.
    errors: k + 1 weights for each of the orders k, k - 1 and k - 2 that are positive.
    """

    nodes: tuple[float, ...]
    predictor: list[float]
    corrector: list[float]
    errors: list[list[float]]


def adams_weights(known: tuple[float, ...]) -> AdamsWeights:
    """The weights for k past slopes."""
    k, after = len(known), (1.0, *known)
    errors = [error_weights(after, order) for order in range(k, max(k - 3, 0), -1)]
    return AdamsWeights(known, adams.integration_weights(known), adams.integration_weights(after), errors)


def error_weights(after: tuple[float, ...], order: int) -> list[float]:
    """Weights of the corrector of the next order minus those of ``order``, padded with zeros."""
    row = adams.divided_differences(after[: order + 1])[order]
    integral = sum(adams.newton_integrals(after[: order + 1])[order])
    return [integral * weight for weight in row] + [0.0] * (len(after) - order - 1)


class VariableOrderAdamsStepper:
    """The stepper of ``VariableOrderAdams``; see ``steppers.Stepper`` and ``steppers.VariableOrderStepper``."""

    failure: Status | None = None

    def __init__(self, method: VariableOrderAdams, field: Any, y: Tensor, *, compiled: bool, one_sided: float) -> None:
        self._field, self._one_sided, self._highest = field, one_sided, method.highest
        self._slopes = make_slope_history(method.highest + 1, y)
        self._times: list[float] = []
        self._k = 1
        self._starting = True
        self._rejections = 0
        self._weights = AdamsWeights((), [], [], [])
        self._step = (0.0, 0.0, False)
        self._y_next: Tensor | None = None
        self._f_next: Tensor | None = None
        self._errors: Tensor | None = None

    @property
    def order(self) -> int:
        """The error estimate is proportional to h^(k + 1)."""
        return self._k + 1

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Start with order 1."""
        self._slopes.clear()
        self._slopes.push(self._evaluate(t, y) if f is None else f)
        self._times = [t]
        self._k, self._starting, self._rejections = 1, True, 0

    def slope(self, t: float, y: Tensor) -> Tensor:
        """The newest slope."""
        return self._slopes.first(1, include_end=False)[0]

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] at t + h."""
        known = scaled_nodes(t, h, self._times[: self._k])
        if known != self._weights.nodes:
            self._weights = adams_weights(known)
        predicted = self._slopes.combine(y, [h * w for w in self._weights.predictor], include_end=False)
        self._slopes.set_end_slope(self._evaluate(t + h, predicted, ending_step=h))
        self._y_next = self._slopes.combine(y, [h * w for w in self._weights.corrector], include_end=True)
        self._step, self._f_next = (t, h, last), None
        return self._y_next

    def error(self) -> Tensor:
        """The difference of the correctors of orders k + 1 and k, [N]."""
        h = self._step[1]
        self._errors = self._slopes.weighted_sums([[h * w for w in row] for row in self._weights.errors])
        return self._errors[0]

    def choose_order(self, measure: Callable[[Tensor], float], ratio: float, accepted: bool) -> float:
        """Choose the order of the next attempt; returns this attempt's error at that order."""
        assert self._errors is not None
        k, lower = self._k, [measure(error) for error in self._errors[1:]]
        lower_is_better = bool(lower) and (max(lower) <= ratio if k > 2 else lower[0] <= 0.5 * ratio)
        if not accepted:
            return self._after_rejection(ratio, lower, lower_is_better)
        self._rejections = 0
        t, h, last = self._step
        if last:
            return ratio
        assert self._y_next is not None
        self._f_next = self._evaluate(t + h, self._y_next)
        change, ratio = self._choose_change(measure, ratio, lower, lower_is_better)
        self._k = k + change
        self._starting = self._starting and change > 0
        return max(ratio, (SAFETY / MAX_GROWTH) ** self.order)

    def _choose_change(
        self, measure: Callable[[Tensor], float], ratio: float, lower: list[float], lower_is_better: bool
    ) -> tuple[int, float]:
        """The change of order after an accepted step, and the error at the new order (op. cit., section 7.4).

        In the starting phase every step raises the order and doubles the step size.
        """
        k = self._k
        if lower_is_better:
            return -1, lower[0]
        if k == self._highest or (len(self._slopes) <= k and not self._starting):
            return 0, ratio
        if self._starting:
            return 1, 0.0
        higher = measure(self._higher_error())
        if k > 1 and lower[0] <= min(ratio, higher):
            return -1, lower[0]
        if higher < (ratio if k > 1 else 0.5 * ratio):
            return 1, higher
        return 0, ratio

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """The integral of the corrector's polynomial, of order k + 1."""
        known = (1.0, *self._weights.nodes)
        weights = tuple(map(tuple, adams.lagrange_integrals(known)))
        return Interpolant(t, t_next - t, y, self._slopes.first(len(known), include_end=True), weights)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Store the slope at the end of the step."""
        if last:
            return
        self._slopes.push(self._evaluate(t_next, y_next) if self._f_next is None else self._f_next)
        self._times = [t_next, *self._times][: self._highest + 1]

    def stiffness(self) -> None:
        """No estimate."""

    def _after_rejection(self, ratio: float, lower: list[float], lower_is_better: bool) -> float:
        self._starting = False
        self._rejections += 1
        if self._rejections >= MAX_REJECTIONS:
            self._k = 1
        elif lower_is_better:
            self._k -= 1
            ratio = lower[0]
        # Keep NaN.
        return ratio if math.isnan(ratio) else max(ratio, (SAFETY / MAX_RETRY_FACTOR) ** self.order)

    def _higher_error(self) -> Tensor:
        """The error of order k + 1, from the slope at the end of the step; that at the prediction is too inaccurate."""
        assert self._f_next is not None
        (t, h, _), k = self._step, self._k
        row = error_weights((1.0, *scaled_nodes(t, h, self._times[: k + 1])), k + 1)
        with torch.no_grad():
            old = self._slopes.weighted_sums([[0.0, *(h * w for w in row[1:])]])[0]
            return torch.add(old, self._f_next, alpha=h * row[0])

    def _evaluate(self, t: float, y: Tensor, ending_step: float = 0.0) -> Tensor:
        return evaluate(self._field, t, y, self._one_sided, ending_step)

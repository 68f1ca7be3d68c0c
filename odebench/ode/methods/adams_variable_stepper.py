"""The stepper of the Adams method of variable order.

The predictor of order k integrates the polynomial through the last k slopes. Then f is evaluated at the prediction. The
corrector, of order k + 1, includes this slope too, and f is evaluated again at its result. The error estimate is the
difference between the correctors of orders k + 1 and k; the latter omits the oldest slope. The errors at other orders
are estimated in the same way.

Shampine & Gordon 1975, Computer Solution of Ordinary Differential Equations, chapters 5 to 7.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odebench.ode.dense import Interpolant
from odebench.ode.methods import adams
from odebench.ode.methods.adams import VariableOrderAdams
from odebench.ode.methods.slope_history import make_slope_history, scaled_nodes
from odebench.ode.methods.stepper import Stepper, StepperOptions, evaluate

# The largest factor by which a step grows: methods of high order are unstable on grids that grow faster.
MAX_GROWTH = 2.0
# The largest ratio of a retried step to the rejected step. The error estimates of high orders are rough, so that a
# slightly smaller step is often rejected again.
MAX_RETRY_FACTOR = 0.7
# The safety factor of the controller. To make it propose a factor, report an error of (SAFETY / factor)^order
# tolerances.
SAFETY = 0.9
# After this many rejections in a row the past slopes are useless, and the order restarts at 1.
MAX_REJECTIONS = 4


def error_weights(after: tuple[float, ...], order: int) -> list[float]:
    """Return the weights of the corrector of the next order minus those of ``order``, padded with zeros."""
    row = adams.divided_differences(after[: order + 1])[order]
    integral = sum(adams.newton_integrals(after[: order + 1])[order])
    return [integral * weight for weight in row] + [0.0] * (len(after) - order - 1)


class VariableOrderAdamsStepper(Stepper):
    """The stepper of the methods described by a ``VariableOrderAdams``; it is also a ``VariableOrderStepper``."""

    def __init__(self, method: VariableOrderAdams, field: Any, y: Tensor, options: StepperOptions) -> None:
        self._field, self._side, self._highest = field, options.side, method.highest
        self._slopes = make_slope_history(method.highest + 1, y)
        self._times: list[float] = []
        self._k = 1
        self._starting = True
        self._rejections = 0
        # The scaled times of the k past slopes, and the weights that follow from them. There are weights of the error
        # for each of the orders k, k - 1 and k - 2 that is positive. The weights of the corrector and of the errors
        # begin with that of the slope at the predicted state.
        self._nodes: tuple[float, ...] = ()
        self._predictor: list[float] = []
        self._corrector: list[float] = []
        self._error_weights: list[list[float]] = []
        # The last attempt: its time t, its size h, its result, and whether it is the last step of the solve.
        self._step = (0.0, 0.0, y, False)
        self._errors = y.unsqueeze(0)

    @property
    def order(self) -> int:  # type: ignore[override]
        """The power k + 1 of h that the error estimate is proportional to."""
        return self._k + 1

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Store the first slope, and start with order 1."""
        self._slopes.clear()
        self._slopes.push(evaluate(self._field, t, y, self._side) if f is None else f)
        self._times = [t]
        self._k, self._starting, self._rejections = 1, True, 0

    def slope(self, t: float, y: Tensor) -> Tensor:
        """Return the newest slope [N]."""
        return self._slopes.first(1, include_end=False)[0]

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [N] at t + h."""
        k, known = self._k, scaled_nodes(t, h, self._times[: self._k])
        if known != self._nodes:
            after = (1.0, *known)
            self._nodes, self._predictor = known, adams.integration_weights(known)
            self._corrector = adams.integration_weights(after)
            self._error_weights = [error_weights(after, order) for order in range(k, max(k - 3, 0), -1)]
        predicted = self._slopes.combine(y, [h * w for w in self._predictor], include_end=False)
        self._slopes.set_end_slope(evaluate(self._field, t + h, predicted, self._side, ending_step=h))
        y_next = self._slopes.combine(y, [h * w for w in self._corrector], include_end=True)
        self._step, self._end = (t, h, y_next, last), None
        return y_next

    def error(self) -> Tensor:
        """Return the difference [N] between the correctors of orders k + 1 and k."""
        h = self._step[1]
        self._errors = self._slopes.weighted_sums([[h * w for w in row] for row in self._error_weights])
        return self._errors[0]

    def choose_order(self, measure: Callable[[Tensor], float], ratio: float, accepted: bool) -> float:
        """Choose the order of the next attempt; return the error of this attempt at that order."""
        k, lower = self._k, [measure(error) for error in self._errors[1:]]
        lower_is_better = bool(lower) and (max(lower) <= ratio if k > 2 else lower[0] <= 0.5 * ratio)
        if not accepted:
            self._starting = False
            self._rejections += 1
            if self._rejections >= MAX_REJECTIONS:
                self._k = 1
            elif lower_is_better:
                self._k, ratio = k - 1, lower[0]
            # Keep NaN.
            return ratio if math.isnan(ratio) else max(ratio, (SAFETY / MAX_RETRY_FACTOR) ** self.order)
        self._rejections = 0
        t, h, y_next, last = self._step
        if last:
            return ratio
        self._end = evaluate(self._field, t + h, y_next, self._side)
        change, ratio = self._choose_change(measure, ratio, lower, lower_is_better)
        self._k = k + change
        self._starting = self._starting and change > 0
        return max(ratio, (SAFETY / MAX_GROWTH) ** self.order)

    def _choose_change(
        self, measure: Callable[[Tensor], float], ratio: float, lower: list[float], lower_is_better: bool
    ) -> tuple[int, float]:
        """Return the change of the order after an accepted step, and the error at the new order.

        In the starting phase, every step raises the order and doubles the step size. See Shampine & Gordon 1975,
        section 7.4.
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
        """Return the integral of the corrector's polynomial, of order k + 1."""
        known = (1.0, *self._nodes)
        weights = tuple(map(tuple, adams.lagrange_integrals(known)))
        return Interpolant(t, t_next - t, y, self._slopes.first(len(known), include_end=True), weights)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Store the slope at the end of the step."""
        if last:
            return
        self._slopes.push(self._slope_at_end(t_next, y_next))
        self._times = [t_next, *self._times][: self._highest + 1]

    def _higher_error(self) -> Tensor:
        """Return the error [N] at order k + 1.

        It is computed with the slope at the end of the step, since the slope at the prediction is too inaccurate.
        """
        assert self._end is not None
        (t, h, *_), k = self._step, self._k
        row = error_weights((1.0, *scaled_nodes(t, h, self._times[: k + 1])), k + 1)
        with torch.no_grad():
            old = self._slopes.weighted_sums([[0.0, *(h * w for w in row[1:])]])[0]
            return torch.add(old, self._end, alpha=h * row[0])

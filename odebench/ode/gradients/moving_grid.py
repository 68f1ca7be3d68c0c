"""The gradient of fixed steps with respect to output times: the grid between two of them moves with both.

The solve keeps its own time s, whose grid is fixed, and f gets t = tau(s), linear between two output times. Steps of
dy/ds = tau'(s) f(tau(s), y) on the fixed grid are those of dy/dt = f(t, y) on the grid that moves, so that autograd
gives the derivative of the discrete solve. In value tau(s) = s and tau' = 1: no state changes.
"""

from collections.abc import Sequence

from torch import Tensor

from odebench.ode.events import EventDetector
from odebench.ode.integrate import Observer
from odebench.ode.methods import Method, Tableau
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.reversible import ReversibleRungeKutta
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem
from odebench.ode.torch_func import needs_derivative


def grid_moves(problem: InitialValueProblem, plan: SolvePlan, detector: EventDetector | None) -> bool:
    """Whether backpropagation through ``MovingGrid`` gives the gradient with respect to times.

    Not for jumps, events and dense output, which are located in s.
    """
    if not plan.grid_moves or not needs_derivative(problem.t) or detector is not None:
        return False
    return _restarts_at_each_step(plan.method) and not (plan.one_sided or plan.dense or plan.compile)


def _restarts_at_each_step(method: Method) -> bool:
    """Whether a step uses no slope of the one before, whose tau' may be another."""
    if isinstance(method, ImplicitTableau):
        return method.a[0][0] != 0
    return isinstance(method, Tableau | ReversibleRungeKutta)


class MovingGrid(Observer):
    """The field tau'(s) f(tau(s), y) of a problem; observes the steps to know the interval that they are in.

    stops: further times that a step ends at, which do not move.
    """

    def __init__(self, problem: InitialValueProblem, stops: Sequence[float]) -> None:
        self._problem = problem
        shifts = (problem.t - problem.t.detach()).to(problem.y0.device, problem.time_dtype)
        moving = dict(zip(problem.times, shifts.unbind(), strict=True))
        self._times = sorted({*problem.times, *stops}, reverse=problem.times[-1] < problem.times[0])
        self._shifts = [moving.get(time, shifts.new_zeros(())) for time in self._times]
        self._enter(0)

    def _enter(self, interval: int) -> None:
        self._interval = interval
        (self._start, self._end), shifts = self._times[interval : interval + 2], self._shifts[interval : interval + 2]
        self._start_shift, self._difference = shifts[0], shifts[1] - shifts[0]
        self._slope = 1 + self._difference / (self._end - self._start)

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """A step that ends an interval is followed by one of the next."""
        if abs(t + h - self._end) < 0.5 * abs(h) and self._interval < len(self._times) - 2:
            self._enter(self._interval + 1)

    def time_tensors(self, times: Sequence[float]) -> list[Tensor]:
        """tau at the times of stages, as f gets them."""
        thetas = [(time - self._start) / (self._end - self._start) for time in times]
        tensors = self._problem.time_tensors(times)
        return [
            time + self._start_shift + theta * self._difference for time, theta in zip(tensors, thetas, strict=True)
        ]

    def __call__(self, t: Tensor, y: Tensor, in_result: bool = True, out: Tensor | None = None) -> Tensor:
        """tau' f(t, y) [N]."""
        return self._problem(t, y, in_result, out) * self._slope

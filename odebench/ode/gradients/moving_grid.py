"""The gradient of fixed steps with respect to output times, if these times move the grid of steps.

The solve has its own time s, with a fixed grid. f gets the time t = tau(s), which is linear between the corners of the
grid. Steps of dy/ds = tau'(s) f(tau(s), y) on the fixed grid equal those of dy/dt = f(t, y) on the moving grid, so that
autograd gives the derivative of the discrete solve. The values are tau(s) = s and tau' = 1, so that no state changes.
"""

import bisect
import math
from typing import Any

import torch
from torch import Tensor

from odebench.ode.events import EventDetector
from odebench.ode.integrate import Observer
from odebench.ode.methods.adams import FixedOrderAdams
from odebench.ode.methods.steppers import make_stepper
from odebench.ode.plan import SolvePlan, corners_at_times
from odebench.ode.problem import InitialValueProblem
from odebench.ode.torch_func import needs_derivative


def grid_moves(problem: InitialValueProblem, plan: SolvePlan, detector: EventDetector | None) -> bool:
    """Return whether backpropagation through ``MovingGrid`` gives the gradient with respect to times.

    It does not for events and dense output, which are located in the time s of the solve. It does not for outputs
    inside the steps of Adams methods either, because the weights of their interpolation would move too.
    """
    if plan.corners is None or not needs_derivative(problem.t) or detector or plan.dense or plan.compile is True:
        return False
    inside_steps = plan.corners is not corners_at_times and len(problem.times) > 2
    return not (inside_steps and plan.interpolation == "cubic" and isinstance(plan.method, FixedOrderAdams))


def _shifted_corners(times: list[float], plan: SolvePlan, shifts: Tensor) -> tuple[list[float], list[Tensor]]:
    """Return the corners of the grid in order, and their shifts from those of the times [T]."""
    assert plan.corners is not None
    start, end = times[0], times[-1]
    moving = plan.corners(times, shifts)
    corners = sorted({*moving, *plan.stop_times(start, end)}, reverse=end < start)
    return corners, [moving.get(corner, shifts.new_zeros(())) for corner in corners]


def moved_points(problem: InitialValueProblem, plan: SolvePlan, points: list[float]) -> Tensor:
    """Return the points of the grid [G] in float64, with the graph of t by which they move."""
    shifts = (problem.t - problem.t.detach()).to("cpu", torch.float64)
    corners, corner_shifts = _shifted_corners(problem.times, plan, shifts)
    direction = math.copysign(1.0, corners[-1] - corners[0])
    keys = [direction * corner for corner in corners[1:-1]]
    interval = torch.tensor([bisect.bisect_right(keys, direction * point) for point in points])
    at, moved, grid = shifts.new_tensor(corners), torch.stack(corner_shifts), shifts.new_tensor(points)
    fraction = (grid - at[interval]) / (at[interval + 1] - at[interval])
    return grid + torch.lerp(moved[interval], moved[interval + 1], fraction)


class MovingGrid(Observer):
    """The field tau'(s) f(tau(s), y) of a problem. It observes the steps, to know the current interval.

    stepper: a stepper of the plan's method for this field.
    output_shift: see ``integrate``; None if all output times are corners of the grid.
    """

    def __init__(self, problem: InitialValueProblem, plan: SolvePlan) -> None:
        self._problem = problem
        self.time_tensors = problem.time_tensors
        shifts = (problem.t - problem.t.detach()).to(problem.y0.device, problem.time_dtype)
        self._time_shifts = corners_at_times(problem.times, shifts)
        self.output_shift = None if plan.corners is corners_at_times else self._shift_of_output
        self._corners, self._shifts = _shifted_corners(problem.times, plan, shifts)
        self._enter(0)
        side = plan.side(problem.times[0], problem.times[-1])
        self.stepper = make_stepper(plan.method, self, problem.y0, side=side, stats=problem.stats)

    def _enter(self, interval: int) -> None:
        self._interval = interval
        self._start, self._end = self._corners[interval : interval + 2]
        self._shift = self._shifts[interval]
        self._rate = (self._shifts[interval + 1] - self._shift) / (self._end - self._start)

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Enter the next interval if the step ends the current one."""
        if abs(t + h - self._end) < 0.5 * abs(h) and self._interval < len(self._corners) - 2:
            before = 1 + self._rate
            self._enter(self._interval + 1)
            self.stepper.scale_slope((1 + self._rate) / before)

    def __call__(self, t: Tensor, y: Tensor, in_result: bool = True, out: Tensor | None = None) -> Tensor:
        """Return tau' f(tau, y) [N] at s = t."""
        return self._problem(t + self._grid_shift(t), y, in_result, out) * (1 + self._rate)

    def _grid_shift(self, s: Any) -> Tensor:
        """Return tau(s) - s."""
        return self._shift + (s - self._start) * self._rate

    def _shift_of_output(self, time: float) -> Tensor:
        """Return how far s must move from ``time``, which is fixed in its step, until tau(s) is the output time."""
        return (self._time_shifts[time] - self._grid_shift(time)) / (1 + self._rate)

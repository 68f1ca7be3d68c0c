"""The plan of a solve: method, tolerance or grid, step sizes, and the times that a step must end at."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from odebench.ode import control
from odebench.ode.methods import Method
from odebench.ode.torch_func import needs_derivative

GridFunction = Callable[[list[float]], list[float]]
"""A function from the output times to the grid: the times at which fixed steps start and end, in order."""

Corners = Callable[[list[float], Tensor], dict[float, Tensor]]
"""A function from the output times and their shifts [T] to the corners of the grid, each with its shift.

A corner is a point of the grid. The other points lie at fixed fractions of the interval between two corners.
"""


class TooManyStepsError(ValueError):
    """The error of a solve that would need more than ``max_steps`` fixed steps."""


@dataclass
class SolvePlan:
    """How a solve chooses and takes its steps.

    It is never changed. Not frozen, since a frozen object takes three times as long to make.

    method: the description of the method.
    tolerance: the tolerance of adaptive steps; None for fixed steps.
    grid: makes the grid of fixed steps; None for adaptive steps.
    corners: says how the points of the grid move with the output times; None if that is unknown.
    first_step: the positive size of the first adaptive step; None estimates it, which takes one evaluation.
    max_steps: the largest number of attempted steps, including rejected steps.
    min_step, max_step: the bounds of an adaptive step size. A step of size min_step is accepted whatever its error.
    controller: chooses the sizes of adaptive steps.
    norm: the norm of the scaled error.
    group: processes that hold further rows of the state and take the same steps.
    step_times: the times that a step must end at; times outside the solve have no effect.
    jump_times: those of the ``step_times`` at which f jumps, so that it is evaluated again after the jump.
    one_sided: whether f is evaluated just after the start of a step and just before its end, for fields that jump at
        these times.
    interpolation: how states between the points of a grid are interpolated, "linear" or "cubic".
    dense: whether the interpolant of every step is kept.
    compile: True if the step is compiled, "solve" if the whole loop is compiled, else False.
    compile_math: "exact", or "fast" for faster functions in compiled solves.
    """

    method: Method
    tolerance: control.Tolerance | None
    grid: GridFunction | None
    corners: Corners | None = None
    first_step: float | None = None
    max_steps: int = 100_000
    min_step: float = 0.0
    max_step: float = math.inf
    controller: control.Controller = control.CONTROLLERS["integral"]
    norm: control.Norm = control.rms
    group: ProcessGroup | None = None
    step_times: tuple[float, ...] = ()
    jump_times: frozenset[float] = frozenset()
    one_sided: bool = False
    interpolation: str = "cubic"
    dense: bool = False
    compile: bool | Literal["solve"] = False
    compile_math: str = "exact"

    def side(self, start: float, end: float) -> float:
        """Return the direction of time, +1 or -1, if ``one_sided`` is set, else 0; see ``StepperOptions``."""
        return math.copysign(1.0, end - start) if self.one_sided else 0.0

    def stop_times(self, start: float, end: float) -> list[float]:
        """Return the times that a step must end at, in order from ``start`` to ``end``; the last one is ``end``."""
        inside = {time for time in self.step_times if min(start, end) < time < max(start, end)}
        return [*sorted(inside, reverse=end < start), end]


def even_grid(step_size: float) -> GridFunction:
    """Make a grid that divides each interval between two times into equal steps of at most this size."""

    def grid(times: list[float]) -> list[float]:
        points = [times[0]]
        for start, end in itertools.pairwise(times):
            num_steps = max(1, math.ceil(abs(end - start) / step_size - 1e-9))
            h = (end - start) / num_steps
            points += [start + n * h for n in range(1, num_steps)]
            points.append(end)
        return points

    return grid


def corners_at_times(times: list[float], shifts: Tensor) -> dict[float, Tensor]:
    """Return the corners of a grid that divides each interval between two times evenly: the times themselves."""
    return dict(zip(times, shifts, strict=True))


def grid_of_full_steps(step_size: float, dtype: torch.dtype) -> GridFunction:
    """Make a grid of steps of this size, with a shorter last step; it is computed in the dtype of the times."""

    def grid(times: list[float]) -> list[float]:
        sign = 1.0 if times[-1] > times[0] else -1.0
        start, end = (torch.tensor(sign * time, dtype=dtype) for time in (times[0], times[-1]))
        num_points = int(torch.ceil((end - start) / step_size + 1).item())
        points = torch.arange(num_points, dtype=dtype) * step_size + start
        return [times[0], *(sign * point for point in points[1:-1].tolist()), times[-1]]

    return grid


def corners_of_full_steps(grid: GridFunction) -> Corners:
    """Return the corners of a ``grid_of_full_steps``: all points except the last move with the first."""

    def corners(times: list[float], shifts: Tensor) -> dict[float, Tensor]:
        points = grid(times)
        return {points[0]: shifts[0], points[-2]: shifts[0], points[-1]: shifts[-1]}

    return corners


def constructed_grid(constructor: Callable[[Tensor], Any], t: Tensor) -> tuple[GridFunction, Corners | None]:
    """Return the grid that a user's function makes from the output times t [T]; all of its points are corners.

    If t needs a gradient, the grid is made only once, with the graph of t. Raises ValueError unless the grid goes from
    the first time to the last.
    """

    def construct(t: Tensor) -> tuple[list[float], Tensor]:
        grid, times = torch.as_tensor(constructor(t)), t.tolist()
        points = grid.tolist()
        # A step between two equal points has no effect.
        steps = [i for i, point in enumerate(points) if i == 0 or point != points[i - 1]]
        points, grid = [points[i] for i in steps], grid[steps]
        if len(points) < 2 or points[0] != times[0] or points[-1] != times[-1]:
            raise ValueError(f"grid_constructor must return times from {times[0]:.6g} to {times[-1]:.6g}, as in t")
        return points, grid - grid.detach()

    if not needs_derivative(t):
        return lambda times: construct(torch.tensor(times, dtype=t.dtype, device=t.device))[0], None
    points, moved = construct(t)

    def corners(times: list[float], shifts: Tensor) -> dict[float, Tensor]:
        ends = {points[0]: shifts[0], points[-1]: shifts[-1]}
        return {**dict(zip(points, moved.to(shifts), strict=True)), **ends}

    return lambda times: points, corners

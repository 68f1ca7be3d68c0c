"""The adaptive or fixed step sizes of each row.

The rules are those of ``odebench.ode.control``. Times, step sizes and errors of all rows are float64 on the host. Each
step therefore synchronises with the device once, to read its errors.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from odebench.ode.control import END_STRETCH, SMALLEST_RATIO, SMALLEST_STEP, SMALLEST_TIME, Tolerance, step_factors
from odebench.ode.per_sample.problem import RowProblem, row_rms, take_rows
from odebench.ode.per_sample.stepping import RowStep, RowStepper
from odebench.ode.plan import GridFunction, SolvePlan, even_grid
from odebench.ode.solution import Status
from odebench.ode.torch_func import to_list


class RowStepSizes(Protocol):
    """The step sizes of the active rows.

    h: [b] the signed size of the next step.
    t_next: [b] the time at which it ends.
    last: [b] whether this is the last time of the row.
    error_ratio: [b] the error of the last attempt in units of the tolerance.
    """

    h: Tensor
    t_next: Tensor
    last: Tensor
    error_ratio: Tensor

    def choose(self, t: Tensor) -> Tensor | None:
        """Choose the next step of each row from t [b].

        Returns None if every row has a next step; otherwise [b], True for rows whose step would be too small.
        """

    def accept_or_reject(self, stepper: RowStepper, step: RowStep) -> Tensor:
        """Return whether each row accepts its attempt, [b]."""

    def select(self, idx: Tensor) -> None:
        """Keep only the rows at the indices ``idx``."""

    def failure_statuses(self, attempted: bool) -> list[Status]:
        """Return, for each row, the status to give it if it has no next step.

        attempted: whether any step was attempted already.
        """


class AdaptiveStepSizes:
    """Steps as large as the tolerance allows, chosen for each row separately.

    proposal: [b] the step sizes that the controller proposes.
    """

    def __init__(self, problem: RowProblem, plan: SolvePlan) -> None:
        assert plan.tolerance is not None
        self._tolerance, self._controller, self._order = plan.tolerance, plan.controller, plan.method.order
        self._min_step, self._max_step = plan.min_step, plan.max_step
        self._bounded = plan.min_step > 0 or plan.max_step < math.inf
        start, self._end = problem.times[0], problem.times[-1]
        self._direction = torch.sign(self._end - start)
        # The smallest step at the largest time: a bound of the smallest steps at all times.
        self._smallest = SMALLEST_STEP * torch.maximum(start.abs(), self._end.abs())
        self._past_ratios = torch.ones(2, len(start), dtype=torch.float64, device="cpu")
        self.error_ratio = self.h = self.t_next = self._step = torch.full_like(start, math.nan)
        self.last = torch.zeros(len(start), dtype=torch.bool, device="cpu")
        self.proposal = torch.full_like(start, plan.first_step or math.nan)

    def choose(self, t: Tensor) -> Tensor | None:
        """Fit the proposed step to the remaining span, as ``control.fit_to_end`` does."""
        h = self.proposal
        longest_step = h * END_STRETCH
        if self._bounded:
            h = h.clamp(self._min_step, self._max_step)
            longest_step = (h * END_STRETCH).clamp_(max=self._max_step)
        remaining = (self._end - t).abs_()
        self.last = remaining <= longest_step
        self._step = torch.where(self.last, remaining, torch.minimum(h, 0.5 * remaining))
        self.h = self._step * self._direction
        self.t_next = torch.where(self.last, self._end, t + self.h)
        if not bool((self._step < self._smallest).any()):
            return None
        smallest = torch.maximum(SMALLEST_STEP * t.abs(), SMALLEST_TIME * self._smallest)
        underflowed = (self._step < smallest) & ~self.last
        return underflowed if bool(underflowed.any()) else None

    def accept_or_reject(self, stepper: RowStepper, step: RowStep) -> Tensor:
        """Compare the errors with the tolerance and propose the next sizes."""
        with torch.no_grad():
            size = torch.maximum(step.y.abs(), step.y_next.abs())
            self.error_ratio = _error_ratio(self._tolerance, stepper.error(step), size)
        # NaN is a rejection too.
        accepted = self.error_ratio <= 1
        if self._min_step > 0:
            accepted |= (self.proposal <= self._min_step) & (self.error_ratio < math.inf)
        proposal = self._propose(accepted)
        # A step that was shortened to reach the end must not reduce the proposed size.
        shortened = accepted & (self._step < self.proposal)
        self.proposal = torch.where(shortened, torch.maximum(proposal, self.proposal), proposal)
        return accepted

    def select(self, idx: Tensor) -> None:
        """Keep only the rows at the indices ``idx``."""
        parts = (self._end, self._direction, self._smallest, self.proposal, self.error_ratio)
        self._end, self._direction, self._smallest, self.proposal, self.error_ratio = (take_rows(x, idx) for x in parts)
        self._past_ratios = self._past_ratios.index_select(1, idx)
        tolerances = (self._tolerance.rtol, self._tolerance.atol)
        self._tolerance = Tolerance(*(x if isinstance(x, float) else take_rows(x, idx) for x in tolerances))

    def failure_statuses(self, attempted: bool) -> list[Status]:
        """Return non_finite for rows whose last error was infinite or NaN, and step_underflow for the others.

        Before the first step, only the rows whose error was set to infinity by ``search_first_step`` are non_finite.
        """
        non_finite = ~(self.error_ratio < math.inf) if attempted else self.error_ratio == math.inf
        return [Status.non_finite if x else Status.step_underflow for x in to_list(non_finite)]

    def _propose(self, accepted: Tensor) -> Tensor:
        """Return the next step sizes [b]; with PI and PID control, store the errors that later steps need."""
        ratio, controller = self.error_ratio, self._controller
        factors = step_factors(controller, self._order, ratio, accepted, self._past_ratios.unbind())
        if controller.proportional or controller.derivative:
            ratios = torch.stack((ratio.clamp(min=SMALLEST_RATIO), self._past_ratios[0]))
            self._past_ratios = torch.where(accepted, ratios, self._past_ratios)
        return factors.mul_(self._step)

    def search_first_step(self, problem: RowProblem, rows: Tensor, t: Tensor, y: Tensor, f: Tensor) -> None:
        """Propose the first step of these rows [b] as ``control.first_step`` does; f: the value f(t, y).

        If a row has no first step, the proposal is 0. If y or f is not finite, the error of the row is set to infinity.
        """
        with torch.no_grad():
            scale = self._tolerance.scale(y.abs())
            d0, d1 = row_rms(y / scale), row_rms(f / scale)
            h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
            invalid = ~h0.isfinite() | (h0 == 0)
            h0 = torch.minimum(h0, (self._end - t).abs()).masked_fill_(invalid, 0)
            step = self._direction * h0
            y1 = torch.addcmul(y, f, problem.on_device(step).unsqueeze(1))
            f1 = problem(problem.on_device(t + step), y1, rows)
            d2 = row_rms((f1 - f) / scale) / h0
            steepest = torch.fmax(d1, d2)
            h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / steepest).pow(1 / self._order))
            self.proposal = torch.minimum(100 * h0, h1).masked_fill_(invalid, 0)
            if not bool(self.proposal.all()):
                finite = (y.isfinite() & f.isfinite() & y1.isfinite() & f1.isfinite()).all(1).cpu()
                self.error_ratio = self.error_ratio.masked_fill((self.proposal == 0) & ~finite, math.inf)


class FixedStepSizes:
    """Fixed steps from each time of the plan's grid to the next; each row has a grid made from its own output times."""

    def __init__(self, problem: RowProblem, plan: SolvePlan) -> None:
        assert plan.grid is not None
        shared = problem.t.dim() == 1
        grids = [plan.grid(times) for times in to_list(problem.row_times[: 1 if shared else None])]
        self._count = torch.tensor([len(grid) - 1 for grid in grids], device="cpu").expand(problem.num_rows)
        longest = max(map(len, grids), default=1)
        padded = [grid + [math.nan] * (longest - len(grid)) for grid in grids]
        self._grid = torch.tensor(padded, dtype=torch.float64, device="cpu").expand(problem.num_rows, longest)
        self._position = 0
        self.error_ratio = problem.row_times.new_full((problem.num_rows,), math.nan)
        self.h = self.t_next = self.error_ratio
        self.last = self._count == 0

    def choose(self, t: Tensor) -> Tensor | None:
        """Choose the step to the next point of each row's grid."""
        self._position += 1
        self.t_next = self._grid[:, self._position]
        self.h = self.t_next - t
        self.last = self._count == self._position
        return None

    def accept_or_reject(self, stepper: RowStepper, step: RowStep) -> Tensor:
        """Accept every step."""
        return torch.ones(len(step.rows), dtype=torch.bool, device="cpu")

    def select(self, idx: Tensor) -> None:
        """Keep only the rows at the indices ``idx``."""
        parts = (self._grid, self._count, self.error_ratio)
        self._grid, self._count, self.error_ratio = (take_rows(x, idx) for x in parts)

    def failure_statuses(self, attempted: bool) -> list[Status]:
        """Return an empty list: fixed steps do not fail."""
        return []


def grid_with_num_steps(steps: int) -> GridFunction:
    """Make a grid of ``steps`` steps over the whole span; it divides each interval between two times evenly."""

    def grid(times: list[float]) -> list[float]:
        return even_grid(abs(times[-1] - times[0]) / steps)(times)

    return grid


def _error_ratio(tolerance: Tolerance, error: Tensor, size: Tensor) -> Tensor:
    """Return the error of each row [b] in units of the tolerance, on the host.

    error: the errors [b, n]. size: the absolute values [b, n] of the states. Both are overwritten.
    """
    rtol, atol = tolerance.rtol, tolerance.atol
    if isinstance(rtol, float) and isinstance(atol, float) and 0 < atol < 1e30 * rtol:
        # rtol divides the norms instead of the states: one tensor operation less.
        return row_rms(error.div_(size.add_(atol / rtol)), rtol)
    return row_rms(error.div_(tolerance.scale(size)))

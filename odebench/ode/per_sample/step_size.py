"""Step sizes of each row: chosen by its error, or given.

The rules are those of ``odebench.ode.control``; all numbers of a row lie on the host in float64, so that a step waits
for the device once, for its errors.
"""

import math
import sys
from typing import Protocol

import torch
from torch import Tensor

from odebench.ode.control import END_STRETCH, Tolerance
from odebench.ode.per_sample.problem import RowProblem, pick, row_norm
from odebench.ode.per_sample.stepping import RowStepper, Step
from odebench.ode.plan import GridFunction, SolvePlan, even_grid
from odebench.ode.solution import Status


class Pace(Protocol):
    """The step sizes of the rows at work.

    h: [b] the step to be tried, signed; it leads to ``t_next``, which is the row's last time where ``last``.
    ratio: [b] the error of the last attempt in units of the tolerance.
    """

    h: Tensor
    t_next: Tensor
    last: Tensor
    ratio: Tensor

    def offer(self, t: Tensor) -> Tensor | None:
        """Find the next step at t [b]; the rows [b] that have none."""

    def judge(self, stepper: RowStepper, step: Step) -> Tensor:
        """The rows [b] whose attempt is accepted."""

    def select(self, rows: Tensor) -> None:
        """Go on with the rows at these positions."""

    def verdict(self) -> list[Status]:
        """Why each row has no next step, should it have none."""


class AdaptivePace:
    """As large as the tolerance allows, for each row by itself.

    proposal: [b] the size the controller wants next.
    """

    def __init__(self, problem: RowProblem, plan: SolvePlan) -> None:
        assert plan.tolerance is not None
        self._tolerance, self._rule, self._order = plan.tolerance, plan.controller, plan.method.order
        self._min_step, self._max_step = plan.min_step, plan.max_step
        self._bounded = plan.min_step > 0 or plan.max_step < math.inf
        start, self._end = problem.times[0], problem.times[-1]
        self._direction = torch.sign(self._end - start)
        self._smallest = 8 * sys.float_info.epsilon * torch.maximum(start.abs(), self._end.abs())
        self._keep = torch.ones((), dtype=torch.float64)
        self._shrink = torch.full_like(self._keep, plan.controller.min_factor)
        self._past = torch.ones(2, len(start), dtype=torch.float64)
        self.ratio = self.h = self.t_next = self._step = torch.full_like(start, math.nan)
        self.last = torch.zeros(len(start), dtype=torch.bool)
        self.proposal = torch.full_like(start, plan.first_step or math.nan)

    def offer(self, t: Tensor) -> Tensor | None:
        """The proposed step fitted to what remains, as ``control.fit_to_end`` does."""
        h = self.proposal
        reach = h * END_STRETCH
        if self._bounded:
            h = h.clamp(self._min_step, self._max_step)
            reach = (h * END_STRETCH).clamp_(max=self._max_step)
        remaining = (self._end - t).abs_()
        self.last = remaining <= reach
        self._step = torch.where(self.last, remaining, torch.minimum(h, 0.5 * remaining))
        self.h = self._step * self._direction
        self.t_next = torch.where(self.last, self._end, t + self.h)
        tiny = self._step < self._smallest
        if not bool(tiny.any()):
            return None
        stuck = tiny & ~self.last
        return stuck if bool(stuck.any()) else None

    def judge(self, stepper: RowStepper, step: Step) -> Tensor:
        """Compare the errors with the tolerance and propose the next sizes."""
        with torch.no_grad():
            size = torch.maximum(step.y.abs(), step.y_next.abs())
            self.ratio = _ratio(self._tolerance, stepper.error(step), size)
        # NaN is a rejection too.
        accepted = self.ratio <= 1
        if self._min_step > 0:
            accepted |= (self._step <= self._min_step) & (self.ratio < math.inf)
        proposal = self._propose(accepted)
        # A step cut short by the end says nothing against the size that was proposed for it.
        cut = accepted & (self._step < self.proposal)
        self.proposal = torch.where(cut, torch.maximum(proposal, self.proposal), proposal)
        return accepted

    def select(self, rows: Tensor) -> None:
        """Go on with the rows at these positions."""
        self._end, self._direction = pick(self._end, rows), pick(self._direction, rows)
        self._smallest, self._past = pick(self._smallest, rows), self._past.index_select(1, rows)
        self.proposal, self.ratio = pick(self.proposal, rows), pick(self.ratio, rows)
        self._tolerance = Tolerance(*(x if isinstance(x, float) else pick(x, rows) for x in _parts(self._tolerance)))

    def verdict(self) -> list[Status]:
        """Its error stays too large, or is no number."""
        return [Status.step_underflow if ratio < math.inf else Status.non_finite for ratio in self.ratio.tolist()]

    def _propose(self, accepted: Tensor) -> Tensor:
        """``control.ControllerState.propose`` for rows; ``fmax`` takes the smallest factor where the error is NaN."""
        rule, ratio = self._rule, self.ratio
        p, i, d = rule.proportional, rule.integral, rule.derivative
        factor = ratio.pow(-1 / self._order).mul_(rule.safety)
        if p or d or i != 1:
            ratio = ratio.clamp(min=1e-12)
            factor_accepted = rule.safety * ratio.pow(-(p + i + d) / self._order)
            if p or d:
                before, earlier = self._past
                factor_accepted *= before.pow((p + 2 * d) / self._order) * earlier.pow(-d / self._order)
                self._past = torch.where(accepted, torch.stack((ratio, before)), self._past)
            factor = torch.where(accepted, factor_accepted, factor)
        # Integral control never shrinks after an accepted step.
        floor = self._shrink if p or d else torch.where(accepted, self._keep, self._shrink)
        return torch.fmax(factor, floor).clamp_(max=rule.max_factor).mul_(self._step)

    def search(self, problem: RowProblem, rows: Tensor, t: Tensor, y: Tensor, f: Tensor) -> None:
        """Propose the first step of these rows [b] from f = f(t, y), as ``control.first_step`` does; zero where y or f
        is too large for a number."""
        with torch.no_grad():
            scale = self._tolerance.scale(y.abs())
            d0, d1 = row_norm(y / scale), row_norm(f / scale)
            h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
            bad = ~h0.isfinite() | (h0 == 0)
            h0 = torch.minimum(h0, (self._end - t).abs()).masked_fill_(bad, 0)
            step = self._direction * h0
            y1 = torch.addcmul(y, f, problem.on_device(step).unsqueeze(1))
            f1 = problem(problem.on_device(t + step), y1, rows)
            d2 = row_norm((f1 - f) / scale) / h0
            steepest = torch.fmax(d1, d2)
            h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / steepest).pow(1 / self._order))
            self.proposal = torch.minimum(100 * h0, h1).masked_fill_(bad, 0)


class FixedPace:
    """Through the times of the plan's grid, for each row those that its own times give."""

    def __init__(self, problem: RowProblem, plan: SolvePlan) -> None:
        assert plan.grid is not None
        shared = problem.t.dim() == 1
        grids = [plan.grid(times) for times in problem.table[: 1 if shared else None].tolist()]
        self._count = torch.tensor([len(grid) - 1 for grid in grids]).expand(problem.num_rows)
        longest = max(map(len, grids), default=1)
        padded = [grid + [math.nan] * (longest - len(grid)) for grid in grids]
        self._grid = torch.tensor(padded, dtype=torch.float64).expand(problem.num_rows, longest)
        self._position = 0
        self.ratio = problem.table.new_full((problem.num_rows,), math.nan)
        self.h = self.t_next = self.ratio
        self.last = self._count == 0

    def offer(self, t: Tensor) -> Tensor | None:
        """The next interval of each grid."""
        self._position += 1
        self.t_next = self._grid[:, self._position]
        self.h = self.t_next - t
        self.last = self._count == self._position
        return None

    def judge(self, stepper: RowStepper, step: Step) -> Tensor:
        """Every step counts."""
        return torch.ones(len(step.rows), dtype=torch.bool)

    def select(self, rows: Tensor) -> None:
        """Go on with the rows at these positions."""
        self._grid, self._count, self.ratio = pick(self._grid, rows), pick(self._count, rows), pick(self.ratio, rows)

    def verdict(self) -> list[Status]:
        """A grid has a next step until it ends."""
        return []


def counted_grid(steps: int) -> GridFunction:
    """So many steps over the whole span, whatever its length; each interval between two times is divided evenly."""

    def grid(times: list[float]) -> list[float]:
        return even_grid(abs(times[-1] - times[0]) / steps)(times)

    return grid


def _parts(tolerance: Tolerance) -> tuple[float | Tensor, float | Tensor]:
    return tolerance.rtol, tolerance.atol


def _ratio(tolerance: Tolerance, error: Tensor, size: Tensor) -> Tensor:
    """The error of each row [b] in units of the tolerance, on the host; both arguments [b, n] are overwritten."""
    rtol, atol = _parts(tolerance)
    if isinstance(rtol, float) and isinstance(atol, float) and 0 < atol < 1e30 * rtol:
        # rtol is left to the numbers of the rows: one operation on the states less.
        return row_norm(error.div_(size.add_(atol / rtol)), rtol)
    return row_norm(error.div_(tolerance.scale(size)))

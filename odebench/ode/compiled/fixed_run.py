"""Runs fixed steps as compiled loops and reads the results."""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from odebench.ode.compiled.field import GraphField
from odebench.ode.compiled.fixed import make_fixed_backward, make_fixed_forward
from odebench.ode.compiled.graph import NotCompiledError, SolveGraphs
from odebench.ode.dense import HERMITE, Interpolant
from odebench.ode.integrate import IntegrationResult, grid_with_stops
from odebench.ode.methods.tableau import Tableau
from odebench.ode.plan import SolvePlan, corners_at_times
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import SolveOutcome, Status

# Steps of one run of the loop, at least MIN_ROWS and at most MAX_ROWS: as many as BUFFER_BYTES hold the states of. A
# longer solve enters the loop again.
MIN_ROWS, MAX_ROWS, BUFFER_BYTES = 4, 128, 2**26


class FixedGraphs(SolveGraphs):
    """The graphs of solves by fixed steps. dense: whether to keep dense output."""

    def __init__(self, field: GraphField, modules: Sequence[nn.Module], method: Tableau, dense: bool) -> None:
        super().__init__(field, modules, method, make_fixed_forward(field, method))
        self.dense = dense


class StoredPath(NamedTuple):
    """The n steps of one run of the loop, from the point ``start`` on; for the tensors see ``make_fixed_forward``."""

    start: int
    n: int
    grid: Tensor
    path: Tensor
    slopes: Tensor | None


class FixedSolve:
    """A solve by fixed steps.

    points: its grid, up to ``max_steps``. moves: whether t gets the gradient of the moving grid.
    knots: the K points whose states are results or needed to interpolate them, as indices in order; the first is 0.
    last: the knot of the last state that gets a gradient. The gradient goes back from there, since a later step may not
        be finite.
    """

    def __init__(self, problem: InitialValueProblem, plan: SolvePlan, graphs: FixedGraphs, moves: bool = False) -> None:
        self._problem, self.plan, self.graphs, self.moves = problem, plan, graphs, moves
        times = problem.times
        self._grid = grid_with_stops(times, plan)
        self.points = self._grid[: plan.max_steps + 1]
        direction = math.copysign(1.0, times[-1] - times[0])
        keys = [direction * point for point in self.points]
        # For each output the point where its step ends.
        ends = [end for time in times if (end := bisect.bisect_left(keys, direction * time)) < len(keys)]
        inside = any(self.points[end] != time for end, time in zip(ends, times, strict=False))
        # If the grid moves without the output times, their states move along the steps.
        self._interpolates = inside or (moves and plan.corners is not corners_at_times)
        self._ends, self.knots = ends, ends
        if self._interpolates:
            self.knots = sorted({0, *ends, *(end - 1 for end in ends[1:])})
        self.last = ends[-1]
        self._stored: list[StoredPath] = []

    def states(self, y: Tensor, args: list[Tensor], keep: bool) -> Tensor:
        """Step from y [N]; return the states [K, N] at the knots.

        keep: whether to keep all states, for the gradient or dense output.
        """
        dense, states, num_steps = self.graphs.dense, list[Tensor](), len(self.points) - 1
        row_bytes = max(y.numel() * y.element_size() * (4 if dense else 1), 1)
        rows = max(MIN_ROWS, min(MAX_ROWS, BUFFER_BYTES // row_bytes))
        jumps = [i for i, point in enumerate(self.points[:-1]) if dense and point in self.plan.jump_times]
        for start, end in itertools.pairwise(sorted({*range(0, num_steps, rows), *jumps, num_steps})):
            if keep or not start:
                path = y.new_empty(rows, y.numel())
                slopes = y.new_empty(rows, 3, y.numel()) if dense else None
            n = end - start
            grid = torch.tensor(self.points[start : end + 1] + [0.0] * (rows - n), dtype=torch.float64)
            y = self.graphs.forward(torch.tensor(n), grid, y, args, path, slopes)
            knots = self._knots_between(start, end)
            states.append(path[torch.tensor(self.knots[knots], dtype=torch.int64) - start])
            if keep:
                self._stored.append(StoredPath(start, n, grid, path, slopes))
        return torch.cat([*states, y.unsqueeze(0)] if self.knots[-1] == num_steps else states)

    def _knots_between(self, start: int, end: int) -> slice:
        return slice(bisect.bisect_left(self.knots, start), bisect.bisect_left(self.knots, end))

    def gradients(
        self,
        grad_states: Tensor,
        names: tuple[str, ...],
        arg_idx: tuple[int, ...],
        parameters: list[Tensor],
        args: list[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The gradients of y0 [N], of the points, and of the parameters and arguments.

        grad_states: [K, N], that of the states at the knots. names, arg_idx: see ``make_fixed_backward``.
        """
        # Without gradients of states between the first and the last, the graph gets no table of them.
        choices, layout = (self.graphs.method, names, arg_idx, self.moves), len(self.knots) > 2
        graph = self.graphs.gradient(make_fixed_backward, *choices, layout=layout)
        grad_points = torch.zeros(len(self.points), dtype=torch.float64)
        totals = [torch.zeros_like(x) for x in (*parameters, *(args[i] for i in arg_idx))]
        grad_y = grad_states[self.knots.index(self.last)].clone()
        for start, n, grid, path, _ in reversed(self._stored):
            n = min(n, self.last - start)
            if n <= 0:
                continue
            grad_path = None
            if len(self.knots) > 2:
                knots = self._knots_between(start, start + n)
                grad_path = torch.empty_like(path)
                grad_path[:n].zero_()
                grad_path[torch.tensor(self.knots[knots], dtype=torch.int64) - start] = grad_states[knots]
            inputs = (torch.tensor(n), grid, path, grad_y, grad_path, parameters, args)
            try:
                grad_y, *parts = graph(*inputs)
            except NotCompiledError:
                grad_y, *parts = graph.function(*inputs)
            if self.moves:
                grad_starts, grad_ends = parts.pop(0)[:n].unbind(1)
                grad_points[start : start + n] += grad_starts
                grad_points[start + 1 : start + n + 1] += grad_ends
            if parts:
                torch._foreach_add_(totals, parts)
        if len(self.knots) == 2 and self.last > 0:
            grad_y = grad_y + grad_states[0]
        return grad_y, grad_points, totals

    def result(self, states: Tensor, t: Tensor | None = None, points: Tensor | None = None) -> IntegrationResult:
        """Read the result and fill in the statistics of the eager solve.

        states: [K, N] at the knots. t, points: the times and the grid in float64, given if they have a graph.
        """
        times, stats, ends = self._problem.times, self._problem.stats, self._ends
        knot_states, states = states, self._outputs(states, t, points, len(ends))
        status, reached, end_time = Status.success, len(ends), self.points[-1]
        if len(self.points) < len(self._grid):
            status = Status.max_steps
        elif not all(finite := torch.isfinite(states.detach()).all(dim=1).tolist()):
            status, reached = Status.non_finite, finite.index(False)
            end_time = times[max(reached - 1, 0)]
            # Without a graph, since a backward pass through steps that are not finite turns a zero gradient into NaN.
            states = torch.cat([self._outputs(knot_states, t, points, reached), states[reached:].detach()])
        self.last = ends[max(reached - 1, 0)]
        if len(states) < len(times):
            states = torch.cat([states, states.new_full((len(times) - len(states), states.shape[1]), math.nan)])
        stats.start, stats.step_sizes = times[0], [end - start for start, end in itertools.pairwise(self.points)]
        stats.accepted = len(stats.step_sizes)
        # After a jump, the eager solve evaluates f once more.
        jumps = sum(point in self.plan.jump_times for point in self.points[1 : len(self._grid) - 1])
        at_end = self.plan.dense or status is Status.max_steps
        stats.nfe += stats.accepted * self.plan.method.stages + jumps + at_end
        outcome = SolveOutcome(status, reached, end_time, stats.step_sizes[-1], math.nan, stats.nfe)
        rows = list(range(len(times)))
        result = IntegrationResult(states, outcome, abs(outcome.step_size), None, times, rows, end_time)
        result.interpolants = self._interpolants()
        return result

    def _interpolants(self) -> list[Interpolant]:
        """The dense output of each step, if it was kept."""
        chunks = ((x.path[: x.n], x.slopes[: x.n]) for x in self._stored if x.slopes is not None)
        kept = [row for path, slopes in chunks for row in torch.cat([path.unsqueeze(1), slopes], 1).unbind()]
        steps = zip(itertools.pairwise(self.points), kept, strict=False)
        return [Interpolant(t, t_next - t, row[0], row[1:], HERMITE) for (t, t_next), row in steps]

    def _outputs(self, states: Tensor, t: Tensor | None, points: Tensor | None, count: int) -> Tensor:
        """The states at the first ``count`` output times, by linear interpolation; for the others see ``result``."""
        if not self._interpolates or count < 2:
            return states[:count]
        points = torch.tensor(self.points, dtype=torch.float64) if points is None else points
        t = torch.tensor(self._problem.times, dtype=torch.float64) if t is None else t
        ends, knot = self._ends[1:count], {point: i for i, point in enumerate(self.knots)}
        end = torch.tensor(ends)
        theta = (t[1:count] - points[end - 1]) / (points[end] - points[end - 1])
        before, after = (states[torch.tensor([knot[i - back] for i in ends])] for back in (1, 0))
        return torch.cat([states[:1], torch.lerp(before, after, theta.to(states).unsqueeze(1))])

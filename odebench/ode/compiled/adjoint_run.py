"""Runs the compiled loop of a backward solve, again while its table of steps is full, and reads the results."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odebench.ode.compiled.adjoint import AdjointChoices, make_adjoint
from odebench.ode.compiled.graph import SolveGraphs
from odebench.ode.compiled.outputs import padded_length
from odebench.ode.compiled.step_control import LoopState, tolerance_tensor
from odebench.ode.control import SMALLEST_TIME
from odebench.ode.dense import Interpolant, weights_by_power
from odebench.ode.methods.tableau import Tableau
from odebench.ode.plan import SolvePlan
from odebench.ode.solution import SolveOutcome, Stats, Status


class BackwardProgress(NamedTuple):
    """Where a backward solve stands: the numbers [12] that its graph takes and returns.

    state: a ``LoopState``. i: the next stop is that at index i - 1; 0 at the end.
    n, tried: steps stored and tried in this run of the loop. attempts: steps tried in this interval.
    t, h, step: time, proposed and fitted next step.
    ratio, last_ratio, earlier_ratio: the error ratios of the last attempt and of the last two accepted steps.
    scale: the adjoint was divided by it.
    """

    state: float
    i: float
    n: float
    tried: float
    attempts: float
    t: float
    h: float
    step: float
    ratio: float
    last_ratio: float
    earlier_ratio: float
    scale: float

    def outcome(self, direction: float, nfe: int) -> SolveOutcome:
        """How the solve of the last interval ended."""
        if self.state == LoopState.finished:
            status = Status.success
        elif self.state == LoopState.max_steps:
            status = Status.max_steps
        else:
            status = Status.step_underflow if self.attempts == 0 or self.ratio < math.inf else Status.non_finite
        step, attempted = direction * self.step, self.attempts > 0
        return SolveOutcome(status, 1, self.t, step, self.ratio, nfe, attempted=attempted)


class BackwardStart(NamedTuple):
    """The tensors and times that a backward solve starts from, without a graph.

    times, states, gradients: the T output times, and y and dL/dy [T, N] there.
    a, scale: dL/dy [N] at the last time divided by ``scale``.
    parameters, args: those of f. path: see ``path_tables``; or empty.
    """

    times: list[float]
    states: Tensor
    gradients: Tensor
    a: Tensor
    scale: float
    parameters: list[Tensor]
    args: list[Tensor]
    path: list[Tensor]

    def tables(self, plan: SolvePlan) -> tuple[list[list[float]], list[Tensor]]:
        """The list of stops, from the first time to the last, and the tables that ``backward`` gets, padded."""
        last = len(self.times) - 1
        stops = [[self.times[last], 0.0, 1.0]]
        for start, end in itertools.pairwise(reversed(self.times)):
            floor = SMALLEST_TIME * max(abs(start), abs(end))
            stops += [[time, floor, float(time == end)] for time in plan.stop_times(start, end)]
        stops.reverse()
        length = padded_length(len(stops))
        rows = torch.tensor([n for n, (_, _, is_output) in enumerate(stops) if is_output])
        tables = [x.new_zeros(length, x.shape[1]).index_copy_(0, rows, x) for x in (self.states, self.gradients)]
        padding = [[0.0] * 3] * (length - len(stops))
        return stops, [torch.tensor([*stops, *padding], dtype=torch.float64), *tables]

    def lengths(self, tables: list[Tensor]) -> tuple[int, ...]:
        """The padded numbers of rows of these tables and of the path."""
        return tuple(map(len, (tables[0], *self.path[1:2])))


def path_tables(interpolants: Sequence[Interpolant]) -> list[Tensor]:
    """The dense output of n steps as tables for a graph.

    These are its first and last time in increasing order [2]; the start and signed size of each step, and infinity,
    [M, 2]; y and the D slopes of each step [M, D + 1, N]; and the coefficients of its polynomials [p, D].
    """
    first, last = interpolants[0], interpolants[-1]
    rows = [[step.t, step.h] for step in interpolants]
    padding = padded_length(len(rows)) - len(rows)
    steps = torch.tensor([*rows, *[[math.copysign(math.inf, first.h), 1.0]] * padding], dtype=torch.float64)
    slopes = torch.stack([step.stacked_slopes() for step in interpolants])
    kept = torch.cat([torch.stack([step.y for step in interpolants]).unsqueeze(1), slopes], 1)
    kept = torch.nn.functional.pad(kept, (0, 0, 0, 0, 0, padding))
    span = torch.tensor(sorted([first.t, last.t + last.h]), dtype=torch.float64)
    return [span, steps, kept, weights_by_power(first.weights)]


def run_adjoint(
    graphs: SolveGraphs,
    choices: AdjointChoices,
    plan: SolvePlan,
    start: BackwardStart,
    totals: list[Tensor],
    stats: Stats,
) -> tuple[Tensor, SolveOutcome]:
    """Return dL/dy [N] at the first time, and how the solve ended; add the gradients of the targets to ``totals``.

    graphs: of the forward solve. plan: of the backward solve, with a first step.

    Raises NotCompiledError if torch cannot compile the graph.
    """
    assert plan.tolerance is not None
    a, (stops, tables) = start.a, start.tables(plan)
    last = len(stops) - 1
    graph = graphs.gradient(make_adjoint, choices, layout=start.lengths(tables))
    if choices.full and any(x.is_complex() for x in totals):
        graph.refuse("norm='full' needs real parameters and arguments")
    # A graph takes no two views of one tensor.
    z = [a.clone()] if choices.interpolates else [start.states[-1].clone(), a.clone()]
    z += [torch.zeros_like(x, dtype=a.dtype) for x in totals] if choices.full else []
    assert plan.first_step is not None
    direction = math.copysign(1.0, start.times[0] - start.times[1])
    numbers = [plan.min_step, plan.max_step, plan.first_step, plan.max_steps, direction]
    inputs = [
        torch.tensor(numbers, dtype=torch.float64),
        tolerance_tensor(plan.tolerance, a, sum(x.numel() for x in z)),
        *tables,
    ]
    fields = start.parameters, start.args, start.path
    ratios = (math.nan, 1.0, 1.0)
    progress = BackwardProgress(LoopState.full, last, 0, 0, 0, start.times[-1], numbers[2], 0.0, *ratios, start.scale)
    attempts, rows, sums = 0, list[list[float]](), totals
    while progress.state == LoopState.full:
        z, sums, values, steps = graph(torch.tensor(progress, dtype=torch.float64), *inputs, z, sums, *fields)
        progress = BackwardProgress(*values.tolist())
        attempts += int(progress.tried)
        rows += steps[: int(progress.n)].tolist()
    totals[:] = sums
    _count(choices.method, plan, stats, stops, int(progress.i), rows, attempts)
    return z[0 if choices.interpolates else 1], progress.outcome(direction, stats.nfe)


def _count(
    method: Tableau,
    plan: SolvePlan,
    stats: Stats,
    stops: list[list[float]],
    i: int,
    rows: list[list[float]],
    attempts: int,
) -> None:
    """Add the statistics of the eager solve, which evaluates f again where an interval starts and after a jump.

    i: the index of the stop that was reached last. rows: the accepted steps.
    """
    stats.accepted += len(rows)
    stats.rejected += attempts - len(rows)
    stats.step_sizes += [row[1] for row in rows]
    stats.error_ratios += [row[2] for row in rows]
    if rows:
        stats.warm_step = stats.warm_step or rows[0][3]
    solved = sum(is_output for _, _, is_output in stops[i:-1])
    jumps = sum(time in plan.jump_times and not is_output for time, _, is_output in stops[i:])
    stats.nfe += int(solved) + (i > 0) + jumps + attempts * (method.stages - 1)
    if not method.fsal:
        stats.nfe += len(rows) - int(solved)

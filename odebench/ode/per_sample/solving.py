"""Solve a problem with per-sample stepping."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from odebench.ode.gradients import Checkpoint
from odebench.ode.once_differentiable import first_derivative_only
from odebench.ode.per_sample.checkpoint import run_checkpointed
from odebench.ode.per_sample.events import RowEventDetector
from odebench.ode.per_sample.loop import RowLoop
from odebench.ode.per_sample.problem import RowProblem, take_rows
from odebench.ode.plan import SolvePlan
from odebench.ode.solution import RowStats, Solution, SolveOutcome, Status
from odebench.ode.torch_func import check_mode_under_transform, needs_derivative, to_list, transform_active, under_vmap

# From the best to the worst.
SEVERITY = (Status.success, Status.event, Status.max_steps, Status.step_underflow, Status.non_finite)


def solve_rows(problem: RowProblem, plan: SolvePlan, gradient: Any, event: Any) -> Solution:
    """Solve all rows by one plan, each row with its own steps."""
    if transform_active():
        _check_transforms(problem, gradient.name)
    detector = RowEventDetector.from_argument(event, problem)
    loop = RowLoop(problem, plan, detector)
    y0 = problem.y0
    time_needs_gradient = needs_derivative(problem.t)
    if time_needs_gradient:
        y0 = y0 - _time_shift(problem, 0, y0, problem.all_rows())
    if isinstance(gradient, Checkpoint) and torch.is_grad_enabled():
        states = run_checkpointed(loop, y0, gradient.checkpoints)
    else:
        loop.run(y0)
        states = loop.outputs.collect()
    if time_needs_gradient:
        states = _with_time_gradient(problem, states)
    if plan.tolerance is None:
        _mark_non_finite(loop, states)
    ends = loop.outcomes
    rows = RowStats(tuple(ends.status), ends.time, problem.evaluations(), ends.accepted, ends.rejected)
    problem.stats.accepted, problem.stats.rejected = int(rows.accepted.sum()), int(rows.rejected.sum())
    outcome, events = _outcome(loop, states), () if detector is None else detector.collect()
    return Solution(problem.t, problem.unflatten(states), problem.stats, outcome, events=events, rows=rows)


def _check_transforms(problem: RowProblem, mode: str) -> None:
    """Raise ValueError if the solve does not support ``torch.func`` or forward-mode differentiation."""
    check_mode_under_transform(mode)
    with torch.no_grad():
        # Evaluate f once more: it may capture a batched tensor in its closure.
        rate = problem.evaluate(problem.time_tensors(problem.times[:1])[0], problem.y0, problem.args)
    if under_vmap(problem.y0) or under_vmap(rate):
        raise ValueError("stepping='per_sample' does not support torch.func.vmap; make the batch its rows instead")


def _outcome(loop: RowLoop, states: Tensor) -> SolveOutcome:
    """Return the outcome of the first row that has the worst status."""
    outcomes, problem = loop.outcomes, loop.problem
    numbers = Counter(outcomes.status)
    worst = max(numbers, key=SEVERITY.index, default=Status.success)
    reached = states.shape[0]
    if worst is not Status.success:
        missing = to_list(states[1:].detach().isnan().flatten(1).any(1))
        reached = 1 + missing.index(True) if True in missing else reached
    if problem.num_rows == 0:
        return SolveOutcome(worst, reached, float("nan"), float("nan"), float("nan"), 0)
    first = outcomes.status.index(worst)
    where = "" if worst is Status.success else f" [{numbers[worst]} of {problem.num_rows} rows, first row {first}]"
    time, step, ratio = (float(x[first]) for x in (outcomes.time, outcomes.step_size, outcomes.error_ratio))
    attempted = bool(outcomes.accepted[first] + outcomes.rejected[first])
    return SolveOutcome(worst, reached, time, step, ratio, problem.stats.nfe, rows=where, attempted=attempted)


def _mark_non_finite(loop: RowLoop, states: Tensor) -> None:
    """Set the status of rows that became NaN or infinite: fixed steps do not stop there."""
    failed = ~states.detach().isfinite().all(2).all(0).cpu()
    for row in to_list(failed.nonzero().squeeze(1)):
        if loop.outcomes.status[row] is Status.success:
            loop.outcomes.status[row] = Status.non_finite


def _time_shift(problem: RowProblem, i: int, y: Tensor, rows: Tensor) -> Tensor:
    """Return (t_i - t_i.detach()) f(t_i, y) [b, n] for these rows.

    The value is zero, and the derivative with respect to t_i is f.
    """
    with torch.no_grad():
        # Detach: under no_grad, f cannot differentiate with respect to a view of a tensor that requires grad.
        f = problem(problem.on_device(take_rows(problem.times[i], rows)), y.detach(), rows)
    t = problem.t.expand(problem.num_rows, -1)[:, i]
    return take_rows((first_derivative_only(t) - t.detach()).to(y.device, y.real.dtype), rows).unsqueeze(1) * f


def _with_time_gradient(problem: RowProblem, states: Tensor) -> Tensor:
    """Make the states differentiable with respect to the times that were reached."""
    shifted = [problem.y0]
    for i in range(1, states.shape[0]):
        rows = (~states[i].detach().isnan().any(1)).nonzero().squeeze(1).cpu()
        if not len(rows):
            shifted.append(states[i])
            continue
        shift = _time_shift(problem, i, take_rows(states[i], rows), rows)
        shifted.append(states[i].index_add(0, rows.to(shift.device), shift))
    return torch.stack(shifted)

"""Runs the compiled loop, enters it again while its buffers fill up, and reads the results."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odebench.ode.compiled.backward import make_backward
from odebench.ode.compiled.field import FieldModule
from odebench.ode.compiled.forward import LoopStages, make_forward
from odebench.ode.compiled.graph import CompiledGraph
from odebench.ode.compiled.outputs import StepBuffers, StoredSteps
from odebench.ode.compiled.step_control import LoopState
from odebench.ode.control import Controller
from odebench.ode.integrate import IntegrationResult, initial_step_size
from odebench.ode.methods.explicit_stepper import stiffness_of
from odebench.ode.methods.tableau import Tableau
from odebench.ode.noise import referenced_objects
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem, StateLayout
from odebench.ode.solution import SolveOutcome, Status
from odebench.ode.transfer import constant

# Steps that the buffers hold, at least MIN_ROWS and at most MAX_ROWS: as many as fit into BUFFER_BYTES. A longer solve
# enters the loop again.
MIN_ROWS, MAX_ROWS, BUFFER_BYTES = 4, 64, 2**26


class CompiledSolve:
    """The graphs of solves that differ only in numbers, and their spare buffers.

    modules: those that f refers to. inner: see ``make_forward``. keep: store the stages of every step.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        modules: Sequence[nn.Module],
        layout: StateLayout,
        method: Tableau,
        controller: Controller,
        inner: bool,
        keep: bool,
    ) -> None:
        self.layout, self.method, self.controller, self.inner = layout, method, controller, inner
        self.module = FieldModule(f, modules)
        self.forward = CompiledGraph(make_forward(f, layout, method, controller, inner), "solve")
        self._backward: dict[Any, CompiledGraph] = {}
        self._keep, self._num_kept = keep, len(LoopStages.of(method, inner).c) + 1
        self._spare: list[tuple[Tensor, Tensor]] = []

    def backward(self, names: tuple[str, ...], arg_idx: tuple[int, ...]) -> CompiledGraph:
        """The graph of the gradients of y0, these parameters and these arguments."""
        key = (names, arg_idx)
        if key not in self._backward:
            function = make_backward(self.module, self.layout, self.method, self.inner, names, arg_idx)
            self._backward[key] = CompiledGraph(function, "gradient")
        return self._backward[key]

    def buffers(self, y: Tensor) -> StepBuffers:
        """Buffers for steps of y [N]."""
        row_bytes = max(self._num_kept * y.numel() * y.element_size(), 1)
        rows = max(MIN_ROWS, min(MAX_ROWS, BUFFER_BYTES // row_bytes)) if self._keep else MAX_ROWS
        return StepBuffers(self._spare, rows, (rows if self._keep else 1, self._num_kept, y.numel()), y)


# Bounded, since each entry keeps its function; a new lambda in every solve compiles every time.
@functools.lru_cache(maxsize=64)
def _compiled_solve(*key: Any) -> CompiledSolve:
    *arguments, _ = key
    return CompiledSolve(*arguments)


def find_compiled_solve(problem: InitialValueProblem, plan: SolvePlan, keep: bool) -> CompiledSolve:
    """The graphs for a problem, compiled before or when they are called. keep: see ``CompiledSolve``.

    Raises ValueError if f or a constant in args is not hashable.
    """
    f, inner = problem.f, len(problem.times) > 2
    # The parameters of a module f are found in each solve.
    modules = () if isinstance(f, nn.Module) else (x for _, x in referenced_objects(f) if isinstance(x, nn.Module))
    choices: tuple[Any, ...] = (problem.layout, plan.method, plan.controller, inner, keep or inner)
    sizes = tuple((arg.shape, arg.dtype) for arg in problem.args)
    try:
        return _compiled_solve(f, tuple(dict.fromkeys(modules)), *choices, sizes)
    except TypeError as error:
        raise ValueError(f"compile='solve': f and the constants in args must be hashable ({error})") from error


class CompiledRun(NamedTuple):
    """A compiled solve that has run: its result without a graph, and the steps that it has stored."""

    result: IntegrationResult
    solve: CompiledSolve
    chunks: list[StoredSteps]


def run_compiled(
    problem: InitialValueProblem, plan: SolvePlan, k: Tensor | None = None, keep: bool = False
) -> CompiledRun:
    """Solve without a gradient.

    k: f [N] at the first time, if it was evaluated already. keep: whether to store all stages of every step.

    Raises NotCompiledError, after one warning with the reason, if torch cannot compile the solve.
    """
    solve, y0 = find_compiled_solve(problem, plan, keep), problem.y0
    if problem.layout.dtype not in (torch.float32, torch.float64) or y0.device.type != "cpu":
        solve.forward.refuse(
            f"its state must be of float32 or float64 and on the CPU, not {problem.layout.dtype} on {y0.device}"
        )
    if problem.layout.autocast is not None:
        solve.forward.refuse("autocast is on, where compiled code rounds differently")
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        if k is None:
            (t,) = problem.time_tensors(problem.times[:1])
            k = problem(t, y0.detach()).clone()
        return _run(problem, plan, solve, k)


def _run(problem: InitialValueProblem, plan: SolvePlan, solve: CompiledSolve, k: Tensor) -> CompiledRun:
    assert plan.tolerance is not None
    assert plan.tolerance.numbers is not None
    times, y = problem.times, problem.y0.detach()
    t, end, ratio, step, attempts = times[0], times[-1], math.nan, math.nan, 0
    direction = 1.0 if end > t else -1.0
    problem.stats.start = t
    chunks: list[StoredSteps] = []
    h = plan.first_step or initial_step_size(problem, t, y, k, end, plan, plan.method.order)
    if math.isnan(h):
        outcome = SolveOutcome(Status.non_finite, 1, t, step, ratio, problem.stats.nfe, attempted=False)
        return CompiledRun(_result(problem, [y.unsqueeze(0)], outcome, h), solve, chunks)
    tolerance, args = constant(plan.tolerance.numbers, y.dtype, y.device), [arg.detach() for arg in problem.args]
    bounds = [end, direction, plan.min_step, plan.max_step, 1e-12 * max(abs(t), abs(end))]
    past = [1.0, 1.0]
    state: float = LoopState.full
    while state == LoopState.full:
        buffers = solve.buffers(y)
        numbers = torch.tensor([t, h, ratio, *past, *bounds, plan.max_steps - attempts], dtype=torch.float64)
        y, k, info = solve.forward(numbers, tolerance, y, k, args, buffers.steps, buffers.kept)
        state, n, row, tried, t, h, step, ratio, *past = info.tolist()
        attempts += int(tried)
        if tried:
            chunks.append(StoredSteps(buffers, int(n), t, int(row)))
    finished = state == LoopState.finished
    states = _output_states(problem, solve.method, chunks, y if finished else None)
    _count(problem, solve.method, chunks, attempts, finished)
    if finished:
        status, step = Status.success, abs(problem.stats.step_sizes[-1])
    elif state == LoopState.max_steps:
        status = Status.max_steps
    else:
        status = Status.step_underflow if attempts == 0 or ratio < math.inf else Status.non_finite
    reached, attempted = sum(map(len, states)), attempts > 0
    outcome = SolveOutcome(status, reached, t, direction * step, ratio, problem.stats.nfe, attempted=attempted)
    return CompiledRun(_result(problem, states, outcome, h), solve, chunks)


def _output_states(
    problem: InitialValueProblem, method: Tableau, chunks: list[StoredSteps], y_end: Tensor | None
) -> list[Tensor]:
    """The states at the output times that were reached, several [m, N]. y_end: [N] at the last time, if reached."""
    states, reached = [problem.y0.detach().unsqueeze(0)], 1
    for chunk in chunks:
        reached = chunk.locate(problem.times, reached, method)
        if chunk.outputs:
            states.append(chunk.states())
    return states if y_end is None else [*states, y_end.unsqueeze(0)]


def _result(
    problem: InitialValueProblem, states: list[Tensor], outcome: SolveOutcome, next_step: float
) -> IntegrationResult:
    """states: those that were reached, several [m, N]; the others are NaN."""
    times = problem.times
    if outcome.reached < len(times):
        states = [*states, states[0].new_full((len(times) - outcome.reached, states[0].shape[1]), math.nan)]
    return IntegrationResult(torch.cat(states), outcome, next_step, None, times, list(range(len(times))), outcome.time)


def _count(
    problem: InitialValueProblem, method: Tableau, chunks: list[StoredSteps], attempts: int, finished: bool
) -> None:
    """Fill in the statistics of the eager solve, which evaluates no stage that it does not need."""
    stats, times = problem.stats, problem.times
    rows = [row for chunk in chunks for row in chunk.rows]
    stats.accepted, stats.rejected = len(rows), attempts - len(rows)
    stats.step_sizes, stats.error_ratios = [row[1] for row in rows], [row[2] for row in rows]
    stats.warm_step = rows[0][3] if rows else None
    has_outputs = [inside for chunk in chunks for inside in chunk.has_outputs_inside(times)]
    stats.nfe += attempts * (method.stages - 1) + sum(has_outputs) * len(method.extra_c)
    if not method.fsal:
        followed = has_outputs[:-1] if finished else has_outputs
        # The first extra stage may be the next step's first stage.
        stats.nfe += followed.count(False) if method.end_stage is not None else len(followed)
    if chunks:
        kept = chunks[-1].buffers.kept
        last = kept[chunks[-1].last_row if len(kept) > 1 else 0]
        stats.stiffness = stiffness_of(method, last[1 : method.stages + 1])

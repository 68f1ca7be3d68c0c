"""Runs the compiled loop, enters it again at times that a step must end at and when its buffers are full."""

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odebench.ode.compiled.backward import make_backward
from odebench.ode.compiled.field import GraphField, modules_of, names_of
from odebench.ode.compiled.fixed_run import FixedGraphs, FixedSolve
from odebench.ode.compiled.forward import LoopStages, make_forward
from odebench.ode.compiled.graph import CompiledGraph, SolveGraphs, for_any_batch
from odebench.ode.compiled.outputs import StepBuffers, StoredSteps, padded_length
from odebench.ode.compiled.step_control import LoopState, tolerance_tensor
from odebench.ode.control import SMALLEST_TIME, Controller, LargestRms
from odebench.ode.dense import weights_by_power
from odebench.ode.integrate import IntegrationResult
from odebench.ode.methods.tableau import Tableau
from odebench.ode.noise import held_objects
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import SolveOutcome, Status
from odebench.ode.transfer import constant

# Steps that the buffers hold, at least MIN_ROWS and at most MAX_ROWS: as many as fit into BUFFER_BYTES. A longer solve
# enters the loop again.
MIN_ROWS, MAX_ROWS, BUFFER_BYTES = 4, 64, 2**26

NO_PARAMETER = "f uses a tensor that requires a gradient and is no parameter of a module; pass it through args=(...)"


class CompiledSolve(SolveGraphs):
    """The graphs of solves by adaptive steps, and their spare buffers.

    inner, by_tensor: see ``make_forward``. keep: store the stages of every step.
    """

    def __init__(
        self,
        field: GraphField,
        modules: Sequence[nn.Module],
        method: Tableau,
        controller: Controller,
        inner: bool,
        by_tensor: bool,
        keep: bool,
    ) -> None:
        super().__init__(field, modules, method, make_forward(field, method, controller, inner, by_tensor))
        assert method.dense is not None
        self.inner, self.polynomials = inner, weights_by_power(method.dense)
        self._keep, self._num_kept = keep, len(LoopStages.of(method, inner).c) + 1
        self._spare: list[tuple[Tensor, Tensor]] = []

    def backward(self, names: tuple[str, ...], arg_idx: tuple[int, ...]) -> CompiledGraph:
        """The graph of the gradients of y0, these parameters and these arguments."""
        return self.gradient(make_backward, self.method, self.inner, names, arg_idx)

    def buffers(self, y: Tensor) -> StepBuffers:
        """Buffers for steps of y [N]."""
        row_bytes = max(self._num_kept * y.numel() * y.element_size(), 1)
        rows = max(MIN_ROWS, min(MAX_ROWS, BUFFER_BYTES // row_bytes)) if self._keep else MAX_ROWS
        return StepBuffers(self._spare, rows, (rows if self._keep else 1, self._num_kept, y.numel()), y)


# Bounded, since each entry keeps its function; a new lambda in every solve compiles every time.
@functools.lru_cache(maxsize=64)
def _compiled_solve(kind: Callable[..., Any], *key: Any) -> Any:
    return kind(*key)


def find_compiled_solve(problem: InitialValueProblem, plan: SolvePlan, keep: bool) -> CompiledSolve:
    """The graphs for a problem, compiled before or when they are called. keep: see ``CompiledSolve``.

    Raises ValueError if f or a constant in args is not hashable.
    """
    inner = len(problem.times) > 2 or plan.dense
    by_tensor = isinstance(plan.norm, LargestRms)
    solve: CompiledSolve = _find(CompiledSolve, problem, plan, plan.controller, inner, by_tensor, keep or inner)
    return solve


def find_fixed_graphs(problem: InitialValueProblem, plan: SolvePlan) -> FixedGraphs:
    """The graphs for fixed steps; see ``find_compiled_solve``."""
    graphs: FixedGraphs = _find(FixedGraphs, problem, plan, plan.dense)
    return graphs


def _find(kind: Callable[..., Any], problem: InitialValueProblem, plan: SolvePlan, *choices: Any) -> Any:
    f = problem.f
    # The parameters of a module f are found in each solve.
    modules = () if isinstance(f, nn.Module) else modules_of([f])
    try:
        field = GraphField(f, for_any_batch(problem.layout), plan.one_sided, plan.compile_math)
        return _compiled_solve(kind, field, modules, plan.method, *choices)
    except TypeError as error:
        raise ValueError(f"compile='solve': f and the constants in args must be hashable ({error})") from error


class FixedRun(NamedTuple):
    """A compiled solve by fixed steps that has run, and its graphs; see ``CompiledRun``."""

    result: IntegrationResult
    solve: FixedGraphs


class CompiledRun(NamedTuple):
    """A compiled solve that has run: its result without a graph, the steps that it has stored, and its times [T],
    followed by NaN."""

    result: IntegrationResult
    solve: CompiledSolve
    chunks: list[StoredSteps]
    times: Tensor


def run_solve(
    problem: InitialValueProblem, plan: SolvePlan, parameters: Sequence[Tensor] = ()
) -> CompiledRun | FixedRun:
    """Solve by fixed or adaptive steps without a gradient; see ``run_compiled``."""
    if plan.grid:
        return run_fixed(problem, plan, parameters)
    return run_compiled(problem, plan, parameters=parameters)


def run_compiled(
    problem: InitialValueProblem, plan: SolvePlan, keep: bool = False, parameters: Sequence[Tensor] = ()
) -> CompiledRun:
    """Solve without a gradient.

    keep: whether to store all stages of every step.
    parameters: the tensors besides y0 and args that a compiled backward solve will give gradients.

    Raises NotCompiledError, after one warning with the reason, if torch cannot compile the solve.
    """
    solve = find_compiled_solve(problem, plan, keep)
    if parameters and names_of(parameters, solve.module) is None:
        solve.forward.refuse(NO_PARAMETER)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        check_field(problem, solve)
        return _run(problem, plan, solve, problem.y0.detach(), keep or plan.dense)


def run_fixed(problem: InitialValueProblem, plan: SolvePlan, parameters: Sequence[Tensor] = ()) -> FixedRun:
    """Solve by fixed steps without a gradient; see ``run_compiled``."""
    graphs = find_fixed_graphs(problem, plan)
    if parameters and names_of(parameters, graphs.module) is None:
        graphs.forward.refuse(NO_PARAMETER)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        check_field(problem, graphs)
        solve = FixedSolve(problem, plan, graphs)
        states = solve.states(problem.y0.detach(), [arg.detach() for arg in problem.args], keep=plan.dense)
        return FixedRun(solve.result(states), graphs)


def check_field(problem: InitialValueProblem, solve: SolveGraphs) -> None:
    """Raise NotCompiledError, after one warning, for states that are not solved compiled; check f at its first use."""
    device = problem.y0.device
    if problem.layout.dtype not in (torch.float32, torch.float64) or device.type != "cpu":
        solve.forward.refuse(
            f"its state must be of float32 or float64 and on the CPU, not {problem.layout.dtype} on {device}"
        )
    if problem.layout.autocast is not None:
        solve.forward.refuse("autocast is on, where compiled code rounds differently")
    if not solve.is_checked:
        _check_evaluation(problem, solve)


def _check_evaluation(problem: InitialValueProblem, solve: SolveGraphs) -> None:
    """Evaluate f outside of the graph, where its result and its noise are checked.

    Refuses f if it replaces a Python object that it refers to, such as a counter, as the compiled loop would not.
    """
    nfe, y, (t,) = problem.stats.nfe, problem.y0.detach(), problem.time_tensors(problem.times[:1])
    problem(t, y)  # may make what f keeps for all later evaluations
    before = held_objects(problem.f)
    problem(t, y)
    changed = [name for name, value in held_objects(problem.f).items() if before.get(name) is not value]
    problem.stats.nfe, solve.is_checked = nfe, True
    if changed:
        solve.forward.refuse(f"f changes {changed[0]} in each evaluation; a compiled solve evaluates no Python")


def _run(problem: InitialValueProblem, plan: SolvePlan, solve: CompiledSolve, y: Tensor, keep: bool) -> CompiledRun:
    assert plan.tolerance is not None
    t, end = problem.times[0], problem.times[-1]
    h, ratio, past, attempts = plan.first_step or math.nan, math.nan, [1.0, 1.0], 0
    direction = math.copysign(1.0, end - t)
    bounds = [plan.min_step, plan.max_step, SMALLEST_TIME * max(abs(t), abs(end))]
    tolerance, args = tolerance_tensor(plan.tolerance, y, y.numel()), [arg.detach() for arg in problem.args]
    times = _padded(problem.times)
    states = constant((0.0,), y.dtype, y.device).expand(len(times), y.numel())
    chunks: list[StoredSteps] = []
    stops = plan.stop_times(t, end)
    buffers = solve.buffers(y)
    while True:
        start = t
        left = [stops[0], end - t, direction, *bounds, plan.max_steps - attempts]
        numbers = torch.tensor([t, h, ratio, *past, *left], dtype=torch.float64)
        y, states, *weights, info = solve.forward(
            numbers, tolerance, times, solve.polynomials, states, y, args, buffers.steps, buffers.kept
        )
        state, n, _, tried, t, h, step, ratio, *past, searched, slope_norm, state_norm = info.tolist()
        attempts += int(tried)
        problem.stats.nfe += int(searched)
        rows = buffers.steps[: int(n)].tolist()
        chunks.append(StoredSteps(buffers, int(n), (start, t), rows, weights))
        if state == LoopState.finished:
            stops.pop(0)
        if not stops or state not in (LoopState.finished, LoopState.full):
            break
        if keep:
            buffers = solve.buffers(y)
    _count(problem, plan, solve, chunks, attempts)
    if attempts and solve.method.last_differences:
        problem.stats.stiffness = slope_norm / state_norm if state_norm > 0 else 0.0
    if not stops:
        status, reached, step = Status.success, len(problem.times), abs(rows[-1][1])
    else:
        status = _status(state, attempts, ratio)
        reached = bisect.bisect_right(problem.times, direction * t, key=lambda time: direction * time)
    outcome = SolveOutcome(status, reached, t, direction * step, ratio, problem.stats.nfe, attempted=attempts > 0)
    states, output_rows = states[: len(problem.times)], list(range(len(problem.times)))
    result = IntegrationResult(states, outcome, h, None, problem.times, output_rows, t)
    if plan.dense:
        result.interpolants = [x for chunk in chunks for x in chunk.interpolants(solve.method)]
    return CompiledRun(result, solve, chunks, times)


def _padded(times: list[float]) -> Tensor:
    """The times as a tensor [T], with NaN up to a padded length."""
    return torch.tensor([*times, *[math.nan] * (padded_length(len(times)) - len(times))], dtype=torch.float64)


def _status(state: float, attempts: int, ratio: float) -> Status:
    """How a solve ended that did not reach its end."""
    if state == LoopState.max_steps:
        return Status.max_steps
    is_finite = attempts == 0 or ratio < math.inf
    return Status.step_underflow if state == LoopState.underflow and is_finite else Status.non_finite


def _count(
    problem: InitialValueProblem, plan: SolvePlan, solve: CompiledSolve, chunks: list[StoredSteps], attempts: int
) -> None:
    """Fill in the statistics of the eager solve, which evaluates no stage that it does not need."""
    stats, times, method = problem.stats, problem.times, solve.method
    rows = [row for chunk in chunks for row in chunk.rows]
    stats.start, stats.accepted, stats.rejected = times[0], len(rows), attempts - len(rows)
    stats.step_sizes, stats.error_ratios = [row[1] for row in rows], [row[2] for row in rows]
    stats.warm_step = rows[0][3] if rows else None
    ends = {chunk.span[1] for chunk in chunks}
    stats.nfe += 1 + attempts * (method.stages - 1) + len(plan.jump_times & ends - {times[-1]})
    if method.fsal and not method.extra_c:
        return
    has_outputs = [plan.dense or inside for chunk in chunks for inside in chunk.has_outputs_inside(times)]
    stats.nfe += sum(has_outputs) * len(method.extra_c)
    if not method.fsal:
        followed = has_outputs[:-1] if times[-1] in ends else has_outputs
        # The first extra stage may be the next step's first stage.
        stats.nfe += followed.count(False) if method.end_stage is not None else len(followed)

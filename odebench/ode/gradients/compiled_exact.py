"""The exact gradient of a compiled solve, which evaluates f again in a compiled loop back over the steps."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from odebench.ode.compiled.field import UsedParameters, names_of
from odebench.ode.compiled.fixed_run import FixedGraphs, FixedSolve
from odebench.ode.compiled.graph import NotCompiledError, SolveGraphs, num_graphs
from odebench.ode.compiled.run import (
    NO_PARAMETER,
    check_field,
    find_compiled_solve,
    find_fixed_graphs,
    run_compiled,
    run_solve,
)
from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients.captured_tensors import (
    CapturedTensors,
    alive_tensors,
    detached_leaf,
    evaluate_first,
    first_evaluation,
    graph_leaves,
    run_with_backward,
)
from odebench.ode.gradients.moving_grid import grid_moves, moved_points
from odebench.ode.integrate import IntegrationResult
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import Stats
from odebench.ode.torch_func import has_saved_tensor_hooks

DIFFERENTIABLE_ONCE = "the gradient of compile='solve' is differentiable once; leave compile out"


class EagerMode(Protocol):
    """The gradient mode that solves if torch cannot compile the solve."""

    name: str

    def solve_with_gradient(self, solve: ForwardSolve) -> IntegrationResult: ...


def solve_with_exact_gradient(mode: EagerMode, solve: ForwardSolve) -> IntegrationResult:
    """Solve; return the states at the problem's times, with the exact gradient of the steps.

    mode: solves eagerly if torch cannot compile this solve, after one warning with the reason.
    """
    if not torch.is_grad_enabled():
        return _solve_without_gradient(solve)
    problem, plan = solve.problem, solve.plan
    nfe = problem.stats.nfe
    try:
        if has_saved_tensor_hooks():  # torch.func supports none
            raise NotCompiledError
        return _solve(mode.name, solve)
    except NotCompiledError:
        problem.stats = Stats(nfe=nfe)  # without the evaluations of this attempt
        return mode.solve_with_gradient(dataclasses.replace(solve, plan=dataclasses.replace(plan, compile=False)))


def _solve_without_gradient(solve: ForwardSolve) -> IntegrationResult:
    graphs = num_graphs()
    result = solve.result()
    if graphs != num_graphs():  # The code of f may have changed: a later solve finds this graph, and no new one.
        with contextlib.suppress(NotCompiledError):
            _find_parameters("backprop", solve.problem, _graphs_of(solve))
    return result


def _graphs_of(solve: ForwardSolve) -> SolveGraphs:
    problem, plan = solve.problem, solve.plan
    return find_fixed_graphs(problem, plan) if plan.grid else find_compiled_solve(problem, plan, keep=True)


def _find_parameters(
    mode: str, problem: InitialValueProblem, compiled: SolveGraphs
) -> tuple[list[Tensor], UsedParameters]:
    """Evaluate f once to find the tensors with a gradient that it uses. Notes whether they are those of before."""
    nfe, before = problem.stats.nfe, compiled.used
    if mode == "backprop":
        parameters = _captured_tensors(problem, compiled)
    else:
        parameters = first_evaluation(problem, mode).parameters
    problem.stats.nfe = nfe
    names = names_of([x for x in parameters if x.requires_grad], compiled.module)
    if names is None:
        compiled.forward.refuse(NO_PARAMETER)
    if before is not None and before.tensors() is not None and set(names) != set(before.names):
        compiled.is_steady = False
    compiled.used = UsedParameters(compiled.module, names)
    return parameters, compiled.used


def _solve(mode: str, solve: ForwardSolve) -> IntegrationResult:
    problem, plan, nfe = solve.problem, solve.plan, solve.problem.stats.nfe
    compiled = _graphs_of(solve)
    used, known = compiled.used, compiled.used.tensors() if compiled.used else None
    sizes = (len(problem.times), problem.y0.shape, *(arg.shape for arg in problem.args))
    parameters = known if mode == "backprop" and compiled.is_steady and sizes in compiled.known_sizes else None
    graphs: int | None = num_graphs()
    if used is None or parameters is None:
        parameters, used = _find_parameters(mode, problem, compiled)
        graphs = None
    moves = mode == "backprop" and grid_moves(problem, plan, None)
    differentiable = moves or any(x.requires_grad for x in (problem.y0, *problem.args, *parameters))
    if not differentiable:
        result = run_solve(problem, plan).result
    elif isinstance(compiled, FixedGraphs):
        result = _solve_fixed(problem, FixedSolve(problem, plan, compiled, moves), parameters, used.names)
    else:
        result = run_with_backward(_ExactGradient, solve, CapturedTensors(parameters, None, None), used.names)
    compiled.known_sizes = {sizes} if known is None else compiled.known_sizes | {sizes}
    if graphs is not None and graphs != num_graphs():
        # The code of f has changed, and may use other tensors.
        problem.stats, compiled.is_steady = Stats(nfe=nfe), False
        return _solve(mode, solve)
    return result


def _captured_tensors(problem: InitialValueProblem, compiled: SolveGraphs) -> list[Tensor]:
    """The tensors that f uses at the first time besides y and args, and that require a gradient.

    Where ``first_evaluation`` raises an error, backpropagation can solve instead.
    """
    y, *args = map(detached_leaf, (problem.y0, *problem.args))
    _, k, first_nr = evaluate_first(problem, y, args)
    try:
        found = graph_leaves(k, "backprop", first_nr)
    except ValueError:
        compiled.forward.refuse(
            "f uses a tensor with a gradient that was computed outside of it; pass it through args=(...)"
        )
    del k  # tensors that f made itself die with its graph
    own = set(map(id, (y, *args)))
    return [x for x in alive_tensors(found) if id(x) not in own]


class _ExactGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        solve: ForwardSolve,
        first: CapturedTensors,
        names: tuple[str, ...],
        results: list[IntegrationResult],
        y0: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        run = run_compiled(solve.problem, solve.plan, keep=True)
        results.append(run.result)
        ctx.problem, ctx.run, ctx.names, ctx.num_parameters = solve.problem, run, names, len(first.parameters)
        ctx.save_for_backward(y0, *tensors)
        return run.result.states

    @staticmethod
    @functools.partial(once_differentiable, message=DIFFERENTIABLE_ONCE)
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        run, times = ctx.run, ctx.run.times
        y0, *tensors = ctx.saved_tensors
        needed, *values = _needed_inputs(ctx, tensors)
        graph = run.solve.backward(ctx.names, _positions(needed[ctx.num_parameters :]))
        stats = ctx.problem.stats.backward = ctx.problem.stats.backward or Stats()
        grad_states, grad_y = grad_states.detach(), torch.zeros_like(y0)
        grad_states = torch.nn.functional.pad(grad_states, (0, 0, 0, len(times) - len(grad_states)))
        totals = [torch.zeros_like(x) for x, need in zip(tensors, needed, strict=True) if need]
        with torch.autocast(y0.device.type, enabled=False):
            for chunk in reversed(run.chunks):
                if chunk.n == 0:
                    continue
                n, span = torch.tensor(chunk.n), torch.tensor(chunk.span, dtype=torch.float64)
                steps, kept = chunk.buffers.steps, chunk.buffers.kept
                inputs = (n, span, times, grad_states, grad_y, chunk.weights, steps, kept, *values)
                try:
                    grad_y, *parts = graph(*inputs)
                except NotCompiledError:
                    grad_y, *parts = graph.function(*inputs)
                stats.nfe += chunk.n * (kept.shape[1] - 2) + 1
                if parts:
                    torch._foreach_add_(totals, parts)
        if run.chunks[0].n == 0:
            grad_y = grad_states[0].clone()
        gradients = iter(totals)
        return None, None, None, None, grad_y, *(next(gradients) if need else None for need in needed)


def _needed_inputs(ctx: Any, tensors: Sequence[Tensor]) -> tuple[Sequence[bool], list[Tensor], list[Tensor]]:
    """Return which of the tensors (parameters, then args) get a gradient, the parameters that do, and all args.

    A tensor gets one if it required a gradient in the forward pass, where the parameters were named. That may have
    changed since.
    """
    needed, num = ctx.needs_input_grad[len(ctx.needs_input_grad) - len(tensors) :], ctx.num_parameters
    parameters = [x.detach() for x, need in zip(tensors[:num], needed[:num], strict=True) if need]
    return needed, parameters, [x.detach() for x in tensors[num:]]


def _positions(flags: Sequence[bool]) -> tuple[int, ...]:
    return tuple(i for i, flag in enumerate(flags) if flag)


def _solve_fixed(
    problem: InitialValueProblem, solve: FixedSolve, parameters: list[Tensor], names: tuple[str, ...]
) -> IntegrationResult:
    check_field(problem, solve.graphs)
    t, points = None, torch.tensor(solve.points, dtype=torch.float64)
    if solve.moves:
        t, points = problem.t.to("cpu", torch.float64), moved_points(problem, solve.plan, solve.points)
    states = _FixedGradient.apply(problem, solve, names, points, problem.y0, *parameters, *problem.args)
    return solve.result(states, t, points)


class _FixedGradient(torch.autograd.Function):
    """The states [K, N] at the knots of fixed steps. points: the grid, which gets a gradient if it moves."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: InitialValueProblem,
        solve: FixedSolve,
        names: tuple[str, ...],
        points: Tensor,
        y0: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.problem, ctx.solve, ctx.names, ctx.num_parameters = problem, solve, names, len(tensors) - len(problem.args)
        ctx.save_for_backward(points, y0, *tensors)
        with torch.autocast("cpu", enabled=False):
            return solve.states(y0.detach(), [arg.detach() for arg in problem.args], keep=True)

    @staticmethod
    @functools.partial(once_differentiable, message=DIFFERENTIABLE_ONCE)
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        solve = ctx.solve
        _, _, *tensors = ctx.saved_tensors
        needed, *values = _needed_inputs(ctx, tensors)
        stats = ctx.problem.stats.backward = ctx.problem.stats.backward or Stats()
        stats.nfe += solve.last * solve.plan.method.stages
        arg_idx = _positions(needed[ctx.num_parameters :])
        with torch.autocast("cpu", enabled=False):
            grad_y, grad_points, totals = solve.gradients(grad_states.detach(), ctx.names, arg_idx, *values)
        gradients = iter(totals)
        grad_tensors = [next(gradients) if need else None for need in needed]
        return None, None, None, grad_points if solve.moves else None, grad_y, *grad_tensors

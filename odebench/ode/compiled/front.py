"""The gradient of a compiled solve, and the fields that are not compiled."""

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from odebench.ode.compiled.graph import NotCompiledError
from odebench.ode.compiled.run import CompiledSolve, find_compiled_solve, run_compiled
from odebench.ode.gradients.captured_tensors import (
    GradientAccumulator,
    alive_tensors,
    detached_leaf,
    evaluate_first,
    graph_leaves,
)
from odebench.ode.gradients.compiled_adjoint import names_of
from odebench.ode.integrate import IntegrationResult
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import Stats, Status
from odebench.ode.torch_func import has_saved_tensor_hooks

DIFFERENTIABLE_ONCE = "the gradient of compile='solve' is differentiable once; leave compile out"


def integrate_compiled(problem: InitialValueProblem, plan: SolvePlan) -> IntegrationResult | None:
    """The states at the problem's times, with the exact gradient of the steps; None if torch cannot compile this solve,
    after one warning with the reason."""
    if has_saved_tensor_hooks():  # torch.func supports none
        return None
    nfe = problem.stats.nfe
    try:
        with torch.autocast(problem.y0.device.type, enabled=False):
            return _integrate(problem, plan)
    except NotCompiledError:
        # Another solve starts from here, without the evaluations of this one.
        problem.stats = Stats(nfe=nfe)
        return None


def _integrate(problem: InitialValueProblem, plan: SolvePlan) -> IntegrationResult:
    stats, y0 = problem.stats, problem.y0
    stats.start, nfe, versions = problem.times[0], stats.nfe, _buffer_versions(problem)
    # The second evaluation of a solve is watched for noise: the search for the first step, else this one.
    stats.nfe = 1 if plan.first_step or nfe else 0
    k, captured, reason = _first_evaluation(problem) if torch.is_grad_enabled() else _evaluate_once(problem)
    stats.nfe = nfe + 1
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (y0, *problem.args, *captured))
    solve = find_compiled_solve(problem, plan, keep=differentiable)
    if problem.layout.dtype not in (torch.float32, torch.float64) or y0.device.type != "cpu":
        reason = f"its state must be of float32 or float64 and on the CPU, not {problem.layout.dtype} on {y0.device}"
    elif problem.layout.autocast is not None:
        reason = "autocast is on, where compiled code rounds differently"
    elif versions != _buffer_versions(problem):
        reason = "f changes a buffer"
    elif names_of(captured, solve.module) is None:
        reason = "f uses a tensor that requires a gradient and is no parameter of a module; pass it through args=(...)"
    if reason:
        solve.forward.refuse(reason)
    if not differentiable:
        with torch.no_grad():
            return run_compiled(problem, plan, solve, k)[0]
    results: list[IntegrationResult] = []
    states = _ExactGradient.apply(problem, plan, solve, k, captured, results, y0, *captured, *problem.args)
    return replace(results[0], states=states)


def _buffer_versions(problem: InitialValueProblem) -> list[tuple[int, int]]:
    buffers = (x for layer in problem.buffered for x in layer.buffers(recurse=False) if not x.is_inference())
    return [(id(x), x._version) for x in buffers]


def _evaluate_once(problem: InitialValueProblem) -> tuple[Tensor, list[Tensor], str]:
    (t,) = problem.time_tensors(problem.times[:1])
    return problem(t, problem.y0).clone(), [], ""


def _first_evaluation(problem: InitialValueProblem) -> tuple[Tensor, list[Tensor], str]:
    """f [N] at the first time, the tensors that it uses besides y and args and that require a gradient, and why the
    gradient cannot be compiled, if it cannot."""
    y, *args = map(detached_leaf, (problem.y0, *problem.args))
    _, k, first_nr = evaluate_first(problem, y, args)
    try:
        found = graph_leaves(k, "backprop", first_nr)
    except ValueError:
        return k.detach(), [], "f uses a tensor with a gradient that was computed outside of it; pass it through args"
    k = k.detach().clone()
    own = set(map(id, (y, *args)))
    return k, [x for x in alive_tensors(found) if id(x) not in own], ""


class _ExactGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        problem: InitialValueProblem,
        plan: SolvePlan,
        solve: CompiledSolve,
        k: Tensor,
        captured: list[Tensor],
        results: list[IntegrationResult],
        y0: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        result, ctx.chunks = run_compiled(problem, plan, solve, k)
        results.append(result)
        ctx.problem, ctx.solve, ctx.captured, ctx.outcome = problem, solve, captured, result.outcome
        ctx.save_for_backward(y0, *tensors)
        return result.states

    @staticmethod
    @functools.partial(once_differentiable, message=DIFFERENTIABLE_ONCE)
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        problem, solve, times = ctx.problem, ctx.solve, ctx.problem.times
        y0, *tensors = ctx.saved_tensors
        args = tensors[len(ctx.captured) :]
        accumulator = GradientAccumulator(
            problem, "backprop", ctx.captured, args, captured=ctx.captured, hint="leave compile='solve' out"
        )
        parameters = [x.detach() for x in tensors[: len(ctx.captured)] if x.requires_grad]
        names = names_of([x for x in ctx.captured if x.requires_grad], solve.module)
        graph = solve.backward(names, tuple(i for i, arg in enumerate(args) if arg.requires_grad))
        values, grad_states = [x.detach() for x in args], grad_states.detach()
        grad_y, grad_k = torch.zeros_like(y0), torch.zeros_like(y0)
        if ctx.outcome.status is Status.success:
            grad_y = grad_states[-1].clone()
        with torch.autocast(y0.device.type, enabled=False):
            for chunk in reversed(ctx.chunks):
                grad_kept = chunk.gradient(grad_states) if solve.inner else None
                steps, kept = chunk.buffers.steps, chunk.buffers.kept
                inputs = (torch.tensor(chunk.n), grad_y, grad_k, steps, kept, grad_kept, parameters, values)
                try:
                    grad_y, grad_k, *parts = graph(*inputs)
                except NotCompiledError:
                    grad_y, grad_k, *parts = graph.function(*inputs)
                if parts:
                    torch._foreach_add_(accumulator.totals, parts)
            # The first stage of the first step.
            (t,) = problem.time_tensors(times[:1])
            evaluation = problem.evaluate_with_graph(t, y0, accumulator.args, Stats())
            grad_y = grad_y + accumulator.vjp(evaluation, t, grad_k) + grad_states[0]
        return None, None, None, None, None, None, grad_y, *accumulator.gradients()

"""The backward solve of the continuous adjoint, and the autograd function that runs it."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odebench.ode.compiled.adjoint import AdjointChoices, BackwardNorm
from odebench.ode.compiled.adjoint_run import BackwardStart, path_tables, run_adjoint
from odebench.ode.compiled.field import names_of
from odebench.ode.compiled.fixed_adjoint import FixedAdjointChoices, run_fixed_adjoint
from odebench.ode.compiled.graph import NotCompiledError, SolveGraphs
from odebench.ode.compiled.run import run_solve
from odebench.ode.control import LargestRms, rms_over
from odebench.ode.dense import DenseOutput
from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients.adjoint_field import AdjointField, NodeQuadrature, Quadrature, StageQuadrature
from odebench.ode.gradients.captured_tensors import HINT, CapturedTensors, GradientAccumulator
from odebench.ode.gradients.compiled_adjoint import CompiledAdjointStepper, StepQuadrature
from odebench.ode.integrate import IntegrationResult, Observer, initial_step_size, integrate
from odebench.ode.methods import Method, Tableau
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.methods.stepper import evaluate
from odebench.ode.methods.steppers import make_stepper
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.plan import SolvePlan
from odebench.ode.solution import SolveError, Stats, Status
from odebench.ode.torch_func import has_saved_tensor_hooks

DURING = "backward solve of the adjoint"


@dataclass(frozen=True)
class BackwardSolve:
    """How the backward equation is solved over each interval between two of ``times``.

    plan: the plan of the solve over one interval; its ``first_step`` is the first step in the last interval.
    quadrature: how the parameter gradient is computed.
    dense_output: gives y(t); with None, y is solved backward too.
    relative: True if errors are relative to the norm of the adjoint at the end of the interval, False if absolute.
    warm_start: if True, the solve over an interval starts with the step size that the solve over the later interval
        ended with; if False, with the plan's ``first_step``.
    compile: whether to compile the steps if possible.
    observers: the observers of the steps.
    mode, hint: for messages, the gradient mode, and what to do about a tensor that would get no gradient.
    error: the exception to raise if the solve fails; with None, a gradient that is not finite is returned.
    """

    plan: SolvePlan
    quadrature: Quadrature
    times: list[float]
    dense_output: DenseOutput | None = None
    relative: bool = True
    warm_start: bool = True
    compile: bool = False
    observers: tuple[Observer, ...] = ()
    mode: str = "adjoint"
    hint: str = HINT
    error: type[SolveError] | None = SolveError


class AdjointSolve(torch.autograd.Function):
    """Solve forward; the backward pass solves the adjoint equation as ``backward_solve(result)`` says."""

    @staticmethod
    def forward(
        ctx: Any,
        solve: ForwardSolve,
        captured: CapturedTensors,
        backward_solve: Callable[[IntegrationResult], BackwardSolve],
        results: list[IntegrationResult],
        y0: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        """Return the states [R, N], and append the result to ``results``."""
        run = solve.compiled(functools.partial(run_solve, parameters=captured.parameters), captured.f is not None)
        result = solve.eager_result(None, captured.f) if run is None else run.result
        results.append(result)
        ctx.problem, ctx.solve = solve.problem, backward_solve(result)
        ctx.compiled = None if run is None else run.solve
        # Not as saved tensors: hooks may replace those, and captured tensors are recognised by identity.
        ctx.parameters, ctx.captured = captured.parameters, captured.captured
        ctx.save_for_backward(result.states, *tensors)
        return result.states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of y0, parameters and arguments, given the gradients of the states [R, N]."""
        states, *tensors = ctx.saved_tensors
        problem, solve = ctx.problem, ctx.solve
        stats = problem.stats.backward = problem.stats.backward or Stats()
        args = tensors[len(ctx.parameters) :]
        accumulator = GradientAccumulator(
            problem, solve.mode, ctx.parameters, args, captured=ctx.captured, hint=solve.hint
        )
        field = AdjointField(problem, accumulator, stats, solve.dense_output, solve.quadrature)
        times, plan = solve.times, solve.plan
        stepper: Any = None
        if solve.compile and CompiledAdjointStepper.supports(problem, accumulator, plan.method):
            stepper = CompiledAdjointStepper(plan.method, problem, accumulator, stats)
        a = grad_states[len(times) - 1]
        nfe = stats.nfe
        if ctx.compiled is not None and len(times) > 1:
            try:
                a = _solve_compiled(ctx, field, accumulator, states, grad_states)
                return None, None, None, None, a, *accumulator.gradients()
            except NotCompiledError:  # it solves step by step
                stats.nfe = nfe
        for i in range(len(times) - 1, 0, -1):
            scale = _scale(a, plan) if solve.relative else 1.0
            z = field.initial_state(states[i], a / scale)
            result = _integrate_interval(solve, field, z, [times[i], times[i - 1]], plan, scale, stepper)
            if result.outcome.status is not Status.success and solve.error is not None:
                raise solve.error(result.outcome, during=DURING)
            a = scale * field.extract_adjoint(result.states[1], scale) + grad_states[i - 1]
            stepper = result.stepper
            if solve.warm_start:
                plan = dataclasses.replace(plan, first_step=result.next_step)
        return None, None, None, None, a, *accumulator.gradients()


def _solve_compiled(
    ctx: Any, field: AdjointField, accumulator: GradientAccumulator, states: Tensor, grad_states: Tensor
) -> Tensor:
    """Solve backward as one compiled loop; return dL/dy [N] at the first time.

    ctx: that of ``AdjointSolve``. Raises NotCompiledError if torch cannot compile the loop.
    """
    compiled: SolveGraphs = ctx.compiled
    solve: BackwardSolve = ctx.solve
    plan, last, stats = solve.plan, len(solve.times) - 1, ctx.problem.stats.backward
    method = plan.method
    assert isinstance(method, Tableau)
    own = set(map(id, accumulator.args))
    parameters = [x for x in accumulator.tensors if id(x) not in own]
    names = names_of(parameters, compiled.module)
    # torch.func supports no hooks. Parameters that f no longer has are an error in the eager backward solve.
    if has_saved_tensor_hooks() or names is None:
        raise NotCompiledError
    arg_idx = tuple(i for i, arg in enumerate(accumulator.args) if arg.requires_grad)
    is_fixed, interpolates = plan.tolerance is None, solve.dense_output is not None
    # The scale has no effect on fixed steps.
    scale = _scale(grad_states[last], plan) if solve.relative and not is_fixed else 1.0
    stats.start = solve.times[last] if stats.start is None else stats.start
    states, grad_states = states[: last + 1].detach(), grad_states[: last + 1].detach()
    inputs = [x.detach() for x in parameters], [x.detach() for x in accumulator.args]
    path = [] if solve.dense_output is None else path_tables(solve.dense_output.interpolants)
    start = BackwardStart(solve.times, states, grad_states, grad_states[last] / scale, scale, *inputs, path)
    with torch.autocast(states.device.type, enabled=False):
        if is_fixed:
            fixed = FixedAdjointChoices(method, interpolates, names, arg_idx)
            return run_fixed_adjoint(compiled, fixed, plan, start, accumulator.totals, stats)
        if plan.first_step is None:
            plan = dataclasses.replace(plan, first_step=_first_step(field, start, plan))
        assert isinstance(plan.norm, LargestRms)
        choices = AdjointChoices(
            method,
            plan.controller,
            _backward_norm(plan.norm, states.shape[1], 1 if interpolates else 2),
            interpolates,
            full=solve.quadrature is None,
            relative=solve.relative,
            warm_start=solve.warm_start,
            names=names,
            arg_idx=arg_idx,
        )
        a, outcome = run_adjoint(compiled, choices, plan, start, accumulator.totals, stats)
    if outcome.status is not Status.success and solve.error is not None:
        raise solve.error(outcome, during=DURING)
    return a


def _backward_norm(norm: LargestRms, size: int, num_states: int) -> BackwardNorm:
    """Return the norm for states of any size.

    size: N, that of the state. num_states: 2 if y is part of the backward state, else 1.
    """
    return BackwardNorm(norm.sizes[0] != size, sum(norm.sizes) > num_states * size, norm.divisors[-1])


def _first_step(field: AdjointField, start: BackwardStart, plan: SolvePlan) -> float:
    """Return the size of the first step; raise NotCompiledError if it is not finite, which the eager solve reports."""
    z, (end, t) = field.initial_state(start.states[-1], start.a), start.times[-2:]
    slope = evaluate(field, t, z, plan.side(t, end))
    field.stats.nfe -= 1  # the graph evaluates it again
    h = initial_step_size(field, t, z, slope, end, plan, plan.method.order)
    if math.isnan(h):
        raise NotCompiledError
    return h


def _scale(a: Tensor, plan: SolvePlan) -> float:
    """Return the norm of the adjoint ``a`` [N]; 1 if it is 0. The backward solve starts from ``a`` divided by it.

    The equation is linear in ``a``. Since it is solved for an adjoint of norm 1, its error is relative to the gradient,
    however the loss is scaled. Otherwise an absolute tolerance could be larger than all of a small gradient.
    """
    scale = rms_over(plan.group)(a) or 1.0
    # The sum of squares may overflow although every element is finite.
    return a.abs().max().item() if math.isinf(scale) else scale


def quadrature_for(norm: str, method: Method) -> Quadrature:
    """Return how a backward solve by this method computes the parameter gradient; norm: "semi" or "full"."""
    if norm == "full":
        return None
    if isinstance(method, Tableau):
        return "stages"
    return "nodes" if isinstance(method, ImplicitTableau | Rosenbrock) else None


def _integrate_interval(
    solve: BackwardSolve, field: AdjointField, z: Tensor, span: list[float], plan: SolvePlan, scale: float, stepper: Any
) -> IntegrationResult:
    """Solve backward over one interval.

    scale: the factor of the parameter gradients.
    stepper: a compiled stepper, or the one of the previous call. It is used again because many intervals are a single
        step, and creating a stepper takes as long as evaluating a stage.
    """
    if solve.quadrature == "nodes" and stepper is None:
        side = plan.side(*span)
        stepper = make_stepper(
            plan.method, field, z, side=side, tolerance=plan.tolerance, norm=plan.norm, stats=field.stats
        )
    observers: list[Observer] = [*solve.observers]
    if isinstance(stepper, CompiledAdjointStepper):
        observers.append(StepQuadrature(stepper, scale))
    elif solve.quadrature == "stages":
        observers.append(StageQuadrature(field, plan.method, scale))
    elif solve.quadrature == "nodes":
        observers.append(NodeQuadrature(field, stepper, scale))
    return integrate(field, z, span, plan, field.stats, observers=observers, stepper=stepper)

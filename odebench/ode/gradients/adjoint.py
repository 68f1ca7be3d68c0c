"""The continuous adjoint method.

Chen, Rubanova, Bettencourt & Duvenaud 2018, Neural Ordinary Differential Equations, section 2: with
a = dL/dy, da/dt = -a^T df/dy and dL/dtheta = integral of a^T df/dtheta, solved backward in time. With a Runge-Kutta
method the parameter gradient is a quadrature over the accepted steps rather than part of the state (Kidger, Chen &
Lyons 2021, "Hey, that's not an ODE": it need not be under error control).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from odebench.ode.arguments import as_number, as_positive_integer
from odebench.ode.control import Norm, Tolerance, rms_of_parts, rms_over
from odebench.ode.dense import DenseOutput
from odebench.ode.events import EventDetector
from odebench.ode.gradients.adjoint_field import AdjointField, NodeQuadrature, Quadrature, StageQuadrature, packed_size
from odebench.ode.gradients.captured_tensors import FirstEvaluation, GradientAccumulator, first_evaluation
from odebench.ode.gradients.compiled_adjoint import CompiledAdjointStepper, StepQuadrature
from odebench.ode.integrate import IntegrationResult, Observer, integrate
from odebench.ode.methods import Method, Tableau
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.methods.steppers import find_method, make_stepper
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.plan import SolvePlan, even_grid
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import SolveError, Stats, Status

# The relative error of the adjoint may be this much larger than the state's: it enters the gradient once, while the
# state's error changes every later evaluation.
ADJOINT_ERROR_FACTOR = 10.0


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint: constant memory in the number of steps; the gradient's error is of the order of the
    tolerance, relative to the gradient. Differentiable once.

    rtol, atol: tolerances of the backward solve, None for the forward solve's; those of the adjoint, relative to its
        norm at the last time, are ten times as large. Unused with fixed steps, backward or forward.
    method, steps: of the backward solve, None for the forward solve's; ``steps`` is the number of fixed steps over the
        whole span, with at least one between two times. With the forward solve's method and tolerances the backward
        solve takes no larger steps than the forward solve did.
    norm: of the backward error: "semi" excludes the parameter gradient from it, "full" includes it.
    """

    rtol: float | None = None
    atol: float | None = None
    method: str | Method | None = None
    steps: int | None = None
    norm: Literal["semi", "full"] = "semi"

    name = "adjoint"
    interpolates = False

    def __post_init__(self) -> None:
        for option in ("rtol", "atol"):
            value = getattr(self, option)
            if value is not None and not as_number(option, value) >= 0:
                raise ValueError(f"gradient={self.name!r}: {option} must not be negative, got {value}")
        if self.steps is not None:
            as_positive_integer("steps", self.steps)
        if self.norm not in ("semi", "full"):
            raise ValueError(f"gradient={self.name!r}: norm must be 'semi' or 'full', got {self.norm!r}")

    def integrate(
        self,
        problem: InitialValueProblem,
        plan: SolvePlan,
        observers: tuple[Observer, ...] = (),
        detector: EventDetector | None = None,
    ) -> IntegrationResult:
        """The states at the problem's times, and how it ended.

        Raises ValueError if f uses a tensor whose gradient this mode would lose.
        """
        if not torch.is_grad_enabled():
            return integrate(
                problem, problem.y0, problem.times, plan, problem.stats, observers=observers, detector=detector
            )
        first = first_evaluation(problem, self.name)
        results: list[IntegrationResult] = []
        states = _AdjointSolve.apply(
            self, problem, plan, observers, detector, first, results, problem.y0, *first.parameters, *problem.args
        )
        return dataclasses.replace(results[0], states=states)

    def backward_plan(self, plan: SolvePlan, span: float, largest: float) -> SolvePlan:
        """The plan of the backward solve, after ``plan`` took steps of up to ``largest`` over a time of ``span``."""
        method = plan.method if self.method is None else find_method(self.method)
        tolerance, grid, max_step = plan.tolerance, plan.grid, plan.max_step
        if self.rtol is None and self.atol is None and self.method is None:
            # Larger steps than the forward solve needed for y often have too small an error estimate.
            max_step = min(max_step, largest)
        if tolerance is not None:
            rtol = tolerance.rtol if self.rtol is None else self.rtol
            atol = tolerance.atol if self.atol is None else self.atol
            tolerance = Tolerance(rtol, atol)
        if self.steps is not None:
            tolerance, grid = None, even_grid(abs(span) / self.steps)
        if tolerance is None:
            method = method.for_fixed_steps()
        return dataclasses.replace(
            plan, method=method, tolerance=tolerance, grid=grid, max_step=max_step, dense=False, compile=False
        )


@dataclass(frozen=True)
class InterpolatedAdjoint(Adjoint):
    """The continuous adjoint along the dense output of the forward solve: y(t) is interpolated, not solved backward,
    which is stable where y is not, and halves the backward state. Options as for ``Adjoint``.

    Memory: the dense output, all stages of all accepted steps.
    """

    name = "interpolated_adjoint"
    interpolates = True


class _AdjointSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mode: Adjoint,
        problem: InitialValueProblem,
        plan: SolvePlan,
        observers: tuple[Observer, ...],
        detector: EventDetector | None,
        first: FirstEvaluation,
        results: list[IntegrationResult],
        y0: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        forward_plan = dataclasses.replace(plan, dense=True) if mode.interpolates else plan
        result = integrate(
            problem, y0, problem.times, forward_plan, problem.stats, f=first.f, observers=observers, detector=detector
        )
        results.append(result)
        ctx.dense_output = (
            DenseOutput(result.interpolants, lambda y: y) if mode.interpolates and result.interpolants else None
        )
        ctx.mode, ctx.problem, ctx.num_reached, ctx.times = mode, problem, result.outcome.reached, result.times
        step_sizes = list(map(abs, problem.stats.step_sizes))
        ctx.plan = mode.backward_plan(plan, problem.times[-1] - problem.times[0], max(step_sizes, default=math.inf))
        ctx.compile = plan.compile and mode.norm == "semi" and not mode.interpolates and not plan.one_sided
        # The backward solve starts at the last time, with the last step size of the forward solve.
        ctx.first_step = step_sizes[-1] if step_sizes else result.next_step
        # Not as saved tensors: hooks may replace those, and captured tensors are recognised by identity.
        ctx.parameters, ctx.captured = first.parameters, first.captured
        ctx.save_for_backward(result.states, *tensors)
        return result.states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        states, *tensors = ctx.saved_tensors
        mode, problem, first_step = ctx.mode, ctx.problem, ctx.first_step
        stats = problem.stats.backward = problem.stats.backward or Stats()
        args = tensors[len(ctx.parameters) :]
        accumulator = GradientAccumulator(problem, mode.name, ctx.parameters, args, captured=ctx.captured)
        quadrature = quadrature_for(mode, ctx.plan.method)
        plan = dataclasses.replace(
            ctx.plan,
            tolerance=_backward_tolerance(mode, ctx.plan.tolerance, accumulator, quadrature, states),
            norm=_backward_norm(mode, ctx.plan, accumulator, states),
        )
        field = AdjointField(problem, accumulator, ctx.dense_output, quadrature)
        stepper: Any = None
        if ctx.compile and CompiledAdjointStepper.supports(problem, accumulator, plan.method):
            stepper = CompiledAdjointStepper(plan.method, problem, accumulator, stats)
        a = grad_states[ctx.num_reached - 1]
        for i in range(ctx.num_reached - 1, 0, -1):
            # The equation is linear in a: solved for an a of norm 1, so that its error is relative to the gradient,
            # however the loss is scaled. An absolute tolerance could exceed all of a small gradient.
            scale = rms_over(plan.group)(a) or 1.0
            if math.isinf(scale):  # perhaps only the sum of squares overflows
                scale = a.abs().max().item()
            z = field.initial_state(states[i], a / scale)
            span = [ctx.times[i], ctx.times[i - 1]]
            plan = dataclasses.replace(plan, first_step=first_step)
            result = integrate_backward(field, z, span, plan, stats, scale, stepper)
            if result.outcome.status is not Status.success:
                raise SolveError(result.outcome, during="backward solve of the adjoint")
            a = scale * field.extract_adjoint(result.states[1], scale) + grad_states[i - 1]
            first_step, stepper = result.next_step, result.stepper
        return None, None, None, None, None, None, None, a, *accumulator.gradients()


def quadrature_for(mode: Adjoint, method: Method) -> Quadrature:
    """How a backward solve by this method computes the parameter gradient."""
    if mode.norm == "full":
        return None
    if isinstance(method, Tableau):
        return "stages"
    return "nodes" if isinstance(method, ImplicitTableau | Rosenbrock) else None


def integrate_backward(
    field: AdjointField, z: Tensor, span: list[float], plan: SolvePlan, stats: Stats, scale: float, stepper: Any = None
) -> IntegrationResult:
    """Solve backward over one interval; parameter gradients are multiplied by ``scale``.

    stepper: a compiled one, or that of another interval: many are one step, and creating it takes as long as a stage.
    """
    if field.quadrature == "nodes" and stepper is None:
        direction = plan.time_direction(*span)
        stepper = make_stepper(
            plan.method, field, z, one_sided=direction, tolerance=plan.tolerance, norm=plan.norm, stats=stats
        )
    observer: Observer = StageQuadrature(field, plan.method, scale)
    if isinstance(stepper, CompiledAdjointStepper):
        observer = StepQuadrature(stepper, scale)
    elif field.quadrature == "nodes":
        observer = NodeQuadrature(field, stepper, scale)
    return integrate(field, z, span, plan, stats, observers=[observer], stepper=stepper)


def _backward_tolerance(
    mode: Adjoint, tolerance: Tolerance | None, accumulator: GradientAccumulator, quadrature: Quadrature, like: Tensor
) -> Tolerance | None:
    """Tolerances of the backward state: for the adjoint those of y, for a parameter gradient the smallest of them."""

    def extended(tol: float | Tensor) -> float | Tensor:
        if not isinstance(tol, Tensor):
            return tol
        num_parameters = sum(packed_size(x, like) for x in accumulator.tensors) if quadrature is None else 0
        return torch.cat([*[tol] * (1 if mode.interpolates else 2), tol.min().expand(num_parameters)])

    return tolerance and Tolerance(extended(tolerance.rtol), extended(tolerance.atol))


def _backward_norm(mode: Adjoint, plan: SolvePlan, accumulator: GradientAccumulator, like: Tensor) -> Norm:
    """The largest error of y, of the adjoint and, with the full norm, of any parameter gradient; all but that of y are
    divided by ``ADJOINT_ERROR_FACTOR``."""
    num_states = 1 if mode.interpolates else 2
    sizes = [like.shape[-1]] * num_states
    factors = [1.0, ADJOINT_ERROR_FACTOR][-num_states:]
    if mode.norm == "full":
        sizes += [packed_size(target, like) for target in accumulator.tensors]
        factors += [ADJOINT_ERROR_FACTOR] * len(accumulator.tensors)

    def norm(x: Tensor) -> float:
        errors = rms_of_parts(x[: sum(sizes)].split(sizes), plan.group)
        return max(error / factor for error, factor in zip(errors, factors, strict=True))

    return norm

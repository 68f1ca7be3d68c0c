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
from odebench.ode.gradients.captured_tensors import FirstEvaluation, Targets, first_evaluation
from odebench.ode.gradients.compiled_adjoint import CompiledAdjoint, StepQuadrature
from odebench.ode.integrate import IntegrationResult, Observer, integrate
from odebench.ode.methods import Method, Tableau
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.methods.steppers import find_method, make_stepper
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.plan import SolvePlan, even_grid
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import SolveError, Stats, Status

# The adjoint may be so many times less exact, relative to its size, than the state: its error enters the gradient
# once, while the state's error bends every later evaluation.
ADJOINT_SLACK = 10.0


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint: constant memory in the number of steps; the gradient's error is of the order of the
    tolerance, relative to the gradient. Differentiable once.

    rtol, atol: tolerances of the backward solve; None takes the forward solve's. They hold for the state as they are,
        and for the adjoint, divided by its size at the last time, ten times as large. Fixed steps have none: those of
        ``steps``, and those of a forward solve with fixed steps, which are the backward solve's, too.
    method, steps: of the backward solve, so many fixed steps over the whole span, one at least between two times; None
        takes the forward solve's. With its method and tolerances the backward solve takes no larger steps than it did.
    norm: of the backward error: "semi" leaves the parameter gradient out of it, "full" has it under error control.
    """

    rtol: float | None = None
    atol: float | None = None
    method: str | Method | None = None
    steps: int | None = None
    norm: Literal["semi", "full"] = "semi"

    name = "adjoint"
    dense = False

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

        Raises ValueError where f reaches a tensor whose gradient this mode would lose.
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
        """The plan of the backward solve, after ``plan`` took steps of up to ``largest`` over so many units of time."""
        method = plan.method if self.method is None else find_method(self.method)
        tolerance, grid, max_step = plan.tolerance, plan.grid, plan.max_step
        if self.rtol is None and self.atol is None and self.method is None:
            # Where y needed no larger ones, the estimate for a larger one is often too good.
            max_step = min(max_step, largest)
        if tolerance is not None:
            rtol = tolerance.rtol if self.rtol is None else self.rtol
            atol = tolerance.atol if self.atol is None else self.atol
            tolerance = Tolerance(rtol, atol)
        if self.steps is not None:
            tolerance, grid = None, even_grid(abs(span) / self.steps)
        elif self.method is not None and grid is None and not method.adaptive:
            raise ValueError(f"gradient={self.name!r}: method {method.name} has no error estimate: give it steps")
        if tolerance is None:
            method = method.fixed()
        return dataclasses.replace(
            plan, method=method, tolerance=tolerance, grid=grid, max_step=max_step, dense=False, compile=False
        )


@dataclass(frozen=True)
class InterpolatedAdjoint(Adjoint):
    """The continuous adjoint along the forward solve's dense output, instead of solving the state backward once more:
    nothing grows unstable on the way back, and the backward state is half as large. Options as those of ``Adjoint``.

    Memory: the dense output, all stages of all accepted steps.
    """

    name = "interpolated_adjoint"
    dense = True


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
        *targets: Tensor,
    ) -> Tensor:
        forward_plan = dataclasses.replace(plan, dense=True) if mode.dense else plan
        result = integrate(
            problem, y0, problem.times, forward_plan, problem.stats, f=first.f, observers=observers, detector=detector
        )
        results.append(result)
        ctx.path = DenseOutput(result.pieces, lambda y: y) if mode.dense and result.pieces else None
        ctx.mode, ctx.problem, ctx.reached, ctx.times = mode, problem, result.outcome.reached, result.times
        step_sizes = list(map(abs, problem.stats.step_sizes))
        ctx.plan = mode.backward_plan(plan, problem.times[-1] - problem.times[0], max(step_sizes, default=math.inf))
        ctx.compile = plan.compile and mode.norm == "semi" and not mode.dense and not plan.one_sided
        # The way back starts where the way there ended: with a step that resolved y there, not a larger one.
        ctx.first_step = step_sizes[-1] if step_sizes else result.next_step
        # The parameters themselves: what f reaches is told by identity, which saved tensors may lose to a hook.
        ctx.parameters, ctx.used = first.parameters, first.reached
        ctx.save_for_backward(result.states, *targets)
        return result.states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        states, *tensors = ctx.saved_tensors
        mode, problem, first_step = ctx.mode, ctx.problem, ctx.first_step
        stats = problem.stats.backward = problem.stats.backward or Stats()
        args = tensors[len(ctx.parameters) :]
        targets = Targets(problem, mode.name, ctx.parameters, args, reached=ctx.used)
        quadrature = quadrature_of(mode, ctx.plan.method)
        plan = dataclasses.replace(
            ctx.plan,
            tolerance=_backward_tolerance(mode, ctx.plan.tolerance, targets, quadrature, states),
            norm=_norm(mode, ctx.plan, targets, states),
        )
        field = AdjointField(problem, targets, ctx.path, quadrature)
        stepper: Any = None
        if ctx.compile and CompiledAdjoint.serves(problem, targets, plan.method):
            stepper = CompiledAdjoint(plan.method, problem, targets, stats)
        a = grad_states[ctx.reached - 1]
        for i in range(ctx.reached - 1, 0, -1):
            # The equation is linear in a: solved for an a of size 1, so that its error is relative to the gradient,
            # whatever the loss was divided by. An absolute tolerance could exceed all of a small gradient.
            size = rms_over(plan.group)(a) or 1.0
            if math.isinf(size):  # the sum of its squares alone, perhaps
                size = a.abs().max().item()
            z = field.start(states[i], a / size)
            span = [ctx.times[i], ctx.times[i - 1]]
            plan = dataclasses.replace(plan, first_step=first_step)
            result = integrate_back(field, z, span, plan, stats, size, stepper)
            if result.outcome.status is not Status.success:
                raise SolveError(result.outcome, during="backward solve of the adjoint")
            a = size * field.finish(result.states[1], size) + grad_states[i - 1]
            first_step, stepper = result.next_step, result.stepper
        return None, None, None, None, None, None, None, a, *targets.gradients()


def quadrature_of(mode: Adjoint, method: Method) -> Quadrature:
    """How a backward solve by this method has the parameter gradient."""
    if mode.norm == "full":
        return None
    if isinstance(method, Tableau):
        return "stages"
    return "nodes" if isinstance(method, ImplicitTableau | Rosenbrock) else None


def integrate_back(
    field: AdjointField,
    z: Tensor,
    span: list[float],
    plan: SolvePlan,
    stats: Stats,
    size: float,
    stepper: Any = None,
) -> IntegrationResult:
    """The backward solve over one interval, its parameter gradients times ``size``.

    stepper: a compiled one, or that of another interval: many are one step, and making it takes as long as a stage.
    """
    if field.quadrature == "nodes" and stepper is None:
        stepper = make_stepper(
            plan.method,
            field,
            z,
            one_sided=plan.time_direction(*span),
            tolerance=plan.tolerance,
            norm=plan.norm,
            stats=stats,
        )
    observer: Observer = StageQuadrature(field, plan.method, size)
    if isinstance(stepper, CompiledAdjoint):
        observer = StepQuadrature(stepper, size)
    elif field.quadrature == "nodes":
        observer = NodeQuadrature(field, stepper, size)
    return integrate(field, z, span, plan, stats, observers=[observer], stepper=stepper)


def _backward_tolerance(
    mode: Adjoint, tolerance: Tolerance | None, targets: Targets, quadrature: Quadrature, like: Tensor
) -> Tolerance | None:
    """A tolerance of each number of y as one of each number of the backward state: the adjoint has y's, and a parameter
    gradient in it the smallest of them."""

    def fitted(tol: float | Tensor) -> float | Tensor:
        if not isinstance(tol, Tensor):
            return tol
        num_parameters = sum(packed_size(x, like) for x in targets.wanted) if quadrature is None else 0
        return torch.cat([*[tol] * (1 if mode.dense else 2), tol.min().expand(num_parameters)])

    return tolerance and Tolerance(fitted(tolerance.rtol), fitted(tolerance.atol))


def _norm(mode: Adjoint, plan: SolvePlan, targets: Targets, like: Tensor) -> Norm:
    """The largest error of the parts of the backward state: y's, the adjoint's with its slack, and with the full norm
    every parameter gradient's, with the slack too."""
    num_states = 1 if mode.dense else 2
    sizes = [like.shape[-1]] * num_states
    slack = [1.0, ADJOINT_SLACK][-num_states:]
    if mode.norm == "full":
        sizes += [packed_size(target, like) for target in targets.wanted]
        slack += [ADJOINT_SLACK] * len(targets.wanted)

    def norm(x: Tensor) -> float:
        errors = rms_of_parts(x[: sum(sizes)].split(sizes), plan.group)
        return max(error / s for error, s in zip(errors, slack, strict=True))

    return norm

"""The exact gradient of the discrete solve by undoing its steps, for reversible methods.

The forward pass stores the last state, its auxiliary state and the sizes of the accepted steps. The backward pass
undoes one step after the other. It computes the gradient with vector-Jacobian products of the evaluations that undo the
steps (McCallum & Foster 2024; Zhuang et al. 2021, MALI; Kidger et al. 2021).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients.captured_tensors import (
    FirstEvaluation,
    GradientAccumulator,
    first_evaluation,
    run_with_backward,
)
from odebench.ode.integrate import IntegrationResult, Observer, integrate
from odebench.ode.methods.explicit_stepper import StageList
from odebench.ode.methods.reversible import AsynchronousLeapfrog, ReversibleHeun, ReversibleRungeKutta
from odebench.ode.methods.reversible_stepper import evaluate_stages
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import Stats
from odebench.ode.torch_func import without_autocast


@dataclass(frozen=True)
class ReversibleGradient:
    """The gradient of backpropagation, up to round-off, in constant memory, for reversible methods.

    There are no second derivatives. Steps end at every output time. Undoing steps amplifies round-off, as
    ``odebench.ode.methods.reversible`` describes. In float64 this error is small unless the field contracts strongly
    over the span.

    Memory: a state and its auxiliary state, the sizes of the accepted steps, and the graph of one evaluation, or of all
    stages of one increment of a Runge-Kutta method. The backward pass evaluates f as often as the accepted steps did.
    """

    name = "reversible"

    def solve_with_gradient(self, solve: ForwardSolve) -> IntegrationResult:
        """Solve; return the states at the problem's times, and how the solve ended.

        Raises ValueError if f uses a tensor whose gradient this mode would lose.
        """
        problem, plan = solve.problem, solve.plan
        plan = dataclasses.replace(plan, step_times=(*plan.step_times, *problem.times))
        solve = dataclasses.replace(solve, plan=plan)
        if not torch.is_grad_enabled():
            return solve.result()
        return run_with_backward(_ReversibleSolve, solve, first_evaluation(problem, self.name))


@dataclass
class _StepRecorder(Observer):
    """Record the start and the signed size of each accepted step."""

    steps: list[tuple[float, float]]

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Append the step."""
        self.steps.append((t, h))


class _ReversibleSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        solve: ForwardSolve,
        first: FirstEvaluation,
        results: list[IntegrationResult],
        y0: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        problem, plan, recorder = solve.problem, solve.plan, _StepRecorder([])
        result = solve.result(None, first.f, recorder)
        results.append(result)
        ctx.num_reached = result.outcome.reached
        if 1 < ctx.num_reached < len(problem.times):
            # Solve again up to the last time that was reached: the step that failed cannot be undone.
            size = abs(recorder.steps[0][1]) if plan.grid is None else None
            rerun, recorder = dataclasses.replace(plan, first_step=size), _StepRecorder([])
            result = integrate(
                problem, y0, problem.times[: ctx.num_reached], rerun, Stats(), f=first.f, observers=[recorder]
            )
        ctx.problem, ctx.method, ctx.steps = problem, plan.method, recorder.steps if ctx.num_reached > 1 else []
        # Not as saved tensors: hooks may replace those, and captured tensors are recognised by identity.
        ctx.parameters, ctx.captured = first.parameters, first.captured
        forward_stepper: Any = result.stepper
        ctx.save_for_backward(result.states[ctx.num_reached - 1].clone(), forward_stepper.auxiliary_next, y0, *tensors)
        return results[0].states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        y, auxiliary, _, *tensors = ctx.saved_tensors
        problem, steps = ctx.problem, ctx.steps
        stats = problem.stats.backward = problem.stats.backward or Stats()
        args = tensors[len(ctx.parameters) :]
        accumulator = GradientAccumulator(problem, ReversibleGradient.name, ctx.parameters, args, captured=ctx.captured)
        field = BackwardField(problem, accumulator, stats)
        last = ctx.num_reached - 1
        grad = grad_states[last]
        if steps:
            with without_autocast(y.device.type):
                stepper = REVERSE_STEPPERS[type(ctx.method)](ctx.method, field, problem.times[last], y, auxiliary, grad)
                for t, h in reversed(steps):
                    stepper.undo(t, h)
                    if t == problem.times[last - 1]:
                        last -= 1
                        stepper.grad = stepper.grad + grad_states[last]
                grad = stepper.initial_gradient()
                del stepper  # and the graph that it may hold
        assert last == 0
        return None, None, None, grad, *accumulator.gradients()


Vjp = Callable[[Tensor], Tensor]
"""A function from dL/dv to dL/dy, both [N], where the value v was computed from y.

The function adds the gradients of parameters and arguments to the accumulator.
"""


class BackwardField:
    """The field of a backward pass; it also linearizes functions that evaluate it.

    stats: counts the evaluations.
    """

    def __init__(self, problem: InitialValueProblem, accumulator: GradientAccumulator, stats: Stats) -> None:
        self._problem, self._accumulator, self._stats = problem, accumulator, stats
        self.time_tensors = problem.time_tensors

    def __call__(self, t: Tensor, y: Tensor, in_result: bool = True, out: Tensor | None = None) -> Tensor:
        """Return dy/dt [N] at y [N]."""
        return self._problem(t, y, args=self._accumulator.args, stats=self._stats)

    def linearize(self, t: float, function: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Vjp]:
        """Return function(y) [N] at y [N], and the vector-Jacobian product; function: evaluates the field near t."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            value = function(y)
        self._accumulator.note_leaves([value], self.time_tensors([t])[0], [y])
        return value.detach(), lambda gradient: self._accumulator.vjp_of([y], [value], [gradient])[0]


class ReverseStepper(Protocol):
    """Undo the steps of a solve, from the last step to the first.

    y, auxiliary: the state and the auxiliary state, each [N], at the start of the step that was undone last.
    grad: dL/dy [N] at the same time, through the steps after it. If this is an output time, the caller adds the
        gradient of the output.
    """

    y: Tensor
    auxiliary: Tensor
    grad: Tensor

    def undo(self, t: float, h: float) -> None:
        """Undo the step that starts at t and has the signed size h."""

    def initial_gradient(self) -> Tensor:
        """Return the gradient [N] with respect to the first state, from which the auxiliary state was computed."""


class CoupledReverseStepper:
    """Undo the steps of a ``ReversibleRungeKutta``: invert both updates, and transpose their derivatives."""

    def __init__(
        self, method: ReversibleRungeKutta, field: BackwardField, t: float, y: Tensor, auxiliary: Tensor, grad: Tensor
    ) -> None:
        self._coupling, self._step, self._field = method.coupling, method.base.for_fixed_steps(), field
        self.y, self.auxiliary, self.grad, self._grad_auxiliary = y, auxiliary, grad, torch.zeros_like(grad)

    def undo(self, t: float, h: float) -> None:
        """Undo a step; one evaluation of each increment gives its value and its vector-Jacobian product."""
        c = self._coupling
        increment_back, vjp = self._field.linearize(t + h, lambda y: self._increment(t + h, -h, y), self.y)
        grad = self.grad + vjp(-self._grad_auxiliary)
        z = self.auxiliary + increment_back
        increment, vjp = self._field.linearize(t, lambda z: self._increment(t, h, z), z)
        self.y, self.auxiliary = z + (self.y - z - increment) / c, z
        self.grad, self._grad_auxiliary = c * grad, self._grad_auxiliary + (1 - c) * grad + vjp(grad)

    def initial_gradient(self) -> Tensor:
        """Return the gradient [N]; the first auxiliary state was y."""
        return self.grad + self._grad_auxiliary

    def _increment(self, t: float, h: float, y: Tensor) -> Tensor:
        stages, step = StageList(), self._step
        stage_times = self._field.time_tensors([t + c_i * h for c_i in step.c])
        evaluate_stages(stages, step, self._field, stage_times, y, h)
        return stages.combine(torch.zeros_like(y), step.b, h)


class LeapfrogReverseStepper:
    """Undo the steps of an ``AsynchronousLeapfrog``."""

    def __init__(
        self, method: AsynchronousLeapfrog, field: BackwardField, t: float, y: Tensor, auxiliary: Tensor, grad: Tensor
    ) -> None:
        self._method, self._field = method, field
        self._start = t
        self.y, self.auxiliary, self.grad, self._grad_auxiliary = y, auxiliary, grad, torch.zeros_like(grad)

    def undo(self, t: float, h: float) -> None:
        """Undo a step with one evaluation, at the middle of the step."""
        weight = 2 * self._method.damping
        middle = torch.add(self.y, self.auxiliary, alpha=-h / 2)
        u, vjp = self._evaluate(t + h / 2, middle)
        self.auxiliary = (self.auxiliary - weight * u) / (1 - weight)
        self.y = torch.add(middle, self.auxiliary, alpha=-h / 2)
        grad_auxiliary = torch.add(self._grad_auxiliary, self.grad, alpha=h / 2)
        self.grad = self.grad + vjp(weight * grad_auxiliary)
        self._grad_auxiliary = torch.add((1 - weight) * grad_auxiliary, self.grad, alpha=h / 2)
        self._start = t

    def initial_gradient(self) -> Tensor:
        """Return the gradient [N]; the first auxiliary state was f(t, y)."""
        _, vjp = self._evaluate(self._start, self.y)
        return self.grad + vjp(self._grad_auxiliary)

    def _evaluate(self, t: float, y: Tensor) -> tuple[Tensor, Vjp]:
        return self._field.linearize(t, lambda y: self._field(self._field.time_tensors([t])[0], y), y)


class HeunReverseStepper:
    """Undo the steps of a ``ReversibleHeun``.

    Half a step of y along f, the reflection of the auxiliary state at the result, and another half step of y undo a
    step. The evaluation at the start of a step is also used in the second half of the step before it.
    """

    def __init__(
        self, method: ReversibleHeun, field: BackwardField, t: float, y: Tensor, auxiliary: Tensor, grad: Tensor
    ) -> None:
        self._field = field
        self.y, self.auxiliary, self.grad = y, auxiliary, grad
        self._grad_auxiliary = self._grad_slope = torch.zeros_like(grad)
        self._slope, self._vjp = self._evaluate(t, auxiliary)

    def undo(self, t: float, h: float) -> None:
        """Undo a step with one evaluation, at the start of the step."""
        middle = torch.add(self.y, self._slope, alpha=-h / 2)
        grad_slope = torch.add(self._grad_slope, self.grad, alpha=h / 2)
        grad_auxiliary = self._grad_auxiliary + self._vjp(grad_slope)
        self.auxiliary = 2 * middle - self.auxiliary
        self.grad, self._grad_auxiliary = torch.add(self.grad, grad_auxiliary, alpha=2), -grad_auxiliary
        self._slope, self._vjp = self._evaluate(t, self.auxiliary)
        self.y = torch.add(middle, self._slope, alpha=-h / 2)
        self._grad_slope = h / 2 * self.grad

    def initial_gradient(self) -> Tensor:
        """Return the gradient [N]; the first auxiliary state was y."""
        return self.grad + self._grad_auxiliary + self._vjp(self._grad_slope)

    def _evaluate(self, t: float, y: Tensor) -> tuple[Tensor, Vjp]:
        return self._field.linearize(t, lambda y: self._field(self._field.time_tensors([t])[0], y), y)


REVERSE_STEPPERS: dict[type, Callable[..., ReverseStepper]] = {
    ReversibleRungeKutta: CoupledReverseStepper,
    AsynchronousLeapfrog: LeapfrogReverseStepper,
    ReversibleHeun: HeunReverseStepper,
}

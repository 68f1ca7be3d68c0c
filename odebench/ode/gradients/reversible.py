"""The exact gradient of the discrete solve by undoing its steps, for reversible methods.

The forward pass keeps the last pair of states and the sizes of the accepted steps. The backward pass undoes one step
after the other: each evaluation that this takes also gives, through its vector-Jacobian product, the gradient
(McCallum & Foster 2024; Zhuang et al. 2021, MALI; Kidger et al. 2021).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from odebench.ode.events import EventDetector
from odebench.ode.gradients.captured_tensors import FirstEvaluation, Targets, first_evaluation
from odebench.ode.integrate import IntegrationResult, Observer, integrate
from odebench.ode.methods import METHODS
from odebench.ode.methods.explicit_stepper import StageList
from odebench.ode.methods.reversible import AsynchronousLeapfrog, ReversibleHeun, ReversibleRungeKutta
from odebench.ode.methods.reversible_stepper import evaluate_stages
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import Stats


@dataclass(frozen=True)
class ReversibleGradient:
    """The numbers of backpropagation, to round-off, in the memory of one pair of states, for reversible methods alone.
    Differentiable once.

    Steps end at every output time. What round-off becomes while steps are undone, the methods say
    (``odebench.ode.methods.reversible``): little in float64 over spans short against the field's contraction.

    Memory: a pair of states, the sizes of the accepted steps, and the graph of one evaluation, with a Runge-Kutta
    method of all stages of one increment. Work backward: as many evaluations as forward, rejected steps left out.
    """

    name = "reversible"

    def integrate(
        self,
        problem: InitialValueProblem,
        plan: SolvePlan,
        observers: tuple[Observer, ...] = (),
        detector: EventDetector | None = None,
    ) -> IntegrationResult:
        """The states at the problem's times, and how it ended.

        Raises ValueError for a method that is not reversible, for events, dense output and jumps, and where f reaches
        a tensor whose gradient this mode would lose.
        """
        _refuse(plan, detector)
        plan = dataclasses.replace(plan, step_times=(*plan.step_times, *problem.times))
        if not torch.is_grad_enabled():
            return integrate(problem, problem.y0, problem.times, plan, problem.stats, observers=observers)
        first = first_evaluation(problem, self.name)
        results: list[IntegrationResult] = []
        states = _ReversibleSolve.apply(
            problem,
            plan,
            observers,
            first,
            results,
            problem.y0,
            *first.parameters,
            *problem.args,
        )
        return dataclasses.replace(results[0], states=states)


def _refuse(plan: SolvePlan, detector: EventDetector | None) -> None:
    """Raises ValueError for what the mode has no gradient for."""
    if not plan.method.reversible:
        names = ", ".join(name for name, method in METHODS.items() if method.reversible)
        raise ValueError(
            f"gradient='reversible': the steps of {plan.method.name} cannot be undone; use gradient='checkpoint', or a "
            f"reversible method ({names})"
        )
    for what, given in {
        "events": detector is not None,
        "dense output": plan.dense,
        "jump_t": plan.jump_times or plan.one_sided,
    }.items():
        if given:
            raise ValueError(f"gradient='reversible' has no {what}; use gradient='backprop'")


@dataclass
class _Steps:
    """Records start and signed size of the accepted steps."""

    taken: list[tuple[float, float]]

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Nothing yet."""

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Record it."""
        self.taken.append((t, h))

    def reject(self, t: float, y: Tensor, h: float) -> None:
        """Nothing."""


class _ReversibleSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        problem: InitialValueProblem,
        plan: SolvePlan,
        observers: tuple[Observer, ...],
        first: FirstEvaluation,
        results: list[IntegrationResult],
        y0: Tensor,
        *targets: Tensor,
    ) -> Tensor:
        steps = _Steps([])
        result = integrate(problem, y0, problem.times, plan, problem.stats, f=first.f, observers=(*observers, steps))
        results.append(result)
        ctx.reached = result.outcome.reached
        if 1 < ctx.reached < len(problem.times):
            # The pair at the last time that was reached: from where the solve failed no way may lead back.
            size = abs(steps.taken[0][1]) if plan.grid is None else None
            again, steps = dataclasses.replace(plan, first_step=size), _Steps([])
            result = integrate(problem, y0, problem.times[: ctx.reached], again, Stats(), f=first.f, observers=[steps])
        ctx.problem, ctx.method, ctx.steps = problem, plan.method, steps.taken if ctx.reached > 1 else []
        # The parameters themselves: what f reaches is told by identity, which saved tensors may lose to a hook.
        ctx.parameters, ctx.used = first.parameters, first.reached
        stepper: Any = result.stepper
        ctx.save_for_backward(result.states[ctx.reached - 1].clone(), stepper.half_next, y0, *targets)
        return results[0].states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        y, half, _, *tensors = ctx.saved_tensors
        problem, steps = ctx.problem, ctx.steps
        stats = problem.stats.backward = problem.stats.backward or Stats()
        args = tensors[len(ctx.parameters) :]
        targets = Targets(problem, ReversibleGradient.name, ctx.parameters, args, reached=ctx.used)
        field = BackwardField(problem, targets, stats)
        due = ctx.reached - 1
        grad = grad_states[due]
        if steps:
            with torch.autocast(y.device.type, enabled=False):
                walk = RETRACES[type(ctx.method)](ctx.method, field, problem.times[due], y, half, grad)
                for t, h in reversed(steps):
                    walk.undo(t, h)
                    if t == problem.times[due - 1]:
                        due -= 1
                        walk.grad = walk.grad + grad_states[due]
                grad = walk.finish()
                del walk  # with the graph that it may hold
        assert due == 0
        return None, None, None, None, None, grad, *targets.gradients()


Pull = Callable[[Tensor], Tensor]
"""From dL/d value to dL/dy, both [N], for a value made of y; the targets' gradients are added to their totals."""


class BackwardField:
    """The field of a backward pass, counted into ``stats``; what is made of it can be pulled back."""

    def __init__(self, problem: InitialValueProblem, targets: Targets, stats: Stats) -> None:
        self._problem, self._targets, self._stats = problem, targets, stats
        self.time_tensors = problem.time_tensors

    def __call__(self, t: Tensor, y: Tensor, counts: bool = True, out: Tensor | None = None) -> Tensor:
        """dy/dt [N] at y [N]."""
        self._stats.nfe += 1
        return self._problem.evaluate(t, y, self._targets.args)

    def linearize(self, t: float, function: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, "Pull"]:
        """The value [N] of a function made of the field near t, at y [N], and its ``Pull``."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            value = function(y)
        self._targets.check([value], self.time_tensors([t])[0], [y])
        return value.detach(), lambda gradient: self._targets.pull_all([y], [value], [gradient])[0]


class Retrace(Protocol):
    """Steps undone, the last one first.

    y, half: [N] the pair at the start of the step that was undone last.
    grad: [N] the gradient with respect to y as far as later steps go; an output there adds its own.
    """

    y: Tensor
    half: Tensor
    grad: Tensor

    def undo(self, t: float, h: float) -> None:
        """Go back over the step from t of signed size h."""

    def finish(self) -> Tensor:
        """The gradient [N] with respect to the state at the first time, which the auxiliary half was made of."""


class CoupledRetrace:
    """The retrace of a ``ReversibleRungeKutta``: both of its lines backward, and the transposed derivatives."""

    def __init__(
        self, method: ReversibleRungeKutta, field: BackwardField, t: float, y: Tensor, half: Tensor, grad: Tensor
    ) -> None:
        self._coupling, self._step, self._field = method.coupling, method.base.fixed(), field
        self.y, self.half, self.grad, self._grad_half = y, half, grad, torch.zeros_like(grad)

    def undo(self, t: float, h: float) -> None:
        """Each increment is evaluated once, for its value and for its derivative."""
        c = self._coupling
        behind, pull = self._field.linearize(t + h, lambda y: self._increment(t + h, -h, y), self.y)
        grad = self.grad + pull(-self._grad_half)
        z = self.half + behind
        ahead, pull = self._field.linearize(t, lambda z: self._increment(t, h, z), z)
        self.y, self.half = z + (self.y - z - ahead) / c, z
        self.grad, self._grad_half = c * grad, self._grad_half + (1 - c) * grad + pull(grad)

    def finish(self) -> Tensor:
        """z was y."""
        return self.grad + self._grad_half

    def _increment(self, t: float, h: float, y: Tensor) -> Tensor:
        stages, step = StageList(), self._step
        clock = self._field.time_tensors([t + c_i * h for c_i in step.c])
        evaluate_stages(stages, step, self._field, clock, y, h)
        return stages.combine(torch.zeros_like(y), step.b, h)


class AsynchronousLeapfrogRetrace:
    """The retrace of an ``AsynchronousLeapfrog``."""

    def __init__(
        self,
        method: AsynchronousLeapfrog,
        field: BackwardField,
        t: float,
        y: Tensor,
        half: Tensor,
        grad: Tensor,
    ) -> None:
        self._method, self._field = method, field
        self._start = t
        self.y, self.half, self.grad, self._grad_half = y, half, grad, torch.zeros_like(grad)

    def undo(self, t: float, h: float) -> None:
        """One evaluation, at the middle of the step."""
        weight = 2 * self._method.damping
        middle = torch.add(self.y, self.half, alpha=-h / 2)
        u, pull = self._evaluate(t + h / 2, middle)
        self.half = (self.half - weight * u) / (1 - weight)
        self.y = torch.add(middle, self.half, alpha=-h / 2)
        grad_half = torch.add(self._grad_half, self.grad, alpha=h / 2)
        self.grad = self.grad + pull(weight * grad_half)
        self._grad_half = torch.add((1 - weight) * grad_half, self.grad, alpha=h / 2)
        self._start = t

    def finish(self) -> Tensor:
        """v was f(t, y)."""
        _, pull = self._evaluate(self._start, self.y)
        return self.grad + pull(self._grad_half)

    def _evaluate(self, t: float, y: Tensor) -> tuple[Tensor, Pull]:
        return self._field.linearize(t, lambda y: self._field(self._field.time_tensors([t])[0], y), y)


class ReversibleHeunRetrace:
    """The retrace of a ``ReversibleHeun``: a step is half a step of y along f, the reflection of x at that, and another
    half. The evaluation at the start of a step, for its first half, is that for the last half of the step before."""

    def __init__(
        self, method: ReversibleHeun, field: BackwardField, t: float, y: Tensor, half: Tensor, grad: Tensor
    ) -> None:
        self._field = field
        self.y, self.half, self.grad = y, half, grad
        self._grad_half = self._grad_slope = torch.zeros_like(grad)
        self._slope, self._pull = self._evaluate(t, half)

    def undo(self, t: float, h: float) -> None:
        """One evaluation, at the start of the step."""
        middle = torch.add(self.y, self._slope, alpha=-h / 2)
        grad_slope = torch.add(self._grad_slope, self.grad, alpha=h / 2)
        grad_half = self._grad_half + self._pull(grad_slope)
        self.half = 2 * middle - self.half
        self.grad, self._grad_half = torch.add(self.grad, grad_half, alpha=2), -grad_half
        self._slope, self._pull = self._evaluate(t, self.half)
        self.y = torch.add(middle, self._slope, alpha=-h / 2)
        self._grad_slope = h / 2 * self.grad

    def finish(self) -> Tensor:
        """x was y."""
        return self.grad + self._grad_half + self._pull(self._grad_slope)

    def _evaluate(self, t: float, y: Tensor) -> tuple[Tensor, Pull]:
        return self._field.linearize(t, lambda y: self._field(self._field.time_tensors([t])[0], y), y)


RETRACES: dict[type, Callable[..., Retrace]] = {
    ReversibleRungeKutta: CoupledRetrace,
    AsynchronousLeapfrog: AsynchronousLeapfrogRetrace,
    ReversibleHeun: ReversibleHeunRetrace,
}

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

from odebench.ode.control import Norm, Tolerance, rms_of_parts, rms_over
from odebench.ode.dense import DenseOutput
from odebench.ode.events import Watch
from odebench.ode.gradients.compiled_adjoint import CompiledAdjoint, StepQuadrature
from odebench.ode.gradients.reach import Targets, first_evaluation
from odebench.ode.integrate import Observer, Plan, Result, even_grid, integrate
from odebench.ode.methods import METHODS, Method, Tableau
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.jacobian import Block, linearize_rate, real_size
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.methods.steppers import make_stepper
from odebench.ode.once import differentiable_once
from odebench.ode.problem import Problem, flat
from odebench.ode.status import SolveError, Stats, Status

# The adjoint may be so many times less exact, relative to its size, than the state: its error enters the gradient
# once, while the state's error bends every later evaluation.
ADJOINT_SLACK = 10.0


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint: constant memory in the number of steps; the gradient's error is of the order of the
    tolerance, relative to the gradient. Differentiable once.

    rtol, atol: tolerances of the backward solve; None takes the forward solve's. They hold for the state as they are,
        and for the adjoint, divided by its size at the last time, ten times as large.
    method, steps: of the backward solve, fixed steps over each interval between two times; None takes the forward
        solve's. With its method and tolerances the backward solve takes no larger steps than it did.
    norm: of the backward error: "semi" leaves the parameter gradient out of it, "full" has it under error control.
    """

    rtol: float | None = None
    atol: float | None = None
    method: str | Method | None = None
    steps: int | None = None
    norm: Literal["semi", "full"] = "semi"

    name = "adjoint"
    dense = False

    def integrate(
        self, problem: Problem, plan: Plan, observers: tuple[Observer, ...] = (), watch: Watch | None = None
    ) -> Result:
        """The states at the problem's times, and how it ended.

        Raises ValueError where f reaches a tensor whose gradient this mode would lose.
        """
        if not torch.is_grad_enabled():
            return integrate(problem, problem.y0, problem.times, plan, problem.stats, observers=observers, watch=watch)
        first = first_evaluation(problem, self.name)
        f, parameters = first.f.detach(), first.parameters
        results: list[Result] = []
        states = _AdjointSolve.apply(
            self, problem, plan, observers, watch, f, results, len(parameters), problem.y0, *parameters, *problem.args
        )
        return dataclasses.replace(results[0], states=states)

    def backward_plan(self, plan: Plan, span: float, largest: float) -> Plan:
        """The plan of the backward solve, after ``plan`` took steps of up to ``largest`` over so many units of time."""
        method = plan.method if self.method is None else self.method
        if isinstance(method, str):
            if method not in METHODS:
                raise ValueError(f"unknown method {method!r}; the methods are {', '.join(sorted(METHODS))}")
            method = METHODS[method]
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
        problem: Problem,
        plan: Plan,
        observers: tuple[Observer, ...],
        watch: Watch | None,
        f: Tensor,
        results: list[Result],
        num_parameters: int,
        y0: Tensor,
        *targets: Tensor,
    ) -> Tensor:
        forward_plan = dataclasses.replace(plan, dense=True) if mode.dense else plan
        result = integrate(
            problem, y0, problem.times, forward_plan, problem.stats, f=f, observers=observers, watch=watch
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
        ctx.parameters = targets[:num_parameters]
        ctx.save_for_backward(result.states, *targets)
        return result.states

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        states, *tensors = ctx.saved_tensors
        mode, problem, first_step = ctx.mode, ctx.problem, ctx.first_step
        stats = problem.stats.backward = problem.stats.backward or Stats()
        targets = Targets(problem, mode.name, ctx.parameters, tensors[len(ctx.parameters) :])
        quadrature = quadrature_of(mode, ctx.plan.method)
        plan = dataclasses.replace(
            ctx.plan,
            tolerance=_backward_tolerance(mode, ctx.plan.tolerance, targets, quadrature),
            norm=_norm(mode, ctx.plan, targets, states.shape[1]),
        )
        field = AdjointField(problem, targets, ctx.path, quadrature)
        compiled = None
        if ctx.compile and CompiledAdjoint.serves(problem, targets, plan.method):
            compiled = CompiledAdjoint(plan.method, problem, targets, stats)
        a = grad_states[ctx.reached - 1]
        for i in range(ctx.reached - 1, 0, -1):
            # The equation is linear in a: solved for an a of size 1, so that its error is relative to the gradient,
            # whatever the loss was divided by. An absolute tolerance could exceed all of a small gradient.
            size = rms_over(plan.group)(a) or 1.0
            z = field.start(states[i], a / size)
            span = [ctx.times[i], ctx.times[i - 1]]
            plan = dataclasses.replace(plan, first_step=first_step)
            result = integrate_back(field, z, span, plan, stats, size, compiled)
            if result.outcome.status is not Status.success:
                raise SolveError(result.outcome, during="backward solve of the adjoint")
            a = size * field.finish(result.states[1], size) + grad_states[i - 1]
            first_step = result.next_step
        return None, None, None, None, None, None, None, None, a, *targets.gradients()


Quadrature = Literal["stages", "nodes"] | None
"""How the parameter gradient is had: by the stages of an explicit step as they are evaluated, at the nodes of an
accepted implicit step, or, None, as a part of the backward state."""


def quadrature_of(mode: Adjoint, method: Method) -> Quadrature:
    """How a backward solve by this method has the parameter gradient."""
    if mode.norm == "full":
        return None
    if isinstance(method, Tableau):
        return "stages"
    return "nodes" if isinstance(method, ImplicitTableau | Rosenbrock) else None


def integrate_back(
    field: "AdjointField",
    z: Tensor,
    span: list[float],
    plan: Plan,
    stats: Stats,
    size: float,
    compiled: CompiledAdjoint | None = None,
) -> Result:
    """The backward solve over one interval, its parameter gradients times ``size``; by ``compiled`` steps, if any."""
    if compiled is not None:
        steps: Any = compiled
        return integrate(field, z, span, plan, stats, observers=[StepQuadrature(steps, size)], stepper=steps)
    if field.quadrature != "nodes":
        return integrate(field, z, span, plan, stats, observers=[StageQuadrature(field, plan.method, size)])
    stepper: Any = make_stepper(
        plan.method, field, z, one_sided=plan.side(*span), tolerance=plan.tolerance, norm=plan.norm, stats=stats
    )
    return integrate(field, z, span, plan, stats, observers=[_NodeQuadrature(field, stepper, size)], stepper=stepper)


def _backward_tolerance(
    mode: Adjoint, tolerance: Tolerance | None, targets: Targets, quadrature: Quadrature
) -> Tolerance | None:
    """A tolerance of each number of y as one of each number of the backward state: the adjoint has y's, and a parameter
    gradient in it the smallest of them."""

    def fitted(tol: float | Tensor) -> float | Tensor:
        if not isinstance(tol, Tensor):
            return tol
        num_parameters = sum(target.numel() for target in targets.wanted) if quadrature is None else 0
        return torch.cat([*[tol] * (1 if mode.dense else 2), tol.min().expand(num_parameters)])

    return tolerance and Tolerance(fitted(tolerance.rtol), fitted(tolerance.atol))


def _norm(mode: Adjoint, plan: Plan, targets: Targets, n: int) -> Norm:
    """The largest error of the parts of the backward state: y's, the adjoint's with its slack, and with the full norm
    every parameter gradient's, with the slack too."""
    num_states = 1 if mode.dense else 2
    sizes = [n] * num_states
    slack = [1.0, ADJOINT_SLACK][-num_states:]
    if mode.norm == "full":
        sizes += [target.numel() for target in targets.wanted]
        slack += [ADJOINT_SLACK] * len(targets.wanted)

    def norm(x: Tensor) -> float:
        errors = rms_of_parts(x[: sum(sizes)].split(sizes), plan.group)
        return max(error / s for error, s in zip(errors, slack, strict=True))

    return norm


class AdjointField:
    """d/dt of (y, a) [2N], of a [N] where y(t) is read off the ``path`` of the forward solve, and of (..., g) where
    the gradient g [P] of the targets is part of the state; where its ``quadrature`` is by stages, their integrands are
    kept for it."""

    def __init__(self, problem: Problem, targets: Targets, path: DenseOutput | None, quadrature: Quadrature) -> None:
        self._problem, self._targets, self._path, self.quadrature = problem, targets, path, quadrature
        self._n = len(problem.y0)
        self.clock = problem.clock
        self.integrands: list[list[Tensor] | None] = []

    def start(self, y: Tensor, a: Tensor) -> Tensor:
        """The backward state from y and a, both [N]."""
        self.integrands = []
        parts = [a] if self._path is not None else [y, a]
        if self.quadrature is None:
            parts += [torch.zeros_like(target).reshape(-1).to(a.dtype) for target in self._targets.wanted]
        return torch.cat(parts)

    def finish(self, z: Tensor, size: float) -> Tensor:
        """a [N] of the backward state; the gradients in it, times ``size``, are added to the targets' totals."""
        start = 0 if self._path is not None else self._n
        if self.quadrature is None:
            totals = self._targets.totals
            parts = z[start + self._n :].split([total.numel() for total in totals])
            for total, part in zip(totals, parts, strict=True):
                total.add_((part if total.is_complex() else part.real).view_as(total), alpha=size)
        return z[start : start + self._n]

    def __call__(self, t: Tensor, y: Tensor, counts: bool = True, out: Tensor | None = None) -> Tensor:
        """The derivative of the backward state y."""
        y, a = self._split(t, y)
        self._count()
        graph = self._problem.graph(t, y, self._targets.args)
        self._targets.check(graph.rates, t, graph.leaves)
        # One call for the state's and the parameters' gradients: two would walk the same chain twice.
        gathers = self.quadrature is None or (counts and self.quadrature == "stages")
        inputs = [*graph.leaves, *self._targets.wanted] if gathers else list(graph.leaves)
        pairs = [(r, g) for r, g in zip(graph.rates, graph.gradients(a), strict=True) if r.requires_grad]
        if pairs:
            rates, gradients = zip(*pairs, strict=True)
            found = torch.autograd.grad(rates, inputs, gradients, allow_unused=True, materialize_grads=True)
        else:
            found = tuple(map(torch.zeros_like, inputs))
        n = len(graph.leaves)
        parts = [rate.detach() for rate in graph.rates] if self._path is None else []
        parts += map(torch.neg, found[:n])
        if self.quadrature == "stages":
            self.integrands.append(list(found[n:]) if counts else None)
        else:
            parts += map(torch.neg, found[n:])
        return flat(parts, a.dtype, out)

    def integrand(self, t: Tensor, z: Tensor) -> list[Tensor]:
        """a^T df/dtheta of every target."""
        y, a = self._split(t, z)
        with torch.enable_grad():
            f = self._rate(t, y)
        if not (f.requires_grad and self._targets.wanted):
            return [torch.zeros_like(target) for target in self._targets.wanted]
        return list(torch.autograd.grad(f, self._targets.wanted, a, allow_unused=True, materialize_grads=True))

    def linearize(self, t: Tensor, z: Tensor, stats: Stats) -> list[Block]:
        """df/dy of y and -(df/dy)^T of a, good enough for Newton iterations: what a gets from a change of y, and g from
        both, comes right an iteration later."""
        y, _ = self._split(t, z)
        state = linearize_rate(lambda x: self._rate(t, x), y, stats)
        blocks = [state.minus_transpose()] if self._path is not None else [state, state.minus_transpose()]
        return [*blocks, Block(real_size(z) - sum(block.size for block in blocks))]

    def differentiable(self, t: Tensor, z: Tensor, counts: bool = True) -> Tensor:
        """What calling the field gives, with its graph down to t and z."""
        y, a = self._split(t, z)
        if self._path is not None and t.requires_grad:
            (slope,) = self._path.derivative([self._within(t)])
            y = y + (t - t.detach()) * slope
        y = y if y.requires_grad else y.requires_grad_()
        f = self._rate(t, y)
        inputs = [y, *self._targets.wanted] if self.quadrature is None else [y]
        a_dfdy, *integrand = torch.autograd.grad(
            f, inputs, a, create_graph=True, allow_unused=True, materialize_grads=True
        )
        parts = [a_dfdy.neg()] if self._path is not None else [f, a_dfdy.neg()]
        return torch.cat([*parts, *(part.reshape(-1).neg().to(a.dtype) for part in integrand)])

    def _count(self) -> None:
        stats = self._problem.stats.backward
        assert stats is not None
        stats.nfe += 1

    def _rate(self, t: Tensor, y: Tensor) -> Tensor:
        self._count()
        return self._problem.rate(t, y, self._targets.args)

    def _split(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """y and a, both [N], at the time t."""
        if self._path is None:
            return z[: self._n], z[self._n : 2 * self._n]
        return self._path.flat([self._within(t)], slack=1.0)[0], z[: self._n]

    def _within(self, t: Tensor) -> float:
        """t as a float, inside the path: but for the stages of implicit methods that lie well beyond the end of a step,
        and for which the path is extrapolated."""
        assert self._path is not None
        low, high = sorted(self._path.span)
        time = t.item()
        within = min(max(time, low), high)
        return within if abs(time - within) < 1e-6 * (high - low) else time


@dataclass
class StageQuadrature:
    """The integral of a^T df/dtheta along the accepted steps, times ``size``, with the weights of the method."""

    field: AdjointField
    method: Method
    size: float

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Nothing yet."""

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Add what the step's stages gathered."""
        if not self.field.integrands:
            return
        assert isinstance(self.method, Tableau)
        # dL/dtheta grows by the integral backward in time: h is negative where time was run forward.
        stages = self.field.integrands[: self.method.stages]
        for weight, integrand in zip(self.method.b, stages, strict=True):
            if weight and integrand:
                torch._foreach_add_(self.field._targets.totals, integrand, alpha=-h * weight * self.size)
        self.field.integrands = stages[-1:] if self.method.fsal else []

    def reject(self, t: float, y: Tensor, h: float) -> None:
        """The first stage stays."""
        self.field.integrands = self.field.integrands[:1]


@dataclass
class _NodeQuadrature:
    """The same for an implicit method, evaluated at the nodes of each accepted step: its iterations need no parameter
    gradient."""

    field: AdjointField
    stepper: Any
    size: float

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Nothing yet."""

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Add what the step gives."""
        if not self.field._targets.wanted:
            return
        for weight, time, z in self.stepper.nodes():
            torch._foreach_add_(self.field._targets.totals, self.field.integrand(time, z), alpha=-weight * self.size)

    def reject(self, t: float, y: Tensor, h: float) -> None:
        """Nothing was gathered."""

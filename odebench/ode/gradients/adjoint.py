"""The continuous adjoint method.

Chen, Rubanova, Bettencourt & Duvenaud 2018, Neural Ordinary Differential Equations, section 2: with
a = dL/dy, da/dt = -a^T df/dy and dL/dtheta = integral of a^T df/dtheta, solved backward in time. The parameter
gradient is a quadrature over the accepted steps rather than part of the state (Kidger, Chen & Lyons 2021, "Hey,
that's not an ODE": it need not be under error control).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odebench.ode.control import Tolerance, rms
from odebench.ode.integrate import Plan, Quadrature, integrate
from odebench.ode.problem import Problem
from odebench.ode.status import Outcome, SolveError, Stats, Status


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint: constant memory in the number of steps; the gradient's error is of the order of the
    tolerance, relative to the gradient. Differentiable once.

    rtol, atol: tolerances of the backward solve; None takes the forward solve's. They hold for the state as they are,
    and for the adjoint, divided by its size at the last time, ten times as large.
    """

    rtol: float | None = None
    atol: float | None = None

    def integrate(self, problem: Problem, plan: Plan) -> tuple[Tensor, Outcome]:
        """The states [T, N] at the problem's times, and how it ended.

        Raises ValueError where f reaches a tensor whose gradient this mode would lose.
        """
        if not torch.is_grad_enabled():
            states, outcome, _ = integrate(problem.evaluate, problem.y0, problem.times, plan, problem.stats)
            return states, outcome
        f, parameters = _first_evaluation(problem)
        outcomes: list[Outcome] = []
        states = _AdjointSolve.apply(
            self, problem, plan, f, outcomes, len(parameters), problem.y0, *parameters, *problem.args
        )
        return states, outcomes[0]

    def backward_plan(self, plan: Plan, first_step: float) -> Plan:
        """The plan of the backward solve: the forward one's, its first step warm, the state and its adjoint each
        within tolerance."""
        tolerance = plan.tolerance
        if tolerance is not None:
            rtol = tolerance.rtol if self.rtol is None else self.rtol
            atol = tolerance.atol if self.atol is None else self.atol
            tolerance = Tolerance(rtol, atol)
        return dataclasses.replace(plan, tolerance=tolerance, first_step=first_step, norm=_larger_half)


# The adjoint may be so many times less exact, relative to its size, than the state: its error enters the gradient
# once, while the state's error bends every later evaluation.
ADJOINT_SLACK = 10.0


def _larger_half(x: Tensor) -> Tensor:
    """The larger error of the two halves of x [2N]: the state's, and the adjoint's with its slack."""
    state, adjoint = (torch.linalg.vector_norm(half) for half in x.chunk(2))
    return torch.maximum(state, adjoint / ADJOINT_SLACK) / math.sqrt(max(len(x) // 2, 1))


def _first_evaluation(problem: Problem) -> tuple[Tensor, list[Tensor]]:
    """f(t0, y0), detached, and every leaf that f reaches and that wants a gradient.

    The graph of this one evaluation shows what f takes from its surroundings, parameters in closures included, so
    that none gets a silent zero. A tensor that was computed outside f cannot be reached again by the
    backward solve and is refused.
    """
    inputs = [problem.y0.detach().requires_grad_(), *(_leaf(arg) for arg in problem.args)]
    with torch.enable_grad():
        # Autograd numbers its nodes in the order they are made: a smaller number was made before f ran.
        fence = (torch.zeros((), requires_grad=True) * 1).grad_fn
        assert fence is not None
        problem.stats.nfe += 1
        f = problem.rate(problem.times[0], inputs[0], inputs[1:])
    leaves = _leaves(f, fence._sequence_nr())
    own = set(map(id, inputs))
    found = dict.fromkeys(problem.f.parameters()) if isinstance(problem.f, nn.Module) else {}
    parameters = [p for p in (found | leaves) if p.requires_grad and id(p) not in own]
    if any(p._backward_hooks for p in parameters):
        raise ValueError(
            "gradient='adjoint': a parameter of f has a gradient hook, which would run at every evaluation of the "
            "backward solve; use gradient='backprop', or change the gradient after backward()"
        )
    return f.detach(), parameters


def _leaves(f: Tensor, fence: int = 0) -> dict[Tensor, None]:
    """The leaf tensors that want a gradient in the graph of f, in order.

    Raises ValueError for a node that was made before the one numbered ``fence``: it is outside of f.
    """
    found: dict[Tensor, None] = {}
    seen, todo = set(), [f.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[variable] = None
        elif node._sequence_nr() < fence:
            raise ValueError(
                f"gradient='adjoint': f uses a tensor that was computed outside of it (by {node.name()}) and wants a "
                "gradient; pass it through args=(...), or use gradient='backprop'"
            )
        todo += [parent for parent, _ in node.next_functions]
    return found


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


class _AdjointSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mode: Adjoint,
        problem: Problem,
        plan: Plan,
        f: Tensor,
        outcomes: list[Outcome],
        num_parameters: int,
        y0: Tensor,
        *targets: Tensor,
    ) -> Tensor:
        states, outcome, proposal = integrate(problem.evaluate, y0, problem.times, plan, problem.stats, f=f)
        outcomes.append(outcome)
        ctx.problem, ctx.reached = problem, outcome.reached
        # The way back starts where the way there ended: with a step that resolved y there, not a larger one.
        step_sizes = problem.stats.step_sizes
        ctx.plan = mode.backward_plan(plan, abs(step_sizes[-1]) if step_sizes else proposal)
        ctx.num_parameters = num_parameters
        ctx.save_for_backward(states, *targets)
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        states, *targets = ctx.saved_tensors
        problem, plan = ctx.problem, ctx.plan
        stats = problem.stats.backward = problem.stats.backward or Stats()
        parameters = targets[: ctx.num_parameters]
        field = _AdjointField(problem, parameters, [_leaf(arg) for arg in targets[ctx.num_parameters :]], plan, stats)
        a = grad_states[ctx.reached - 1]
        for i in range(ctx.reached - 1, 0, -1):
            # The equation is linear in a: solved for an a of size 1, so that its error is relative to the gradient,
            # whatever the loss was divided by. An absolute tolerance could exceed all of a small gradient.
            size = rms(a).item() or 1.0
            field.restart(size)
            z = torch.cat((states[i], a / size))
            span = [problem.times[i], problem.times[i - 1]]
            (_, z), outcome, proposal = integrate(field, z, span, plan, stats, quadrature=field)
            if outcome.status is not Status.success:
                raise SolveError(outcome, during="backward solve of the adjoint")
            a = size * z[len(a) :] + grad_states[i - 1]
            plan = dataclasses.replace(plan, first_step=proposal)
        gradients = iter(field.totals)
        wanted = [next(gradients) if target.requires_grad else None for target in targets]
        return None, None, None, None, None, None, a, *wanted


class _AdjointField(Quadrature):
    """d/dt of (y, a) [2N], and the integral of a^T df/dtheta along the accepted steps."""

    def __init__(
        self, problem: Problem, parameters: Sequence[Tensor], args: Sequence[Tensor], plan: Plan, stats: Stats
    ) -> None:
        self._problem = problem
        self._args = args
        self._targets = [target for target in (*parameters, *args) if target.requires_grad]
        self._method = plan.method
        self._stats = stats
        self._integrands: list[list[Tensor] | None] = []
        self._size = 1.0
        # A module names its parameters; what else f uses at some times only is not known in advance.
        self._known = None if isinstance(problem.f, nn.Module) else {*parameters, *args}
        self.totals = [torch.zeros_like(target) for target in self._targets]

    def __call__(self, t: float, z: Tensor, counts: bool) -> Tensor:
        self._stats.nfe += 1
        y, a = z.chunk(2)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            f = self._problem.rate(t, y, self._args)
        if self._known is not None and (_leaves(f).keys() - self._known - {y}):
            raise ValueError(
                f"gradient='adjoint': f uses a parameter at t={t:.6g} that it does not use at the first time; make "
                "f an nn.Module that holds it, pass it through args=(...), or use gradient='backprop'"
            )
        # One call for the state's and the parameters' gradients: two would walk the same chain twice.
        inputs = [y, *self._targets] if counts else [y]
        if f.requires_grad:
            a_dfdy, *integrand = torch.autograd.grad(f, inputs, a, allow_unused=True, materialize_grads=True)
        else:
            a_dfdy, *integrand = [torch.zeros_like(x) for x in inputs]
        self._integrands.append(list(integrand) if counts else None)
        return torch.cat((f.detach(), a_dfdy.neg()))

    def restart(self, size: float) -> None:
        """Another solve starts with this field, for an adjoint that was divided by ``size``."""
        self._integrands = []
        self._size = size

    def accept(self, h: float) -> None:
        # dL/dtheta grows by the integral backward in time: h is negative where time was run forward.
        for weight, integrand in zip(self._method.b, self._integrands, strict=True):
            if weight and integrand:
                torch._foreach_add_(self.totals, integrand, alpha=-h * weight * self._size)
        self._integrands = self._integrands[-1:] if self._method.fsal else []

    def reject(self) -> None:
        self._integrands = self._integrands[:1]

"""What the continuous adjoint solves backward: the field of state and adjoint, and the integrals along its steps that
are the parameter gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from odebench.ode.dense import DenseOutput
from odebench.ode.gradients.captured_tensors import Targets
from odebench.ode.methods import Method, Tableau
from odebench.ode.methods.jacobian import JacobianBlock, as_like, as_real, linearize_rate, real_size
from odebench.ode.problem import InitialValueProblem, flatten
from odebench.ode.solution import Stats

Quadrature = Literal["stages", "nodes"] | None
"""How the parameter gradient is had: by the stages of an explicit step as they are evaluated, at the nodes of an
accepted implicit step, or, None, as a part of the backward state."""


def packed(gradients: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """Gradients, flat, as numbers of a backward state like this: complex ones as their parts where it is real."""
    flattened = (gradient.reshape(-1) for gradient in gradients)
    return [(g if like.is_complex() else as_real(g)).to(like.dtype) for g in flattened]


def packed_size(target: Tensor, like: Tensor) -> int:
    """How many numbers the gradient of a target takes there."""
    return target.numel() if like.is_complex() else real_size(target)


def unpacked(numbers: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of ``packed``, for gradients of these targets, in their shapes."""
    found = []
    for part, target in zip(numbers.split([packed_size(x, numbers) for x in targets]), targets, strict=True):
        if not target.is_complex():
            part = part.real
        elif not numbers.is_complex():
            part = as_like(part, target)
        found.append(part.view_as(target))
    return found


class AdjointField:
    """d/dt of (y, a) [2N], of a [N] where y(t) is read off the ``path`` of the forward solve, and of (..., g) where
    the gradient g [P] of the targets is part of the state; where its ``quadrature`` is by stages, their integrands are
    kept for it."""

    def __init__(
        self, problem: InitialValueProblem, targets: Targets, path: DenseOutput | None, quadrature: Quadrature
    ) -> None:
        self._problem, self._targets, self._path, self.quadrature = problem, targets, path, quadrature
        self._n = len(problem.y0)
        self.time_tensors = problem.time_tensors
        self.integrands: list[list[Tensor] | None] = []

    def start(self, y: Tensor, a: Tensor) -> Tensor:
        """The backward state from y and a, both [N]."""
        self.integrands = []
        parts = [a] if self._path is not None else [y, a]
        if self.quadrature is None:
            parts.append(a.new_zeros(sum(packed_size(target, a) for target in self._targets.wanted)))
        return torch.cat(parts)

    def finish(self, z: Tensor, size: float) -> Tensor:
        """a [N] of the backward state; the gradients in it, times ``size``, are added to the targets' totals."""
        start = 0 if self._path is not None else self._n
        if self.quadrature is None:
            totals = self._targets.totals
            for total, part in zip(totals, unpacked(z[start + self._n :], totals), strict=True):
                total.add_(part, alpha=size)
        return z[start : start + self._n]

    def __call__(self, t: Tensor, y: Tensor, counts: bool = True, out: Tensor | None = None) -> Tensor:
        """The derivative of the backward state y."""
        y, a = self._split(t, y)
        self._count()
        graph = self._problem.evaluate_with_graph(t, y, self._targets.args)
        self._targets.check(graph.outputs, t, graph.leaves)
        # One call for the state's and the parameters' gradients: two would walk the same chain twice.
        gathers = self.quadrature is None or (counts and self.quadrature == "stages")
        inputs = [*graph.leaves, *self._targets.wanted] if gathers else list(graph.leaves)
        pairs = [(r, g) for r, g in zip(graph.outputs, graph.grad_outputs(a), strict=True) if r.requires_grad]
        pulled: Sequence[Tensor | None] = [None] * len(inputs)
        if pairs:
            rates, gradients = zip(*pairs, strict=True)
            pulled = torch.autograd.grad(rates, inputs, gradients, allow_unused=True)
        found = [torch.zeros_like(x) if part is None else part for x, part in zip(inputs, pulled, strict=True)]
        n = len(graph.leaves)
        parts = [rate.detach() for rate in graph.outputs] if self._path is None else []
        parts += map(torch.neg, found[:n])
        if self.quadrature == "stages":
            self.integrands.append(found[n:] if counts else None)
        else:
            parts += map(torch.neg, packed(found[n:], a))
        return flatten(parts, a.dtype, out)

    def integrand(self, t: Tensor, z: Tensor) -> list[Tensor]:
        """a^T df/dtheta of every target."""
        y, a = self._split(t, z)
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            f = self._rate(t, y)
        self._targets.check([f], t, [y])
        if not (f.requires_grad and self._targets.wanted):
            return [torch.zeros_like(target) for target in self._targets.wanted]
        return list(torch.autograd.grad(f, self._targets.wanted, a, allow_unused=True, materialize_grads=True))

    def linearize(self, t: Tensor, z: Tensor, stats: Stats) -> list[JacobianBlock]:
        """df/dy of y and -(df/dy)^T of a, good enough for Newton iterations: what a gets from a change of y, and g from
        both, comes right an iteration later."""
        y, _ = self._split(t, z)
        state = linearize_rate(lambda x: self._rate(t, x), y, stats)
        blocks = [state.minus_transpose()] if self._path is not None else [state, state.minus_transpose()]
        return [*blocks, JacobianBlock(real_size(z) - sum(block.size for block in blocks))]

    def differentiable(self, t: Tensor, z: Tensor, counts: bool = True) -> Tensor:
        """What calling the field gives, with its graph down to t and z."""
        y, a = self._split(t, z)
        if self._path is not None and t.requires_grad:
            (slope,) = self._path.derivative([self._within(t)])
            y = y + (t - t.detach()) * slope
        y = y if y.requires_grad else y.requires_grad_()
        f = self._rate(t, y)
        self._targets.check([f], t, [t, z, y])
        inputs = [y, *self._targets.wanted] if self.quadrature is None else [y]
        a_dfdy, *integrand = torch.autograd.grad(
            f, inputs, a, create_graph=True, allow_unused=True, materialize_grads=True
        )
        parts = [a_dfdy.neg()] if self._path is not None else [f, a_dfdy.neg()]
        return torch.cat([*parts, *map(torch.neg, packed(integrand, a))])

    def _count(self) -> None:
        stats = self._problem.stats.backward
        assert stats is not None
        stats.nfe += 1

    def _rate(self, t: Tensor, y: Tensor) -> Tensor:
        self._count()
        return self._problem.evaluate(t, y, self._targets.args)

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
        """Before a step there is its first stage: the last one that was evaluated, anew after a jump."""
        evaluated: list[list[Tensor] | None] = [stage for stage in self.field.integrands if stage is not None]
        self.field.integrands = evaluated[-1:]

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
class NodeQuadrature:
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

"""The vector field of the continuous adjoint, and the quadratures that give the parameter gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from odebench.ode.dense import DenseOutput
from odebench.ode.gradients.captured_tensors import GradientAccumulator
from odebench.ode.integrate import Observer
from odebench.ode.methods import Method, Tableau
from odebench.ode.methods.jacobian import JacobianBlock, as_real, from_real, jacobian_block, real_size
from odebench.ode.problem import InitialValueProblem, flatten
from odebench.ode.solution import Stats
from odebench.ode.transfer import read_time

Quadrature = Literal["stages", "nodes"] | None
"""How the parameter gradient is computed.

"stages": as a sum over the stages of each explicit step. "nodes": as a sum over the nodes of each accepted implicit
step. None: as a part of the backward state.
"""


def pack_gradients(gradients: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """Flatten each gradient and convert it to the dtype of the backward state ``like``.

    If that dtype is real, complex gradients become pairs of real numbers.
    """
    flattened = (gradient.reshape(-1) for gradient in gradients)
    return [(g if like.is_complex() else as_real(g)).to(like.dtype) for g in flattened]


def packed_size(target: Tensor, like: Tensor) -> int:
    """Return how many elements the gradient with respect to ``target`` has in the backward state."""
    return target.numel() if like.is_complex() else real_size(target)


def unpack_gradients(numbers: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
    """Invert ``pack_gradients``.

    numbers: the packed gradients with respect to the tensors ``targets``. Returns one gradient in the shape of each.
    """
    found = []
    for part, target in zip(numbers.split([packed_size(x, numbers) for x in targets]), targets, strict=True):
        if not target.is_complex():
            part = part.real
        elif not numbers.is_complex():
            part = from_real(part, target)
        found.append(part.view_as(target))
    return found


class AdjointField:
    """The derivative of the backward state with respect to time.

    The backward state consists of y and the adjoint ``a``, [2N]. If y(t) comes from the ``dense_output`` of the forward
    solve, the backward state is ``a`` [N] only. If ``quadrature`` is None, the parameter gradient g [P] is appended.

    stats: counts the evaluations of the backward solve.
    integrands: used if ``quadrature`` is "stages": a^T df/dtheta at each stage evaluated so far, or None for a stage
        without weight in the result of the step.
    """

    def __init__(
        self,
        problem: InitialValueProblem,
        accumulator: GradientAccumulator,
        stats: Stats,
        dense_output: DenseOutput | None,
        quadrature: Quadrature,
    ) -> None:
        self._problem, self._accumulator, self.stats = problem, accumulator, stats
        self._dense_output, self.quadrature = dense_output, quadrature
        self._n = len(problem.y0)
        self.time_tensors = problem.time_tensors
        self.integrands: list[list[Tensor] | None] = []

    def initial_state(self, y: Tensor, a: Tensor) -> Tensor:
        """Return the backward state for y and the adjoint ``a``, both [N]; its parameter gradient is 0."""
        self.integrands = []
        parts = [a] if self._dense_output is not None else [y, a]
        if self.quadrature is None:
            parts.append(a.new_zeros(sum(packed_size(target, a) for target in self._accumulator.tensors)))
        return torch.cat(parts)

    def extract_adjoint(self, z: Tensor, scale: float) -> Tensor:
        """Return the adjoint ``a`` [N] in the backward state z.

        If z holds parameter gradients, they are multiplied by ``scale`` and added to the accumulator.
        """
        start = 0 if self._dense_output is not None else self._n
        if self.quadrature is None:
            totals = self._accumulator.totals
            for total, part in zip(totals, unpack_gradients(z[start + self._n :], totals), strict=True):
                total.add_(part, alpha=scale)
        return z[start : start + self._n]

    def __call__(self, t: Tensor, y: Tensor, in_result: bool = True, out: Tensor | None = None) -> Tensor:
        """Return the derivative of the backward state, which is given as ``y``."""
        y, a = self._split(t, y)
        graph = self._problem.evaluate_with_graph(t, y, self._accumulator.args, self.stats)
        self._accumulator.note_leaves(graph.outputs, t, graph.leaves)
        # One call for all gradients: two would traverse the same graph twice.
        with_parameters = self.quadrature is None or (in_result and self.quadrature == "stages")
        inputs = [*graph.leaves, *self._accumulator.tensors] if with_parameters else list(graph.leaves)
        pairs = [(r, g) for r, g in zip(graph.outputs, graph.grad_outputs(a), strict=True) if r.requires_grad]
        vjps: Sequence[Tensor | None] = [None] * len(inputs)
        if pairs:
            rates, gradients = zip(*pairs, strict=True)
            vjps = torch.autograd.grad(rates, inputs, gradients, allow_unused=True)
        results = [torch.zeros_like(x) if part is None else part for x, part in zip(inputs, vjps, strict=True)]
        n = len(graph.leaves)
        parts = [rate.detach() for rate in graph.outputs] if self._dense_output is None else []
        parts += map(torch.neg, results[:n])
        if self.quadrature == "stages":
            self.integrands.append(results[n:] if in_result else None)
        else:
            parts += map(torch.neg, pack_gradients(results[n:], a))
        return flatten(parts, a.dtype, out)

    def integrand(self, t: Tensor, z: Tensor) -> list[Tensor]:
        """Return a^T df/dtheta for every parameter, at the backward state z."""
        y, a = self._split(t, z)
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            f = self._rate(t, y)
        self._accumulator.note_leaves([f], t, [y])
        if not (f.requires_grad and self._accumulator.tensors):
            return [torch.zeros_like(target) for target in self._accumulator.tensors]
        return list(torch.autograd.grad(f, self._accumulator.tensors, a, allow_unused=True, materialize_grads=True))

    def linearize(self, t: Tensor, z: Tensor, stats: Stats) -> list[JacobianBlock]:
        """Return the Jacobian blocks df/dy for y and -(df/dy)^T for ``a``.

        They leave out the derivatives of da/dt with respect to y, and those of dg/dt. Newton iterations converge
        without these too, one iteration later.
        """
        y, _ = self._split(t, z)
        state = jacobian_block(lambda x: self._rate(t, x), y, stats)
        blocks = [state.negative_transpose()] if self._dense_output is not None else [state, state.negative_transpose()]
        return [*blocks, JacobianBlock(real_size(z) - sum(block.size for block in blocks))]

    def differentiable(self, t: Tensor, z: Tensor, in_result: bool = True) -> Tensor:
        """Return the derivative of the backward state z, with a graph that reaches t and z."""
        y, a = self._split(t, z)
        if self._dense_output is not None and t.requires_grad:
            (slope,) = self._dense_output.derivative([self._clamp_time(t)])
            y = y + (t - t.detach()) * slope
        y = y if y.requires_grad else y.requires_grad_()
        f = self._rate(t, y)
        self._accumulator.note_leaves([f], t, [t, z, y])
        inputs = [y, *self._accumulator.tensors] if self.quadrature is None else [y]
        a_dfdy, *integrand = torch.autograd.grad(
            f, inputs, a, create_graph=True, allow_unused=True, materialize_grads=True
        )
        parts = [a_dfdy.neg()] if self._dense_output is not None else [f, a_dfdy.neg()]
        return torch.cat([*parts, *map(torch.neg, pack_gradients(integrand, a))])

    def _rate(self, t: Tensor, y: Tensor) -> Tensor:
        return self._problem(t, y, args=self._accumulator.args, stats=self.stats)

    def _split(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and the adjoint ``a``, both [N], at the time t."""
        if self._dense_output is None:
            return z[: self._n], z[self._n : 2 * self._n]
        return self._dense_output.flat([self._clamp_time(t)], slack=1.0)[0], z[: self._n]

    def _clamp_time(self, t: Tensor) -> float:
        """Return t as a float, moved to the end of the dense output's span if only round-off puts it outside.

        Stages of implicit methods may lie far outside; for these the dense output extrapolates.
        """
        assert self._dense_output is not None
        low, high = sorted(self._dense_output.span)
        time = read_time(t)
        clamped = min(max(time, low), high)
        return clamped if abs(time - clamped) < 1e-6 * (high - low) else time


@dataclass
class StageQuadrature(Observer):
    """Add ``scale`` times the integral of a^T df/dtheta over each accepted step, with the weights of the method."""

    field: AdjointField
    method: Method
    scale: float

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Drop all integrands except that of the first stage: the last evaluation before a step, also after a jump."""
        evaluated: list[list[Tensor] | None] = [stage for stage in self.field.integrands if stage is not None]
        self.field.integrands = evaluated[-1:]

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Add the integral of a^T df/dtheta over the step to the sums of the parameter gradients."""
        if not self.field.integrands:
            return
        assert isinstance(self.method, Tableau)
        # dL/dtheta grows by the integral taken backward in time. h is negative if the forward solve went forward.
        stages = self.field.integrands[: self.method.stages]
        for weight, integrand in zip(self.method.b, stages, strict=True):
            if weight and integrand:
                torch._foreach_add_(self.field._accumulator.totals, integrand, alpha=-h * weight * self.scale)
        self.field.integrands = stages[-1:] if self.method.fsal else []

    def reject(self, t: float, y: Tensor, h: float) -> None:
        """Keep only the integrand of the first stage."""
        self.field.integrands = self.field.integrands[:1]


@dataclass
class NodeQuadrature(Observer):
    """Do what ``StageQuadrature`` does, for an implicit method.

    The integrand is evaluated at the nodes of accepted steps only: the Newton iterations need no parameter gradient.
    """

    field: AdjointField
    stepper: Any
    scale: float

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Add the integral of a^T df/dtheta over the step to the sums of the parameter gradients."""
        accumulator = self.field._accumulator
        if not accumulator.tensors:
            return
        for weight, time, z in self.stepper.quadrature_points():
            torch._foreach_add_(accumulator.totals, self.field.integrand(time, z), alpha=-weight * self.scale)

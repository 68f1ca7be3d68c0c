"""The checkpoint mode for per-sample stepping: the backward pass evaluates the accepted steps again.

The gradient is that of backpropagation through the solver, up to round-off.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odebench.ode.gradients.captured_tensors import FirstEvaluation, GradientAccumulator, first_evaluation
from odebench.ode.gradients.step_history import CheckpointStore
from odebench.ode.methods.tableau import Tableau
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.per_sample.loop import RowLoop
from odebench.ode.per_sample.output import StepOutputs, evaluate_outputs
from odebench.ode.per_sample.problem import RowProblem, count_evaluation, put_rows, take_rows
from odebench.ode.per_sample.stepping import RowStep, RowStepper
from odebench.ode.solution import Stats
from odebench.ode.torch_func import without_autocast

MODE = "checkpoint"


def run_checkpointed(loop: RowLoop, y0: Tensor, checkpoints: int | None) -> Tensor:
    """Run a loop from y0 [B, n] and return its states [T, B, n].

    checkpoints: the largest number of times at which the states of all rows are stored; None stores one state for each
        accepted step of a row.

    Raises ValueError if f uses a tensor whose gradient would be lost.
    """
    problem: Any = loop.problem
    if loop.problem.num_rows == 0:
        loop.run(y0)
        return loop.outputs.collect()
    first = first_evaluation(problem, MODE)
    loop.problem.count_row_evaluations()
    return _Checkpointed.apply(loop, checkpoints, first, y0, *first.parameters, *loop.problem.args)


@dataclass(frozen=True)
class AcceptedRowStep:
    """A step that b rows have accepted.

    rows, t, h: [b] the numbers of the rows, their times and signed step sizes, on the host.
    y: [b, n] the states at the start of the step; None if they are not stored.
    outputs: the outputs in this step.
    """

    rows: Tensor
    t: Tensor
    h: Tensor
    y: Tensor | None
    outputs: StepOutputs | None


class RowStepHistory:
    """Record the accepted steps of a loop that starts at y [B, n], and states that the steps start from.

    limit: the largest number of times at which the states of all rows are stored; None stores the states of each step.
    """

    def __init__(self, limit: int | None, y: Tensor) -> None:
        self.steps: list[AcceptedRowStep] = []
        self._checkpoints = None if limit is None else CheckpointStore(limit)
        self._states = y.detach()

    def accept(self, step: RowStep, accepted: Tensor, outputs: StepOutputs | None) -> None:
        """Append the step of those rows that accepted it."""
        rows, t, h, y, y_next = step.rows, step.t, step.h, step.y, step.y_next
        if not bool(accepted.all()):
            idx = accepted.nonzero().squeeze(1)
            rows, t, h, y, y_next = (take_rows(x, idx) for x in (rows, t, h, y, y_next))
            outputs = None if outputs is None else outputs.for_accepted(accepted)
        if self._checkpoints is not None:
            self._checkpoints.save_if_due(len(self.steps), self._states)
            self._states = put_rows(self._states, rows, y_next)
        self.steps.append(AcceptedRowStep(rows, t, h, y if self._checkpoints is None else None, outputs))

    def reversed_steps(
        self, advance: Callable[[AcceptedRowStep, Tensor], Tensor]
    ) -> Iterator[tuple[AcceptedRowStep, Tensor]]:
        """Yield each step and the states [b, n] that it starts from, from the last step to the first.

        advance: computes the states after a step again, from the step and the states [b, n] before it.
        """
        if self._checkpoints is None:
            for accepted in reversed(self.steps):
                assert accepted.y is not None
                yield accepted, accepted.y
            return

        def advance_all(n: int, states: Tensor) -> Tensor:
            accepted = self.steps[n]
            return put_rows(states, accepted.rows, advance(accepted, take_rows(states, accepted.rows)))

        for n, states in self._checkpoints.reversed_steps(len(self.steps), advance_all):
            yield self.steps[n], take_rows(states, self.steps[n].rows)


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loop: RowLoop, checkpoints: int | None, first: FirstEvaluation, y0: Tensor, *tensors: Tensor
    ) -> Tensor:
        loop.observer = history = RowStepHistory(checkpoints, y0)
        loop.run(y0, first.f)
        ctx.history, ctx.problem, ctx.method = history, loop.problem, loop.plan.method
        # Not as saved tensors: hooks may replace those, and captured tensors are recognised by identity.
        ctx.parameters, ctx.captured = first.parameters, first.captured
        ctx.save_for_backward(y0, *tensors)
        return loop.outputs.collect()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        args = ctx.saved_tensors[1 + len(ctx.parameters) :]
        problem: RowProblem = ctx.problem
        problem.stats.backward = problem.stats.backward or Stats(row_evaluations=0)
        accumulator = GradientAccumulator(ctx.problem, MODE, ctx.parameters, args, captured=ctx.captured)
        backward_pass = _RowBackwardPass(problem, ctx.method, accumulator, grad_states.flatten(0, 1))
        gradient = torch.zeros_like(grad_states[0])
        with without_autocast(grad_states.device.type):
            for accepted, y in ctx.history.reversed_steps(backward_pass.advance):
                gradient = backward_pass.step(accepted, y, gradient)
        backward_pass.close()
        return None, None, None, gradient + grad_states[0], *accumulator.gradients()


class _RowBackwardPass:
    """Backpropagate the gradient [B, n] with respect to the states through one step after the other."""

    def __init__(
        self, problem: RowProblem, method: Tableau, accumulator: GradientAccumulator, grad_outputs: Tensor
    ) -> None:
        self._problem, self._accumulator, self._grad_outputs = problem, accumulator, grad_outputs
        self._stepper, self._forward = (
            RowStepper(method, self._field, grad_outputs, problem.on_device, with_graph=with_graph)
            for with_graph in (True, False)
        )
        self._rows: Tensor | None = None
        self._args: list[Tensor] = []

    def close(self) -> None:
        """Drop the steppers: they and this object would keep each other in memory until garbage is collected."""
        del self._stepper, self._forward

    def advance(self, accepted: AcceptedRowStep, y: Tensor) -> Tensor:
        """Return the states [b, n] after a step from y [b, n]."""
        k = self._field(self._problem.on_device(accepted.t), y, accepted.rows)
        return self._forward.attempt(accepted.rows, accepted.t, accepted.h, y, k, need_f_next=False).y_next

    def step(self, accepted: AcceptedRowStep, y: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient [B, n] at the start of a step.

        y: the states [b, n] at the start. gradient: the gradient [B, n] at the end of the step.

        The gradients of parameters and arguments are added to the accumulator.
        """
        rows, outputs = accepted.rows, accepted.outputs
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            # The entries of arguments that were taken for another step belong to a graph that is freed.
            self._rows = None
            k = self._field(self._problem.on_device(accepted.t), y, rows)
            has_inner_outputs = outputs is not None and len(outputs.idx) > 0
            step = self._stepper.attempt(rows, accepted.t, accepted.h, y, k, need_f_next=has_inner_outputs)
            results, gradients = [step.y_next], [take_rows(gradient, rows)]
            if outputs is not None:
                results.append(evaluate_outputs(self._stepper, step, outputs))
                gradients.append(take_rows(self._grad_outputs, outputs.flat_idx))
        self._accumulator.note_leaves(results, accepted.t[0], [y])
        (vjp,) = self._accumulator.vjp_of([y], results, gradients)
        return put_rows(gradient, rows, vjp)

    def _field(self, t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        stats = self._problem.stats.backward
        assert stats is not None
        count_evaluation(stats, len(y))
        if rows is not self._rows:
            self._rows, self._args = rows, self._problem.row_args(self._accumulator.args, rows)
        return self._problem.evaluate(t, y, self._args)

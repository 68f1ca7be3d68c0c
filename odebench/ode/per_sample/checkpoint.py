"""The checkpoint mode for rows: the accepted steps are remembered and evaluated again on the way back.

The numbers are those of backpropagation through the solver, to round-off.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odebench.ode.gradients.captured_tensors import FirstEvaluation, Targets, first_evaluation
from odebench.ode.gradients.tape import Kept
from odebench.ode.methods.tableau import Tableau
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.per_sample.loop import RowLoop
from odebench.ode.per_sample.outputs import Reading, read
from odebench.ode.per_sample.problem import RowProblem, count, pick, put
from odebench.ode.per_sample.stepping import RowStepper, Step
from odebench.ode.solution import Stats

MODE = "checkpoint"


def run_checkpointed(loop: RowLoop, y0: Tensor, checkpoints: int | None) -> Tensor:
    """The states [T, B, n] of a loop from y0 [B, n]; memory: one state an accepted step of a row, or, where a number of
    ``checkpoints`` is given, at most so many times those of all rows.

    Raises ValueError where f reaches a tensor whose gradient would be lost.
    """
    problem: Any = loop.problem
    if loop.problem.num_rows == 0:
        loop.run(y0)
        return loop.outputs.collect()
    first = first_evaluation(problem, MODE)
    loop.problem.count_rows_once()
    return _Checkpointed.apply(loop, checkpoints, first, y0, *first.parameters, *loop.problem.args)


@dataclass(frozen=True)
class TakenStep:
    """An accepted step of b rows: their numbers, times and signed sizes [b] on the host, states [b, n] at its start,
    where they are kept."""

    rows: Tensor
    t: Tensor
    h: Tensor
    y: Tensor | None
    reading: Reading | None


class RowTape:
    """The tape of a loop from y [B, n]: each step's states, or at most ``limit`` times those of all rows."""

    def __init__(self, limit: int | None, y: Tensor) -> None:
        self.steps: list[TakenStep] = []
        self._kept = None if limit is None else Kept(limit)
        self._states = y.detach()

    def accept(self, step: Step, accepted: Tensor, reading: Reading | None) -> None:
        """Remember the accepted rows."""
        rows, t, h, y, y_next = step.rows, step.t, step.h, step.y, step.y_next
        if not bool(accepted.all()):
            at = accepted.nonzero().squeeze(1)
            rows, t, h, y, y_next = (pick(x, at) for x in (rows, t, h, y, y_next))
            reading = None if reading is None else reading.of(accepted)
        if self._kept is not None:
            self._kept.offer(len(self.steps), self._states)
            self._states = put(self._states, rows, y_next)
        self.steps.append(TakenStep(rows, t, h, y if self._kept is None else None, reading))

    def backward(self, advance: Callable[[TakenStep, Tensor], Tensor]) -> Iterator[tuple[TakenStep, Tensor]]:
        """Each step and the states [b, n] that it starts from, the last step first.

        advance(taken, y): the states [b, n] after a step, solved again.
        """
        if self._kept is None:
            for taken in reversed(self.steps):
                assert taken.y is not None
                yield taken, taken.y
            return

        def move(n: int, states: Tensor) -> Tensor:
            taken = self.steps[n]
            return put(states, taken.rows, advance(taken, pick(states, taken.rows)))

        for n, states in self._kept.backward(len(self.steps), move):
            yield self.steps[n], pick(states, self.steps[n].rows)


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loop: RowLoop, checkpoints: int | None, first: FirstEvaluation, y0: Tensor, *targets: Tensor
    ) -> Tensor:
        loop.observer = tape = RowTape(checkpoints, y0)
        loop.run(y0, first.f)
        ctx.tape, ctx.problem, ctx.method = tape, loop.problem, loop.plan.method
        # The parameters themselves: what f reaches is told by identity, which saved tensors may lose to a hook.
        ctx.parameters, ctx.used = first.parameters, first.reached
        ctx.save_for_backward(y0, *targets)
        return loop.outputs.collect()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        args = ctx.saved_tensors[1 + len(ctx.parameters) :]
        problem: RowProblem = ctx.problem
        problem.stats.backward = problem.stats.backward or Stats(row_evaluations=0)
        targets = Targets(ctx.problem, MODE, ctx.parameters, args, reached=ctx.used)
        back = _WayBack(problem, ctx.method, targets, grad_states.flatten(0, 1))
        gradient = torch.zeros_like(grad_states[0])
        with torch.autocast(grad_states.device.type, enabled=False):
            for taken, y in ctx.tape.backward(back.advance):
                gradient = back.step(taken, y, gradient)
        return None, None, None, gradient + grad_states[0], *targets.gradients()


class _WayBack:
    """Pulls the gradient [B, n] with respect to the states back through one step after the other."""

    def __init__(self, problem: RowProblem, method: Tableau, targets: Targets, grad_outputs: Tensor) -> None:
        self._problem, self._targets, self._grad_outputs = problem, targets, grad_outputs
        self._stepper, self._forward = (
            RowStepper(method, self._field, grad_outputs, problem.on_device, taped=taped) for taped in (True, False)
        )
        self._rows: Tensor | None = None
        self._args: list[Tensor] = []

    def advance(self, taken: TakenStep, y: Tensor) -> Tensor:
        """The states [b, n] after a step from y [b, n]."""
        k = self._field(self._problem.on_device(taken.t), y, taken.rows)
        return self._forward.attempt(taken.rows, taken.t, taken.h, y, k, need_end=False).y_next

    def step(self, taken: TakenStep, y: Tensor, gradient: Tensor) -> Tensor:
        """From the end of a step to its start; what it gives to parameters and arguments is added to the targets."""
        rows, reading = taken.rows, taken.reading
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            # Arguments picked for an earlier step belong to a graph that is gone.
            self._rows = None
            k = self._field(self._problem.on_device(taken.t), y, rows)
            inside = reading is not None and len(reading.owners) > 0
            step = self._stepper.attempt(rows, taken.t, taken.h, y, k, need_end=inside)
            results, gradients = [step.y_next], [pick(gradient, rows)]
            if reading is not None:
                results.append(read(self._stepper, step, reading))
                gradients.append(pick(self._grad_outputs, reading.slots))
        self._targets.check(results, taken.t[0], [y])
        (pulled,) = self._targets.pull_all([y], results, gradients)
        return put(gradient, rows, pulled)

    def _field(self, t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        stats = self._problem.stats.backward
        assert stats is not None
        count(stats, len(y))
        if rows is not self._rows:
            self._rows, self._args = rows, self._problem.args_of(self._targets.args, rows)
        return self._problem.evaluate(t, y, self._args)

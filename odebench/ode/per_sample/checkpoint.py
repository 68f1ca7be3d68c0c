"""The checkpoint mode for rows: the accepted steps are remembered and evaluated again on the way back.

The numbers are those of backpropagation through the solver, to round-off.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odebench.ode.gradients.reach import Targets, first_evaluation
from odebench.ode.methods.tableau import Tableau
from odebench.ode.once import differentiable_once
from odebench.ode.per_sample.loop import RowLoop
from odebench.ode.per_sample.outputs import Reading, read
from odebench.ode.per_sample.problem import RowProblem, count, pick
from odebench.ode.per_sample.stepping import RowStepper, Step
from odebench.ode.status import Stats

MODE = "checkpoint"


def run_checkpointed(loop: RowLoop, y0: Tensor) -> Tensor:
    """The states [T, B, n] of a loop from y0 [B, n]; memory: one state an accepted step of a row.

    Raises ValueError where f reaches a tensor whose gradient would be lost.
    """
    problem: Any = loop.problem
    if loop.problem.num_rows == 0:
        loop.run(y0)
        return loop.outputs.collect()
    first = first_evaluation(problem, MODE)
    loop.problem.count_rows_once()
    args, parameters = loop.problem.args, first.parameters
    return _Checkpointed.apply(loop, first.f.detach(), len(parameters), y0, *parameters, *args)


@dataclass(frozen=True)
class Record:
    """An accepted step of b rows: their numbers, times and signed sizes [b] on the host, states [b, n] at its start."""

    rows: Tensor
    t: Tensor
    h: Tensor
    y: Tensor
    reading: Reading | None


@dataclass
class Records:
    """The recorder of a loop."""

    steps: list[Record] = field(default_factory=list)

    def accept(self, step: Step, accepted: Tensor, reading: Reading | None) -> None:
        """Remember the accepted rows."""
        if bool(accepted.all()):
            self.steps.append(Record(step.rows, step.t, step.h, step.y, reading))
            return
        at = accepted.nonzero().squeeze(1)
        rows, t, h, y = (pick(x, at) for x in (step.rows, step.t, step.h, step.y))
        self.steps.append(Record(rows, t, h, y, None if reading is None else reading.of(accepted)))


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loop: RowLoop, k: Tensor, num_parameters: int, y0: Tensor, *targets: Tensor) -> Tensor:
        loop.recorder = records = Records()
        loop.run(y0, k)
        ctx.records, ctx.problem, ctx.method = records, loop.problem, loop.plan.method
        # The parameters themselves: what f reaches is told by identity, which saved tensors may lose to a hook.
        ctx.parameters = targets[:num_parameters]
        ctx.save_for_backward(y0, *targets)
        return loop.outputs.collect()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        args = ctx.saved_tensors[1 + len(ctx.parameters) :]
        problem: RowProblem = ctx.problem
        problem.stats.backward = problem.stats.backward or Stats(row_evaluations=0)
        targets = Targets(ctx.problem, MODE, ctx.parameters, args)
        back = _WayBack(problem, ctx.method, targets, grad_states.flatten(0, 1))
        gradient = torch.zeros_like(grad_states[0])
        with torch.autocast(grad_states.device.type, enabled=False):
            for record in reversed(ctx.records.steps):
                gradient = back.step(record, gradient)
        return None, None, None, gradient + grad_states[0], *targets.gradients()


class _WayBack:
    """Pulls the gradient [B, n] with respect to the states back through one step after the other."""

    def __init__(self, problem: RowProblem, method: Tableau, targets: Targets, grad_outputs: Tensor) -> None:
        self._problem, self._targets, self._grad_outputs = problem, targets, grad_outputs
        self._stepper = RowStepper(method, self._field, grad_outputs, problem.on_device, taped=True)
        self._rows: Tensor | None = None
        self._args: list[Tensor] = []

    def step(self, record: Record, gradient: Tensor) -> Tensor:
        """From the end of a step to its start; what it gives to parameters and arguments is added to the targets."""
        rows, reading = record.rows, record.reading
        with torch.enable_grad():
            y = record.y.detach().requires_grad_()
            # Arguments picked for an earlier step belong to a graph that is gone.
            self._rows = None
            k = self._field(self._problem.on_device(record.t), y, rows)
            inside = reading is not None and len(reading.owners) > 0
            step = self._stepper.attempt(rows, record.t, record.h, y, k, need_end=inside)
            results, gradients = [step.y_next], [pick(gradient, rows)]
            if reading is not None:
                results.append(read(self._stepper, step, reading))
                gradients.append(pick(self._grad_outputs, reading.slots))
        self._targets.check([step.y_next], record.t[0], [y])
        (pulled,) = self._targets.pull_all([y], results, gradients)
        return gradient.index_copy(0, rows.to(gradient.device), pulled)

    def _field(self, t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        stats = self._problem.stats.backward
        assert stats is not None
        count(stats, len(y))
        if rows is not self._rows:
            self._rows, self._args = rows, self._problem.args_of(self._targets.args, rows)
        return self._problem.rate(t, y, self._args)

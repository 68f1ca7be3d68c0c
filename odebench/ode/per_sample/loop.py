"""The loop over steps: all active rows attempt one step at a time, and finished rows are removed."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from odebench.ode.methods.tableau import Tableau
from odebench.ode.per_sample.events import RowEventDetector
from odebench.ode.per_sample.output import RowOutputRecorder, StepOutputs, evaluate_outputs
from odebench.ode.per_sample.problem import RowProblem, put_rows, take_rows
from odebench.ode.per_sample.step_size import AdaptiveStepSizes, FixedStepSizes, RowStepSizes
from odebench.ode.per_sample.stepping import RowStep, RowStepper
from odebench.ode.plan import SolvePlan
from odebench.ode.solution import Status
from odebench.ode.torch_func import to_list, without_autocast


class RowObserver(Protocol):
    """An observer of every step that at least one row accepts."""

    def accept(self, step: RowStep, accepted: Tensor, outputs: StepOutputs | None) -> None:
        """Called when at least one of the b rows in a step accepts it.

        accepted: [b] whether each row accepts the step.
        outputs: the output times in this step; None if there are none.
        """


@dataclass
class ActiveRows:
    """The b rows whose solve has not ended yet.

    rows: [b] the numbers of the rows.
    t: [b] their times.
    y, k: [b, n] their states and the first stages of their next steps.
    rejected: [b] how many steps each row has rejected.
    attempts: the number of attempted steps, which is the same for all active rows.
    """

    rows: Tensor
    t: Tensor
    y: Tensor
    k: Tensor
    rejected: Tensor
    attempts: int = 0

    def select(self, idx: Tensor) -> None:
        """Keep only the rows at the positions ``idx``."""
        parts = (self.rows, self.t, self.y, self.k, self.rejected)
        self.rows, self.t, self.y, self.k, self.rejected = (take_rows(x, idx) for x in parts)


@dataclass
class RowOutcomes:
    """How the solve of each of B rows ended; all tensors are [B], on the host.

    status, time: why and at which time the row ended.
    step_size, error_ratio: the size and the error of its last attempted step, the error in units of the tolerance.
    accepted, rejected: the numbers of its accepted and rejected steps.
    """

    status: list[Status]
    time: Tensor
    step_size: Tensor
    error_ratio: Tensor
    accepted: Tensor
    rejected: Tensor

    @classmethod
    def before_first_step(cls, problem: RowProblem) -> "RowOutcomes":
        """Return the outcomes before the first step: success at the first time, without any steps."""
        unknown = torch.full_like(problem.times[0], math.nan)
        none = torch.zeros(problem.num_rows, dtype=torch.long, device="cpu")
        status = [Status.success] * problem.num_rows
        return cls(status, problem.times[0].clone(), unknown, unknown.clone(), none, none.clone())


@dataclass
class RowLoop:
    """One solve of all rows; ``run`` fills ``outputs`` and ``outcomes``.

    detector: finds the zeros of an event function.
    observer: called for every step that at least one row accepts.
    """

    problem: RowProblem
    plan: SolvePlan
    detector: RowEventDetector | None = None
    observer: RowObserver | None = None
    outputs: RowOutputRecorder = field(init=False)
    outcomes: RowOutcomes = field(init=False)

    def run(self, y: Tensor, k: Tensor | None = None) -> None:
        """Take steps from y [B, n] until no row is active; k: f(t0, y), if it was evaluated already."""
        problem, method = self.problem, self.plan.method
        assert isinstance(method, Tableau)
        if y.requires_grad and not torch.is_grad_enabled():
            # Under no_grad, f cannot differentiate with respect to a view of a tensor that requires grad.
            y = y.detach()
        self.outputs = RowOutputRecorder(problem, y, at_step_ends=self.plan.tolerance is None)
        self.outcomes = RowOutcomes.before_first_step(problem)
        if problem.num_rows == 0:
            return
        with without_autocast(y.device.type):
            y = y.contiguous()
            self._stepper = RowStepper(method, problem, y, problem.on_device, with_graph=torch.is_grad_enabled())
            self._start(y, k)
            while len(self._active.rows):
                self._attempt_step()

    def _start(self, y: Tensor, k: Tensor | None) -> None:
        problem, plan = self.problem, self.plan
        rows = problem.all_rows()
        (t0,) = problem.time_tensors(problem.times[:1])
        if k is None:
            # A copy: f may reuse its memory.
            k = problem(t0, y, rows).clone()
        self._step_sizes: RowStepSizes = (
            FixedStepSizes(problem, plan) if plan.tolerance is None else AdaptiveStepSizes(problem, plan)
        )
        self._active = ActiveRows(rows, problem.times[0], y, k, torch.zeros(len(rows), dtype=torch.long, device="cpu"))
        if self.detector is not None:
            self.detector.start(t0, y)
        self._drop_non_finite()
        active = self._active
        if len(active.rows) and isinstance(self._step_sizes, AdaptiveStepSizes) and plan.first_step is None:
            self._step_sizes.search_first_step(problem, active.rows, active.t, active.y, active.k)

    def _attempt_step(self) -> None:
        """Attempt one step of every active row."""
        active, step_sizes, stepper = self._active, self._step_sizes, self._stepper
        underflowed = step_sizes.choose(active.t)
        if underflowed is not None:
            self._finish_rows(underflowed, step_sizes.failure_statuses(attempted=active.attempts > 0))
            return
        if active.attempts == self.plan.max_steps:
            all_active = torch.ones_like(step_sizes.last)
            self._finish_rows(all_active, [Status.max_steps] * len(all_active))
            return
        active.attempts += 1
        step = stepper.attempt(active.rows, active.t, step_sizes.h, active.y, active.k)
        accepted = step_sizes.accept_or_reject(stepper, step)
        all_accepted = bool(accepted.all())
        if not all_accepted:
            active.rejected = active.rejected + ~accepted
        if all_accepted or bool(accepted.any()):
            if not all_accepted and stepper.with_graph and not bool(step_sizes.error_ratio.isfinite().all()):
                # Zero times NaN is NaN: the graph of the accepted rows must not include the others.
                step = stepper.repeat_for(step, accepted.nonzero().squeeze(1), active.k)
            self._apply_accepted(step, accepted, all_accepted)

    def _apply_accepted(self, step: RowStep, accepted: Tensor, all_accepted: bool) -> None:
        """Move the accepted rows to the end of their step, and remove the rows that are finished."""
        active, step_sizes, stepper = self._active, self._step_sizes, self._stepper
        if all_accepted:
            active.t, active.y, k, at_end = step_sizes.t_next, step.y_next, step.f_next, step_sizes.last
        else:
            accepted_column = accepted.to(step.y.device, non_blocking=True).unsqueeze(1)
            active.t, at_end = torch.where(accepted, step_sizes.t_next, step.t), accepted & step_sizes.last
            active.y = torch.where(accepted_column, step.y_next, step.y)
            k = None if step.f_next is None else torch.where(accepted_column, step.f_next, active.k)
        done, statuses = at_end, [Status.success] * len(at_end)
        if self.detector is not None:
            hits = self.detector.detect(stepper, step, step_sizes.t_next, accepted)
            hit, done = ~hits.isnan(), at_end | ~hits.isnan()
            # Rows without an event have the time NaN, which compares false.
            active.t, at_end = torch.where(hit, hits, active.t), at_end & ~((hits - step_sizes.t_next) * step.h < 0)
            statuses = [Status.event if is_hit else Status.success for is_hit in to_list(hit)]
        outputs = self.outputs.find_in_step(step, active.t, at_end)
        if outputs is not None:
            self.outputs.add(evaluate_outputs(stepper, step, outputs), outputs.flat_idx)
        if self.observer is not None:
            self.observer.accept(step, accepted, outputs)
        if k is not None:
            active.k = k
        else:
            self._evaluate_next_slopes(step, accepted & ~done)
        if bool(done.any()):
            self._finish_rows(done, statuses)
        if stepper.with_graph and step.f_next is None:
            self._drop_non_finite()

    def _evaluate_next_slopes(self, step: RowStep, continuing: Tensor) -> None:
        """Evaluate the first stage of the next step for the rows ``continuing`` [b].

        Rows for which the interpolant of the last step has evaluated it already are left out.
        """
        active = self._active
        if step.f_next_of_some is not None:
            idx, k = step.f_next_of_some
            active.k = put_rows(active.k, idx, k)
            continuing = continuing.index_fill(0, idx, False)
        if bool(continuing.all()):
            # A view, so that autograd adds gradients in the same order as if only some rows continued.
            y = active.y.view_as(active.y)
            # A copy: f may reuse its memory.
            active.k = self.problem(self.problem.on_device(active.t), y, active.rows).clone()
            return
        idx = continuing.nonzero().squeeze(1)
        if len(idx):
            t, y, rows = (take_rows(x, idx) for x in (active.t, active.y, active.rows))
            active.k = put_rows(active.k, idx, self.problem(self.problem.on_device(t), y, rows))

    def _drop_non_finite(self) -> None:
        """Remove rows whose first stage is not finite.

        The other rows are then evaluated again, since they share a graph with the removed rows.
        """
        active = self._active
        if self.plan.tolerance is None or bool(active.k.isfinite().all()):
            return
        invalid = ~active.k.isfinite().all(1).cpu()
        self._finish_rows(invalid, [Status.non_finite] * len(invalid))
        if self._stepper.with_graph and len(active.rows):
            active.k = self.problem(self.problem.on_device(active.t), active.y, active.rows).clone()

    def _finish_rows(self, finished: Tensor, statuses: list[Status]) -> None:
        """Record how the rows ``finished`` [b] ended, with the status of each row, and remove them."""
        active, step_sizes, outcomes = self._active, self._step_sizes, self.outcomes
        idx = finished.nonzero().squeeze(1)
        rows = take_rows(active.rows, idx)
        for row, position in zip(to_list(rows), to_list(idx), strict=True):
            outcomes.status[row] = statuses[position]
        outcomes.time[rows], outcomes.step_size[rows], outcomes.error_ratio[rows] = (
            take_rows(x, idx) for x in (active.t, step_sizes.h, step_sizes.error_ratio)
        )
        outcomes.rejected[rows] = take_rows(active.rejected, idx)
        outcomes.accepted[rows] = active.attempts - outcomes.rejected[rows]
        remaining = (~finished).nonzero().squeeze(1)
        active.select(remaining)
        for part in (step_sizes, self.outputs, self.detector):
            if part is not None:
                part.select(remaining)

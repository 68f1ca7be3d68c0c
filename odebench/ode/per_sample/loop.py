"""The loop: every row at work tries one step; rows that are done drop out."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from odebench.ode.methods.tableau import Tableau
from odebench.ode.per_sample.events import RowWatch
from odebench.ode.per_sample.outputs import Outputs, Reading, read
from odebench.ode.per_sample.problem import RowProblem, pick
from odebench.ode.per_sample.step_size import AdaptivePace, FixedPace, Pace
from odebench.ode.per_sample.stepping import RowStepper, Step
from odebench.ode.plan import SolvePlan
from odebench.ode.solution import Status


class RowObserver(Protocol):
    """Who is told of every step that some row accepts."""

    def accept(self, step: Step, accepted: Tensor, reading: Reading | None) -> None:
        """The rows [b] of the step that are accepted, and the outputs read off it."""


@dataclass
class Work:
    """The rows at work: their numbers, times [b], states and first stages [b, n], and rejected steps.

    attempts: of each of them, as nobody waits.
    """

    rows: Tensor
    t: Tensor
    y: Tensor
    k: Tensor
    rejected: Tensor
    attempts: int = 0

    def select(self, at: Tensor) -> None:
        """Go on with the rows at these positions."""
        self.rows, self.t, self.rejected = pick(self.rows, at), pick(self.t, at), pick(self.rejected, at)
        self.y, self.k = pick(self.y, at), pick(self.k, at)


@dataclass
class Ends:
    """How each of B rows ended, on the host; ``step_size`` and ``error_ratio`` are those of its last attempt."""

    status: list[Status]
    time: Tensor
    step_size: Tensor
    error_ratio: Tensor
    accepted: Tensor
    rejected: Tensor

    @classmethod
    def of(cls, problem: RowProblem) -> "Ends":
        """Before the first step."""
        unknown = torch.full_like(problem.times[0], math.nan)
        none = torch.zeros(problem.num_rows, dtype=torch.long)
        status = [Status.success] * problem.num_rows
        return cls(status, problem.times[0].clone(), unknown, unknown.clone(), none, none.clone())


@dataclass
class RowLoop:
    """One solve of all rows. Afterwards ``outputs`` and ``ends`` say what came out.

    watch: looks for the zeros of an event function.
    observer: is told of the steps.
    """

    problem: RowProblem
    plan: SolvePlan
    detector: RowWatch | None = None
    observer: RowObserver | None = None
    outputs: Outputs = field(init=False)
    ends: Ends = field(init=False)

    def run(self, y: Tensor, k: Tensor | None = None) -> None:
        """Step from y [B, n] until no row is left; k = f(t0, y), where it is known already."""
        problem, method = self.problem, self.plan.method
        assert isinstance(method, Tableau)
        self.outputs, self.ends = Outputs(problem, y, gridded=self.plan.tolerance is None), Ends.of(problem)
        if problem.num_rows == 0:
            return
        with torch.autocast(y.device.type, enabled=False):
            y = y.contiguous()
            self._stepper = RowStepper(method, problem, y, problem.on_device, taped=torch.is_grad_enabled())
            self._start(y, k)
            while len(self._work.rows):
                self._advance()

    def _start(self, y: Tensor, k: Tensor | None) -> None:
        problem, plan = self.problem, self.plan
        rows = problem.all_rows()
        (t0,) = problem.time_tensors(problem.times[:1])
        if k is None:
            # A copy: f may write to the same memory again.
            k = problem(t0, y, rows).clone()
        self._pace: Pace = FixedPace(problem, plan) if plan.tolerance is None else AdaptivePace(problem, plan)
        self._work = Work(rows, problem.times[0], y, k, torch.zeros(len(rows), dtype=torch.long))
        if self.detector is not None:
            self.detector.start(t0, y)
        self._drop_non_finite()
        if isinstance(self._pace, AdaptivePace) and plan.first_step is None:
            work = self._work
            self._pace.search(problem, work.rows, work.t, work.y, work.k)

    def _advance(self) -> None:
        """One attempt of every row at work."""
        work, pace, stepper = self._work, self._pace, self._stepper
        stuck = pace.offer(work.t)
        if stuck is not None:
            self._retire(stuck, pace.verdict())
            return
        if work.attempts == self.plan.max_steps:
            everybody = torch.ones_like(pace.last)
            self._retire(everybody, [Status.max_steps] * len(everybody))
            return
        work.attempts += 1
        step = stepper.attempt(work.rows, work.t, pace.h, work.y, work.k)
        accepted = pace.judge(stepper, step)
        all_accepted = bool(accepted.all())
        if not all_accepted:
            work.rejected = work.rejected + ~accepted
        if all_accepted or bool(accepted.any()):
            if not all_accepted and stepper.taped and not bool(pace.ratio.isfinite().all()):
                # Zero times NaN is NaN: the graph of the accepted rows may not pass through the others.
                step = stepper.again(step, accepted.nonzero().squeeze(1), work.k)
            self._move(step, accepted, all_accepted)

    def _move(self, step: Step, accepted: Tensor, all_accepted: bool) -> None:
        """Take the accepted rows to the end of their step; those that are done leave."""
        work, pace, stepper = self._work, self._pace, self._stepper
        if all_accepted:
            work.t, work.y, k, arrived = pace.t_next, step.y_next, step.end, pace.last
        else:
            moved = accepted.to(step.y.device).unsqueeze(1)
            work.t, arrived = torch.where(accepted, pace.t_next, step.t), accepted & pace.last
            work.y = torch.where(moved, step.y_next, step.y)
            k = None if step.end is None else torch.where(moved, step.end, work.k)
        done, statuses = arrived, [Status.success] * len(arrived)
        if self.detector is not None:
            hits = self.detector.look(stepper, step, pace.t_next, accepted)
            hit = ~hits.isnan()
            work.t, arrived, done = torch.where(hit, hits, work.t), arrived & ~hit, arrived | hit
            statuses = [Status.event if is_hit else Status.success for is_hit in hit.tolist()]
        reading = self.outputs.find(step, work.t, arrived)
        if reading is not None:
            self.outputs.keep(read(stepper, step, reading), reading.slots)
        if self.observer is not None:
            self.observer.accept(step, accepted, reading)
        if k is not None:
            work.k = k
        else:
            self._evaluate_ends(step, accepted & ~done)
        if bool(done.any()):
            self._retire(done, statuses)
        if stepper.taped and step.end is None:
            self._drop_non_finite()

    def _evaluate_ends(self, step: Step, moving: Tensor) -> None:
        """The first stage of the next step of the rows that moved and go on, unless their extension gave it."""
        work = self._work
        if step.ends is not None:
            at, k = step.ends
            work.k = work.k.index_copy(0, at.to(k.device), k)
            moving = moving.index_fill(0, at, False)
        at = moving.nonzero().squeeze(1)
        if len(at):
            t, y, rows = (pick(x, at) for x in (work.t, work.y, work.rows))
            k = self.problem(self.problem.on_device(t), y, rows)
            work.k = work.k.index_copy(0, at.to(k.device), k)

    def _drop_non_finite(self) -> None:
        """Rows that cannot start a step leave, and with them the graph they share with the others."""
        work = self._work
        if self.plan.tolerance is None or bool(work.k.isfinite().all()):
            return
        bad = ~work.k.isfinite().all(1).cpu()
        self._retire(bad, [Status.non_finite] * len(bad))
        if self._stepper.taped and len(work.rows):
            work.k = self.problem(self.problem.on_device(work.t), work.y, work.rows).clone()

    def _retire(self, leaving: Tensor, statuses: list[Status]) -> None:
        """The rows ``leaving`` [b] are done, each with its status."""
        work, pace, ends = self._work, self._pace, self.ends
        at = leaving.nonzero().squeeze(1)
        rows = pick(work.rows, at)
        for row, position in zip(rows.tolist(), at.tolist(), strict=True):
            ends.status[row] = statuses[position]
        ends.time[rows], ends.step_size[rows], ends.error_ratio[rows] = (
            pick(x, at) for x in (work.t, pace.h, pace.ratio)
        )
        ends.rejected[rows] = pick(work.rejected, at)
        ends.accepted[rows] = work.attempts - ends.rejected[rows]
        staying = (~leaving).nonzero().squeeze(1)
        work.select(staying)
        for part in (pace, self.outputs, self.detector):
            if part is not None:
                part.select(staying)

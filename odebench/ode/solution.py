"""What a solve gives back: the states, how it ended, and what it cost."""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from odebench.ode.dense import DenseOutput


class Status(Enum):
    """How a solve ended."""

    success = "success"
    max_steps = "max_steps"
    step_underflow = "step_underflow"
    non_finite = "non_finite"
    not_converged = "not_converged"
    unstable = "unstable"
    event = "event"


@dataclass
class Stats:
    """What a solve cost.

    nfe: evaluations of the vector field.
    accepted, rejected: steps.
    start: the time of the first step; None before it, and with per-sample stepping.
    step_sizes: signed sizes of the accepted steps, in the order they were taken; their times follow by adding them
        to ``start``.
    error_ratios: the error of each accepted step in units of the tolerance; empty for fixed steps.
    stiffness: h |lambda| as the last step saw it, lambda the field's largest eigenvalue in the direction of the
        solution; explicit methods stay near their stability limit (3.3 for dopri5) on a stiff field. None where
        the method gives no estimate.
    warm_step: the size that the first accepted step's error would have allowed: a good ``first_step`` for another
        solve like this one. None for fixed steps.
    backward: the same for the backward pass of a gradient mode that solves an ODE of its own (each
        evaluation there is one of the field and one vector-Jacobian product); filled by ``backward()``, and
        added to when several backward passes go through one solve. None where the backward pass evaluates
        nothing.
    row_evaluations: with per-sample stepping the rows that the field was evaluated for, over all evaluations; there
        ``nfe`` counts its calls, and the steps are those of all rows together, without their sizes and errors.
    jacobians, linear_solves: those of implicit steps; an evaluation that a Jacobian needs is counted in ``nfe`` too.
    jacobian_products: products of a Jacobian, or its transpose, with a vector; each costs about as much as two
        evaluations.
    """

    nfe: int = 0
    accepted: int = 0
    rejected: int = 0
    start: float | None = None
    step_sizes: list[float] = field(default_factory=list)
    error_ratios: list[float] = field(default_factory=list)
    stiffness: float | None = None
    warm_step: float | None = None
    backward: "Stats | None" = None
    row_evaluations: int | None = None
    jacobians: int = 0
    linear_solves: int = 0
    jacobian_products: int = 0


@dataclass(frozen=True)
class SolveOutcome:
    """How an integration ended, where, and with what numbers; ``reached`` of the times have their states.

    rows: with per-sample stepping how many rows ended so, and the first of them, whose numbers these are.
    """

    status: Status
    reached: int
    time: float
    step_size: float
    error_ratio: float
    nfe: int
    rows: str = ""

    def message(self) -> str:
        """One line for the user: what happened, where, and the way out."""
        where = (
            f"at t={self.time:.6g}{self.rows} with step size {self.step_size:.3g}, "
            f"last error ratio {self.error_ratio:.3g}, {self.nfe} evaluations"
        )
        return {
            Status.success: f"success {where}",
            Status.max_steps: f"max_steps: step limit reached {where}; raise max_steps or loosen the tolerance",
            Status.step_underflow: f"step_underflow: the error stays above the tolerance {where}; the field may be "
            "discontinuous or stiff, or the tolerance too tight for its dtype",
            Status.non_finite: f"non_finite: the vector field gave NaN or inf {where}",
            Status.not_converged: f"not_converged: the implicit equations of a step were not solved {where}; take "
            "smaller steps",
            Status.unstable: f"unstable: the two halves of the reversible state drifted apart {where}; take smaller "
            "steps, a smaller coupling or a shorter span",
            Status.event: f"event: a terminal event {where}",
        }[self.status]


@dataclass(frozen=True)
class EventHits:
    """Where one event function crossed zero.

    t: [E] the times, differentiable.
    y: the states there: the structure of y0, each tensor [E, *its shape], differentiable.
    """

    t: Tensor
    y: Any


@dataclass(frozen=True)
class RowStats:
    """How each row of a solve with per-sample stepping ended, and what it cost.

    status: B of them.
    time: [B] the last time it reached.
    nfe: [B] evaluations of the vector field that it took part in.
    accepted, rejected: [B] steps.
    """

    status: tuple[Status, ...]
    time: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class Solution:
    """The solution of an initial value problem.

    t: [T] the times asked for.
    y: the states at those times: the structure of y0, each tensor [T, *its shape]; NaN at times that were
        not reached.
    stats: what the solve cost; ``stats.backward`` is filled by the backward pass.
    outcome: how it ended; ``status`` is its name.
    dense: the solution at any time, where it was asked for.
    events: one entry an event function, where any was given.
    rows: of each row, with per-sample stepping; t is then [T] or [B, T], and each tensor of y [T, B, ...].
    """

    t: Tensor
    y: Any
    stats: Stats
    outcome: SolveOutcome
    dense: DenseOutput | None = None
    events: tuple["EventHits", ...] = ()
    rows: RowStats | None = None

    @property
    def status(self) -> Status:
        """How the solve ended."""
        return self.outcome.status

    def detached(self) -> "Solution":
        """The same numbers without their graph."""
        t, y, events = pytree.tree_map_only(
            Tensor, Tensor.detach, (self.t, self.y, [(hits.t, hits.y) for hits in self.events])
        )
        return replace(self, t=t, y=y, events=tuple(EventHits(*hits) for hits in events))


class SolveError(RuntimeError):
    """A solve that did not reach its last time; ``solution`` holds what was reached.

    Raised from a backward pass, ``solution`` is None: there the states belong to the adjoint. It passes from process to
    process, and loses its graph on the way.
    """

    def __init__(self, outcome: SolveOutcome, solution: Solution | None = None, during: str = "solve") -> None:
        super().__init__(f"{during} failed: {outcome.message()}")
        self.outcome, self.solution, self.during = outcome, solution, during

    def __reduce__(self) -> tuple[Any, ...]:
        # By what it was made of: the default is to make it of its message.
        return type(self), (self.outcome, self.solution and self.solution.detached(), self.during)

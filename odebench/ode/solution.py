"""The results of a solve: the states, the status, and the cost."""

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
    """The cost of a solve.

    nfe: the number of evaluations of the vector field.
    accepted, rejected: the numbers of accepted and rejected steps.
    start: the time of the first step; None before it, and with per-sample stepping.
    step_sizes: the signed sizes of the accepted steps, in the order in which they were taken. The times of the steps
        follow by adding the sizes to ``start``.
    rejected_steps: the start and the signed size of each rejected step; empty with compiled solves.
    error_ratios: the error of each accepted step in units of the tolerance; empty for fixed steps.
    stiffness: an estimate of h |lambda| in the last step, where lambda is the field's largest eigenvalue in the
        direction of the solution. On a stiff field, explicit methods stay near their stability limit, which is 3.3 for
        dopri5. None if the method gives no estimate.
    warm_step: the step size that the error of the first accepted step would have allowed. It is a good ``first_step``
        for another solve like this one. None for fixed steps.
    backward: the statistics of the backward pass; None if it evaluates nothing. It evaluates f if the gradient mode
        computes steps again, or solves an ODE of its own, where each evaluation includes one vector-Jacobian product.
        ``backward()`` fills these statistics; several backward passes through one solve are summed.
    row_evaluations: with per-sample stepping, the number of rows evaluated, summed over all evaluations. ``nfe`` then
        counts the calls of f, and the numbers of steps are those of all rows together, without sizes and errors.
    jacobians, linear_solves: the numbers of Jacobians and linear solves in implicit steps. Evaluations for a Jacobian
        are counted in ``nfe`` as well.
    jacobian_products: the number of products of a Jacobian, or its transpose, with a vector. Each costs about as much
        as two evaluations.
    """

    nfe: int = 0
    accepted: int = 0
    rejected: int = 0
    start: float | None = None
    step_sizes: list[float] = field(default_factory=list)
    rejected_steps: list[tuple[float, float]] = field(default_factory=list)
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
    """How and where an integration ended.

    status: why it ended.
    reached: the number of output times that were reached; these have states.
    time, step_size, error_ratio: the time, the size and the error of the last step; the error is in units of the
        tolerance.
    nfe: the number of evaluations.
    rows: with per-sample stepping, a text that says how many rows ended with this status and which is the first. The
        time, step size and error are those of this row.
    attempted: whether any step was tried.
    """

    status: Status
    reached: int
    time: float
    step_size: float
    error_ratio: float
    nfe: int
    rows: str = ""
    attempted: bool = True

    def message(self) -> str:
        """Return one line for the user, which says what happened, where, and what to do."""
        where = (
            f"at t={self.time:.6g}{self.rows} with step size {self.step_size:.3g}, "
            f"last error ratio {self.error_ratio:.3g}, {self.nfe} evaluations"
        )
        return {
            Status.success: f"success {where}",
            Status.max_steps: f"max_steps: step limit reached {where}; raise max_steps or loosen the tolerance",
            Status.step_underflow: f"step_underflow (underflow in dt): {self._cause_of_underflow(where)}",
            Status.non_finite: f"non_finite: the vector field gave NaN or inf {where}",
            Status.not_converged: f"not_converged: the implicit equations of a step were not solved {where}; take "
            "smaller steps",
            Status.unstable: f"unstable: the state and the auxiliary state drifted apart {where}; take smaller steps, "
            "a smaller coupling or a shorter span",
            Status.event: f"event: a terminal event {where}",
        }[self.status]

    def _cause_of_underflow(self, where: str) -> str:
        if not self.attempted and self.step_size == 0:
            return (
                f"dy/dt overflows when divided by the error scale atol + rtol |y|, and no step is small enough "
                f"{where}; give atol > 0, as components that are 0 have no scale without it"
            )
        if not self.attempted:
            return (
                f"the first step is too small to change t {where}; give a larger first_step, or atol > 0 where y is 0, "
                "replace t by t - t0, so that times begin near 0, or loosen the tolerance"
            )
        return (
            f"the error stays above the tolerance {where}; the field may be discontinuous or stiff, or the tolerance "
            "too tight for its dtype"
        )


@dataclass(frozen=True)
class EventHits:
    """The E points at which one event function crossed zero.

    t: the times [E], differentiable.
    y: the states at these times, in the structure of y0, each tensor [E, *its shape]; differentiable.
    """

    t: Tensor
    y: Any


@dataclass(frozen=True)
class RowStats:
    """How each row of a solve with per-sample stepping ended, and what it cost.

    status: the status of each of the B rows.
    time: [B] the last time that each row reached.
    nfe: [B] the number of evaluations of the vector field for each row.
    accepted, rejected: [B] the numbers of accepted and rejected steps of each row.
    """

    status: tuple[Status, ...]
    time: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor


@dataclass(frozen=True)
class Solution:
    """The solution of an initial value problem.

    t: the output times [T].
    y: the states at these times, in the structure of y0, each tensor [T, *its shape]; NaN at times that were not
        reached.
    stats: the cost of the solve; the backward pass fills ``stats.backward``.
    outcome: how the solve ended; ``status`` is short for ``outcome.status``.
    dense: the solution as a function of time; None unless ``dense=True``.
    events: the zeros of each event function, one entry for each.
    rows: with per-sample stepping, the statistics of each row. Then t is [T] or [B, T], and each tensor of y is
        [T, B, ...].
    """

    t: Tensor
    y: Any
    stats: Stats
    outcome: SolveOutcome
    dense: DenseOutput | None = None
    events: tuple[EventHits, ...] = ()
    rows: RowStats | None = None

    @property
    def status(self) -> Status:
        """How the solve ended."""
        return self.outcome.status

    def detached(self) -> "Solution":
        """Return a copy without the autograd graph."""
        t, y, events = pytree.tree_map_only(
            Tensor, Tensor.detach, (self.t, self.y, [(hits.t, hits.y) for hits in self.events])
        )
        dense = self.dense and self.dense.detached()
        return replace(self, t=t, y=y, events=tuple(EventHits(*hits) for hits in events), dense=dense)


class SolveError(RuntimeError):
    """The error of a solve that did not reach its last time; ``solution`` holds the states that were reached.

    If a backward pass raises the error, ``solution`` is None, because its states are those of the adjoint. The error
    can be pickled; the copy has no graph.
    """

    def __init__(self, outcome: SolveOutcome, solution: Solution | None = None, during: str = "solve") -> None:
        super().__init__(f"{during} failed: {outcome.message()}")
        self.outcome, self.solution, self.during = outcome, solution, during

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuild it from the arguments of __init__; by default, an exception is rebuilt from its message.
        return type(self), (self.outcome, self.solution and self.solution.detached(), self.during)

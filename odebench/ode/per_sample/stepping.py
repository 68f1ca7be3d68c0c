"""One step of an explicit Runge-Kutta method for b rows at once, each with its own time and step size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odebench.ode.dense import HERMITE
from odebench.ode.methods.explicit_stepper import StageBuffer, StageList
from odebench.ode.methods.tableau import Tableau
from odebench.ode.per_sample.problem import take_rows
from odebench.ode.transfer import constant

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The field: a function (t [b], y [b, n], rows [b]) -> dy/dt [b, n]."""


class RowStageBuffer(StageBuffer):
    """A ``StageBuffer`` that stores h k_i, the stages of b rows times their step sizes, each flattened to [b n]."""

    def __init__(self, count: int, y: Tensor) -> None:
        super().__init__(count, y)
        self.shape = y.shape
        self._shaped_rows = [row.view(y.shape) for row in self._rows]

    def store(self, i: int, k: Tensor, h: Tensor) -> None:
        """Store h k as stage i; k [b, n], h [b, 1]."""
        torch.mul(k, h, out=self._shaped_rows[i])

    def combine(self, y: Tensor, weights: tuple[float, ...], h: float) -> Tensor:
        """Return y + sum_i weights_i (h_b k_i), [b, n]; h: 1, since the stages include each row's step size h_b."""
        rows, vector, _ = self._products.get(id(weights)) or self._product(weights)
        return torch.addmv(y.view(-1), rows, vector, alpha=h).view(self.shape)


class RowStageList(StageList):
    """A ``StageList`` that stores h k_i [b, n], the stages of b rows times their step sizes."""

    def store(self, i: int, k: Tensor, h: Tensor) -> None:
        """Store h k as stage i; k [b, n], h [b, 1]."""
        self.set(i, k * h)

    def scatter(self, y: Tensor, idx: Tensor) -> None:
        """Extend the stages from the rows ``idx`` [b] to all rows of y; the stages of other rows are 0."""
        self._stages = {i: torch.zeros_like(y).index_copy(0, idx, stage) for i, stage in self._stages.items()}


@dataclass
class RowStep:
    """An attempted step of b rows.

    rows: [b] the numbers of the rows, on the host.
    t, h: [b] their times and signed step sizes, float64 on the host.
    y, y_next: [b, n] the states at both ends of the step.
    f_next: [b, n] f at the end of the step; None if the method does not evaluate it.
    f_next_of_some: the indices of some rows, and f at the end of their step; None if no interpolant has evaluated it.
    """

    rows: Tensor
    t: Tensor
    h: Tensor
    y: Tensor
    y_next: Tensor
    stages: RowStageBuffer | RowStageList
    f_next: Tensor | None
    f_next_of_some: tuple[Tensor, Tensor] | None = None


class RowStepper:
    """Take the steps of a ``Tableau`` for many rows; with_graph: whether the steps are differentiable."""

    def __init__(
        self, method: Tableau, field: Field, y: Tensor, on_device: Callable[[Tensor], Tensor], with_graph: bool
    ) -> None:
        self.method, self.with_graph, self._field, self._on_device = method, with_graph, field, on_device
        self.fsal = method.fsal
        self._c = torch.tensor((*method.c, *method.extra_c), dtype=torch.float64, device="cpu").unsqueeze(1)
        self._extra_a = [constant(row, y.dtype, y.device) for row in method.extra_a]
        self._dense = constant(HERMITE if method.dense is None else method.dense, y.dtype, y.device).t()
        self._buffer: RowStageBuffer | None = None

    def attempt(self, rows: Tensor, t: Tensor, h: Tensor, y: Tensor, k: Tensor, need_f_next: bool = True) -> RowStep:
        """Attempt one step from y [b, n], with the first stage k = f(t, y).

        need_f_next: False omits the last stage of an FSAL method.
        """
        method, last = self.method, self.method.stages - 1
        stages, size = self._stages_for(y), self._on_device(h).unsqueeze(1)
        stage_times = self._stage_times(t, h, self._c[: last + 1])
        stages.store(0, k, size)
        for i in range(1, last + 1):
            y_i = stages.combine(y, method.a[i], 1.0)
            if i < last or need_f_next or not self.fsal:
                k = self._field(stage_times[i], y_i, rows)
                stages.store(i, k, size)
        y_next = y_i if self.fsal else stages.combine(y, method.b, 1.0)
        # A copy: f may reuse its memory.
        return RowStep(rows, t, h, y, y_next, stages, k.clone() if self.fsal and need_f_next else None)

    def error(self, step: RowStep) -> Tensor:
        """Return the difference [b, n] between the result and that of the embedded method."""
        assert self.method.error is not None
        return step.stages.error(self.method.error, 1.0).view(step.y.shape)

    def repeat_for(self, step: RowStep, idx: Tensor, k: Tensor) -> RowStep:
        """Repeat a step for the rows at the indices ``idx`` only, so that its graph contains no other rows.

        The other rows keep their states y.
        """
        rows, t, h, y, k_of_rows = (take_rows(x, idx) for x in (step.rows, step.t, step.h, step.y, k))
        repeated = self.attempt(rows, t, h, y, k_of_rows)
        idx = idx.to(step.y.device, non_blocking=True)
        assert isinstance(repeated.stages, RowStageList)
        repeated.stages.scatter(step.y, idx)
        y_next = step.y.index_copy(0, idx, repeated.y_next)
        f_next = None if repeated.f_next is None else k.index_copy(0, idx, repeated.f_next)
        return RowStep(step.rows, step.t, step.h, step.y, y_next, repeated.stages, f_next)

    def interpolant(self, step: RowStep, idx: Tensor) -> Tensor:
        """Return the coefficients [q, b', n] of the interpolant for the rows at the indices ``idx`` [b'].

        The interpolant is y(t + theta h) = y + sum_j theta^j coefficients_j. Its extra stages are evaluated here. If
        the method has no dense output, it is a cubic Hermite interpolant.
        """
        method = self.method
        rows, t, h, y = (take_rows(x, idx) for x in (step.rows, step.t, step.h, step.y))
        size = self._on_device(h).unsqueeze(1)
        if method.dense is None:
            y_next = take_rows(step.y_next, idx)
            f_next = self._field(self._on_device(t + h), y_next, rows)
            step.f_next_of_some = idx, f_next.clone()
            k = take_rows(step.stages.get(0).view(step.y.shape), idx)
            slopes = torch.stack((k, size * f_next, y_next - y))
            return torch.tensordot(self._dense, slopes, dims=1)
        stages = step.stages.first(method.stages)
        stacked = (stages if isinstance(stages, Tensor) else torch.stack(stages)).view(-1, *step.y.shape)
        slopes = stacked.index_select(1, idx.to(y.device, non_blocking=True))
        stage_times = self._stage_times(t, h, self._c[method.stages :]) if method.extra_c else []
        for time, weights in zip(stage_times, self._extra_a, strict=True):
            k = self._field(time, torch.add(y, torch.tensordot(weights, slopes, dims=1)), rows)
            if len(slopes) == method.end_stage:
                step.f_next_of_some = idx, k.clone()
            slopes = torch.cat((slopes, (size * k).unsqueeze(0)))
        return torch.tensordot(self._dense, slopes, dims=1)

    def _stages_for(self, y: Tensor) -> "RowStageBuffer | RowStageList":
        if self.with_graph:
            return RowStageList(exclusive=True)
        if self._buffer is None or self._buffer.shape != y.shape:
            self._buffer = RowStageBuffer(self.method.stages, y)
        return self._buffer

    def _stage_times(self, t: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        return list(self._on_device(torch.addcmul(t, c, h)).unbind())


def interpolate(coefficients: Tensor, y: Tensor, idx: Tensor, thetas: Tensor) -> Tensor:
    """Compute P states [P, n] inside a step.

    coefficients: the interpolant [q, b, n] from ``RowStepper.interpolant``. y: the states [b, n] at the start.
    idx, thetas: [P] the row of each state, and its position in the step.
    """
    powers = thetas.to(y.device, y.real.dtype, non_blocking=True).unsqueeze(0).expand(len(coefficients), -1).cumprod(0)
    terms = coefficients.index_select(1, idx) * powers.unsqueeze(2)
    return y.index_select(0, idx) + terms.sum(0)

"""One step of an explicit Runge-Kutta method for b rows at once, each with its own time and step size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odebench.ode.dense import HERMITE
from odebench.ode.methods.tableau import Tableau
from odebench.ode.per_sample.problem import pick

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f(t [b], y [b, n], rows [b]) -> [b, n]."""


class Buffer:
    """The stages of b rows times their step sizes, h k_i, as one matrix: a linear combination is one product."""

    def __init__(self, y: Tensor, count: int) -> None:
        self._all = y.new_empty(count, *y.shape)
        self._stages = self._all.unbind()
        flat = self._all.view(count, y.numel())
        # A view costs as much as a small product: the columns for each number of weights are made once.
        self._columns = [flat[: i + 1].t() for i in range(count)]
        self._shape = y.shape

    def put(self, i: int, k: Tensor, h: Tensor) -> None:
        """Keep h k as stage i; k [b, n], h [b, 1]."""
        torch.mul(k, h, out=self._stages[i])

    def combine(self, y: Tensor, weights: Tensor) -> Tensor:
        """y + sum_i weights_i h k_i, [b, n]."""
        return torch.addmv(y.view(-1), self._columns[weights.shape[0] - 1], weights).view(self._shape)

    def error(self, weights: Tensor) -> Tensor:
        """sum_i weights_i h k_i, [b, n]."""
        return torch.mv(self._columns[weights.shape[0] - 1], weights).view(self._shape)

    def first(self, count: int) -> Tensor:
        """The first stages [count, b, n]."""
        return self._all[:count]


class Tape:
    """The same as tensors with their graphs, for autograd to walk back."""

    def __init__(self, y: Tensor, count: int) -> None:
        self._stages: list[Tensor] = []

    def put(self, i: int, k: Tensor, h: Tensor) -> None:
        """Keep h k as stage i; stages come in order."""
        self._stages.append(k * h)

    def combine(self, y: Tensor, weights: Tensor) -> Tensor:
        """y + sum_i weights_i h k_i, [b, n]."""
        for stage, weight in zip(self._stages, weights.tolist(), strict=False):
            if weight:
                y = torch.add(y, stage, alpha=weight)
        return y

    def error(self, weights: Tensor) -> Tensor:
        """sum_i weights_i h k_i, [b, n], outside the graph."""
        with torch.no_grad():
            return self.combine(torch.zeros_like(self._stages[0]), weights)

    def first(self, count: int) -> Tensor:
        """The first stages [count, b, n]."""
        return torch.stack(self._stages[:count])

    def spread(self, y: Tensor, at: Tensor) -> None:
        """Make stages of the rows ``at`` [b] into stages for all rows of y."""
        self._stages = [torch.zeros_like(y).index_copy(0, at, stage) for stage in self._stages]


@dataclass
class Step:
    """An attempted step of b rows.

    rows: [b] their numbers; t, h: [b] times and signed sizes, in float64; all on the host.
    y, y_next: [b, n] at the two ends.
    end: [b, n] f at the second end, where the method has it.
    ends: the same for some of the rows only, as their positions and values.
    """

    rows: Tensor
    t: Tensor
    h: Tensor
    y: Tensor
    y_next: Tensor
    stages: Buffer | Tape
    end: Tensor | None
    ends: tuple[Tensor, Tensor] | None = None


class RowStepper:
    """Steps of a ``Tableau``, with autograd where it is on."""

    def __init__(
        self, method: Tableau, field: Field, y: Tensor, on_device: Callable[[Tensor], Tensor], taped: bool
    ) -> None:
        self.method, self.taped, self._field, self._on_device = method, taped, field, on_device
        self.fsal = method.fsal
        self._c = torch.tensor((*method.c, *method.extra_c), dtype=torch.float64).unsqueeze(1)
        # The taped combinations read their weights on the host.
        like = torch.empty(0, dtype=torch.float64) if taped else y
        self._a = [like.new_tensor(row) for row in method.a]
        self._b = like.new_tensor(method.b)
        self._error = like.new_tensor(method.error or ())
        self._extra_a = [y.new_tensor(row) for row in method.extra_a]
        self._dense = y.new_tensor(HERMITE if method.dense is None else method.dense).t()
        self._buffer: Buffer | None = None
        self._buffer_shape = torch.Size()

    def attempt(self, rows: Tensor, t: Tensor, h: Tensor, y: Tensor, k: Tensor, need_end: bool = True) -> Step:
        """One step from y [b, n] with first stage k = f(t, y); ``need_end=False`` spares an FSAL method its last."""
        last = self.method.stages - 1
        stages, size = self._stages_for(y), self._on_device(h).unsqueeze(1)
        clock = self._clock(t, h, self._c[: last + 1])
        stages.put(0, k, size)
        for i in range(1, last + 1):
            y_i = stages.combine(y, self._a[i])
            if i < last or need_end or not self.fsal:
                k = self._field(clock[i], y_i, rows)
                stages.put(i, k, size)
        y_next = y_i if self.fsal else stages.combine(y, self._b)
        # A copy: f may write to the same memory again.
        return Step(rows, t, h, y, y_next, stages, k.clone() if self.fsal and need_end else None)

    def error(self, step: Step) -> Tensor:
        """The difference to the embedded method [b, n]."""
        return step.stages.error(self._error)

    def again(self, step: Step, at: Tensor, k: Tensor) -> Step:
        """The same step with graphs of the rows at these positions only; the others keep their y."""
        part = self.attempt(pick(step.rows, at), pick(step.t, at), pick(step.h, at), pick(step.y, at), pick(k, at))
        at = at.to(step.y.device)
        assert isinstance(part.stages, Tape)
        part.stages.spread(step.y, at)
        y_next = step.y.index_copy(0, at, part.y_next)
        end = None if part.end is None else k.index_copy(0, at, part.end)
        return Step(step.rows, step.t, step.h, step.y, y_next, part.stages, end)

    def interpolant(self, step: Step, at: Tensor) -> Tensor:
        """Coefficients [q, b', n] of y(t + theta h) = y + sum_j theta^j coefficients_j for the rows at these positions.

        Evaluates the stages that only this needs; cubic Hermite where the method has no extension of its own.
        """
        method = self.method
        rows, t, h, y = (pick(x, at) for x in (step.rows, step.t, step.h, step.y))
        size = self._on_device(h).unsqueeze(1)
        if method.dense is None:
            y_next = pick(step.y_next, at)
            f_next = self._field(self._on_device(t + h), y_next, rows)
            step.ends = at, f_next.clone()
            slopes = torch.stack((step.stages.first(1)[0].index_select(0, at.to(y.device)), size * f_next, y_next - y))
            return torch.tensordot(self._dense, slopes, dims=1)
        slopes = step.stages.first(method.stages).index_select(1, at.to(y.device))
        clock = self._clock(t, h, self._c[method.stages :]) if method.extra_c else []
        for time, weights in zip(clock, self._extra_a, strict=True):
            k = self._field(time, torch.add(y, torch.tensordot(weights, slopes, dims=1)), rows)
            if len(slopes) == method.end_stage:
                step.ends = at, k.clone()
            slopes = torch.cat((slopes, (size * k).unsqueeze(0)))
        return torch.tensordot(self._dense, slopes, dims=1)

    def _stages_for(self, y: Tensor) -> Buffer | Tape:
        if self.taped:
            return Tape(y, self.method.stages)
        if self._buffer is None or self._buffer_shape != y.shape:
            self._buffer, self._buffer_shape = Buffer(y, self.method.stages), y.shape
        return self._buffer

    def _clock(self, t: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        return list(self._on_device(torch.addcmul(t, c, h)).unbind())


def states_at(coefficients: Tensor, y: Tensor, owners: Tensor, thetas: Tensor) -> Tensor:
    """The states [P, n] inside a step: of the row at position owners_p of y [b, n] and its ``interpolant``
    [q, b, n], at thetas_p."""
    powers = thetas.to(y.device, y.real.dtype).unsqueeze(0).expand(len(coefficients), -1).cumprod(0)
    terms = coefficients.index_select(1, owners) * powers.unsqueeze(2)
    return y.index_select(0, owners) + terms.sum(0)

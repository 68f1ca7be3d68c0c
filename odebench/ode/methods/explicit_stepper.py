"""The stepper of explicit Runge-Kutta methods.

``StageBuffer`` stores the stages as rows of one matrix, so that a linear combination is one matrix-vector product: fast
without autograd. ``StageList`` stores tensors with their graphs.
"""

from typing import Any

import torch
from torch import Tensor

from odebench.ode.control import Norm, Tolerance, rms
from odebench.ode.dense import HERMITE, LINEAR, Interpolant
from odebench.ode.methods.compiled_step import CompiledStep
from odebench.ode.methods.slope_history import evaluate
from odebench.ode.methods.tableau import Tableau
from odebench.ode.solution import Status
from odebench.ode.torch_func import transform_active
from odebench.ode.transfer import constant


class StageBuffer:
    """Up to ``count`` stages as the rows of one preallocated matrix [count, N]."""

    def __init__(self, count: int, y: Tensor) -> None:
        self._matrix = y.new_empty(count, y.numel())
        self._rows = self._matrix.unbind()
        # For each row of the tableau the matrix [N, i] of the first i stages and a vector of the weights, cached since
        # for a small state slicing takes as long as the product.
        self._products: dict[int, tuple[Tensor, Tensor, tuple[float, ...]]] = {}

    def set(self, i: int, k: Tensor) -> None:
        """Store k [N] as stage i."""
        row = self._rows[i]
        if k is not row:
            row.copy_(k)

    def out(self, i: int) -> Tensor:
        """Memory that stage i [N] may be written to before ``set``."""
        return self._rows[i]

    def get(self, i: int) -> Tensor:
        """Stage i [N]."""
        return self._rows[i]

    def first(self, count: int) -> Tensor:
        """The first stages [count, N]."""
        return self._matrix[:count]

    def combine(self, y: Tensor, weights: tuple[float, ...], h: float) -> Tensor:
        """y + h sum_i weights_i k_i, [N]."""
        rows, vector, _ = self._products.get(id(weights)) or self._product(weights)
        return torch.addmv(y, rows, vector, alpha=h)

    def error(self, weights: tuple[float, ...], h: float) -> Tensor:
        """h sum_i weights_i k_i, [N]."""
        rows, vector, _ = self._products.get(id(weights)) or self._product(weights)
        return torch.addmv(self._rows[0], rows, vector, beta=0, alpha=h)

    def _product(self, weights: tuple[float, ...]) -> tuple[Tensor, Tensor, tuple[float, ...]]:
        # The key is the identity, since hashing the row would take as long; the entry keeps the row alive.
        vector = constant(weights, self._matrix.dtype, self._matrix.device)
        product = self._products[id(weights)] = (self._matrix[: len(weights)].t(), vector, weights)
        return product


class StageList:
    """Stages as tensors with their graphs. exclusive: whether no other code writes to the memory of stages."""

    def __init__(self, exclusive: bool = False) -> None:
        self._exclusive = exclusive
        self._stages: dict[int, Tensor] = {}

    def set(self, i: int, k: Tensor) -> None:
        """Store k [N] as stage i."""
        # f may overwrite memory without a graph.
        self._stages[i] = k if k.requires_grad or self._exclusive else k.clone()

    def out(self, i: int) -> None:
        """None: there is no memory to write to."""

    def get(self, i: int) -> Tensor:
        """Stage i [N]."""
        return self._stages[i]

    def first(self, count: int) -> list[Tensor]:
        """The first stages, ``count`` of [N]."""
        return [self._stages[i] for i in range(count)]

    def combine(self, y: Tensor, weights: tuple[float, ...], h: float) -> Tensor:
        """y + h sum_i weights_i k_i, [N]."""
        for i, weight in enumerate(weights):
            if weight:
                y = torch.add(y, self._stages[i], alpha=h * weight)
        return y

    def error(self, weights: tuple[float, ...], h: float) -> Tensor:
        """h sum_i weights_i k_i, [N], without graph, since step sizes are not differentiated."""
        with torch.no_grad():
            total = torch.zeros_like(self._stages[0])
            for i, weight in enumerate(weights):
                if weight:
                    total.add_(self._stages[i], alpha=h * weight)
        return total


class ExplicitRungeKuttaStepper:
    """The stepper of a ``Tableau``; see ``odebench.ode.methods.steppers.Stepper``.

    compiled: compile the step. with_stages: a compiled step returns its stages, for dense output.
    tolerance, norm: see ``CompiledStep``.
    Other parameters: see ``make_stepper``.
    """

    failure: Status | None = None

    def __init__(
        self,
        method: Tableau,
        field: Any,
        y: Tensor,
        *,
        compiled: bool = False,
        with_stages: bool = True,
        one_sided: float = 0.0,
        tolerance: Tolerance | None = None,
        norm: Norm = rms,
    ) -> None:
        self._method, self._field, self._one_sided = method, field, one_sided
        self._step: CompiledStep | None = None
        if compiled and method.stages > 1:
            self._step = CompiledStep(field.field_arguments(), method, y, with_stages, one_sided != 0, tolerance, norm)
        self._has_stages = self._step is None or with_stages
        keeps_graph = torch.is_grad_enabled() or self._step is not None or transform_active()
        self._stages: StageBuffer | StageList = (
            StageList(exclusive=self._step is not None) if keeps_graph else StageBuffer(method.dense_stages, y)
        )
        # For each stage but the first: its index and row, whether it has weight in this step, and whether in the next.
        last = method.stages - 1
        self._later_stages = [(i, method.a[i], method.b[i] != 0, method.fsal and i == last) for i in range(1, last + 1)]
        self._h, self._has_extra_stages = 0.0, False
        self._end: tuple[Tensor, Tensor] | None = None
        self._attempted = False
        self._error: Tensor | None = None
        # All stages [s, N] of a compiled step, if it returns them.
        self._compiled_stages: list[Tensor] = []
        self.order = method.order

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Evaluate the first stage, or take f [N]."""
        self._stages.set(0, evaluate(self._field, t, y, self._one_sided) if f is None else f)

    def slope(self, t: float, y: Tensor) -> Tensor:
        """The first stage."""
        return self._stages.get(0)

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] at t + h."""
        method, stages, field = self._method, self._stages, self._field
        self._h, self._end, self._has_extra_stages, self._attempted = h, None, False, True
        if self._step is not None:
            y_next, k_last, self._error, *self._compiled_stages = self._step(t, h, y, stages.get(0))
            stages.set(method.stages - 1, k_last)
            return y_next
        stage_times = self._stage_times(t, h, method.c[1:])
        for (i, weights, in_step, in_next), time in zip(self._later_stages, stage_times, strict=True):
            y_i = stages.combine(y, weights, h)
            stages.set(i, field(time, y_i, in_step or (in_next and not last), stages.out(i)))
        return y_i if method.fsal else stages.combine(y, method.b, h)

    def error(self) -> Tensor:
        """The difference to the embedded method [N]."""
        if self._error is not None:
            return self._error
        assert self._method.error is not None
        return self._stages.error(self._method.error, self._h)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """The dense output of the method; linear or cubic Hermite if it has none."""
        method, h = self._method, self._h
        if method.dense is not None and self._compiled_stages and not method.extra_c:
            return Interpolant(t, h, y, self._compiled_stages[0], method.dense)
        if method.dense is not None:
            self._unpack()
            stage_times = self._stage_times(t, h, method.extra_c) if method.extra_c else ()
            for i, (time, row) in enumerate(zip(stage_times, method.extra_a, strict=True), start=method.stages):
                y_i = self._stages.combine(y, row, h)
                self._stages.set(i, self._field(time, y_i, i == method.end_stage))
            self._has_extra_stages = True
            return Interpolant(t, h, y, self._stages.first(method.dense_stages), method.dense)
        mean = (y_next - y) / h
        if interpolation == "linear":
            return Interpolant(t, h, y, [mean], LINEAR)
        f_next = evaluate(self._field, t_next, y_next, self._one_sided, ending_step=h)
        self._end = (y_next, f_next)
        return Interpolant(t, h, y, [self._stages.get(0), f_next, mean], HERMITE)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """The stage at the end of the step becomes the first, or the first is evaluated."""
        if last:
            return
        end_stage = self._method.end_stage
        if end_stage is not None and (self._method.fsal or self._has_extra_stages):
            self._stages.set(0, self._stages.get(end_stage))
        elif self._end is not None and self._end[0] is y_next:
            self._stages.set(0, self._end[1])
        else:
            self._stages.set(0, evaluate(self._field, t_next, y_next, self._one_sided))

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply the slope at the end, if it is known."""
        if self._end is not None:
            self._end = (self._end[0], self._end[1] * factor)

    def stiffness(self) -> float | None:
        """h |k_s - k_(s-1)| / |Y_s - Y_(s-1)| if the last two stages have the same node (Hairer & Wanner 1996, Solving
        Ordinary Differential Equations II, section IV.2)."""
        weights = self._method.last_differences
        if not (self._attempted and self._has_stages and weights):
            return None
        with torch.no_grad():
            rows = self._compiled_stages[0] if self._compiled_stages else self._stages.first(self._method.stages)
            slopes = rows if isinstance(rows, Tensor) else torch.stack(rows)
            differences = constant(weights, slopes.dtype, slopes.device) @ slopes
            slope_norm, state_norm = torch.linalg.vector_norm(differences, dim=1).tolist()
        return slope_norm / state_norm if state_norm > 0 else 0.0

    def _unpack(self) -> None:
        """Store the stages of a compiled step."""
        for rows in self._compiled_stages:
            for i, k in enumerate(rows.unbind()):
                self._stages.set(i, k)

    def _stage_times(self, t: float, h: float, c: tuple[float, ...]) -> Any:
        times = self._field.time_tensors([t + c_i * h for c_i in c])
        if not self._one_sided:
            return times
        return [torch.nextafter(time, time - h) if c_i == 1 else time for time, c_i in zip(times, c, strict=True)]

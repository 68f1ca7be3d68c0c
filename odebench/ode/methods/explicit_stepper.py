"""The stepper of explicit Runge-Kutta methods.

``StageBuffer`` stores the stages as rows of one matrix, so that a linear combination is one matrix-vector product. This
is fast, but for use without autograd only. ``StageList`` stores tensors with their graphs.
"""

from typing import Any

import torch
from torch import Tensor

from odebench.ode.dense import Interpolant
from odebench.ode.methods.compiled_step import CompiledStep
from odebench.ode.methods.stepper import Stepper, StepperOptions, evaluate, stage_times
from odebench.ode.methods.tableau import Tableau
from odebench.ode.torch_func import to_list, transform_active
from odebench.ode.transfer import constant


class StageBuffer:
    """Up to ``count`` stages as the rows of one preallocated matrix [count, N]."""

    def __init__(self, count: int, y: Tensor) -> None:
        self._matrix = y.new_empty(count, y.numel())
        self._rows = self._matrix.unbind()
        # For each row of the tableau, the matrix [N, i] of the first i stages and the vector of the weights. They are
        # cached, since for a small state slicing takes as long as the product.
        self._products: dict[int, tuple[Tensor, Tensor, tuple[float, ...]]] = {}

    def set(self, i: int, k: Tensor) -> None:
        """Store k [N] as stage i."""
        row = self._rows[i]
        if k is not row:
            row.copy_(k)

    def out(self, i: int) -> Tensor:
        """Return the memory [N] that f may write stage i to before ``set`` is called."""
        return self._rows[i]

    def get(self, i: int) -> Tensor:
        """Return stage i [N]."""
        return self._rows[i]

    def first(self, count: int) -> Tensor:
        """Return the first ``count`` stages [count, N]."""
        return self._matrix[:count]

    def combine(self, y: Tensor, weights: tuple[float, ...], h: float) -> Tensor:
        """Return y + h sum_i weights_i k_i, [N]."""
        rows, vector, _ = self._products.get(id(weights)) or self._product(weights)
        return torch.addmv(y, rows, vector, alpha=h)

    def error(self, weights: tuple[float, ...], h: float) -> Tensor:
        """Return h sum_i weights_i k_i, [N]."""
        rows, vector, _ = self._products.get(id(weights)) or self._product(weights)
        return torch.addmv(self._rows[0], rows, vector, beta=0, alpha=h)

    def _product(self, weights: tuple[float, ...]) -> tuple[Tensor, Tensor, tuple[float, ...]]:
        # The key is the identity, since hashing the row would take as long; the entry keeps the row alive.
        vector = constant(weights, self._matrix.dtype, self._matrix.device)
        size = self._matrix.shape[1]
        rows = self._matrix.as_strided((size, len(weights)), (1, size))  # faster than slicing and transposing
        product = self._products[id(weights)] = (rows, vector, weights)
        return product


class StageList:
    """Stages as tensors with their graphs.

    exclusive: True if no other code writes to the memory of the stages, so that they need not be copied.
    """

    def __init__(self, exclusive: bool = False) -> None:
        self._exclusive = exclusive
        self._stages: dict[int, Tensor] = {}

    def set(self, i: int, k: Tensor) -> None:
        """Store k [N] as stage i."""
        # f may overwrite memory without a graph.
        self._stages[i] = k if k.requires_grad or self._exclusive else k.clone()

    def out(self, i: int) -> None:
        """Return None: f has no memory to write to."""

    def get(self, i: int) -> Tensor:
        """Return stage i [N]."""
        return self._stages[i]

    def first(self, count: int) -> list[Tensor]:
        """Return the first ``count`` stages, each [N]."""
        return [self._stages[i] for i in range(count)]

    def combine(self, y: Tensor, weights: tuple[float, ...], h: float) -> Tensor:
        """Return y + h sum_i weights_i k_i, [N]."""
        for i, weight in enumerate(weights):
            if weight:
                y = torch.add(y, self._stages[i], alpha=h * weight)
        return y

    def error(self, weights: tuple[float, ...], h: float) -> Tensor:
        """Return h sum_i weights_i k_i, [N], without a graph, since step sizes are not differentiated."""
        with torch.no_grad():
            return self.combine(torch.zeros_like(self._stages[0]), weights, h)


Stages = StageBuffer | StageList


class ExplicitRungeKuttaStepper(Stepper):
    """The stepper of the methods described by a ``Tableau``."""

    def __init__(self, method: Tableau, field: Any, y: Tensor, options: StepperOptions) -> None:
        self._method, self._field, self._side = method, field, options.side
        self._step: CompiledStep | None = None
        if options.compiled and method.stages > 1:
            self._step = CompiledStep(field.field_arguments(), method, y, options)
        keeps_graph = torch.is_grad_enabled() or self._step is not None or transform_active()
        exclusive = self._step is not None
        self._stages: Stages = StageList(exclusive) if keeps_graph else StageBuffer(method.dense_stages, y)
        # For each stage except the first: its index, its row of the tableau, whether it has weight in this step, and in
        # the next step, and memory for it.
        last = method.stages - 1
        self._later_stages = [
            (i, method.a[i], method.b[i] != 0, method.fsal and i == last, self._stages.out(i))
            for i in range(1, last + 1)
        ]
        self._h = 0.0
        self._error: Tensor | None = None
        # The stages [s, N] that a compiled step returned; empty if it returns none.
        self._compiled_stages: list[Tensor] = []
        self.order = method.order

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Evaluate the first stage, or take f [N] for it if it is given."""
        self._stages.set(0, evaluate(self._field, t, y, self._side) if f is None else f)

    def slope(self, t: float, y: Tensor) -> Tensor:
        """Return the first stage [N]."""
        return self._stages.get(0)

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [N] at t + h."""
        method, stages, field = self._method, self._stages, self._field
        self._h, self._end = h, None
        if self._step is not None:
            y_next, k_last, self._error, *self._compiled_stages = self._step(t, h, y, stages.get(0))
            self._end = k_last if method.fsal else None
            return y_next
        times = stage_times(field, t, h, method.c[1:], self._side)
        for (i, weights, in_step, in_next, out), time in zip(self._later_stages, times, strict=True):
            y_i = stages.combine(y, weights, h)
            stages.set(i, field(time, y_i, in_step or (in_next and not last), out))
        if not method.fsal:
            return stages.combine(y, method.b, h)
        self._end = stages.get(i)  # of the last stage
        return y_i

    def error(self) -> Tensor:
        """Return the difference [N] between the result and that of the embedded method."""
        if self._error is not None:
            return self._error
        assert self._method.error is not None
        return self._stages.error(self._method.error, self._h)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """Return the dense output of the method; linear or cubic Hermite interpolation if it has none."""
        method, h, stages = self._method, self._h, self._stages
        if method.dense is None:
            field, side = self._field, self._side
            return self._hermite(t, h, y, y_next, interpolation, lambda: evaluate(field, t_next, y_next, side, h))
        if self._compiled_stages and not method.extra_c:
            return Interpolant(t, h, y, self._compiled_stages[0], method.dense)
        for rows in self._compiled_stages:
            for i, k in enumerate(rows.unbind()):
                stages.set(i, k)
        times = stage_times(self._field, t, h, method.extra_c, self._side) if method.extra_c else ()
        for i, (time, row) in enumerate(zip(times, method.extra_a, strict=True), start=method.stages):
            stages.set(i, self._field(time, stages.combine(y, row, h), i == method.end_stage))
        if method.end_stage is not None:
            self._end = stages.get(method.end_stage)
        return Interpolant(t, h, y, stages.first(method.dense_stages), method.dense)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Take f at the end of the step as the first stage of the next step."""
        if not last:
            end = self._end
            self._stages.set(0, evaluate(self._field, t_next, y_next, self._side) if end is None else end)

    def stiffness(self) -> float | None:
        """Estimate h |lambda|; see ``stiffness_of``."""
        if not (self._h and (self._step is None or self._compiled_stages)):
            return None
        slopes = self._compiled_stages[0] if self._compiled_stages else self._stages.first(self._method.stages)
        return stiffness_of(self._method, slopes)


def stiffness_of(method: Tableau, slopes: Tensor | list[Tensor]) -> float | None:
    """Estimate h |lambda| by h |k_s - k_(s-1)| / |Y_s - Y_(s-1)|; None unless the last two stages have the same node.

    slopes: the stages k [s, N] of a step.

    Hairer & Wanner 1996, Solving Ordinary Differential Equations II, section IV.2.
    """
    weights = method.last_differences
    if not weights:
        return None
    with torch.no_grad():
        slopes = slopes if isinstance(slopes, Tensor) else torch.stack(slopes)
        differences = constant(weights, slopes.dtype, slopes.device) @ slopes
        slope_norm, state_norm = to_list(torch.linalg.vector_norm(differences, dim=1))
    return slope_norm / state_norm if state_norm > 0 else 0.0

"""The last slopes of a multistep method, newest first, written once for both ways of keeping them.

``SlopeBuffer`` keeps them as rows of one matrix, so that a linear combination is one matrix-vector product: the fast
way where autograd does not watch. ``SlopeList`` keeps them as they are, for autograd to walk back. Before the newest,
where there is one, the slope *ahead*: that at the end of a step that is being tried.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class SlopeBuffer:
    """At most ``count`` slopes, and one ahead, as neighbouring rows of a matrix."""

    def __init__(self, count: int, y: Tensor) -> None:
        # Twice the rows: the slopes move down the matrix, and are copied to its end once in a while.
        self._rows = y.new_empty(2 * (count + 1), y.numel())
        self._count = count
        self.clear()

    def clear(self) -> None:
        """Forget all slopes."""
        self._newest, self._len = len(self._rows), 0

    def __len__(self) -> int:
        return self._len

    def set_end_slope(self, f: Tensor) -> None:
        """Keep f [N] as the slope ahead."""
        if self._newest == 0:
            self._newest = len(self._rows) - self._len
            self._rows[self._newest :].copy_(self._rows[: self._len])
        self._rows[self._newest - 1].copy_(f)

    def push(self, f: Tensor) -> None:
        """Keep f [N] as the newest slope."""
        self.set_end_slope(f)
        self._newest -= 1
        self._len = min(self._len + 1, self._count)

    def first(self, count: int, include_end: bool) -> Tensor:
        """The newest slopes [count, N], the one ahead among them or not."""
        start = self._newest - include_end
        return self._rows[start : start + count]

    def combine(self, y: Tensor, weights: Sequence[float], include_end: bool) -> Tensor:
        """y + sum_i weights_i slope_i, [N]."""
        rows = self.first(len(weights), include_end)
        return torch.addmv(y, rows.t(), rows.new_tensor(weights))

    def weighted_sums(self, weights: Sequence[Sequence[float]]) -> Tensor:
        """For each row of weights the sum of its products with the slopes, the one ahead included: [rows, N]."""
        rows = self.first(len(weights[0]), include_end=True)
        return torch.mm(rows.new_tensor(weights), rows)


class SlopeList:
    """At most ``count`` slopes, and one ahead, as tensors with their graphs."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._slopes: list[Tensor] = []
        self._end_slope: Tensor | None = None

    def clear(self) -> None:
        """Forget all slopes."""
        self._slopes = []

    def __len__(self) -> int:
        return len(self._slopes)

    def set_end_slope(self, f: Tensor) -> None:
        """Keep f [N] as the slope ahead."""
        # Without a graph it may be memory that f writes to again.
        self._end_slope = f if f.requires_grad else f.clone()

    def push(self, f: Tensor) -> None:
        """Keep f [N] as the newest slope."""
        self._slopes = [f if f.requires_grad else f.clone(), *self._slopes][: self._count]

    def first(self, count: int, include_end: bool) -> list[Tensor]:
        """The newest slopes, ``count`` of [N], the one ahead among them or not."""
        if not include_end:
            return self._slopes[:count]
        assert self._end_slope is not None
        return [self._end_slope, *self._slopes[: count - 1]]

    def combine(self, y: Tensor, weights: Sequence[float], include_end: bool) -> Tensor:
        """y + sum_i weights_i slope_i, [N]."""
        for weight, slope in zip(weights, self.first(len(weights), include_end), strict=True):
            y = torch.add(y, slope, alpha=weight)
        return y

    def weighted_sums(self, weights: Sequence[Sequence[float]]) -> Tensor:
        """For each row of weights the sum of its products with the slopes, the one ahead included: [rows, N], outside
        the graph: step sizes are not differentiated."""
        with torch.no_grad():
            rows = torch.stack(self.first(len(weights[0]), include_end=True))
            return torch.mm(rows.new_tensor(weights), rows)


def make_slope_history(count: int, y: Tensor) -> SlopeBuffer | SlopeList:
    """Room for ``count`` slopes like y [N], and one ahead, kept the way that suits."""
    return SlopeList(count) if torch.is_grad_enabled() else SlopeBuffer(count, y)


def evaluate(field: Any, t: float, y: Tensor, one_sided: float, before: float = 0.0) -> Tensor:
    """The field [N] at t; where ``one_sided`` it is taken just after t, or, in a step of this size, just before its
    end t."""
    (time,) = field.time_tensors([t])
    if one_sided:
        time = torch.nextafter(time, time - before if before else time + one_sided)
    return field(time, y, True)


def scaled_nodes(t: float, h: float, times: Sequence[float]) -> tuple[float, ...]:
    """Times counted in steps of signed size h from t: 0, -1, -2, ... exactly where they are even to round-off."""
    slack = 1e-15 * max(abs(t), abs(times[-1]), abs(t + h))
    return tuple(
        float(-j) if abs(time - (t - j * h)) <= (j + 2) * slack else (time - t) / h for j, time in enumerate(times)
    )

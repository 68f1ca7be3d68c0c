"""The last slopes (values of f) of a multistep method, newest first.

``SlopeBuffer`` stores them as rows of one matrix, so that a linear combination is one matrix-vector product. This is
fast, but for use without autograd only. ``SlopeList`` stores tensors with their graphs. Both can also store the *end
slope*, the slope at the end of the attempted step, which comes before the newest slope.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from odebench.ode.methods.stepper import copy_without_graph
from odebench.ode.transfer import queued


class SlopeBuffer:
    """At most ``count`` slopes and the end slope, as adjacent rows of a matrix."""

    def __init__(self, count: int, y: Tensor) -> None:
        # Twice the rows that are needed: new slopes go above the old ones; at the top, all are copied to the bottom.
        self._rows = y.new_empty(2 * (count + 1), y.numel())
        self._count = count
        self.clear()

    def clear(self) -> None:
        """Remove all slopes."""
        self._newest, self._len = len(self._rows), 0

    def __len__(self) -> int:
        return self._len

    def set_end_slope(self, f: Tensor) -> None:
        """Store f [N] as the end slope."""
        if self._newest == 0:
            self._newest = len(self._rows) - self._len
            self._rows[self._newest :].copy_(self._rows[: self._len])
        self._rows[self._newest - 1].copy_(f)

    def push(self, f: Tensor) -> None:
        """Store f [N] as the newest slope."""
        self.set_end_slope(f)
        self._newest -= 1
        self._len = min(self._len + 1, self._count)

    def scale(self, factor: Tensor) -> None:
        """Multiply all slopes except the end slope by the factor."""
        self.first(self._len, include_end=False).mul_(factor)

    def first(self, count: int, include_end: bool) -> Tensor:
        """Return the newest ``count`` slopes [count, N]; the first is the end slope if ``include_end``."""
        start = self._newest - include_end
        return self._rows[start : start + count]

    def combine(self, y: Tensor, weights: Sequence[float], include_end: bool) -> Tensor:
        """Return y + sum_i weights_i slope_i, [N]."""
        rows = self.first(len(weights), include_end)
        return torch.addmv(y, rows.t(), queued(weights, rows))

    def weighted_sums(self, weights: Sequence[Sequence[float]]) -> Tensor:
        """Return the weighted sum of the end slope and the newest slopes for each row of weights, [rows, N]."""
        rows = self.first(len(weights[0]), include_end=True)
        return torch.mm(queued(weights, rows), rows)


class SlopeList:
    """At most ``count`` slopes and the end slope, as tensors with their graphs."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._slopes: list[Tensor] = []
        self._end_slope: Tensor | None = None

    def clear(self) -> None:
        """Remove all slopes."""
        self._slopes = []

    def __len__(self) -> int:
        return len(self._slopes)

    def set_end_slope(self, f: Tensor) -> None:
        """Store f [N] as the end slope."""
        self._end_slope = copy_without_graph(f)

    def push(self, f: Tensor) -> None:
        """Store f [N] as the newest slope."""
        self._slopes = [copy_without_graph(f), *self._slopes][: self._count]

    def scale(self, factor: Tensor) -> None:
        """Multiply all slopes except the end slope by the factor."""
        self._slopes = [slope * factor for slope in self._slopes]

    def first(self, count: int, include_end: bool) -> list[Tensor]:
        """Return the newest ``count`` slopes, each [N]; the first is the end slope if ``include_end``."""
        if not include_end:
            return self._slopes[:count]
        assert self._end_slope is not None
        return [self._end_slope, *self._slopes[: count - 1]]

    def combine(self, y: Tensor, weights: Sequence[float], include_end: bool) -> Tensor:
        """Return y + sum_i weights_i slope_i, [N]."""
        for weight, slope in zip(weights, self.first(len(weights), include_end), strict=True):
            y = torch.add(y, slope, alpha=weight)
        return y

    def weighted_sums(self, weights: Sequence[Sequence[float]]) -> Tensor:
        """Return the weighted sum of the end slope and the newest slopes for each row of weights, [rows, N].

        The sums have no graph, since step sizes are not differentiated.
        """
        with torch.no_grad():
            rows = torch.stack(self.first(len(weights[0]), include_end=True))
            return torch.mm(queued(weights, rows), rows)


def make_slope_history(count: int, y: Tensor) -> SlopeBuffer | SlopeList:
    """Make storage for ``count`` slopes and the end slope; y: a state [N]. It keeps graphs if autograd is on."""
    return SlopeList(count) if torch.is_grad_enabled() else SlopeBuffer(count, y)


def scaled_nodes(t: float, h: float, times: Sequence[float]) -> tuple[float, ...]:
    """Return (time - t) / h for each time; exactly 0, -1, -2, ... if the times are equidistant up to round-off."""
    tolerance = 1e-15 * max(abs(t), abs(times[-1]), abs(t + h))
    return tuple(
        float(-j) if abs(time - (t - j * h)) <= (j + 2) * tolerance else (time - t) / h for j, time in enumerate(times)
    )

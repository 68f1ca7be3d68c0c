"""One step of an explicit Runge-Kutta method, written once for both ways of keeping its stages.

``Buffer`` keeps them as rows of one matrix, so that a linear combination is one matrix-vector product: the
fast way where autograd does not watch. ``Tape`` keeps them as they are, for autograd to walk back.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from odebench.ode.methods.tableau import Tableau


class Buffer:
    """Stages as the rows of one preallocated matrix [s, N]."""

    def __init__(self, method: Tableau, y: Tensor) -> None:
        self._rows = y.new_empty(method.stages, y.numel())
        self._weights: dict[tuple[float, ...], Tensor] = {}

    def put(self, i: int, k: Tensor) -> None:
        """Keep k [N] as stage i."""
        self._rows[i].copy_(k)

    def get(self, i: int) -> Tensor:
        """Stage i [N]."""
        return self._rows[i]

    def combine(self, y: Tensor, weights: tuple[float, ...], h: float) -> Tensor:
        """y + h sum_i weights_i k_i, [N]."""
        return torch.addmv(y, self._rows[: len(weights)].t(), self._vector(weights), alpha=h)

    def error(self, weights: tuple[float, ...], h: float) -> Tensor:
        """h sum_i weights_i k_i, [N]."""
        return torch.mv(self._rows.t(), self._vector(weights)).mul_(h)

    def interpolate(self, y: Tensor, weights: Sequence[tuple[float, ...]], h: float) -> Sequence[Tensor]:
        """``combine`` for several rows of weights: as many [N]."""
        matrix = torch.tensor(weights, dtype=y.dtype, device=y.device)
        return torch.addmm(y.unsqueeze(0), matrix, self._rows, alpha=h).unbind()

    def _vector(self, weights: tuple[float, ...]) -> Tensor:
        if weights not in self._weights:
            self._weights[weights] = self._rows.new_tensor(weights)
        return self._weights[weights]


class Tape:
    """Stages as tensors with their graphs."""

    def __init__(self) -> None:
        self._stages: dict[int, Tensor] = {}

    def put(self, i: int, k: Tensor) -> None:
        """Keep k [N] as stage i."""
        # Without a graph it may be memory that f writes to again.
        self._stages[i] = k if k.requires_grad else k.clone()

    def get(self, i: int) -> Tensor:
        """Stage i [N]."""
        return self._stages[i]

    def combine(self, y: Tensor, weights: tuple[float, ...], h: float) -> Tensor:
        """y + h sum_i weights_i k_i, [N]."""
        for i, weight in enumerate(weights):
            if weight:
                y = torch.add(y, self._stages[i], alpha=h * weight)
        return y

    def error(self, weights: tuple[float, ...], h: float) -> Tensor:
        """h sum_i weights_i k_i, [N], outside the graph: step sizes are not differentiated."""
        with torch.no_grad():
            total = torch.zeros_like(self._stages[0])
            for i, weight in enumerate(weights):
                if weight:
                    total.add_(self._stages[i], alpha=h * weight)
        return total

    def interpolate(self, y: Tensor, weights: Sequence[tuple[float, ...]], h: float) -> Sequence[Tensor]:
        """``combine`` for several rows of weights: as many [N]."""
        return [self.combine(y, row, h) for row in weights]


def attempt(
    field: Callable[..., Tensor],
    method: Tableau,
    stages: Buffer | Tape,
    t: float,
    h: float,
    y: Tensor,
    last: bool,
) -> Tensor:
    """One step of signed size h from y [N] at t; stage 0 must be in ``stages``, the others are put there.

    last: no step follows, so that nothing will start from the last stage of an FSAL method.

    Returns the state [N] at t + h.
    """
    for i in range(1, method.stages):
        y_i = stages.combine(y, method.a[i], h)
        counts = method.b[i] != 0 or (method.fsal and i == method.stages - 1 and not last)
        stages.put(i, field(t + method.c[i] * h, y_i, counts))
    return y_i if method.fsal else stages.combine(y, method.b, h)


def dense_weights(method: Tableau, theta: float) -> tuple[float, ...]:
    """Weights of the stages in the continuous extension at t + theta h; see ``Tableau.dense``."""
    assert method.dense is not None
    return tuple(sum(p * theta ** (j + 1) for j, p in enumerate(row)) for row in method.dense)

"""Dense output: the solution as a function of time, piecewise polynomial over the accepted steps."""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Weights = tuple[tuple[float, ...], ...]

# Cubic Hermite interpolation from f at both ends and the step's mean slope (y_next - y) / h; order 3.
HERMITE: Weights = ((1.0, -2.0, 1.0), (0.0, -1.0, 1.0), (0.0, 3.0, -2.0))
LINEAR: Weights = ((1.0,),)


@dataclass(frozen=True)
class Extension:
    """The continuous extension of one step.

    y(t + theta h) = y + h sum_i w_i(theta) k_i with the polynomials w_i(theta) = p_i1 theta + p_i2 theta^2 + ...

    t, h: where the step starts, and its signed size.
    y: [N] there.
    slopes: k, m of [N], or one tensor [m, N].
    weights: m rows of coefficients p_i1, p_i2, ...
    """

    t: float
    h: float
    y: Tensor
    slopes: Sequence[Tensor] | Tensor
    weights: Weights

    def at(self, thetas: Sequence[float]) -> Tensor:
        """The states [len(thetas), N] at t + theta h."""
        rows = [[sum(p * theta ** (j + 1) for j, p in enumerate(row)) for row in self.weights] for theta in thetas]
        slopes = self.slopes if isinstance(self.slopes, Tensor) else torch.stack(tuple(self.slopes))
        matrix = torch.tensor(rows, dtype=slopes.dtype, device=slopes.device)
        return torch.addmm(self.y.unsqueeze(0), matrix, slopes, alpha=self.h)

    def kept(self) -> "Extension":
        """A copy whose tensors nobody writes to again."""
        slopes = self.slopes.clone() if isinstance(self.slopes, Tensor) else torch.stack(tuple(self.slopes))
        return Extension(self.t, self.h, self.y, slopes, self.weights)


class DenseOutput:
    """The solution at any time of the span, from the accepted steps; called with a time or several.

    Differentiable with respect to what the solve was differentiable with, where the gradient mode is backprop; the time
    it is called with gets no gradient.
    """

    def __init__(self, pieces: Sequence[Extension], unflatten: Callable[[Tensor], Any]) -> None:
        self._pieces = list(pieces)
        self._unflatten = unflatten
        self._sign = math.copysign(1.0, pieces[0].h)
        self._starts = [self._sign * piece.t for piece in pieces]

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last time covered."""
        last = self._pieces[-1]
        return self._pieces[0].t, last.t + last.h

    def __call__(self, t: float | Sequence[float] | Tensor) -> Any:
        """The state at t, or the states [T, ...] at t [T], in the structure of y0.

        Raises ValueError for a time outside the span.
        """
        times = t.tolist() if isinstance(t, Tensor) else t
        single = isinstance(times, float | int)
        states = self.flat([times] if single else list(times))  # type: ignore[arg-type, list-item]
        return self._unflatten(states[0] if single else states)

    def flat(self, times: Sequence[float]) -> Tensor:
        """The flat states [T, N] at T times in any order."""
        start, end = self.span
        slack = 1e-9 * abs(end - start)
        for time in times:
            if not min(start, end) - slack <= time <= max(start, end) + slack:
                raise ValueError(f"t={time:.6g} is outside of the solution's span [{start:.6g}, {end:.6g}]")
        owners = [max(bisect.bisect_right(self._starts, self._sign * time) - 1, 0) for time in times]
        rows: list[Tensor | None] = [None] * len(times)
        for owner in sorted(set(owners)):
            piece = self._pieces[owner]
            mine = [i for i, o in enumerate(owners) if o == owner]
            states = piece.at([(times[i] - piece.t) / piece.h for i in mine])
            for i, state in zip(mine, states, strict=True):
                rows[i] = state
        if not rows:
            return self._pieces[0].y.new_empty(0, self._pieces[0].y.numel())
        return torch.stack(rows)  # type: ignore[arg-type]

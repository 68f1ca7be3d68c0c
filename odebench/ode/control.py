"""Step sizes: the first one, the next one, and the fit to the end of the span.

Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, section II.4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Norm = Callable[[Tensor], Tensor]
"""From a scaled error [N] to a non-negative scalar tensor."""

SAFETY = 0.9
MIN_FACTOR = 0.2
MAX_FACTOR = 10.0
# A step may grow by this much to reach the end at once: 1.1^5 SAFETY^5 < 1 for a method of order 5.
STRETCH = 1.1


def rms(x: Tensor) -> Tensor:
    """Root mean square over all elements of x [N], the usual error norm; 0 for an empty state."""
    return torch.linalg.vector_norm(x) / math.sqrt(max(x.numel(), 1))


@dataclass(frozen=True)
class Tolerance:
    """An error is acceptable when norm(error / (atol + rtol max(|y0|, |y1|))) <= 1."""

    rtol: float
    atol: float

    def ratio(self, error: Tensor, y0: Tensor, y1: Tensor, norm: Norm) -> float:
        """The error of a step from y0 to y1, all [N], in units of the tolerance. Waits for the device once.

        ``error`` is overwritten.
        """
        return norm(error.div_(self.scale(torch.maximum(y0.abs(), y1.abs())))).item()

    def scale(self, magnitude: Tensor) -> Tensor:
        """The acceptable error of numbers of this magnitude, both [N]; ``magnitude`` is overwritten."""
        scale = magnitude.mul_(self.rtol).add_(self.atol)
        return scale if self.atol else scale.clamp_min_(torch.finfo(scale.dtype).tiny)


def next_step(h: float, ratio: float, order: int) -> float:
    """Integral control: the size after a step of size h whose error was ``ratio`` tolerances.

    ``order``: the order of the step; the embedded error estimate is taken to fall with that power of h.
    """
    if not math.isfinite(ratio):
        return h * MIN_FACTOR
    if ratio == 0:
        return h * MAX_FACTOR
    floor = 1.0 if ratio <= 1 else MIN_FACTOR
    return h * min(MAX_FACTOR, max(floor, SAFETY * ratio ** (-1 / order)))


def first_step(
    evaluate: Callable[[float, Tensor], Tensor],
    t: float,
    y: Tensor,
    f: Tensor,
    end: float,
    order: int,
    tolerance: Tolerance,
    norm: Norm,
) -> float:
    """A first step size, positive, from y, f = f(t, y) and one more evaluation before ``end`` (op. cit., p. 169)."""
    scale = tolerance.scale(y.abs())
    d0, d1 = torch.stack((norm(y / scale), norm(f / scale))).tolist()
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    if not math.isfinite(h0) or h0 == 0:
        return math.nan
    direction, h0 = math.copysign(1.0, end - t), min(h0, abs(end - t))
    f1 = evaluate(t + direction * h0, torch.add(y, f, alpha=direction * h0))
    d2 = norm((f1 - f).div_(scale)).item() / h0
    steepest = max(d1, d2)
    h1 = max(1e-6, h0 * 1e-3) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / order)
    return min(100 * h0, h1)


def fit_to_end(h: float, remaining: float) -> float:
    """The proposed step h > 0 fitted to what remains: the end is reached exactly and without a sliver step."""
    if h * STRETCH >= remaining:
        return remaining
    return remaining / 2 if 2 * h > remaining else h

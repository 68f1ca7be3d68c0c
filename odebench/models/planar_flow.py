"""Planar normalizing flows (Rezende & Mohamed 2015, section 4.1 and appendix A.1)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odebench import ode
from odebench.models.flow import Flow, Solve, SolveStats, TraceMethod, TransformResult, vector_size


class PlanarFlow(Flow):
    """``PlanarLayers`` between N(0, base_variance I) and the data.

    shape: the shape (D,) of a sample. layers: the number K of layers. closed: the direction in which the layers have a
    closed form and are fast: "sampling", from the base to the data, for density matching, or "likelihood", from the
    data to the base.
    """

    def __init__(
        self, shape: tuple[int, ...], layers: int, closed: Literal["sampling", "likelihood"], base_variance: float
    ) -> None:
        size = vector_size(shape, "planar_nf")
        super().__init__(shape, [PlanarLayers(size, layers, closed)], base_variance)


class PlanarLayers(nn.Module):
    """Layers z -> z + u tanh(w . z + b) in the direction ``closed``; the other direction inverts them by root finding.

    A layer is invertible if u . w > -1; ``_constrained`` changes u along w to ensure this. Each layer takes one unit of
    time.
    """

    def __init__(self, size: int, layers: int, closed: Literal["sampling", "likelihood"]) -> None:
        super().__init__()
        self.closed = closed
        self.w = nn.Parameter(torch.randn(layers, size))
        self.u = nn.Parameter(0.1 * torch.randn(layers, size))
        self.b = nn.Parameter(torch.zeros(layers))

    @property
    def duration(self) -> float:
        """The number of layers."""
        return float(len(self.b))

    def to_base(self, x: Tensor, solve: Solve = ode.solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``; no solves."""
        states, log_det = self._closed_direction(x) if self.closed == "likelihood" else self._inverse_direction(x)
        return states[-1], log_det, ()

    def from_base(self, z: Tensor, solve: Solve = ode.solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``; no solves."""
        states, log_det = self._closed_direction(z) if self.closed == "sampling" else self._inverse_direction(z)
        return states[-1], log_det, ()

    def path(self, z: Tensor, times: Sequence[float], solve: Solve = ode.solve) -> tuple[Tensor, SolveStats]:
        """See ``Transform``; within a layer z moves on a straight line."""
        states, _ = self._closed_direction(z) if self.closed == "sampling" else self._inverse_direction(z)
        last = len(states) - 2
        index = [min(math.floor(t), last) for t in times]
        return torch.stack([torch.lerp(states[k], states[k + 1], t - k) for k, t in zip(index, times, strict=True)]), ()

    def _constrained(self) -> tuple[Tensor, Tensor]:
        """Return u [K, D], moved along w, and c = w . u [K]; c is softplus(w . u) - 1 > -1 with the original u."""
        along = (self.w * self.u).sum(1)
        c = F.softplus(along) - 1
        return self.u + ((c - along) / self.w.square().sum(1)).unsqueeze(1) * self.w, c

    def _closed_direction(self, z: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return z [B, D] before the first layer and after each layer, and log |det| [B], summed over the layers."""
        us, c = self._constrained()
        states, hs = [z], []
        for w, u, b in zip(self.w.unbind(), us.unbind(), self.b.unbind(), strict=True):
            h = torch.tanh(torch.addmv(b, states[-1], w))
            hs.append(h)
            states.append(torch.addr(states[-1], h, u))
        return states, _log_det(torch.stack(hs, 1), c)

    def _inverse_direction(self, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """Invert the layers, the last one first.

        Returns y [B, D] followed by the input of each layer, and log |det| [B] of the inverse, summed over the layers.
        """
        us, cs = self._constrained()
        states, hs = [y], []
        for w, u, b, c in reversed(list(zip(self.w.unbind(), us.unbind(), self.b.unbind(), cs.unbind(), strict=True))):
            h = torch.tanh(invert_planar_layer(c, torch.mv(states[-1], w) + b))
            hs.append(h)
            states.append(torch.addr(states[-1], h, u, alpha=-1))
        return states, -_log_det(torch.stack(hs[::-1], 1), cs)


def _log_det(h: Tensor, c: Tensor) -> Tensor:
    """The sum over layers of log(1 + c tanh') [B]. h: tanh(w . z + b) [B, K]; c: w . u [K]."""
    return torch.log1p(c * (1 - h * h)).sum(1)


def invert_planar_layer(c: Tensor, r: Tensor) -> Tensor:
    """Solve a + c tanh(a) = r for a, elementwise, with a scalar c > -1; a can be differentiated once in c and r.

    Newton's method in float64, with a bracket that every iteration shrinks. It bisects if a Newton step would leave
    the bracket, or is more than half as large as the step before.
    """
    root = _bracketed_newton(c.detach().double(), r.detach().double()).to(r.dtype)
    # One more Newton step. Its derivative is the one that the implicit function theorem gives.
    h = torch.tanh(root)
    return root - (root + c * h - r) / (1 + c * (1 - h * h)).detach()


def _bracketed_newton(c: Tensor, r: Tensor, iterations: int = 100) -> Tensor:
    low, high = r - c.abs(), r + c.abs()
    a, step = r, 2 * c.abs().expand_as(r)
    for _ in range(iterations):
        h = torch.tanh(a)
        excess = a + c * h - r
        low, high = torch.where(excess > 0, low, a), torch.where(excess < 0, high, a)
        newton = -excess / (1 + c * (1 - h * h))
        accept = (a + newton >= low) & (a + newton <= high) & (newton.abs() <= 0.5 * step.abs())
        step = torch.where(accept, newton, 0.5 * (low + high) - a)
        a = a + step
        if (step.abs() <= 1e-14 * (1 + a.abs())).all():
            break
    return a

"""Multiscale flows of images: wrappers that apply a transform to squeezed images, half of the channels, or logits.

Each wrapper returns tensors of the shape that it is given, so that data and base have the same shape at every scale.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odebench.errors import UsageError
from odebench.models.flow import Solve, SolveStats, TraceMethod, TransformResult


class TransformWrapper(nn.Module):
    """Base class: a transform that wraps another, ``inner``, and has its duration."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner: Any = inner

    @property
    def duration(self) -> float:
        """See ``Transform``."""
        return self.inner.duration


class Squeeze(TransformWrapper):
    """Apply inner to [B, 4 C, H/2, W/2]: squares of 2 x 2 pixels become channels (Dinh et al. 2017, section 3.6)."""

    def to_base(self, x: Tensor, solve: Solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``."""
        z, log_det, solves = self.inner.to_base(F.pixel_unshuffle(x, 2), solve, trace)
        return F.pixel_shuffle(z, 2), log_det, solves

    def from_base(self, z: Tensor, solve: Solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``."""
        x, log_det, solves = self.inner.from_base(F.pixel_unshuffle(z, 2), solve, trace)
        return F.pixel_shuffle(x, 2), log_det, solves

    def path(self, z: Tensor, times: Sequence[float], solve: Solve) -> tuple[Tensor, SolveStats]:
        """See ``Transform``."""
        frames, solves = self.inner.path(F.pixel_unshuffle(z, 2), times, solve)
        return F.pixel_shuffle(frames, 2), solves


class ChannelSplit(TransformWrapper):
    """Apply inner to the first half of the channels; the others belong to the base (Dinh et al. 2017, section 3.6).

    Raises UsageError for an odd number of channels.
    """

    def to_base(self, x: Tensor, solve: Solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``."""
        kept, base = _split_channels(x)
        z, log_det, solves = self.inner.to_base(kept, solve, trace)
        return torch.cat((z, base), 1), log_det, solves

    def from_base(self, z: Tensor, solve: Solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``."""
        kept, base = _split_channels(z)
        x, log_det, solves = self.inner.from_base(kept, solve, trace)
        return torch.cat((x, base), 1), log_det, solves

    def path(self, z: Tensor, times: Sequence[float], solve: Solve) -> tuple[Tensor, SolveStats]:
        """See ``Transform``."""
        kept, base = _split_channels(z)
        frames, solves = self.inner.path(kept, times, solve)
        return torch.cat((frames, base.expand(len(times), *base.shape)), 2), solves


def _split_channels(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1] % 2:
        raise UsageError(
            f"model: a split needs an even number of channels, but the data {list(x.shape[1:])} have {x.shape[1]}; "
            "remove the split, or squeeze images before it",
            "model",
        )
    kept, base = x.chunk(2, 1)
    return kept, base


class LogitTransform(TransformWrapper):
    """Apply inner to logit(margin + (1 - 2 margin) x), for data x in [0, 1] (Dinh et al. 2017, section 4.1)."""

    def __init__(self, inner: nn.Module, margin: float) -> None:
        super().__init__(inner)
        self.margin = margin

    def to_base(self, x: Tensor, solve: Solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``."""
        scale = 1 - 2 * self.margin
        # 1 - s is computed from 1 - x, which is exact near x = 1, where 1 - s would lose most of its digits.
        log_s, log_rest = (self.margin + scale * x).log(), (self.margin + scale * (1 - x)).log()
        z, log_det, solves = self.inner.to_base(log_s - log_rest, solve, trace)
        slope = math.log(scale) - log_s - log_rest
        return z, log_det + slope.flatten(1).sum(1), solves

    def from_base(self, z: Tensor, solve: Solve, trace: TraceMethod | None = None) -> TransformResult:
        """See ``Transform``. x may lie outside [0, 1], by less than 2 margins."""
        y, log_det, solves = self.inner.from_base(z, solve, trace)
        slope = F.logsigmoid(y) + F.logsigmoid(-y) - math.log(1 - 2 * self.margin)
        return self._squash(y), log_det + slope.flatten(1).sum(1), solves

    def path(self, z: Tensor, times: Sequence[float], solve: Solve) -> tuple[Tensor, SolveStats]:
        """See ``Transform``."""
        frames, solves = self.inner.path(z, times, solve)
        return self._squash(frames), solves

    def _squash(self, y: Tensor) -> Tensor:
        return (torch.sigmoid(y) - self.margin) / (1 - 2 * self.margin)

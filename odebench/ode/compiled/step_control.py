"""Step control inside a compiled loop.

The rules are those of ``odebench.ode.integrate`` and ``odebench.ode.control``, on scalar float64 tensors.
"""

import enum
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odebench.ode.compiled.field import GraphField
from odebench.ode.control import END_STRETCH, SMALLEST_RATIO, SMALLEST_STEP, Controller, Tolerance, step_factors
from odebench.ode.transfer import constant

# Columns of the table of steps: start, signed size, error ratio, and the next size that the controller proposed.
STEP_COLUMNS = 4


class LoopState(enum.IntEnum):
    """Whether the loop runs, or why it ended."""

    running = 0
    finished = 1
    underflow = 2
    max_steps = 3
    full = 4
    non_finite = 5


def tolerance_tensor(tolerance: Tolerance, like: Tensor, size: int) -> Tensor:
    """rtol and atol as a tensor [2], or [2, size] if one of them differs between components; ``like`` gives dtype."""
    if not isinstance(tolerance.rtol, Tensor) and not isinstance(tolerance.atol, Tensor):
        return constant((float(tolerance.rtol), float(tolerance.atol)), like.dtype, like.device)
    return torch.stack([torch.as_tensor(x, dtype=like.dtype).expand(size) for x in (tolerance.rtol, tolerance.atol)])


def pack(scalars: Sequence[Tensor]) -> Tensor:
    """The scalars as one float64 tensor, for a loop to carry: each tensor that it carries or refers to costs time.

    Not by ``torch.stack``, for which inductor makes a tensor of each scalar in each iteration.
    """
    idx, packed = torch.arange(len(scalars)), scalars[0].to(torch.float64).expand(len(scalars))
    for i, scalar in enumerate(scalars[1:], start=1):
        packed = torch.where(idx == i, scalar.to(torch.float64), packed)
    return packed


def root_mean_square(x: Tensor) -> Tensor:
    """The root mean square of all elements, float64; 0 if there are none."""
    return torch.linalg.vector_norm(x).to(torch.float64) / math.sqrt(max(x.numel(), 1))


def largest(norms: Sequence[Tensor]) -> Tensor:
    """The largest number, as Python's ``max`` finds it: a NaN after the first number has no effect."""
    result = norms[0]
    for x in norms[1:]:
        result = torch.where(x > result, x, result)
    return result


class StepBounds(NamedTuple):
    """The bounds of a step size. floor: smaller times count as this time in the smallest step that changes a time."""

    min_step: Tensor
    max_step: Tensor
    floor: Tensor


def fit_step(t: Tensor, h: Tensor, end: Tensor, bounds: StepBounds) -> tuple[Tensor, Tensor, Tensor]:
    """The step of proposed size h within its bounds, the same fitted to the end, and whether it is too small for t."""
    min_step, max_step, floor = bounds
    remaining = (end - t).abs()
    h = torch.maximum(h, min_step)
    step = torch.minimum(h, max_step)
    at_end = remaining <= torch.minimum(step * END_STRETCH, max_step)
    step = torch.where(at_end, remaining, torch.where(2 * step > remaining, remaining / 2, step))
    too_small = (step < SMALLEST_STEP * torch.maximum(t.abs(), floor)) & (step != remaining)
    return h, step, too_small


def next_step(
    controller: Controller, order: int, h: Tensor, step: Tensor, ratio: Tensor, accepted: Tensor, past: Sequence[Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The size that the controller proposes after a step, the size of the next step, and the new ``past``.

    h, step: the size before and after it was fitted to the end. ratio, accepted: of the step.
    past: the errors of the last two accepted steps; empty for integral control.
    """
    proposal = step * step_factors(controller, order, ratio, accepted, past)
    # A step shortened to end at the end does not shrink the next one.
    h_next = torch.where(accepted & (step < h), torch.maximum(proposal, h), proposal)
    if not past:
        return proposal, h_next, ()
    last = torch.where(accepted, ratio.clamp(min=SMALLEST_RATIO), past[0])
    return proposal, h_next, (last, torch.where(accepted, past[0], past[1]))


def first_step_size(
    field: GraphField,
    t: Tensor,
    y: Tensor,
    f: Tensor,
    args: list[Tensor],
    span: Tensor,
    order: int,
    tolerance: Tensor,
    norm: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The size of the first step as ``odebench.ode.control.first_step`` chooses it, and its number of evaluations.

    f: its value [N] at t and y [N]. span: the signed time to the end. norm: of a scaled error.
    """

    rtol, atol = tolerance.unbind()
    scale = (atol + rtol * y.abs()).clamp_min(torch.finfo(y.dtype).tiny)
    d0, d1 = norm(y / scale), norm(f / scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1)
    usable = h0.isfinite() & (h0 != 0)
    h0 = torch.minimum(h0, span.abs())
    signed = torch.sign(span) * h0
    f1 = field.at(t + signed, y + signed.to(y.dtype) * f, args)
    # fmax and fmin, as comparisons with NaN are false in ``first_step``.
    steepest = torch.fmax(d1, norm((f1 - f) / scale) / h0)
    h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp_min(1e-6), (0.01 / steepest) ** (1 / order))
    h = torch.fmin(100 * h0, h1)
    zero_if_finite = norm(f * 0) + torch.where(usable, norm(f1 * 0), norm(y * 0))
    return torch.where(usable & (h != 0), h, zero_if_finite), usable.to(torch.int64)

"""Step control inside a compiled loop.

The rules are those of ``odebench.ode.integrate`` and ``odebench.ode.control``, on scalar float64 tensors.
"""

import enum
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odebench.ode.control import END_STRETCH, SMALLEST_RATIO, Controller, step_factors

# Columns of the table of steps: start, signed size, error ratio, and the next size that the controller proposed.
STEP_COLUMNS = 4


class LoopState(enum.IntEnum):
    """Why the loop ended."""

    running = 0
    finished = 1
    underflow = 2
    max_steps = 3
    full = 4


class StepBounds(NamedTuple):
    """The bounds of a step size, and 1e-12 of the largest time, at which rounding errors of times begin."""

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
    too_small = (step < 8 * sys.float_info.epsilon * torch.maximum(t.abs(), floor)) & (step != remaining)
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

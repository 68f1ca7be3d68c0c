"""Build the optimiser and compute the learning rate that the settings choose."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from odebench.config.choices import options_of
from odebench.config.schema.base import Choice
from odebench.config.schema.training import CosineSettings, ExponentialSettings, MultiStepSettings, OneCycleSettings

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "rmsprop": torch.optim.RMSprop,
}


def build_optimizer(optim: Choice, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser over all parameters that require a gradient."""
    options = options_of(optim)
    if "decay" in options:
        options["alpha"] = options.pop("decay")
    return OPTIMIZERS[optim.name]([p for p in model.parameters() if p.requires_grad], **options)


def lr_factor(schedule: Any, step: int, steps_per_epoch: int, num_steps: int) -> float:
    """Return the factor by which the learning rate is multiplied at optimiser step ``step``, from 0 to num_steps - 1.

    It depends only on the step, so a run that resumes needs no state of the schedule.
    """
    if isinstance(schedule, OneCycleSettings):
        # Smith & Topin 2018, but rise and fall are cosines, and the momentum stays constant.
        top = schedule.rise * num_steps
        if step < top:
            return _cosine(schedule.start, 1.0, step / top)
        return _cosine(1.0, schedule.final, (step - top) / max(num_steps - 1 - top, 1))
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if isinstance(schedule, MultiStepSettings):
        return schedule.factor ** sum(step >= m * steps_per_epoch for m in schedule.milestones)
    if isinstance(schedule, CosineSettings):
        return _cosine(1.0, schedule.final, (step - warmup_steps) / max(num_steps - warmup_steps, 1))
    if isinstance(schedule, ExponentialSettings):
        return max(schedule.factor ** (step - warmup_steps), schedule.final)
    return 1.0


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

"""The optimiser, its schedule, and the training loop."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from odebench.config.schema.base import (
    Choice,
    Fraction,
    FractionOrOne,
    FractionOrZero,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    UnitInterval,
)

MAX_THREADS = 1024  # with many more, some libraries end the process


@dataclass(frozen=True)
class _OptimSettings(Choice):
    """Settings of every optimiser."""

    lr: PositiveFloat
    weight_decay: NonNegativeFloat


@dataclass(frozen=True)
class SGDSettings(_OptimSettings):
    """The settings of ``sgd``."""

    momentum: FractionOrZero
    nesterov: bool


@dataclass(frozen=True)
class AdamSettings(_OptimSettings):
    """The settings of ``adam``, ``adamw`` and ``adamax``."""

    betas: tuple[FractionOrZero, FractionOrZero]


@dataclass(frozen=True)
class RMSpropSettings(_OptimSettings):
    """The settings of ``rmsprop``; decay is the decay of the running mean of squared gradients."""

    decay: FractionOrZero
    momentum: FractionOrZero


@dataclass(frozen=True)
class OneCycleSettings(Choice):
    """The settings of ``one_cycle``; rise is a fraction of the training, start and final of the learning rate."""

    rise: Fraction
    start: FractionOrOne
    final: UnitInterval


@dataclass(frozen=True)
class WarmupSettings(Choice):
    """The settings of ``constant``, which is only a warm-up; the other schedules have a warm-up, too."""

    warmup_epochs: NonNegativeFloat


@dataclass(frozen=True)
class CosineSettings(WarmupSettings):
    """The settings of ``cosine``; final is a fraction of the learning rate."""

    final: UnitInterval


@dataclass(frozen=True)
class MultiStepSettings(WarmupSettings):
    """The settings of ``steps``; milestones are in epochs."""

    milestones: tuple[PositiveInt, ...]
    factor: PositiveFloat


@dataclass(frozen=True)
class ExponentialSettings(WarmupSettings):
    """The settings of ``exponential``.

    factor: per step. final: the lower bound, as a fraction of the initial learning rate.
    """

    factor: FractionOrOne
    final: UnitInterval


@dataclass(frozen=True)
class TrainerSettings:
    """The settings of the training loop; configs/trainer/default.yaml explains each."""

    epochs: PositiveInt
    iterations: PositiveInt | None
    batch_size: PositiveInt
    eval_batch_size: PositiveInt
    max_minutes: PositiveFloat | None
    clip_grad_norm: PositiveFloat | None
    average: Fraction | None
    precision: Literal["float32", "bf16"]
    compile: bool
    deterministic: bool
    threads: Annotated[int, Range(at_least=1, below=MAX_THREADS + 1)] | None
    patience: PositiveInt | None
    max_nfe: PositiveInt | None
    log_every: PositiveInt
    validate_every: PositiveInt
    measure_every: PositiveInt
    checkpoint_minutes: PositiveFloat
    keep_every: PositiveInt | None
    figures: bool
    profile: PositiveInt | None
    objective: str

    def num_steps(self, steps_per_epoch: int) -> int:
        """The number of optimiser steps of the training."""
        return self.iterations or self.epochs * steps_per_epoch


OPTIM: dict[str, type[Any]] = {
    "sgd": SGDSettings,
    "adam": AdamSettings,
    "adamw": AdamSettings,
    "adamax": AdamSettings,
    "rmsprop": RMSpropSettings,
}
SCHEDULE: dict[str, type[Any]] = {
    "one_cycle": OneCycleSettings,
    "constant": WarmupSettings,
    "cosine": CosineSettings,
    "steps": MultiStepSettings,
    "exponential": ExponentialSettings,
}

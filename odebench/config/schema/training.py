"""The optimiser, its schedule, and the loop."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from odebench.config.parsing import Range
from odebench.config.schema.number_types import Fraction, FractionOrZero, NonNegativeFloat, PositiveFloat, PositiveInt

MOST_THREADS = 1024  # libraries of many more end the process


@dataclass(frozen=True)
class SGDSettings:
    """sgd."""

    name: str
    lr: PositiveFloat
    momentum: FractionOrZero
    nesterov: bool
    weight_decay: NonNegativeFloat


@dataclass(frozen=True)
class AdamSettings:
    """adam, adamw and adamax."""

    name: str
    lr: PositiveFloat
    betas: tuple[FractionOrZero, FractionOrZero]
    weight_decay: NonNegativeFloat


@dataclass(frozen=True)
class RMSpropSettings:
    """rmsprop; decay is that of the mean of squared gradients."""

    name: str
    lr: PositiveFloat
    decay: FractionOrZero
    momentum: FractionOrZero
    weight_decay: NonNegativeFloat


@dataclass(frozen=True)
class OneCycleSettings:
    """one_cycle; rise is a share of the training, start and final are shares of the learning rate."""

    name: str
    rise: Fraction
    start: Annotated[float, Range(above=0, at_most=1)]
    final: Annotated[float, Range(at_least=0, at_most=1)]


@dataclass(frozen=True)
class ConstantSettings:
    """constant."""

    name: str
    warmup_epochs: NonNegativeFloat


@dataclass(frozen=True)
class CosineSettings:
    """cosine; final is a share of the learning rate."""

    name: str
    warmup_epochs: NonNegativeFloat
    final: Annotated[float, Range(at_least=0, at_most=1)]


@dataclass(frozen=True)
class MultiStepSettings:
    """steps; milestones in epochs."""

    name: str
    warmup_epochs: NonNegativeFloat
    milestones: tuple[PositiveInt, ...]
    factor: PositiveFloat


@dataclass(frozen=True)
class ExponentialSettings:
    """exponential; factor is a step's, final the share of the learning rate that it never falls below."""

    name: str
    warmup_epochs: NonNegativeFloat
    factor: Annotated[float, Range(above=0, at_most=1)]
    final: Annotated[float, Range(at_least=0, at_most=1)]


@dataclass(frozen=True)
class TrainerSettings:
    """The loop; what each setting means stands in configs/trainer/default.yaml."""

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
    threads: Annotated[int, Range(at_least=1, below=MOST_THREADS + 1)] | None
    patience: PositiveInt | None
    max_nfe: PositiveInt | None
    log_every: PositiveInt
    validate_every: PositiveInt
    measure_every: PositiveInt
    checkpoint_minutes: PositiveFloat
    objective: str


OPTIM: dict[str, type[Any]] = {
    "sgd": SGDSettings,
    "adam": AdamSettings,
    "adamw": AdamSettings,
    "adamax": AdamSettings,
    "rmsprop": RMSpropSettings,
}
SCHEDULE: dict[str, type[Any]] = {
    "one_cycle": OneCycleSettings,
    "constant": ConstantSettings,
    "cosine": CosineSettings,
    "steps": MultiStepSettings,
    "exponential": ExponentialSettings,
}

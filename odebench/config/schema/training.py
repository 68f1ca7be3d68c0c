"""The optimiser, its schedule, and the training loop."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from odebench.config.parsing import Range
from odebench.config.schema.number_types import Fraction, FractionOrZero, NonNegativeFloat, PositiveFloat, PositiveInt

MAX_THREADS = 1024  # with many more, some libraries end the process


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
    """rmsprop; decay is that of the running mean of squared gradients."""

    name: str
    lr: PositiveFloat
    decay: FractionOrZero
    momentum: FractionOrZero
    weight_decay: NonNegativeFloat


@dataclass(frozen=True)
class OneCycleSettings:
    """one_cycle; rise is a fraction of the training, start and final are fractions of the learning rate."""

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
    """cosine; final is a fraction of the learning rate."""

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
    """exponential; factor is per step, final the lower bound, as a fraction of the initial learning rate."""

    name: str
    warmup_epochs: NonNegativeFloat
    factor: Annotated[float, Range(above=0, at_most=1)]
    final: Annotated[float, Range(at_least=0, at_most=1)]


@dataclass(frozen=True)
class TrainerSettings:
    """The training loop; see configs/trainer/default.yaml for the meaning of each setting."""

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

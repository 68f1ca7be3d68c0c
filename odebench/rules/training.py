"""The optimiser, its schedule, and the loop."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from odebench.rules.numbers import Count, Fraction, NotNegative, Positive, Share
from odebench.typed import Range

MOST_THREADS = 1024  # libraries of many more end the process


@dataclass(frozen=True)
class SGD:
    """sgd."""

    name: str
    lr: Positive
    momentum: Share
    nesterov: bool
    weight_decay: NotNegative


@dataclass(frozen=True)
class Adam:
    """adam, adamw and adamax."""

    name: str
    lr: Positive
    betas: tuple[Share, Share]
    weight_decay: NotNegative


@dataclass(frozen=True)
class RMSprop:
    """rmsprop; decay is that of the mean of squared gradients."""

    name: str
    lr: Positive
    decay: Share
    momentum: Share
    weight_decay: NotNegative


@dataclass(frozen=True)
class OneCycle:
    """one_cycle; rise is a share of the training, start and final are shares of the learning rate."""

    name: str
    rise: Fraction
    start: Annotated[float, Range(above=0, at_most=1)]
    final: Annotated[float, Range(at_least=0, at_most=1)]


@dataclass(frozen=True)
class Constant:
    """constant."""

    name: str
    warmup_epochs: NotNegative


@dataclass(frozen=True)
class Cosine:
    """cosine; final is a share of the learning rate."""

    name: str
    warmup_epochs: NotNegative
    final: Annotated[float, Range(at_least=0, at_most=1)]


@dataclass(frozen=True)
class Steps:
    """steps; milestones in epochs."""

    name: str
    warmup_epochs: NotNegative
    milestones: tuple[Count, ...]
    factor: Positive


@dataclass(frozen=True)
class Exponential:
    """exponential; factor is a step's, final the share of the learning rate that it never falls below."""

    name: str
    warmup_epochs: NotNegative
    factor: Annotated[float, Range(above=0, at_most=1)]
    final: Annotated[float, Range(at_least=0, at_most=1)]


@dataclass(frozen=True)
class Trainer:
    """The loop; what each setting means stands in configs/trainer/default.yaml."""

    epochs: Count
    iterations: Count | None
    batch_size: Count
    eval_batch_size: Count
    max_minutes: Positive | None
    clip_grad_norm: Positive | None
    average: Fraction | None
    precision: Literal["float32", "bf16"]
    compile: bool
    deterministic: bool
    threads: Annotated[int, Range(at_least=1, below=MOST_THREADS + 1)] | None
    patience: Count | None
    max_nfe: Count | None
    log_every: Count
    validate_every: Count
    measure_every: Count
    checkpoint_minutes: Positive
    objective: str


OPTIM: dict[str, type[Any]] = {"sgd": SGD, "adam": Adam, "adamw": Adam, "adamax": Adam, "rmsprop": RMSprop}
SCHEDULE: dict[str, type[Any]] = {
    "one_cycle": OneCycle,
    "constant": Constant,
    "cosine": Cosine,
    "steps": Steps,
    "exponential": Exponential,
}

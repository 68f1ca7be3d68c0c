"""The settings of each choice: one dataclass a model, solver, schedule, ..., with types and ranges.

Frozen, without defaults: those stand in the YAML file of the same choice. The dicts below say which name is
read by which rules; what several settings say together is checked in odebench/settings.py.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from odebench.typed import Range

Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Count = Annotated[int, Range(at_least=1)]
Fraction = Annotated[float, Range(above=0, below=1)]
Share = Annotated[float, Range(at_least=0, below=1)]


@dataclass(frozen=True)
class ODENet:
    """odenet, and rknet, which is the same network."""

    has_ode: ClassVar[bool] = True
    name: str
    width: Count
    groups: Count
    end_time: Positive


@dataclass(frozen=True)
class ResNet:
    """resnet, and its controls of one block and of none."""

    has_ode: ClassVar[bool] = False
    name: str
    width: Count
    groups: Count
    blocks: Annotated[int, Range(at_least=0)]


@dataclass(frozen=True)
class MLP:
    """mlp."""

    has_ode: ClassVar[bool] = False
    name: str
    hidden: Count


@dataclass(frozen=True)
class Extension:
    """A model or data set of an extension: its options are checked against its signature."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Solver:
    """Any solver; rtol and atol rule adaptive steps, steps or step_size fixed ones.

    options: what only this method has, such as the damping of alf; each is a key of its own in YAML.
    """

    name: str
    rtol: Positive | None
    atol: Positive | None
    steps: Count | None
    step_size: Positive | None
    first_step: Positive | Literal["warm"] | None
    min_step: Positive | None
    max_step: Positive | None
    max_steps: Count | None
    controller: Literal["integral", "pi", "pid"]
    stepping: Literal["shared", "per_sample"]
    compile: bool
    options: dict[str, Any]

    @property
    def fixed(self) -> bool:
        """Whether the steps are given, not chosen by the error."""
        return self.steps is not None or self.step_size is not None


@dataclass(frozen=True)
class Exact:
    """backprop and reversible, which have no options."""

    name: str


@dataclass(frozen=True)
class Checkpoint:
    """checkpoint."""

    name: str
    checkpoints: Count | None
    recompute: Literal["step", "stage"]
    keep: Literal["states", "graphs"]


@dataclass(frozen=True)
class Adjoint:
    """adjoint and interpolated_adjoint; null takes what the forward solve has."""

    name: str
    rtol: Positive | None
    atol: Positive | None
    method: str | None
    steps: Count | None
    norm: Literal["semi", "full"]


@dataclass(frozen=True)
class Images:
    """mnist, fashion_mnist and mnist5k."""

    name: str
    root: str | None
    validation: Count
    train_limit: Count | None
    augment: bool
    download: bool


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
    """adam and adamw."""

    name: str
    lr: Positive
    betas: tuple[Share, Share]
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
class Trainer:
    """The loop; what each setting means stands in configs/trainer/default.yaml."""

    epochs: Count
    batch_size: Count
    eval_batch_size: Count
    max_minutes: Positive | None
    clip_grad_norm: Positive | None
    average: Fraction | None
    precision: Literal["float32", "bf16"]
    compile: bool
    deterministic: bool
    threads: Count | None
    patience: Count | None
    max_nfe: Count | None
    log_every: Count
    measure_every: Count
    checkpoint_minutes: Positive
    objective: Literal["val/accuracy", "val/loss"]


MODELS: dict[str, type] = {"odenet": ODENet, "rknet": ODENet, "resnet": ResNet, "mlp": MLP}
DATA: dict[str, type] = {"mnist": Images, "fashion_mnist": Images, "mnist5k": Images}
OPTIM: dict[str, type] = {"sgd": SGD, "adam": Adam, "adamw": Adam}
SCHEDULE: dict[str, type] = {"one_cycle": OneCycle, "constant": Constant, "cosine": Cosine, "steps": Steps}
GRADIENTS: dict[str, type] = {
    "backprop": Exact,
    "checkpoint": Checkpoint,
    "adjoint": Adjoint,
    "interpolated_adjoint": Adjoint,
    "reversible": Exact,
}
NO_SOLVER = "none"

"""The models: their task, whether they solve an ODE, and their options."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from odebench.config.schema.base import Choice, Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from odebench.config.schema.series_models import SERIES_MODELS


@dataclass(frozen=True)
class ODENetSettings(Choice):
    """The settings of ``odenet``, and of ``rknet``, which is the same network."""

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    has_ode: ClassVar[bool] = True
    width: PositiveInt
    groups: PositiveInt
    end_time: PositiveFloat
    augment: NonNegativeInt
    second_order: bool


@dataclass(frozen=True)
class ResNetSettings(Choice):
    """The settings of ``resnet``, which with one block or none is the control for the effect of depth."""

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    has_ode: ClassVar[bool] = False
    width: PositiveInt
    groups: PositiveInt
    blocks: NonNegativeInt


@dataclass(frozen=True)
class MLPSettings(Choice):
    """The settings of ``mlp``."""

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    has_ode: ClassVar[bool] = False
    hidden: PositiveInt


@dataclass(frozen=True)
class CNFSettings(Choice):
    """The settings of ``cnf``; hidden is the width of its hypernetwork."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)
    has_ode: ClassVar[bool] = True
    width: PositiveInt
    hidden: PositiveInt
    end_time: PositiveFloat
    base_variance: PositiveFloat


@dataclass(frozen=True)
class FFJORDSettings(Choice):
    """The settings of ``ffjord``; dims are the widths of hidden layers in each block, scales those of images."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)
    has_ode: ClassVar[bool] = True
    dims: tuple[PositiveInt, ...]
    nonlinearity: Literal["softplus", "tanh"]
    end_time: PositiveFloat
    train_time: bool
    blocks: PositiveInt
    scales: PositiveInt
    trace: Literal["exact", "hutchinson"]
    noise: Literal["rademacher", "gaussian"]
    logit: Fraction | None


@dataclass(frozen=True)
class PlanarFlowSettings(Choice):
    """The settings of ``planar_nf``; closed is the direction that needs no root finding."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)
    has_ode: ClassVar[bool] = False
    layers: PositiveInt
    closed: Literal["sampling", "likelihood"]
    base_variance: PositiveFloat


MODELS: dict[str, type[Any]] = {
    "odenet": ODENetSettings,
    "rknet": ODENetSettings,
    "resnet": ResNetSettings,
    "mlp": MLPSettings,
    "cnf": CNFSettings,
    "ffjord": FFJORDSettings,
    "planar_nf": PlanarFlowSettings,
    **SERIES_MODELS,
}

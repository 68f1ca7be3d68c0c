"""The models: of which task they are, whether they solve an ODE, and their options."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from odebench.rules.numbers import Count, Fraction, Positive, Whole
from odebench.rules.series import SERIES_MODELS


@dataclass(frozen=True)
class ODENet:
    """odenet, and rknet, which is the same network."""

    task: ClassVar[str] = "classification"
    has_ode: ClassVar[bool] = True
    name: str
    width: Count
    groups: Count
    end_time: Positive
    augment: Whole
    second_order: bool


@dataclass(frozen=True)
class ResNet:
    """resnet, and its controls of one block and of none."""

    task: ClassVar[str] = "classification"
    has_ode: ClassVar[bool] = False
    name: str
    width: Count
    groups: Count
    blocks: Whole


@dataclass(frozen=True)
class MLP:
    """mlp."""

    task: ClassVar[str] = "classification"
    has_ode: ClassVar[bool] = False
    name: str
    hidden: Count


@dataclass(frozen=True)
class CNF:
    """cnf; hidden is the width of its hypernetwork."""

    task: ClassVar[str] = "density"
    has_ode: ClassVar[bool] = True
    name: str
    width: Count
    hidden: Count
    end_time: Positive
    base_variance: Positive


@dataclass(frozen=True)
class FFJORD:
    """ffjord; dims are the hidden layers of each block's field, scales those of images."""

    task: ClassVar[str] = "density"
    has_ode: ClassVar[bool] = True
    name: str
    dims: tuple[Count, ...]
    nonlinearity: Literal["softplus", "tanh"]
    end_time: Positive
    train_time: bool
    blocks: Count
    scales: Count
    trace: Literal["exact", "hutchinson"]
    noise: Literal["rademacher", "gaussian"]
    logit: Fraction | None


@dataclass(frozen=True)
class PlanarFlow:
    """planar_nf; closed is the direction without root finding."""

    task: ClassVar[str] = "density"
    has_ode: ClassVar[bool] = False
    name: str
    layers: Count
    closed: Literal["sampling", "likelihood"]
    base_variance: Positive


MODELS: dict[str, type[Any]] = {
    "odenet": ODENet,
    "rknet": ODENet,
    "resnet": ResNet,
    "mlp": MLP,
    "cnf": CNF,
    "ffjord": FFJORD,
    "planar_nf": PlanarFlow,
    **SERIES_MODELS,
}

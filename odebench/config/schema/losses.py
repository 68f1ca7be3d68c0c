"""The losses, and the regularisation of an ODE's dynamics."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from odebench.config.schema.base import Choice, FractionOrZero, NonNegativeFloat, NonNegativeInt, PositiveInt, Range


@dataclass(frozen=True)
class CrossEntropySettings(Choice):
    """The settings of ``cross_entropy``.

    label_smoothing: the fraction of the probability that is spread over all classes.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    label_smoothing: FractionOrZero


@dataclass(frozen=True)
class DensityLossSettings(Choice):
    """The losses ``maximum_likelihood`` and ``density_matching``, which have no settings of their own."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)


@dataclass(frozen=True)
class FlowMatchingSettings(DensityLossSettings):
    """The settings of ``flow_matching``; sigma is the width of the conditional paths."""

    coupling: Literal["independent", "optimal_transport"]
    sigma: NonNegativeFloat


@dataclass(frozen=True)
class AutoregressiveLossSettings(Choice):
    """The settings of ``autoregressive``; label_weight is the weight of the cross-entropy of the label."""

    tasks: ClassVar[tuple[str, ...]] = ("time_series",)
    reduction: Literal["sum", "mean"]
    label_weight: NonNegativeFloat


@dataclass(frozen=True)
class ELBOSettings(AutoregressiveLossSettings):
    """The settings of ``elbo``; configs/loss/elbo.yaml explains each."""

    samples: PositiveInt
    eval_samples: PositiveInt
    combine: Literal["mean", "logsumexp"]
    kl_wait_epochs: NonNegativeInt | None
    kl_growth: FractionOrZero
    consistency: NonNegativeFloat
    event_weight: NonNegativeFloat


@dataclass(frozen=True)
class DynamicsSettings(Choice):
    """The settings of ``plain`` and its presets: a weight for each term, 0 for off.

    taylor_order: the order of the derivative that ``taylor`` weighs.
    steer: half the width of the interval that the random end time is drawn from, as a fraction of the last span.
    """

    kinetic: NonNegativeFloat
    jacobian: NonNegativeFloat
    taylor: NonNegativeFloat
    taylor_order: Annotated[int, Range(at_least=2, at_most=6)]
    steer: FractionOrZero


LOSSES: dict[str, type[Any]] = {
    "cross_entropy": CrossEntropySettings,
    "maximum_likelihood": DensityLossSettings,
    "density_matching": DensityLossSettings,
    "flow_matching": FlowMatchingSettings,
    "autoregressive": AutoregressiveLossSettings,
    "elbo": ELBOSettings,
}
DYNAMICS: dict[str, type[Any]] = dict.fromkeys(("plain", "rnode", "taynode", "steer"), DynamicsSettings)

"""The losses, and the regularisation of an ODE's dynamics."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from odebench.config.schema.base import Choice, FractionOrZero, NonNegativeFloat, NonNegativeInt, PositiveInt, Range


@dataclass(frozen=True)
class CrossEntropySettings(Choice):
    """cross_entropy; label_smoothing is the fraction of the probability spread over all classes."""

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    label_smoothing: FractionOrZero


@dataclass(frozen=True)
class DensityLossSettings(Choice):
    """maximum_likelihood and density_matching, which have no options."""

    tasks: ClassVar[tuple[str, ...]] = ("density",)


@dataclass(frozen=True)
class FlowMatchingSettings(DensityLossSettings):
    """flow_matching; sigma is the width of the conditional paths."""

    coupling: Literal["independent", "optimal_transport"]
    sigma: NonNegativeFloat


@dataclass(frozen=True)
class AutoregressiveLossSettings(Choice):
    """autoregressive; label_weight is the weight of the label's cross-entropy."""

    tasks: ClassVar[tuple[str, ...]] = ("time_series",)
    reduction: Literal["sum", "mean"]
    label_weight: NonNegativeFloat


@dataclass(frozen=True)
class ELBOSettings(AutoregressiveLossSettings):
    """elbo; see configs/loss/elbo.yaml for the meaning of each setting."""

    samples: PositiveInt
    eval_samples: PositiveInt
    combine: Literal["mean", "logsumexp"]
    kl_wait_epochs: NonNegativeInt | None
    kl_growth: FractionOrZero
    consistency: NonNegativeFloat
    event_weight: NonNegativeFloat


@dataclass(frozen=True)
class DynamicsSettings(Choice):
    """plain, and presets of the same terms: each a weight, 0 for off.

    taylor_order: of the derivative that ``taylor`` weighs. steer: half width of the random end time's interval, as a
    fraction of the last span.
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

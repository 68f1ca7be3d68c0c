"""What a training minimises, and how an ODE's dynamics are regularised."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from odebench.rules.numbers import Count, NotNegative, Share, Whole
from odebench.typed import Range


@dataclass(frozen=True)
class CrossEntropy:
    """cross_entropy; label_smoothing is the share of the probability spread over all classes."""

    task: ClassVar[str] = "classification"
    name: str
    label_smoothing: Share


@dataclass(frozen=True)
class Density:
    """maximum_likelihood and density_matching, which have no options."""

    task: ClassVar[str] = "density"
    name: str


@dataclass(frozen=True)
class FlowMatching:
    """flow_matching; sigma is the width of the conditional paths."""

    task: ClassVar[str] = "density"
    name: str
    coupling: Literal["independent", "optimal_transport"]
    sigma: NotNegative


@dataclass(frozen=True)
class AutoregressiveLoss:
    """autoregressive; label_weight is that of the label's cross-entropy."""

    task: ClassVar[str] = "time_series"
    name: str
    reduction: Literal["sum", "mean"]
    label_weight: NotNegative


@dataclass(frozen=True)
class ELBO(AutoregressiveLoss):
    """elbo; what each setting means stands in configs/loss/elbo.yaml."""

    samples: Count
    eval_samples: Count
    combine: Literal["mean", "logsumexp"]
    kl_wait_epochs: Whole | None
    kl_growth: Share
    consistency: NotNegative
    event_weight: NotNegative


@dataclass(frozen=True)
class Dynamics:
    """plain, and presets of the same terms: each a weight, 0 for off.

    taylor_order: of the derivative that ``taylor`` weighs. steer: half width of the random end time, as a share of the
    span.
    """

    name: str
    kinetic: NotNegative
    jacobian: NotNegative
    taylor: NotNegative
    taylor_order: Annotated[int, Range(at_least=2, at_most=6)]
    steer: Share


LOSSES: dict[str, type[Any]] = {
    "cross_entropy": CrossEntropy,
    "maximum_likelihood": Density,
    "density_matching": Density,
    "flow_matching": FlowMatching,
    "autoregressive": AutoregressiveLoss,
    "elbo": ELBO,
}
DYNAMICS: dict[str, type[Any]] = dict.fromkeys(("plain", "rnode", "taynode", "steer"), Dynamics)

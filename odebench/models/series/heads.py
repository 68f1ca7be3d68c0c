"""Output networks of series models: observations, a label, and rates of events."""

import math

import torch
from torch import Tensor, nn

from odebench.models.augmented_state import FieldEvaluation
from odebench.models.series.fields import mlp


class Decoder(nn.Module):
    """Gaussian observations: means by a network with one hidden layer (units = 0: a linear map), and a noise level.

    noise_std: standard deviation of the noise; with learn_noise the initial value of a parameter for each feature.
    """

    def __init__(self, width: int, num_features: int, units: int, noise_std: float, learn_noise: bool) -> None:
        super().__init__()
        self.net = mlp(width, num_features, units, min(units, 1), "relu")
        log_std = torch.full((num_features,), math.log(noise_std))
        self.log_noise_std = nn.Parameter(log_std, requires_grad=learn_noise)

    @property
    def noise_std(self) -> Tensor:
        """Standard deviation of the noise [D]."""
        return self.log_noise_std.exp()

    def forward(self, states: Tensor) -> Tensor:
        """Means [..., D] from states [..., width]."""
        return self.net(states)


def classifier(width: int, units: int) -> nn.Sequential:
    """States [..., width] to the logit of a binary label [..., 1], by two hidden layers (Rubanova et al. 2019)."""
    return mlp(width, 1, units, 2, "relu")


class EventRates(nn.Module):
    """The rate of each kind of event, lambda(z) = exp(net(z)), one hidden layer (Chen et al. 2018, section 5).

    An inhomogeneous Poisson process has log L = sum over events of log lambda(t_i) - integral of lambda over the span
    (Daley & Vere-Jones 2003, proposition 7.2.III); the solver integrates lambda together with the state.

    dim: the rates depend on the first dim numbers of the state.
    """

    def __init__(self, dim: int, num_kinds: int, units: int) -> None:
        super().__init__()
        self.dim = dim
        self.net = mlp(dim, num_kinds, units, 1, "tanh")

    def forward(self, z: Tensor) -> Tensor:
        """Logarithms of the rates [..., E] at states z [..., dim]."""
        return self.net(z)

    def total_rate(self, evaluation: FieldEvaluation) -> Tensor:
        """The rate of events of any kind [B], an integrand for ``AugmentedField``."""
        return self(evaluation.z[..., : self.dim]).exp().sum(-1)

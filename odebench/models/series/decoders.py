"""From latent or hidden states to what is observed."""

import math

import torch
from torch import Tensor, nn

from odebench.models.series.fields import mlp


class Decoder(nn.Module):
    """Gaussian observations: their means by a network with one hidden layer (units = 0: a linear map), and their noise.

    noise_std: its standard deviation, the same for all features; where it is learnt, each feature's at first.
    """

    def __init__(self, width: int, num_features: int, units: int, noise_std: float, learn_noise: bool) -> None:
        super().__init__()
        self.net = mlp(width, num_features, units, min(units, 1), "relu")
        log_std = torch.full((num_features,), math.log(noise_std))
        self.log_noise_std = nn.Parameter(log_std, requires_grad=learn_noise)

    @property
    def noise_std(self) -> Tensor:
        """[D]."""
        return self.log_noise_std.exp()

    def forward(self, states: Tensor) -> Tensor:
        """Means [..., D] from states [..., width]."""
        return self.net(states)


def classifier(width: int, units: int) -> nn.Sequential:
    """States [..., width] to the logit of a binary label [..., 1], by two hidden layers (Rubanova et al. 2019)."""
    return mlp(width, 1, units, 2, "relu")

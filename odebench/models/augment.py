"""Augmented and second-order neural ODEs: states with more dimensions than the data."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def append_zero_channels(z: Tensor, count: int) -> Tensor:
    """Append ``count`` channels of zeros to states [B, D, *]; returns [B, D + count, *].

    Dupont, Doucet & Teh 2019, Augmented neural ODEs.
    """
    if not count:
        return z
    return torch.cat((z, z.new_zeros(len(z), count, *z.shape[2:])), dim=1)


class SecondOrderField(nn.Module):
    """The second-order ODE z'' = f(t, z, z') as a field of the state (z, z'), stacked along dimension 1: [B, 2 D, *].

    Norcliffe, Bodnar, Day, Simidjievski & Lio 2020, On second order behaviour in augmented neural ODEs.

    acceleration: maps t and the stacked state to z'' [B, D, *].
    """

    def __init__(self, acceleration: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.acceleration = acceleration

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        """Return (z', z''), stacked like the state."""
        velocity = state.chunk(2, dim=1)[1]
        return torch.cat((velocity, self.acceleration(t, state)), dim=1)

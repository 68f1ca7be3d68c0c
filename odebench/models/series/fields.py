"""Multilayer perceptrons, and an autonomous vector field made of one."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

# In place is safe: only the activation uses the result of the linear map before it.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "elu": partial(nn.ELU, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
}


def mlp(num_in: int, num_out: int, units: int, layers: int, activation: str) -> nn.Sequential:
    """A network with ``layers`` hidden layers of ``units`` each; with 0 layers, a linear map."""
    sizes = [num_in, *[units] * layers]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), ACTIVATIONS[activation]())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], num_out))


class AutonomousField(nn.Module):
    """dz/dt = net(z), independent of time; see ``mlp`` for the network. num_out: outputs, by default dim."""

    def __init__(self, dim: int, units: int, layers: int, activation: str, num_out: int | None = None) -> None:
        super().__init__()
        self.net = mlp(dim, num_out or dim, units, layers, activation)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """[..., num_out] from z [..., dim]."""
        return self.net(z)

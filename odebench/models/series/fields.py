"""Multilayer perceptrons, and an autonomous vector field made of one."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

# In-place activations are safe: nothing else uses the result of the linear map before them.
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
    """The field dz/dt = net(z), independent of time; see ``mlp`` for the network. num_out: outputs, by default dim."""

    def __init__(self, dim: int, units: int, layers: int, activation: str, num_out: int | None = None) -> None:
        super().__init__()
        self.net = mlp(dim, num_out or dim, units, layers, activation)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """Return net(z) [..., num_out], for z [..., dim]."""
        return self.net(z)

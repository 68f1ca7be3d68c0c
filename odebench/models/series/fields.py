"""Plain networks, and the vector field that they make."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

# In place: the result of the linear map before it is nobody else's.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "elu": partial(nn.ELU, inplace=True),
    "relu": partial(nn.ReLU, inplace=True),
    "softplus": nn.Softplus,
}


def mlp(num_in: int, num_out: int, units: int, layers: int, activation: str) -> nn.Sequential:
    """``layers`` hidden layers of so many units; none: a linear map."""
    sizes = [num_in, *[units] * layers]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), ACTIVATIONS[activation]())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], num_out))


class AutonomousField(nn.Module):
    """net(z), the same at all times, with as many outputs as inputs unless said; the network as for ``mlp``."""

    def __init__(self, dim: int, units: int, layers: int, activation: str, num_out: int | None = None) -> None:
        super().__init__()
        self.net = mlp(dim, num_out or dim, units, layers, activation)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """[..., num_out] from z [..., dim]."""
        return self.net(z)

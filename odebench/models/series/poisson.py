"""Events whose rates are read off the latent state (Chen et al. 2018, section 5)."""

from torch import Tensor, nn

from odebench.models.augmented_state import Evaluation
from odebench.models.series.fields import mlp


class EventRates(nn.Module):
    """The rate of each kind of event, lambda(z) = exp(net(z)), one hidden layer.

    An inhomogeneous Poisson process has log L = sum over events of log lambda(t_i) - integral of lambda over the span
    (Daley & Vere-Jones 2003, proposition 7.2.III); the integral is carried along by the solver.

    dim: of what is read, the first numbers of the state.
    """

    def __init__(self, dim: int, num_kinds: int, units: int) -> None:
        super().__init__()
        self.dim = dim
        self.net = mlp(dim, num_kinds, units, 1, "tanh")

    def forward(self, z: Tensor) -> Tensor:
        """Logarithms of the rates [..., E] at states z [..., dim]."""
        return self.net(z)

    def total(self, at: Evaluation) -> Tensor:
        """The rate of events of any kind [B], to be carried."""
        return self(at.z[..., : self.dim]).exp().sum(-1)

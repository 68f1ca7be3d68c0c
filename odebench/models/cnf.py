"""The continuous normalizing flow of the neural ODE paper."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odebench.models.flow import ODEBlock, ODEFlow, vector_size


class CNF(ODEFlow):
    """The CNF of Chen et al. 2018, section 4: a ``GatedField`` with exact trace.

    The ODE runs from the base at t = 0 to the data at end_time.

    shape: the shape (D,) of a sample. width: the number M of hidden units of the field. hidden: the width of the
    hypernetwork's hidden layers. base_variance: the variance of the base, a Gaussian with mean 0.
    """

    def __init__(self, shape: tuple[int, ...], width: int, hidden: int, end_time: float, base_variance: float) -> None:
        field = GatedField(vector_size(shape, "cnf"), width, hidden)
        super().__init__(shape, [ODEBlock(field, shape, end_time)], base_variance)


class GatedField(nn.Module):
    """dz/dt = 1/M sum over M units of sigma_m(t) u_m(t) tanh(w_m(t) . z + b_m(t)) (Chen et al. 2018, section 4).

    A hypernetwork with two hidden layers maps t to the gates sigma = sigmoid(g) in (0, 1), and to u, w, b.

    The implementation uses tanh x = 2 sigmoid(2 x) - 1, which is several times as fast on CPUs and differs only by
    rounding. The factors 2 are part of the units' parameters; the formulas below use s = sigmoid(2 (w . z + b)).
    """

    def __init__(self, size: int, width: int, hidden: int) -> None:
        super().__init__()
        self.size, self.width = size, width
        self._parts = [size * width, width, size * width, width]
        self.hypernetwork = nn.Sequential(
            nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, sum(self._parts))
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt at time t (scalar, or [B]) and z [B, D]."""
        _, u, s = self._units(t, z)
        return _velocity(u, s)

    def divergence(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """dz/dt [B, D], and the trace of its Jacobian [B]: the sum over m of sigma_m u_m . w_m (1 - tanh^2) / M."""
        w, u, s = self._units(t, z)
        along = 2 * (w * u).sum(-2)  # 4 sigma u . w / M, and 1 - tanh^2 = 4 (s - s^2)
        slope = torch.addcmul(s, s, s, value=-1)
        return _velocity(u, s), torch.mv(slope, along) if along.dim() == 1 else (slope * along).sum(-1)

    def vjp(self, t: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """dz/dt at a scalar t, and v^T df/dz: the sum over m of (v . u_m) s_m' w_m, for v; all [B, D]."""
        w, u, s = self._units(t, z)
        slope = torch.addcmul(s, s, s, value=-1)  # ds/d(w . z) = 2 (s - s^2)
        return _velocity(u, s), (2 * slope * (v @ u)) @ w.t()

    def _units(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return w and 2 sigma u / M, each [D, M], or [B, D, M] if t is [B]; and s [B, M]."""
        w, b, u, gate = self.hypernetwork(t.unsqueeze(-1)).split(self._parts, -1)
        w = w.view(*t.shape, self.size, self.width)
        u = u.view(w.shape) * (torch.sigmoid(gate) * (2 / self.width)).unsqueeze(-2)
        if t.dim() == 0:
            return w, u, torch.sigmoid(torch.addmm(b, z, w, beta=2, alpha=2))
        both = torch.baddbmm(b.unsqueeze(1), z.unsqueeze(1), w, beta=2, alpha=2)
        return w, u, torch.sigmoid(both.squeeze(1))


def _velocity(u: Tensor, s: Tensor) -> Tensor:
    """The sum of u (s - 1/2) over the units."""
    middle = -0.5 * u.sum(-1)
    if u.dim() == 2:
        return F.linear(s, u, middle)
    return torch.baddbmm(middle.unsqueeze(-1), u, s.unsqueeze(-1)).squeeze(-1)

"""The vector fields of the benchmark cases. The time is a scalar, or [B] with per-sample steps."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odebench.models.convolution import ConvField


class Spiral(nn.Module):
    """A network with one hidden layer of 50 units, applied to y^3 (torchdiffeq, examples/ode_demo.py).

    The example trains it on the spiral dy/dt = A y^3; its initial weights here are close to that. y: [B, 2].
    """

    def __init__(self) -> None:
        super().__init__()
        first, last = nn.Linear(2, 50), nn.Linear(50, 2)
        self.net = nn.Sequential(first, nn.Tanh(), last)
        nn.init.normal_(first.weight, std=0.1)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)
        with torch.no_grad():  # for small y, where tanh is the identity, the two layers multiply by A
            last.weight.copy_(torch.tensor([[-0.1, -2.0], [2.0, -0.1]]) @ torch.linalg.pinv(first.weight))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt [B, 2]."""
        return self.net(y**3)


class PublishedConvField(nn.Module):
    """A ``ConvField`` written as in torchdiffeq's examples/odenet_mnist.py: the time is concatenated as a channel."""

    def __init__(self, field: ConvField) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = field.norm1, field.norm2, field.norm3
        self.conv1, self.conv2 = field.conv1, field.conv2
        self.relu = nn.ReLU(inplace=True)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt [B, width, H, W]."""
        y = _concat_conv(self.conv1, t, self.relu(self.norm1(y)))
        y = _concat_conv(self.conv2, t, self.relu(self.norm2(y)))
        return self.norm3(y)


def _concat_conv(conv: nn.Conv2d, t: Tensor, x: Tensor) -> Tensor:
    plane = torch.ones_like(x[:, :1]) * t
    return F.conv2d(torch.cat([plane, x], 1), conv.weight, conv.bias, padding=1)


class HypernetworkFlow(nn.Module):
    """A flow with dz/dt = mean over 64 units of U tanh(W z + B); a network computes U, W and B from t.

    The state is z [B, 2] and the change of the log-density [B, 1]. The trace of the Jacobian is exact and in closed
    form; torchdiffeq's examples/cnf.py computes it by autograd.
    """

    width, hidden = 64, 32

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(1, self.hidden)
        self.fc2 = nn.Linear(self.hidden, self.hidden)
        self.fc3 = nn.Linear(self.hidden, 7 * self.width)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return dz/dt and minus the trace of its Jacobian."""
        z, _ = state
        weights = self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(t.reshape(1))))))
        w, u, gate, b = weights.split((2 * self.width, 2 * self.width, 2 * self.width, self.width))
        w, u = w.view(2, self.width), (u * torch.sigmoid(gate)).view(self.width, 2) / self.width
        h = torch.tanh(torch.addmm(b, z, w))
        # The derivative of tanh is 1 - tanh^2; unit i adds w_i . u_i times this to the trace.
        return h @ u, (h * h - 1) @ (w.t() * u).sum(1, keepdim=True)


class Robertson(nn.Module):
    """Three reactions with rates 0.04, 3e7 and 1e4 (Robertson 1966).

    The state is (y1, 1e4 y2, y3), whose components have similar sizes. The parameters are the logarithms of the rates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_rates = nn.Parameter(torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64).log())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt [3]."""
        k1, k2, k3 = self.log_rates.exp().unbind()
        a, b, c = y.unbind(-1)
        b = b * 1e-4
        slow, fast, back = k1 * a, k2 * b * b, k3 * b * c
        return torch.stack([back - slow, 1e4 * (slow - back - fast), fast], -1)


class VanDerPol(nn.Module):
    """Van der Pol's oscillator x'' = mu (1 - x^2) x' - x. y: (x, x'), [2]. The parameter is log mu."""

    def __init__(self, mu: float) -> None:
        super().__init__()
        self.log_mu = nn.Parameter(torch.tensor(math.log(mu), dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt [2]."""
        x, v = y.unbind(-1)
        return torch.stack([v, self.log_mu.exp() * (1 - x * x) * v - x], -1)


class Oscillators(nn.Module):
    """Van der Pol oscillators, one per row (x, v, mu). As mu is part of the state, any subset of rows can be solved."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt [B, 3]; mu is constant."""
        x, v, mu = y.unbind(-1)
        return torch.stack([v, self.scale * mu * (1 - x * x) * v - x, torch.zeros_like(mu)], -1)

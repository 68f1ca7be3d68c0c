"""Vector fields in which the time scales and shifts every layer (Grathwohl et al. 2019, concatsquash)."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Nonlinearity = Literal["softplus", "tanh"]

# Each nonlinearity with its derivative, which is computed from the input and the output.
NONLINEARITIES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "softplus": (F.softplus, lambda x, y: torch.sigmoid(x)),
    "tanh": (torch.tanh, lambda x, y: 1 - y * y),
}


class TimeGates(nn.Module):
    """The gates sigmoid(a t + b) and the shifts c t of several layers, which have these widths."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.widths = widths
        self.gate = nn.Linear(1, sum(widths))
        self.shift = nn.Linear(1, sum(widths), bias=False)

    def forward(self, t: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The gates and shifts of each layer, each [1, width], or [B, width] if t is [B]."""
        t = t.reshape(-1, 1)
        gates, shifts = torch.sigmoid(self.gate(t)), self.shift(t)
        return list(zip(gates.split(self.widths, 1), shifts.split(self.widths, 1), strict=True))


class _ConcatSquash(nn.Module):
    """Layers z -> layer(z) gate(t) + shift(t), with a nonlinearity between them."""

    def __init__(self, layers: Iterable[nn.Module], widths: list[int], nonlinearity: Nonlinearity) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.gates = TimeGates(widths)
        self._activate, self._derivative = NONLINEARITIES[nonlinearity]

    def _gates_at(self, t: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The gate and the shift of each layer, which broadcast to its result."""
        return self.gates(t)

    def _transposed(self, layer: Any, v: Tensor) -> Tensor:
        """The transpose of the layer's linear map, applied to v."""
        return v @ layer.weight

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """dz/dt at time t (scalar, or [B]) and z [B, *shape]."""
        *hidden, (gate, shift) = self._gates_at(t)
        for layer, (g, s) in zip(self.layers[:-1], hidden, strict=True):
            z = self._activate(torch.addcmul(s, layer(z), g))
        return torch.addcmul(shift, self.layers[-1](z), gate)

    def vjp(self, t: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """dz/dt and v^T df/dz, for v; all [B, *shape]."""
        dz, slopes, gate = self._linearize(t, z)
        v = self._transposed(self.layers[-1], v * gate)
        for layer, slope in zip(reversed(self.layers[:-1]), reversed(slopes), strict=True):
            v = self._transposed(layer, v * slope)
        return dz, v

    def _linearize(self, t: Tensor, z: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """dz/dt, the derivative of each hidden layer's result by its linear map, and the last layer's gate."""
        *hidden, (gate, shift) = self._gates_at(t)
        slopes = []
        for layer, (g, s) in zip(self.layers[:-1], hidden, strict=True):
            before = torch.addcmul(s, layer(z), g)
            z = self._activate(before)
            slopes.append(self._derivative(before, z) * g)
        return torch.addcmul(shift, self.layers[-1](z), gate), slopes, gate


class ConcatSquashMLP(_ConcatSquash):
    """A vector field on R^D: layers z -> (W z + b) sigmoid(a t + b') + c t, with a nonlinearity between them.

    size: the dimension D. dims: the widths of the hidden layers.
    """

    def __init__(self, size: int, dims: tuple[int, ...], nonlinearity: Nonlinearity) -> None:
        widths = [size, *dims, size]
        super().__init__((nn.Linear(before, after) for before, after in pairwise(widths)), widths[1:], nonlinearity)

    def divergence(self, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """dz/dt [B, D] and the trace of its Jacobian [B], by forward-mode derivatives along all axes at once."""
        dz, slopes, gate = self._linearize(t, z)
        last = self.layers[-1]
        tangents = torch.eye(last.out_features, dtype=z.dtype, device=z.device).unsqueeze(1)  # [D, B, width]
        for layer, slope in zip(self.layers[:-1], slopes, strict=True):
            tangents = F.linear(tangents, layer.weight) * slope
        # Only the diagonal of the last layer's Jacobian is needed.
        diagonal = torch.bmm(tangents, last.weight.unsqueeze(-1)).squeeze(-1).t()
        return dz, (diagonal * gate).sum(1)


class ConcatSquashConv(_ConcatSquash):
    """A vector field on images: ``ConcatSquashMLP`` with 3 x 3 convolutions instead of linear maps.

    channels: the number of channels of the images. dims: the numbers of channels of the hidden layers.
    """

    def __init__(self, channels: int, dims: tuple[int, ...], nonlinearity: Nonlinearity) -> None:
        widths = [channels, *dims, channels]
        layers = (nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths))
        super().__init__(layers, widths[1:], nonlinearity)

    def _gates_at(self, t: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(g[..., None, None], s[..., None, None]) for g, s in self.gates(t)]

    def _transposed(self, layer: Any, v: Tensor) -> Tensor:
        return F.conv_transpose2d(v, layer.weight, padding=1)

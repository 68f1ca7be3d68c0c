"""ODE-Net and RK-Net."""

from collections.abc import Callable

from torch import Tensor, nn

from odebench import ode
from odebench.models.convolution import ConvField, head, stem


class ODENet(nn.Module):
    """A residual network whose blocks are one ODE (Chen et al. 2018, section 3 and Table 1).

    width: channels of the state. groups: of its group normalisations. end_time: the ODE runs from 0 to it.
    in_channels, num_classes: of the data.

    The paper's ODE-Net trains by the adjoint and its RK-Net by backpropagation; the network is one.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, groups: int, end_time: float) -> None:
        super().__init__()
        self.end_time = end_time
        self.stem = stem(in_channels, width, groups)
        self.field = ConvField(width, groups)
        self.head = head(width, groups, num_classes)

    def forward(
        self, images: Tensor, solve: Callable[..., ode.Solution] = ode.solve
    ) -> tuple[Tensor, tuple[ode.Stats, ...]]:
        """Logits [B, num_classes] of float images [B, in_channels, H, W] in [0, 1], and the solve's statistics."""
        # Autocast, where it is on, is for the networks: the state keeps the precision of the weights.
        state = self.stem(images).to(self.head[-1].weight.dtype)
        solution = solve(self.field, state, (0.0, self.end_time))
        return self.head(solution.y[-1]), (solution.stats,)

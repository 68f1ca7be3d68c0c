"""ODE-Net and RK-Net, image classifiers with an ODE."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.models.augment import SecondOrderField, append_zero_channels
from odebench.models.convolution import ConvField, head, stem


class ODENet(nn.Module):
    """A residual network whose blocks are one ODE (Chen et al. 2018, section 3 and Table 1).

    width: the number of channels of the state. groups: the number of groups in group normalisations.
    end_time: the ODE is solved from 0 to this time. in_channels: the number of channels of the images.
    augment: the number of further channels of the state, which start as zeros (Dupont et al. 2019).
    second_order: whether the field gives the state's second derivative. The first derivative then starts as a learned
    function of the initial state, and the head takes only the state itself (Norcliffe et al. 2020).

    The paper's ODE-Net trains by the adjoint and its RK-Net by backpropagation; the network is the same.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        width: int,
        groups: int,
        end_time: float,
        augment: int = 0,
        second_order: bool = False,
    ) -> None:
        super().__init__()
        self.end_time, self.augment = end_time, augment
        channels = width + augment
        self.stem = stem(in_channels, width, groups)
        self.velocity: nn.Module | None = None
        self.field: nn.Module = ConvField(channels, groups)
        if second_order:
            self.velocity = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
            self.field = SecondOrderField(ConvField(channels, groups, in_width=2 * channels))
        self.head = head(channels, groups, num_classes)

    def forward(
        self, images: Tensor, solve: Callable[..., ode.Solution] = ode.solve
    ) -> tuple[Tensor, tuple[ode.Stats, ...]]:
        """Return logits [B, num_classes] of float images [B, in_channels, H, W], and the statistics of the solve.

        The images' values are in [0, 1].
        """
        state = append_zero_channels(self.stem(images), self.augment)
        if self.velocity is not None:
            state = torch.cat((state, self.velocity(state)), dim=1)
        # Autocast applies to the networks only: the state keeps the precision of the weights.
        state = state.to(next(self.head.parameters()).dtype)
        solution = solve(self.field, state, (0.0, self.end_time))
        end = solution.y[-1] if self.velocity is None else solution.y[-1].chunk(2, dim=1)[0]
        return self.head(end), (solution.stats,)

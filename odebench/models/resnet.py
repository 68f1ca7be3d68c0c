"""The residual network that is ODE-Net's baseline."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from odebench import ode
from odebench.models.convolution import head, stem


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016): x + conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block; x and the result are [B, width, H, W]."""
        y = self.conv1(torch.relu_(self.norm1(x)))
        return x + self.conv2(torch.relu_(self.norm2(y)))


class ResNet(nn.Module):
    """A residual network: stem, residual blocks, head (Chen et al. 2018, Table 1, which has six blocks).

    blocks: the number of residual blocks; 1 and 0 show the effect of depth. The other arguments are those of ODENet.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, groups: int, blocks: int) -> None:
        super().__init__()
        self.stem = stem(in_channels, width, groups)
        self.blocks = nn.Sequential(*(ResidualBlock(width, groups) for _ in range(blocks)))
        self.head = head(width, groups, num_classes)

    def forward(
        self, images: Tensor, solve: Callable[..., ode.Solution] | None = None
    ) -> tuple[Tensor, tuple[ode.Stats, ...]]:
        """Return logits [B, num_classes] of float images [B, in_channels, H, W], and (): nothing is solved."""
        return self.head(self.blocks(self.stem(images))), ()

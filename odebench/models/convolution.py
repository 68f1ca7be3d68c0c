"""Parts of the convolutional MNIST networks: stem, vector field and head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def stem(in_channels: int, width: int, groups: int) -> nn.Sequential:
    """Map images [B, in_channels, H, W] to states [B, width, H', W']: 28 x 28 to 6 x 6 (Chen et al. 2018, MNIST)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel_size=3),
        nn.GroupNorm(groups, width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, kernel_size=4, stride=2, padding=1),
        nn.GroupNorm(groups, width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, kernel_size=4, stride=2, padding=1),
    )


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """A group normalisation. Its number of groups is the largest divisor of ``channels`` up to ``groups``."""
    return nn.GroupNorm(max(n for n in range(1, groups + 1) if channels % n == 0), channels)


def head(width: int, groups: int, num_classes: int) -> nn.Sequential:
    """Map states [B, width, H, W] to logits [B, num_classes]."""
    return nn.Sequential(
        group_norm(groups, width),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )


class TimeConv2d(nn.Conv2d):
    """A 3 x 3 convolution with the time as an additional channel, the first one.

    The usual implementation prepends a constant plane to the input, x -> conv([t, x], W) + b. Convolution is linear, so
    this equals conv(x, W[:, 1:]) + (b + t conv(1, W[:, :1])). The parameters are the same and the results differ only
    by rounding, but the input is not copied, and the number of channels suits the hardware.

    width: the number of output channels. in_width: the number of input channels, by default width.
    """

    def __init__(self, width: int, in_width: int | None = None) -> None:
        super().__init__((in_width or width) + 1, width, kernel_size=3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return [B, width, H, W]. t: scalar, or [B], one time for each row; x: [B, in_width, H, W]."""
        of_time, of_state = self.weight.split((1, self.in_channels - 1), dim=1)
        plane = F.conv2d(x.new_ones(1, 1, *x.shape[2:]), of_time, padding=1)
        assert self.bias is not None
        offset = torch.addcmul(self.bias.view(1, -1, 1, 1), t.reshape(-1, 1, 1, 1), plane)
        return F.conv2d(x, of_state, padding=1).add_(offset)


class ConvField(nn.Module):
    """The vector field of the MNIST ODE-Net: GN, ReLU, conv, GN, ReLU, conv, GN (GN is group normalisation).

    Both convolutions take the time as an additional channel.

    width: the number of channels of the derivative. in_width: those of the state, by default width.
    """

    def __init__(self, width: int, groups: int, in_width: int | None = None) -> None:
        super().__init__()
        self.norm1 = group_norm(groups, in_width or width)
        self.conv1 = TimeConv2d(width, in_width)
        self.norm2 = group_norm(groups, width)
        self.conv2 = TimeConv2d(width)
        self.norm3 = group_norm(groups, width)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt [B, width, H, W] at time t (scalar, or [B]) and state y [B, in_width, H, W]."""
        y = self.conv1(t, torch.relu_(self.norm1(y)))
        y = self.conv2(t, torch.relu_(self.norm2(y)))
        return self.norm3(y)

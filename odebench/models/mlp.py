"""A multilayer perceptron, the smallest baseline."""

from collections.abc import Callable

from torch import Tensor, nn

from odebench import ode


class MLP(nn.Module):
    """A classifier with one hidden layer (LeCun, Bottou, Bengio & Haffner 1998; Chen et al. 2018, Table 1).

    in_channels, image_size: channels and side of the square images. num_classes: the number of classes.
    hidden: the number of hidden units.
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: int, image_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * image_size**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(
        self, images: Tensor, solve: Callable[..., ode.Solution] | None = None
    ) -> tuple[Tensor, tuple[ode.Stats, ...]]:
        """Return logits [B, num_classes] of float images [B, in_channels, H, W], and (): nothing is solved."""
        return self.layers(images), ()

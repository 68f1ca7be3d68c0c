"""FFJORD: free-form continuous flows (Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud 2019)."""

import math

from torch import nn

from odebench.errors import UsageError
from odebench.models.concatsquash import ConcatSquashConv, ConcatSquashMLP, Nonlinearity
from odebench.models.flow import Chain, NoiseDistribution, ODEBlock, ODEFlow, TraceMethod
from odebench.models.multiscale import ChannelSplit, LogitTransform, Squeeze


class FFJORD(ODEFlow):
    """A chain of ODEs from N(0, I) to the data; their fields are networks of concatsquash layers.

    shape: the shape of a sample, (D,) for vectors or (C, H, W) for images, whose fields are convolutional.
    dims: the widths of the fields' hidden layers. nonlinearity: softplus or tanh.
    end_time: the end time of each ODE; with train_time it is a parameter.
    blocks: the number of consecutive ODEs; for images, at each scale, before the squeeze and again after it.
    scales: the number of scales, for images; after each scale but the last, half of the channels go to the base
    unchanged (Dinh et al. 2017). trace: exact, or hutchinson with noise rademacher or gaussian.
    logit: the margin of a logit layer for data in [0, 1]; None: no such layer.

    Raises UsageError for image sizes that the scales do not divide, and for traces that would cost too much.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dims: tuple[int, ...],
        nonlinearity: Nonlinearity,
        end_time: float,
        train_time: bool,
        blocks: int,
        scales: int,
        trace: TraceMethod,
        noise: NoiseDistribution,
        logit: float | None,
    ) -> None:
        if not dims:
            raise UsageError("model.dims=[]: a field needs hidden layers, as in model.dims=[64,64,64]", "model.dims")
        _check_scales(shape, scales)

        def chain(shape: tuple[int, ...]) -> list[nn.Module]:
            field = ConcatSquashMLP if len(shape) == 1 else ConcatSquashConv
            return [
                ODEBlock(field(shape[0], dims, nonlinearity), shape, end_time, train_time, trace, noise)
                for _ in range(blocks)
            ]

        def multiscale(shape: tuple[int, ...], scales: int) -> list[nn.Module]:
            if scales == 1:
                return chain(shape)
            channels, *size = shape
            half = [n // 2 for n in size]
            rest = ChannelSplit(Chain(multiscale((2 * channels, *half), scales - 1)))
            return [*chain(shape), Squeeze(Chain([*chain((4 * channels, *half)), rest]))]

        transforms = multiscale(shape, scales)
        super().__init__(shape, [LogitTransform(Chain(transforms), logit)] if logit else transforms, base_variance=1.0)


def _check_scales(shape: tuple[int, ...], scales: int) -> None:
    if len(shape) not in (1, 3):
        raise UsageError(
            f"model=ffjord needs vectors [D] or images [C, H, W], but a sample has shape {list(shape)}", "model"
        )
    if len(shape) == 1 and scales > 1:
        raise UsageError(
            f"model.scales={scales}: scales are for images, but the data are vectors; use model.scales=1",
            "model.scales",
        )
    halvings = [n & -n for n in shape[1:]]  # the largest power of two that divides each side
    if any(divisor < 2 ** (scales - 1) for divisor in halvings):
        size, most = " x ".join(map(str, shape[1:])), 1 + int(math.log2(min(halvings)))
        raise UsageError(
            f"model.scales={scales}: images of {size} pixels cannot be halved that often; use at most {most}",
            "model.scales",
        )

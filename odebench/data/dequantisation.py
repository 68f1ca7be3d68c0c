"""8-bit images as numbers that have a density."""

import torch
from torch import Tensor

_LEVELS = 2**15


def dequantise(images: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 images x as float32 (x + u) / 256 in (0, 1), with u uniform; same shape and device.

    u is drawn on the generator's device. The mean log density of the result is at most that of the probability
    of x times 256^D, D being the number of pixels (Theis et al. 2016, section 3.1).
    """
    # u takes 2^15 values, halfway between their neighbours: x + u is then exact in float32, never the next level.
    levels = torch.randint(_LEVELS, images.shape, generator=generator, device=generator.device, dtype=torch.int32)
    return (images + ((levels + 0.5) / _LEVELS).to(images.device)) / 256

"""The samples and the random numbers of each batch, as functions of (seed, epoch, index).

These functions keep no state, so a training that resumes at any step sees the same batches as an uninterrupted one.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

# Keys of independent random streams: the order of an epoch; torch's, and NumPy's, random numbers for one batch.
_ORDER, _BATCH, _BATCH_BY_NUMPY = 0, 1, 2
_DEQUANTISATION_LEVELS = 2**15


def batch_indices(num: int, batch_size: int, seed: int, epoch: int, index: int) -> torch.Tensor:
    """The indices of the samples in one batch of an epoch.

    num: the number of samples in the split. index: at least 0 and less than num // batch_size, since an incomplete
    last batch is dropped; raises IndexError for any other. Returns int64 [batch_size] on the CPU. The order of an epoch
    depends on (seed, epoch) alone.
    """
    num_batches = num // batch_size
    if not 0 <= index < num_batches:
        raise IndexError(f"batch {index} of {num_batches} ({num} samples in batches of {batch_size})")
    return _epoch_order(num, seed, epoch)[index * batch_size : (index + 1) * batch_size].clone()


def batch_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The generator of all random numbers of one batch: crops, dequantisation, base samples, latent noise, times.

    It is a CPU generator, so the numbers do not depend on the device of the samples.
    """
    return _generator(_BATCH, seed, epoch, index)


def batch_random_state(seed: int, epoch: int, index: int) -> np.random.RandomState:
    """NumPy's generator for the fresh samples of one batch."""
    return np.random.RandomState(_seed(_BATCH_BY_NUMPY, seed, epoch, index) % 2**32)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images in 0 to 255 as float32 in [0, 1], on their device."""
    return images.to(torch.float32) / 255


def random_crop(images: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Pad each image with zeros on all sides and crop it back to its size, at its own random offset.

    images: [N, C, H, W], any dtype; the result has the same shape, dtype and device. The offsets are drawn
    uniformly from 0 to 2 * padding, independently for rows and columns, on the generator's device.
    """
    num, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, num), generator=generator, device=generator.device)
    rows, columns = offsets.to(images.device)
    # A view of all possible crops, [N, C, row offset, column offset, H, W]; only the chosen ones are copied.
    crops = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(num, device=images.device), :, rows, columns]


def dequantise(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 images x as float32 (x + u) / 256 in (0, 1), with u uniform; same shape and device.

    u is drawn on the generator's device. The log density of the result, averaged over u, is a lower bound of
    log(256^D P(x)), where P(x) is the probability of x and D its number of pixels (Theis et al. 2016, section 3.1).
    """
    # u is one of the 2^15 values (k + 1/2) / 2^15: then x + u is exact in float32 and never rounds to the next level.
    num, device = _DEQUANTISATION_LEVELS, generator.device
    levels = torch.randint(num, images.shape, generator=generator, device=device, dtype=torch.int32)
    return (images + ((levels + 0.5) / num).to(images.device)) / 256


@lru_cache(maxsize=4)
def _epoch_order(num: int, seed: int, epoch: int) -> torch.Tensor:
    # Cached for all batches of an epoch: permuting 60,000 numbers for each batch would cost more than the slice.
    return torch.randperm(num, generator=_generator(_ORDER, seed, epoch))


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*key) >> 1)


def _seed(*key: int) -> int:
    # SeedSequence mixes the key so that neighbouring seeds, epochs and batches share no stream.
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])

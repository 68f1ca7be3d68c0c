"""Batches: which samples, in what order, and what is drawn for them; all functions of (seed, epoch, index).

Nothing here has a state, so a training that resumes at any step sees what it would have seen.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

# What a stream of random numbers is for: an epoch's order, and all that one batch draws, by torch and by NumPy.
_ORDER, _BATCH, _BATCH_BY_NUMPY = 0, 1, 2


def batch_indices(num: int, batch_size: int, seed: int, epoch: int, index: int) -> torch.Tensor:
    """The samples of one batch of an epoch.

    num: samples in the split; index: 0 up to num // batch_size, exclusive: the last incomplete batch is
    dropped. Returns int64 [batch_size] on the CPU. The order of an epoch depends on (seed, epoch) alone.
    Raises IndexError for a batch that the epoch does not have.
    """
    num_batches = num // batch_size
    if not 0 <= index < num_batches:
        raise IndexError(f"batch {index} of {num_batches} ({num} samples in batches of {batch_size})")
    return _epoch_order(num, seed, epoch)[index * batch_size : (index + 1) * batch_size].clone()


def batch_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The CPU generator of all that one batch draws: crops, dequantisation, base samples, latent noise, times.

    The numbers are the same whatever device holds the samples.
    """
    return _generator(_BATCH, seed, epoch, index)


def batch_random_state(seed: int, epoch: int, index: int) -> np.random.RandomState:
    """NumPy's generator for the fresh samples of one batch."""
    return np.random.RandomState(_seed(_BATCH_BY_NUMPY, seed, epoch, index) % 2**32)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images in 0 to 255 as float32 in [0, 1], on their device."""
    return images.to(torch.float32) / 255


def random_crop(images: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Pad each image with zeros on all sides and crop it back to its size, at an offset of its own.

    images: [N, C, H, W], any dtype; the result has the same shape, dtype and device. The offsets are drawn
    uniformly from 0 to 2 * padding, rows and columns apart, on the generator's device.
    """
    num, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, num), generator=generator, device=generator.device)
    rows, columns = offsets.to(images.device)
    # A view of every crop there is, [N, C, row offset, column offset, H, W]; only the chosen are copied.
    crops = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(num, device=images.device), :, rows, columns]


@lru_cache(maxsize=4)
def _epoch_order(num: int, seed: int, epoch: int) -> torch.Tensor:
    # Kept for the epoch's next batches: drawing 60,000 numbers for each would cost more than the slice.
    return torch.randperm(num, generator=_generator(_ORDER, seed, epoch))


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*key) >> 1)


def _seed(*key: int) -> int:
    # SeedSequence mixes the key so that neighbouring seeds, epochs and batches share no stream.
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])

"""Data sets of images: inconsistent splits raise an error."""

import pytest
import torch

from odebench.data.images import ImageData, ImageSplit
from odebench.errors import UsageError


def split(num, size=(1, 4, 4)):
    return ImageSplit(torch.zeros(num, *size, dtype=torch.uint8), torch.zeros(num, dtype=torch.int64))


def test_splits_have_images_of_one_size():
    ImageData(split(3), split(1), split(1), num_classes=1)
    for name, splits in {"validation": (split(3), split(0), split(1)), "test": (split(3), split(1), split(0))}.items():
        with pytest.raises(UsageError, match=f"there are no {name} images"):
            ImageData(*splits, num_classes=1)
    with pytest.raises(UsageError, match=r"test images have shape \[1, 5, 4\], but training images have"):
        ImageData(split(3), split(1), split(1, (1, 5, 4)), num_classes=1)

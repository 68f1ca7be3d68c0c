"""Splits that are the same on every machine, whatever the seed of the training."""

import numpy as np
import torch

from odebench.data.images import ImageSplit
from odebench.errors import UsageError

SPLIT_SEED = 20181203
"""Fixed: a change of the training's seed must not move images between the splits."""


def stratified_order(labels: torch.Tensor) -> torch.Tensor:
    """A random order of all images whose every beginning holds the classes in proportion.

    labels: int64 [N]. Returns a permutation, int64 [N]; its first n entries hold each class as often as its
    share of n, within about one image where classes are of like size.
    """
    classes = labels.cpu().numpy()
    # RandomState, because NumPy promises that its stream never changes.
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(classes))
    place = np.empty(len(classes))
    for label in np.unique(classes):
        members = np.flatnonzero(classes[shuffled] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(shuffled[np.argsort(place, kind="stable")])


def hold_out(pool: ImageSplit, validation: int, train_limit: int | None) -> tuple[ImageSplit, ImageSplit]:
    """Split the training images into those trained on and those held out for validation.

    Both are stratified and the same on every call. A train_limit takes the first so many of the images that
    are left, so that a smaller one's images are among a larger one's and validation stays as it is.
    Raises UsageError for numbers that the pool cannot give.
    """
    if not 0 < validation < len(pool):
        raise UsageError(
            f"data.validation={validation} must be positive and less than the {len(pool):,} images "
            "that training and validation share"
        )
    left = len(pool) - validation
    limit = left if train_limit is None else train_limit
    if not 0 < limit <= left:
        raise UsageError(
            f"data.train_limit={limit} must be positive and at most {left:,}, the training images left "
            f"beside {validation:,} for validation; null takes them all"
        )
    order = stratified_order(pool.labels)
    return select(pool, order[validation : validation + limit]), select(pool, order[:validation])


def select(split: ImageSplit, indices: torch.Tensor) -> ImageSplit:
    """The images of a split at these indices, in their order."""
    return ImageSplit(split.images[indices], split.labels[indices])

"""Splits that are the same on every machine and for every training seed."""

import numpy as np
import torch

from odebench.data.images import ImageSplit
from odebench.errors import UsageError

SPLIT_SEED = 20181203  # fixed, so that the training's seed does not move images between the splits


def stratified_order(labels: torch.Tensor) -> torch.Tensor:
    """A random order of all images in which every prefix has the class proportions of the whole.

    labels: int64 [N]. Returns a permutation, int64 [N]; its first n entries contain each class in proportion, within
    about one image where classes are of similar size.
    """
    classes = labels.cpu().numpy()
    # RandomState, because NumPy promises that its stream never changes.
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(classes))
    position = np.empty(len(classes))
    for label in np.unique(classes):
        members = np.flatnonzero(classes[shuffled] == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return torch.from_numpy(shuffled[np.argsort(position, kind="stable")])


def hold_out(pool: ImageSplit, validation: int, train_limit: int | None) -> tuple[ImageSplit, ImageSplit]:
    """Split the training images into those trained on and those held out for validation.

    Both are stratified and the same on every call. train_limit: use only the first of the remaining images, so that
    a smaller limit selects a subset and does not change the validation images; None: use all.
    Raises UsageError for numbers out of range.
    """
    limit = num_training(len(pool), validation, train_limit, "images")
    order = stratified_order(pool.labels)
    return select(pool, order[validation : validation + limit]), select(pool, order[:validation])


def num_training(num: int, validation: int, train_limit: int | None, kind: str) -> int:
    """The number of training samples: those of `num` that are not for validation, at most `train_limit` if given.

    kind: of the samples, for the error. Raises UsageError for numbers out of range.
    """
    if not 0 < validation < num:
        raise UsageError(
            f"data.validation={validation} must be positive and less than the {num:,} {kind} that training and "
            "validation share"
        )
    left = num - validation
    limit = left if train_limit is None else train_limit
    if not 0 < limit <= left:
        raise UsageError(
            f"data.train_limit={limit} must be positive and at most {left:,}, the training {kind} left beside "
            f"{validation:,} for validation; null takes them all"
        )
    return limit


def select(split: ImageSplit, indices: torch.Tensor) -> ImageSplit:
    """The images of a split at these indices, in their order."""
    return ImageSplit(split.images[indices], split.labels[indices])

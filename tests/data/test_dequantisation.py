"""Uniform dequantisation: the image is not lost, the noise is uniform and the generator's."""

import pytest
import torch

from odebench.data.dequantisation import dequantise


def noise(images, seed=0):
    return dequantise(images, torch.Generator().manual_seed(seed))


def test_every_level_is_found_again_and_nothing_touches_0_or_1():
    images = torch.arange(256, dtype=torch.uint8).repeat(4000, 1)
    x = noise(images)
    assert x.dtype == torch.float32
    assert torch.equal((256 * x).floor().to(torch.uint8), images)
    assert 0 < x.min() < x.max() < 1


@pytest.mark.parametrize("level", [0, 255])
def test_the_noise_is_uniform(level):
    u = 256 * noise(torch.full((100_000,), level, dtype=torch.uint8)).double() - level
    assert u.mean().item() == pytest.approx(1 / 2, abs=0.005)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.001)
    torch.testing.assert_close(torch.histc(u, 10, 0, 1) / 100_000, torch.full((10,), 0.1).double(), atol=0.005, rtol=0)


def test_it_is_a_function_of_the_generator():
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    assert torch.equal(noise(images), noise(images))
    assert not torch.equal(noise(images), noise(images, seed=1))

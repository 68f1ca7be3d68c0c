"""Flows of images at several scales, and of logits."""

from functools import partial

import pytest
import torch
from torch import nn

from odebench import ode
from odebench.errors import UsageError
from odebench.models.ffjord import FFJORD
from odebench.models.multiscale import ChannelSplit, LogitTransform, Squeeze

SOLVE = partial(ode.solve, rtol=1e-8, atol=1e-8)


class Shift(nn.Module):
    """A transform of duration 1 that is recognisable in the result: z + 1, with log-determinant 0.5."""

    duration = 1.0

    def to_base(self, x, solve, trace=None):
        return x + 1, torch.full((len(x),), 0.5), ()

    def from_base(self, z, solve, trace=None):
        return z - 1, torch.full((len(z),), -0.5), ()

    def path(self, z, times, solve):
        return torch.stack([z - t for t in times]), ()


def image_flow():
    torch.manual_seed(0)
    flow = FFJORD((1, 4, 4), (3,), "tanh", 0.5, False, 1, 3, "exact", "rademacher", 0.01).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(2)
    return flow


def test_the_log_determinant_is_that_of_the_jacobian():
    flow, x = image_flow(), torch.rand(1, 1, 4, 4).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.to_base(x, SOLVE)[0], x).reshape(16, 16)
    _, log_det, solves = flow.to_base(x, SOLVE)
    assert log_det.item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-6)
    assert len(solves) == 5


def test_images_go_to_the_base_and_back():
    flow, x = image_flow(), torch.rand(3, 1, 4, 4).double()
    z, log_det, _ = flow.to_base(x, SOLVE)
    back, log_det_back, _ = flow.from_base(z, SOLVE)
    assert z.shape == x.shape
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_path_of_an_image_ends_at_the_data():
    flow, z = image_flow(), torch.randn(3, 1, 4, 4).double()
    path, _ = flow.path(z, [0.0, 0.6, 1.2, flow.end_time], SOLVE)
    assert path.shape == (4, 3, 1, 4, 4)
    # The states along the path have the shape and range of the data.
    torch.testing.assert_close(path[0], (torch.sigmoid(z) - 0.01) / 0.98)
    torch.testing.assert_close(path[-1], flow.from_base(z, SOLVE)[0], rtol=0, atol=1e-6)


def test_squares_become_channels_and_come_back():
    x = torch.rand(2, 3, 4, 6)
    seen = []

    class Seeing(Shift):
        def to_base(self, x, solve, trace=None):
            seen.append(x)
            return super().to_base(x, solve, trace)

    z, log_det, _ = Squeeze(Seeing()).to_base(x, SOLVE)
    assert seen[0].shape == (2, 12, 2, 3)
    assert torch.equal(seen[0][0, :4, 0, 0], x[0, 0, :2, :2].flatten())
    torch.testing.assert_close(z, x + 1)
    assert torch.equal(log_det, torch.full((2,), 0.5))


def test_a_split_transforms_only_the_first_half_of_the_channels():
    x = torch.rand(2, 4, 2, 2)
    split = ChannelSplit(Shift())
    z, _, _ = split.to_base(x, SOLVE)
    torch.testing.assert_close(z - x, torch.tensor([1.0, 1, 0, 0]).view(4, 1, 1).expand_as(x))
    torch.testing.assert_close(split.from_base(z, SOLVE)[0], x)
    torch.testing.assert_close(split.path(z, [0.0, 1.0], SOLVE)[0], torch.stack([z, x]))


def test_the_logit_is_accurate_at_bright_pixels_in_float32():
    x = torch.tensor([[[[0.0, 1e-6, 0.5, 1 - 2**-20, 1.0]]]])
    layer = LogitTransform(Shift(), 1e-6)
    z, log_det, _ = layer.to_base(x, SOLVE)
    exact_z, exact_log_det, _ = layer.to_base(x.double(), SOLVE)
    torch.testing.assert_close(z.double(), exact_z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det.double(), exact_log_det, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 4, 4), (3, 4, 4)], ids=str)
@pytest.mark.parametrize("way", ["to_base", "from_base"])
def test_an_odd_number_of_channels_cannot_be_split(shape, way):
    with pytest.raises(UsageError, match=rf"model: a split needs an even number of channels, but .* have {shape[0]};"):
        getattr(ChannelSplit(Shift()), way)(torch.rand(5, *shape), SOLVE)

"""The networks: published parameter counts, time dependence, shapes, and interchangeable weights."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from odebench import ode
from odebench.models import MODELS
from odebench.models.convolution import ConvField, TimeConv2d

FACTS = {"in_channels": 1, "num_classes": 10}
CONV = {"width": 64, "groups": 32}


def size(name, **options):
    return sum(p.numel() for p in MODELS[name](**FACTS, **options).parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("odenet", {**CONV, "end_time": 1.0}, 208_266),
        ("rknet", {**CONV, "end_time": 1.0}, 208_266),
        ("resnet", {**CONV, "blocks": 6}, 576_778),
        ("resnet", {**CONV, "blocks": 1}, 206_858),
        ("resnet", {**CONV, "blocks": 0}, 132_874),
        ("mlp", {"hidden": 300, "image_size": 28}, 238_510),
    ],
    ids=["odenet", "rknet", "resnet-6", "resnet-1", "resnet-0", "mlp"],
)
def test_parameter_counts_are_the_published_ones(name, options, parameters):
    assert size(name, **options) == parameters


def test_odenet_and_rknet_exchange_their_weights():
    torch.manual_seed(0)
    options = {"width": 8, "groups": 4, "end_time": 1.0}
    odenet, rknet = (MODELS[name](**FACTS, **options) for name in ("odenet", "rknet"))
    rknet.load_state_dict(odenet.state_dict())
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(odenet(images)[0], rknet(images)[0])


class PrependedTime(nn.Module):
    """The usual time convolution: time as an additional first channel of the input."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, t, x):
        plane = torch.ones_like(x[:, :1]) * t
        return F.conv2d(torch.cat((plane, x), 1), self.conv.weight, self.conv.bias, padding=1)


def test_time_convolution_equals_a_prepended_channel_with_all_its_gradients():
    torch.manual_seed(0)
    conv = TimeConv2d(6).double()
    x = torch.randn(3, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 6, 5, 5, dtype=torch.float64)
    results = []
    for way in (conv, PrependedTime(conv)):
        y = way(t, x)
        results.append((y, *torch.autograd.grad((y * weights).sum(), (x, t, *conv.parameters()))))
    for fast, textbook in zip(*results, strict=True):
        torch.testing.assert_close(fast, textbook, rtol=1e-12, atol=1e-12)


def test_field_depends_on_time_and_does_not_change_its_input():
    torch.manual_seed(0)
    field, y = ConvField(8, 4), torch.randn(2, 8, 6, 6)
    before = y.clone()
    assert not torch.allclose(field(torch.tensor(0.0), y), field(torch.tensor(1.0), y), atol=1e-3)
    assert torch.equal(y, before)


def test_a_28_pixel_image_becomes_a_state_of_6_by_6():
    net = MODELS["odenet"](**FACTS, width=8, groups=4, end_time=1.0)
    assert net.stem(torch.rand(2, 1, 28, 28)).shape == (2, 8, 6, 6)


@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_odenet_returns_the_statistics_of_its_solve_and_trains_every_parameter(mode):
    torch.manual_seed(0)
    net = MODELS["odenet"](**FACTS, width=8, groups=4, end_time=1.0)
    solve = partial(ode.solve, method="rk4", steps=2, gradient=mode)
    logits, (stats,) = net(torch.rand(4, 1, 28, 28), solve)
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert stats.nfe == 8
    assert (stats.backward.nfe if stats.backward else 0) == (8 if mode == "adjoint" else 0)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_end_time_scales_the_span_of_the_solve():
    net = MODELS["odenet"](**FACTS, width=8, groups=4, end_time=2.5)
    _, (stats,) = net(torch.rand(2, 1, 28, 28))
    assert sum(stats.step_sizes) == pytest.approx(2.5)


def test_models_without_an_ode_return_no_statistics():
    resnet = MODELS["resnet"](**FACTS, width=8, groups=4, blocks=2)
    mlp = MODELS["mlp"](**FACTS, hidden=5, image_size=28)
    for net in (resnet, mlp):
        logits, stats = net(torch.rand(3, 1, 28, 28))
        assert (logits.shape, stats) == ((3, 10), ())


def test_a_resnet_of_no_blocks_is_stem_and_head():
    torch.manual_seed(0)
    net = MODELS["resnet"](**FACTS, width=8, groups=4, blocks=0)
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(net(images)[0], net.head(net.stem(images)))

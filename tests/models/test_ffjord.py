"""FFJORD: what its options build, and which options raise an error."""

from functools import partial

import pytest
import torch

from odebench import ode
from odebench.errors import UsageError
from odebench.models.ffjord import FFJORD
from odebench.models.flow import ODEBlock

OPTIONS = {
    "dims": (6, 5),
    "nonlinearity": "tanh",
    "end_time": 0.5,
    "train_time": True,
    "blocks": 1,
    "scales": 1,
    "trace": "exact",
    "noise": "rademacher",
    "logit": None,
}
STEPS = partial(ode.solve, method="rk4", steps=4)


def ffjord(shape, **options):
    torch.manual_seed(0)
    return FFJORD(shape, **OPTIONS | options)


def blocks(flow):
    return [part for part in flow.modules() if isinstance(part, ODEBlock)]


@pytest.mark.parametrize(
    ("shape", "options", "count"),
    [
        ((2,), {"blocks": 1}, 1),
        ((2,), {"blocks": 3}, 3),
        ((1, 4, 4), {"blocks": 2}, 2),
        # Before and after each squeeze, and at the last scale.
        ((1, 28, 28), {"blocks": 2, "scales": 3, "trace": "hutchinson"}, 10),
    ],
    ids=["one block", "three blocks", "images", "images at three scales"],
)
def test_there_are_as_many_odes_as_blocks_at_each_scale(shape, options, count):
    flow = ffjord(shape, **options)
    assert len(blocks(flow)) == count
    assert flow.end_time == pytest.approx(0.5 * count)


def test_the_channels_and_sizes_of_the_scales():
    flow = ffjord((1, 28, 28), scales=3, trace="hutchinson")
    shapes = [block.shape for block in blocks(flow)]
    assert shapes == [(1, 28, 28), (4, 14, 14), (2, 14, 14), (8, 7, 7), (4, 7, 7)]


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2,), {"blocks": 2}),
        ((2,), {"trace": "hutchinson", "noise": "gaussian"}),
        ((1, 4, 4), {"scales": 2, "logit": 0.01, "trace": "hutchinson", "nonlinearity": "softplus"}),
    ],
    ids=["exact", "hutchinson", "images"],
)
def test_every_parameter_is_trained(shape, options, gradient):
    flow = ffjord(shape, **options)
    log_prob, _ = flow.log_prob(torch.rand(4, *shape), partial(STEPS, gradient=gradient))
    log_prob.mean().backward()
    # A shift of the last layer moves all of z and not the volume, but changes the base density.
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())


@torch.no_grad()
def test_the_density_integrates_to_one():
    flow = ffjord((2,), blocks=2).double()
    for parameter in flow.parameters():
        parameter.mul_(1.5)
    axis = torch.linspace(-8, 8, 81).double()
    log_prob, _ = flow.log_prob(torch.cartesian_prod(axis, axis), partial(ode.solve, rtol=1e-6, atol=1e-6))
    assert log_prob.exp().sum().item() * 0.2**2 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1,), {"scales": 2}, r"model.scales=2: .*vectors.*model.scales=1"),
        ((3, 5), {}, r"model=ffjord needs vectors \[D\] or images \[C, H, W\], but a sample has shape \[3, 5\]"),
        ((2,), {"scales": 2}, r"model.scales=2: .*vectors.*model.scales=1"),
        ((1, 6, 6), {"scales": 3}, r"model.scales=3: images of 6 x 6 .* at most 2"),
        ((3, 8, 7), {"scales": 2}, r"model.scales=2: images of 8 x 7 .* at most 1"),
        ((1, 28, 28), {}, r"model.trace=exact: .*784.*model.trace=hutchinson"),
        ((2,), {"dims": ()}, r"model.dims=\[\]"),
    ],
    ids=["scales, 1 dimension", "matrices", "scales, vectors", "six pixels", "odd side", "exact trace", "no layers"],
)
def test_invalid_options_raise_an_error_with_a_remedy(shape, options, message):
    with pytest.raises(UsageError, match=message):
        ffjord(shape, **options)


@pytest.mark.parametrize("options", [{"scales": 2}, {"logit": 0.01}], ids=["scales", "logit"])
def test_a_flow_with_other_transforms_than_odes_has_no_velocity(options):
    with pytest.raises(UsageError, match=r"model.scales=1 and model.logit=null"):
        ffjord((1, 4, 4), **options).velocity(torch.tensor(0.1), torch.rand(2, 1, 4, 4))

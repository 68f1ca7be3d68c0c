"""Augmented and second-order ODEs."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from odebench import ode
from odebench.models import ODENet
from odebench.models.augment import SecondOrderField, append_zero_channels
from odebench.models.convolution import ConvField, group_norm

TINY = {"in_channels": 1, "num_classes": 10, "width": 8, "groups": 4, "end_time": 1.0}


def test_the_appended_channels_are_zeros():
    z = torch.randn(2, 3, 4, 4)
    assert torch.equal(append_zero_channels(z, 2), torch.cat((z, torch.zeros(2, 2, 4, 4)), 1))
    assert append_zero_channels(z, 0) is z


def test_a_second_order_field_mirrors_a_line_which_no_first_order_field_can():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1)
    field = SecondOrderField(lambda t, state: -(math.pi**2) * state[:, :1])
    solution = ode.solve(field, append_zero_channels(x, 1), (0.0, 0.5, 1.0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solution.y[1], torch.cat((torch.zeros_like(x), -math.pi * x), 1))
    torch.testing.assert_close(solution.y[2], torch.cat((-x, torch.zeros_like(x)), 1))


@pytest.mark.parametrize(
    ("options", "channels"),
    [({"augment": 5}, 13), ({"second_order": True}, 16), ({"augment": 3, "second_order": True}, 22)],
    ids=["augmented", "second order", "both"],
)
def test_an_ode_net_solves_with_the_augmented_channels_and_trains_all_parameters(options, channels):
    torch.manual_seed(0)
    net, states = ODENet(**TINY, **options), []

    def solve(f, y0, t):
        states.append(y0)
        return ode.solve(f, y0, t, method="rk4", steps=2)

    logits, _ = net(torch.rand(4, 1, 28, 28), solve)
    assert states[0].shape == (4, channels, 6, 6)
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_an_ode_net_without_augmentation_has_the_default_parameters():
    torch.manual_seed(0)
    plain = ODENet(**TINY)
    torch.manual_seed(0)
    off = ODENet(**TINY, augment=0, second_order=False)
    assert plain.state_dict().keys() == off.state_dict().keys()
    assert sum(p.numel() for p in ODENet(**TINY | {"width": 64, "groups": 32}).parameters()) == 208_266
    images = torch.rand(2, 1, 28, 28)
    solve = partial(ode.solve, method="euler", steps=1)
    state = off.stem(images)
    expected = off.head(state + ConvField.forward(off.field, torch.tensor(0.0), state))
    assert torch.equal(plain(images, solve)[0], expected)


@pytest.mark.parametrize(("groups", "channels", "expected"), [(32, 64, 32), (32, 69, 23), (4, 13, 1)])
def test_groups_that_do_not_divide_the_channels_become_fewer(groups, channels, expected):
    assert group_norm(groups, channels).num_groups == expected

"""Counting evaluations and operations, and timing in turns."""

import gc

import pytest
import torch
from torch import nn

from odebench.bench import measure


class Twice(nn.Module):
    def forward(self, t, y):
        return (y + 1) * 2


def test_operations_are_those_outside_the_field_without_views():
    field = measure.CountingField(Twice())
    x, t = torch.ones(4, 3), torch.zeros(())
    with measure.OperationCounter(field) as counter:
        rate = field(t, x)  # two inside the field
        shifted = (rate + x).t()  # one, and a view
        shifted.mul_(2)  # one
        shifted[0].view(2, 2).unsqueeze(0)  # views
        total = shifted.sum()  # one
        assert float(total) > 0  # Python compares; one synchronisation
    assert counter.operations == 3
    assert counter.synchronisations == 1
    assert (field.calls, field.rows) == (1, 4)


def test_rows_are_counted_for_batches_only():
    field = measure.CountingField(nn.Identity())
    field.vector_field.forward = lambda t, y: y
    field(None, torch.zeros(3))
    field(None, (torch.zeros(5, 2), torch.zeros(5, 1)))
    assert (field.calls, field.rows) == (2, 6)
    field.reset()
    assert (field.calls, field.rows) == (0, 0)


def test_functions_are_timed_in_turns_and_slow_ones_stop_after_three_runs():
    order = []

    def runner(name, seconds):
        return lambda: order.append(name) or seconds

    times = measure.interleave({"a": runner("a", 0.001), "b": runner("b", 2.0), "c": runner("c", 0.002)}, 5, limit_s=3)
    assert gc.isenabled()
    rounds = ["abc", "bca", "cab", "ac", "ca"]  # b has used up its 3 s after two runs, but gets a third
    assert "".join(order) == "".join(rounds)
    assert [len(times[name]) for name in "abc"] == [5, 3, 5]
    assert times["b"] == [2.0, 2.0, 2.0]


def test_the_field_alone_is_timed_with_and_without_vjps():
    field = nn.Linear(2, 2)
    module = measure.CountingField(Twice())
    module.vector_field.forward = lambda t, y: (field(y[0]), y[1] * 1.0)
    state = (torch.zeros(3, 2), torch.zeros(3, 1))
    for kind in (measure.FIELD_ONLY, measure.VJPS_TOGETHER, measure.VJP_EACH):
        assert 0 < measure.field_timer(module, torch.zeros(()), state, kind)() < 0.1
    assert all(p.grad is None for p in field.parameters())


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("view.default", True),
        ("select.int", True),
        ("add.Tensor", False),
        ("add_.Tensor", False),
        ("clone.default", False),
    ],
)
def test_a_view_computes_nothing(name, view):
    packet, overload = name.split(".")
    assert measure.is_view(getattr(getattr(torch.ops.aten, packet), overload)) is view

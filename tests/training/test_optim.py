"""The shapes of schedules, and optimisers built from their settings."""

import itertools

import pytest
import torch

from odebench.config.schema.training import (
    AdamSettings,
    CosineSettings,
    MultiStepSettings,
    OneCycleSettings,
    SGDSettings,
    WarmupSettings,
)
from odebench.training.optim import build_optimizer, lr_factor

EPOCH, TOTAL = 10, 200


def factors(schedule):
    return [lr_factor(schedule, step, EPOCH, TOTAL) for step in range(TOTAL)]


def test_steps_fall_at_the_milestones_in_epochs():
    found = factors(MultiStepSettings("steps", 0.0, (6, 10, 14), 0.1))
    assert found[59] == 1
    assert found[60] == found[99] == pytest.approx(0.1)
    assert found[100] == pytest.approx(0.01)
    assert found[199] == pytest.approx(0.001)


def test_cosine_goes_from_one_to_its_final_value():
    found = factors(CosineSettings("cosine", 0.0, 0.1))
    assert found[0] == 1
    assert found == sorted(found, reverse=True)
    assert found[TOTAL // 2] == pytest.approx(0.55)
    assert 0.1 < found[-1] < 0.101


def test_one_cycle_rises_then_falls():
    found = factors(OneCycleSettings("one_cycle", 0.3, 0.04, 0.001))
    top = found.index(max(found))
    assert found[0] == pytest.approx(0.04)
    assert (top, found[top]) == (60, 1)
    assert found[:60] == sorted(found[:60])
    assert found[60:] == sorted(found[60:], reverse=True)
    assert found[-1] == pytest.approx(0.001)


@pytest.mark.parametrize(
    "kind",
    [WarmupSettings("constant", 2.0), CosineSettings("cosine", 2.0, 0.0), MultiStepSettings("steps", 2.0, (5,), 0.1)],
    ids=lambda s: s.name,
)
def test_warm_up_rises_in_a_line_to_the_full_rate(kind):
    found = factors(kind)
    rises = [b - a for a, b in itertools.pairwise(found[:20])]
    assert rises == pytest.approx([rises[0]] * 19)
    assert found[0] > 0
    assert found[20] == 1


def test_optimisers_take_their_settings():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    sgd = build_optimizer(SGDSettings("sgd", 0.1, weight_decay=0.01, momentum=0.9, nesterov=True), model)
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 0.01)
    assert [id(p) for p in group["params"]] == [id(model.weight)]
    for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        found = build_optimizer(AdamSettings(name, 1e-3, weight_decay=0.1, betas=(0.8, 0.99)), model)
        assert type(found) is kind
        assert found.param_groups[0]["betas"] == (0.8, 0.99)

"""Density data: invalid data, and which samples depend on the seed."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from odebench.data.density import DensityData, Distribution, sampled
from odebench.errors import UsageError

SIZES = {"samples": 30, "fresh": True, "validation": 20, "test": 10}
NORMAL = Distribution("a test", lambda num, random, *, std: std * random.randn(num, 2))


def normal(x):
    return -x.square().sum(-1) / 2


def data(**changes) -> DensityData:
    splits = dict.fromkeys(("train", "validation", "test"), torch.zeros(4, 2))
    return DensityData(**(splits | changes))


def with_density(log_density) -> DensityData:
    train = torch.from_numpy(np.random.RandomState(0).randn(100, 2)).float()
    return data(train=train, log_density=log_density, log_normaliser=math.log(2 * math.pi))


def test_validation_and_test_are_the_same_whatever_the_seed():
    first, second = (sampled(NORMAL, seed=seed, std=1.0, **SIZES) for seed in (0, 1))
    assert not torch.equal(first.train, second.train)
    assert torch.equal(first.validation, second.validation)
    assert torch.equal(first.test, second.test)
    assert {name: len(split) for name, split in first.splits().items()} == {"train": 30, "validation": 20, "test": 10}


def test_no_two_splits_share_samples():
    whole = torch.cat(list(sampled(NORMAL, seed=0, std=1.0, **SIZES).splits().values()))
    assert len(whole.unique(dim=0)) == len(whole)


def test_fresh_samples_depend_on_their_random_state_and_a_fixed_set_has_none():
    draw = sampled(NORMAL, seed=0, std=2.0, **SIZES).draw
    assert torch.equal(draw(50, np.random.RandomState(3)), draw(50, np.random.RandomState(3)))
    assert draw(50, np.random.RandomState(3)).std().item() == pytest.approx(2, rel=0.2)
    assert sampled(NORMAL, seed=0, std=1.0, **(SIZES | {"fresh": False})).draw is None


def test_the_hash_of_a_split_depends_on_its_samples():
    facts, other = (sampled(NORMAL, seed=seed, std=1.0, **SIZES).split_provenance() for seed in (0, 1))
    assert facts["train"] | {"sha256": None} == {"samples": 30, "shape": [2], "sha256": None}
    assert facts["train"]["sha256"] != other["train"]["sha256"]
    assert facts["test"] == other["test"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train": torch.zeros(4, 2, dtype=torch.float64)}, r"^train samples must be float32 .* not float64 \[4, 2\]"),
        ({"test": torch.zeros(4, 3)}, r"^test samples must be float32 \[N, \*shape\], one shape in all splits"),
        ({"train": torch.zeros(4)}, r"^train samples must be"),
        ({"validation": torch.zeros(0, 2)}, r"^there are no validation samples"),
        ({"test": torch.tensor([[0.0, math.nan]])}, r"^the test samples hold numbers that are not finite"),
        ({"log_density": normal}, r"^give both log_density and log_normaliser.* or neither"),
        ({"log_density": lambda x: -x, "log_normaliser": 0.0}, r"must give \[4\] for \[4, 2\], not \[4, 2\]"),
        ({"log_density": lambda x: x.log().sum(-1), "log_normaliser": 0.0}, r"^log_density is -inf at \[0.0, 0.0\]"),
        ({"log_density": lambda x: x[:, 0] * math.nan, "log_normaliser": 0.0}, r"^log_density is nan at"),
    ],
    ids=["float64", "two shapes", "scalars", "empty", "nan", "no normaliser", "shape", "minus infinity", "nan density"],
)
def test_invalid_density_data_raise_an_error(changes, line):
    with pytest.raises(UsageError, match=line):
        data(**changes)


def test_the_log_density_must_be_finite_beyond_the_samples():
    with_density(normal).check_density_matching_target()
    hole = partial(torch.where, input=torch.tensor(0.0), other=torch.tensor(-math.inf))
    walled = with_density(lambda x: hole(x.norm(dim=-1) < 4.5))
    with pytest.raises(UsageError, match="density matching needs a log density that is finite everywhere"):
        walled.check_density_matching_target()

"""build_data, for built-in data sets and those of a plugin."""

import inspect
import sys
import types

import pytest
import torch

from odebench.data import DATA, DensityData, ImageData, ImageSplit, build_data
from odebench.errors import UsageError

TOY = {"samples": 30, "fresh": True, "validation": 20, "test": 10}
MNIST5K = {"root": None, "validation": 500, "train_limit": None, "augment": True, "download": False}


def noise(*, num: int, seed: int) -> ImageData:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (3, num, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (3, num), generator=generator)
    train, validation, test = (ImageSplit(*split) for split in zip(images, labels, strict=True))
    return ImageData(train, validation, test, num_classes=10, provenance={"source": "uniform noise"})


@pytest.fixture
def plugin(monkeypatch) -> str:
    module = types.ModuleType("their_images")
    module.DATA = {"noise": noise, "nonsense": lambda *, num: num}
    monkeypatch.setitem(sys.modules, "their_images", module)
    return "their_images"


def test_the_seed_of_the_training_does_not_change_the_splits():
    first, second = (build_data("mnist5k", MNIST5K, seed, []) for seed in (0, 1))
    assert first.provenance == second.provenance
    assert set(first.provenance["splits"]) == {"train", "validation", "test"}
    assert first.provenance["splits"]["test"]["images"] == 1000
    assert first.provenance["splits"]["test"]["sha256"] == second.test.sha256()
    assert first.provenance["name"] == "mnist5k"


def test_a_plugins_data_set_gets_its_settings_the_seed_and_hashes(plugin):
    first, again, other = (build_data("noise", {"num": 12}, seed, [plugin]) for seed in (0, 0, 1))
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert first.provenance["source"] == "uniform noise"
    assert first.provenance["splits"]["train"] == {"images": 12, "shape": [1, 8, 8], "sha256": first.train.sha256()}
    assert first.crop_padding == 0


def test_an_unknown_name_raises_an_error(plugin):
    with pytest.raises(UsageError, match="mnist5k"):
        build_data("mnist5", MNIST5K, 0, [plugin])


def test_only_the_training_split_of_a_density_depends_on_the_seed_and_each_split_has_a_hash():
    first, again, other = (build_data("checkerboard", TOY, seed, []) for seed in (0, 0, 1))
    assert isinstance(first, DensityData)
    assert first.provenance == again.provenance
    assert first.provenance["name"] == "checkerboard"
    assert first.provenance["splits"]["train"].items() >= {"samples": 30, "shape": [2]}.items()
    assert first.provenance["splits"]["train"] != other.provenance["splits"]["train"]
    assert first.provenance["splits"]["test"] == other.provenance["splits"]["test"]


SPLIT = {"validation": 80, "train_limit": None, "random_state": 0}
SHARED = {"mode": "interpolation", "observed": 0.3}
EVENTS = {"series": 300, "level": 5.0, "frequency": (0.4, 0.8), "observations": False}
SERIES = {
    "spirals": {"observed": 30, "beyond": 100, **SPLIT},
    "periodic": {**SHARED, "amplitude": (1.0, 1.0), "shared_times": False, **SPLIT},
    "poisson_events": {**EVENTS, **SPLIT},
}


@pytest.mark.parametrize("name", SERIES)
def test_the_provenance_of_series_has_source_split_and_hashes(name):
    first, again = (build_data(name, SERIES[name], seed, []) for seed in (0, 1))
    assert first.provenance == again.provenance
    assert first.provenance.items() >= {"name": name, "left_out": {}}.items()
    assert first.provenance["source"].startswith("simulated: ")
    assert "random_state 0" in first.provenance["split"]
    for split, facts in first.provenance["splits"].items():
        series = first.splits()[split]
        sizes = {"series": len(series), "points": len(series.times), "dim": len(first.channels)}
        assert facts == sizes | {"sha256": series.sha256()}


def test_a_wrong_return_type_raises_an_error(plugin):
    with pytest.raises(UsageError, match="nonsense returned int"):
        build_data("nonsense", {"num": 3}, 0, [plugin])


def test_all_built_in_image_data_sets_take_the_same_settings():
    for name in ("mnist", "fashion_mnist", "mnist5k"):
        parameters = inspect.signature(DATA[name]).parameters
        assert parameters.keys() == set(MNIST5K)
        assert all(one.default is inspect.Parameter.empty for one in parameters.values())

"""The hopper: cached runs are loaded, cut and scaled; without cache and simulator an error says what to install."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from odebench.data.hopper import hopper, load_or_simulate, simulate
from odebench.errors import UsageError

RUNS = np.random.RandomState(0).standard_normal((30, 200, 14)).astype(np.float32).cumsum(axis=1)
LOW, HIGH = RUNS[:24].min((0, 1)), RUNS[:24].max((0, 1))
module = importlib.import_module("odebench.data.hopper")  # odebench.data.hopper is the function
HAS_SIMULATOR = importlib.util.find_spec("dm_control") is not None


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with a cache of thirty synthetic runs; six are for test."""
    monkeypatch.setattr(module, "NUM_RUNS", 30)
    monkeypatch.setattr(module, "NUM_TEST", 6)
    (tmp_path / "Hopper").mkdir()
    np.savez(tmp_path / "Hopper" / "hopper-stand-30x200.npz", runs=RUNS, simulator=np.array("a test 1.0"))
    return tmp_path


def load(root, **changed):
    defaults = {"mode": "interpolation", "observed": 0.3, "validation": 4, "train_limit": None, "random_state": 0}
    return hopper(root=str(root), **defaults | changed)


def unscaled(values):
    """Values before scaling by the extremes of the runs that are not for test."""
    return values * np.abs(HIGH) + LOW


def test_interpolation_takes_a_hundred_steps_in_a_row_of_each_run(root):
    data = load(root)
    assert [len(split) for split in data.splits().values()] == [20, 4, 6]
    assert data.test.ids.tolist() == [24, 25, 26, 27, 28, 29]
    starts = []
    for split in data.splits().values():
        for number, values in zip(split.ids.tolist(), split.values.view(-1, 100, 14), strict=True):
            window = unscaled(values.numpy())
            start = np.abs(RUNS[number, :101] - window[0]).sum(1).argmin()
            assert np.allclose(RUNS[number, start : start + 100], window, atol=1e-4)
            starts.append(start)
    assert len(set(starts)) > 15
    assert torch.allclose(data.train.times[:100], torch.arange(100) / 200)
    assert data.span == 0.5
    assert (data.train.is_input.view(-1, 100).sum(1) == 30).all()
    assert data.redraw(0, 0).shape == data.train.is_input.shape


def test_extrapolation_takes_the_whole_run_with_its_second_half_as_targets(root):
    data = load(root, mode="extrapolation", observed=1.0)
    assert np.allclose(unscaled(data.test.values.view(6, 200, 14).numpy()), RUNS[24:], atol=1e-4)
    assert torch.equal(data.test.is_input.view(6, 200), (torch.arange(200) < 100).expand(6, 200))
    assert torch.equal(data.test.is_target, ~data.test.is_input)
    assert data.span == 1


def test_the_scale_comes_from_the_runs_that_are_not_for_test(root):
    data = load(root, mode="extrapolation", validation=10, train_limit=2)
    assert torch.equal(data.test.values, load(root, mode="extrapolation").test.values)
    together = torch.cat([load(root, mode="extrapolation").splits()[name].values for name in ("train", "validation")])
    assert torch.allclose(together.amin(0), torch.zeros(14), atol=1e-6)
    assert np.allclose(together.amax(0), (HIGH - LOW) / np.abs(HIGH), rtol=1e-5)


def test_the_provenance_names_the_simulator_and_hashes_the_runs(root):
    provenance = load(root).provenance
    assert "a test 1.0" in provenance["source"]
    assert len(provenance["files"]["hopper-stand-30x200.npz"]["runs_sha256"]) == 64


@pytest.mark.parametrize("state", ["absent", "cut short", "of another shape"])
def test_without_cached_runs_and_simulator_the_error_says_what_to_install(root, monkeypatch, state):
    path = root / "Hopper" / "hopper-stand-30x200.npz"
    if state == "absent":
        path.unlink()
    elif state == "cut short":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        np.savez(path, runs=RUNS[:5], simulator=np.array("a test 1.0"))
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(UsageError) as caught:
        load(root)
    line = str(caught.value)
    assert str(path) in line
    assert 'from the checkout, pip install -e ".[hopper]"' in line
    assert "\n" not in line


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SIMULATOR, reason='dm_control is not installed: pip install -e ".[hopper]"')
def test_simulated_runs_are_cached_and_start_as_published(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NUM_RUNS", 5)
    runs, provenance = load_or_simulate(tmp_path)
    assert runs.shape == (5, 200, 14)
    assert "dm_control 1" in provenance["source"]
    random = np.random.RandomState(123)
    for run in runs:
        start = [random.uniform(0, 0.5, 2), random.uniform(-2, 2, 5), random.uniform(-5, 5, 7)]
        assert np.allclose(run[0], np.concatenate(start), atol=1e-6)
    # A step of 5 ms moves a position by about its velocity.
    assert np.abs(np.diff(runs[:, :, :7], axis=1) - 0.005 * runs[:, 1:, 7:]).max() < 1e-2
    assert np.array_equal(simulate(3, tmp_path), runs[:3])
    monkeypatch.setitem(sys.modules, "dm_control", None)
    assert np.array_equal(load_or_simulate(tmp_path)[0], runs)

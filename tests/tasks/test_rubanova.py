"""The experiments of Rubanova et al. 2019: as published, and with every model of the paper, on synthetic data."""

import importlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from odebench.config.compose import compose
from odebench.config.files import options
from odebench.config.read import read_settings
from odebench.record.reader import read_run
from odebench.tasks import build_task
from odebench.training.run import train_run

EXPERIMENTS = [name for name in options("experiment") if name.startswith("rubanova/")]
MODELS = {
    "latent_ode": [],
    "latent_ode_rnn": ["model.encoder=rnn"],
    "rnn_vae": ["model=rnn_vae"],
    "ode_rnn": ["model=ode_rnn"],
    "rnn": ["model=rnn"],
}
# Predicting the mean of each feature gives 0.0555, 0.0560, 0.0041 and 0.0142; a random guess 0.5.
FLOORS = {
    "rubanova/hopper_extrapolation": ("final/test_mse", 0.09),
    "rubanova/hopper_interpolation": ("final/test_mse", 0.03),
    "rubanova/physionet_extrapolation": ("final/test_mse_per_feature", 0.006),
    "rubanova/physionet_interpolation": ("final/test_mse_per_feature", 0.011),
    "rubanova/physionet_mortality": ("final/test_auc", 0.6),
}
SMALLER = ["data.validation=4", "trainer.batch_size=8"]
module = importlib.import_module("odebench.data.hopper")  # odebench.data.hopper is the function


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with thirty runs of the hopper and eighty records."""
    random, root = np.random.RandomState(0), tmp_path_factory.mktemp("data")
    runs = random.standard_normal((30, 200, 14)).astype(np.float32).cumsum(axis=1)
    (root / "Hopper").mkdir()
    np.savez(root / "Hopper" / "hopper-stand-30x200.npz", runs=runs, simulator=np.array("a test 1.0"))
    (root / "PhysioNet2012" / "set-a").mkdir(parents=True)
    (root / "PhysioNet2012" / "set-b").mkdir()
    for letter, first in (("a", 100), ("b", 200)):
        outcomes = ["RecordID,In-hospital_death"]
        for number in range(first, first + 40):
            clocks = [f"{hour:02}:{random.randint(60):02}" for hour in (1, 9, 25, 40)]
            lines = [f"{clock},{name},{random.rand():.3f}" for clock in clocks for name in ("HR", "Temp")]
            text = "\n".join(["Time,Parameter,Value", *lines])
            (root / "PhysioNet2012" / f"set-{letter}" / f"{number}.txt").write_text(text)
            outcomes.append(f"{number},{number % 2}")
        (root / "PhysioNet2012" / f"Outcomes-{letter}.txt").write_text("\n".join(outcomes))
    return root


@pytest.fixture
def build(root, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NUM_RUNS", 30)
    monkeypatch.setattr(module, "NUM_TEST", 6)

    def make(*overrides):
        torch.manual_seed(0)
        all_overrides = [f"data.root={root}", f"outputs={tmp_path}", "device=cpu", *SMALLER, *overrides]
        return build_task(read_settings(compose(all_overrides)), torch.device("cpu"))

    return make


def read(name, *overrides):
    return read_settings(compose([f"experiment={name}", *overrides]))


def test_these_are_the_experiments():
    assert EXPERIMENTS == [
        "rubanova/hopper_extrapolation",
        "rubanova/hopper_interpolation",
        "rubanova/physionet_extrapolation",
        "rubanova/physionet_interpolation",
        "rubanova/physionet_mortality",
    ]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_training_is_as_published(name):
    settings = read(name)
    assert (settings.optim.name, settings.optim.lr) == ("adamax", 1e-2)
    assert (settings.schedule.name, settings.schedule.factor) == ("exponential", 0.999)
    assert (settings.solver.name, settings.solver.rtol, settings.solver.atol) == ("dopri5", 1e-3, 1e-4)
    assert (settings.model.name, settings.model.encoder) == ("latent_ode", "ode_rnn")
    assert settings.model.noise_std == (0.001 if "hopper" in name else 0.01)
    assert settings.model.classify == ("mortality" in name)
    assert settings.trainer.batch_size == 50
    assert settings.data.mode == ("extrapolation" if "extrapolation" in name else "interpolation")
    for model in ("latent_ode", "rnn_vae"):
        loss = read(name, f"model={model}").loss
        assert (loss.samples, loss.reduction, loss.combine) == (3, "mean", "logsumexp")
        assert (loss.kl_wait_epochs, loss.kl_growth) == (10, 0.99)
    if "mortality" in name:
        assert settings.loss.label_weight == read(name, "model=ode_rnn").loss.label_weight == 100
        assert settings.data.sets == "a"  # the outcomes of the others were not public


@pytest.mark.parametrize(
    ("model", "name"),
    [
        pytest.param(model, name, marks=[] if model == "latent_ode" or "mortality" in name else pytest.mark.slow)
        for model, name in itertools.product(MODELS, EXPERIMENTS)
    ],
)
def test_each_model_takes_a_step_and_is_measured(name, model, build):
    task = build(f"experiment={name}", *MODELS[model])
    loss = task.loss(task.batch(0))
    loss.value.backward()
    assert all(p.grad.isfinite().all() for p in task.model.parameters() if p.grad is not None)
    assert any(p.grad.abs().sum() > 0 for p in task.model.parameters() if p.grad is not None)
    numbers = task.evaluate("test")
    expected = {"auc"} if "mortality" in name else {"mse", "mse_per_feature"}
    assert all(np.isfinite(numbers[tag]) for tag in expected)
    assert ("kl_nats" in numbers) == (task.model.latent_dim > 0)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_small_budgets_are_counted_in_steps_of_the_published_training(name):
    full, small = (read(name, f"budget={budget}").trainer.iterations for budget in ("full", "small"))
    assert small < full / 20
    num_records = 3200 if "mortality" in name else 6400
    assert full == (300 * 8000 if "hopper" in name else 100 * num_records) // 50


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_small_budget_reaches_its_floor(name, tmp_path):
    folder = "Hopper" if "hopper" in name else "PhysioNet2012"
    if not (Path(os.environ.get("ODEBENCH_DATA", "")) / folder).is_dir() or "ODEBENCH_DATA" not in os.environ:
        pytest.skip(f"$ODEBENCH_DATA is not set or holds no {folder}")
    overrides = [f"experiment={name}", "budget=small", f"outputs={tmp_path}", "device=cpu"]
    overrides += ["model=ode_rnn"] if "mortality" in name else []  # the first model to learn anything
    summary = read_run(train_run(compose(overrides), overrides).folder).summary
    tag, floor = FLOORS[name]
    assert summary[tag] > floor if tag.endswith("auc") else summary[tag] < floor

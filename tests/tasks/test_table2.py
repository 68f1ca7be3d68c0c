"""The experiments of Table 2 (Chen et al. 2018): the paper's models, chosen on the validation split, and their
errors."""

import pytest
import torch

from odebench.config.compose import compose
from odebench.config.files import options
from odebench.config.read import read_settings
from odebench.record.reader import read_run
from odebench.tasks import build_task
from odebench.training.run import train_run

EXPERIMENTS = ["paper/latent_ode_spirals", "paper/rnn_spirals"]
# RMSE of the extrapolation at 30 points: 0.32 to 0.40 (with consistency, which learns faster) and 1.7 to 2.5 over three
# seeds. The ground truth has a root mean square of 4.
FLOORS = {("paper/latent_ode_spirals", "loss.consistency=3"): 0.6, ("paper/rnn_spirals",): 3.5}


def read(name, *overrides):
    return read_settings(compose([f"experiment={name}", *overrides]))


def build(name, *overrides):
    torch.manual_seed(0)
    return build_task(read(name, *overrides), torch.device("cpu"))


def test_these_are_the_experiments():
    assert [name for name in options("experiment") if name.endswith("_spirals")] == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("observed", [30, 50, 100])
def test_both_follow_the_same_protocol(name, observed):
    settings = read(name, f"data.observed={observed}")
    assert (settings.data.name, settings.data.observed, settings.data.beyond) == ("spirals", observed, 100)
    assert (settings.data.validation, settings.data.train_limit) == (80, None)
    assert settings.trainer.objective.startswith("val/")
    assert settings.model.noise_std == 0.3
    small = read(name, "budget=small").trainer
    assert small.epochs < settings.trainer.epochs
    assert small.batch_size == settings.trainer.batch_size


def test_the_models_are_those_of_the_paper():
    latent_ode = build("paper/latent_ode_spirals").model
    sizes = {name: list(part.shape) for name, part in latent_ode.named_parameters() if "weight" in name}
    assert sizes == {
        "encoder.recurrent.weight_ih_l0": [25, 5],
        "encoder.recurrent.weight_hh_l0": [25, 25],
        "encoder.head.weight": [8, 25],
        "field.net.0.weight": [20, 4],
        "field.net.2.weight": [4, 20],
        "decoder.net.0.weight": [20, 4],
        "decoder.net.2.weight": [2, 20],
    }
    assert build("paper/rnn_spirals").model.cell.recurrent.weight_hh.shape == (25, 25)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_few_epochs_reduce_the_extrapolation_error(name):
    task = build(name)
    before = task.evaluate("validation")
    optimizer = torch.optim.Adam(task.model.parameters(), 1e-2)
    for step in range(40):
        optimizer.zero_grad()
        task.loss(task.batch(step)).value.backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), 100)
        optimizer.step()
    after = task.evaluate("validation")
    assert after["loss"] < 0.7 * before["loss"]
    assert after["rmse_extrapolation"] < before["rmse_extrapolation"]


@pytest.mark.slow
@pytest.mark.parametrize("words", FLOORS)
def test_the_small_budget_reaches_its_floor(words, tmp_path):
    name, *others = words
    overrides = [f"experiment={name}", *others, "budget=small", f"outputs={tmp_path}", "device=cpu"]
    result = train_run(compose(overrides), overrides)
    assert read_run(result.folder).summary["final/test_rmse_extrapolation"] < FLOORS[words]

"""The experiment with events (Chen et al. 2018, section 5): a Poisson likelihood with or without observations."""

import pytest
import torch

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.record.reader import read_run
from odebench.tasks import build_task
from odebench.training.run import train_run

NAME = "experiment=paper/poisson"
# RMSE of the rate: 4.7 on one seed; 8.9 for each series' number of events spread evenly.
FLOOR = 6.5


def build(*overrides):
    torch.manual_seed(0)
    settings = read_settings(compose([NAME, "data.series=260", "data.validation=20", *overrides]))
    return build_task(settings, torch.device("cpu"))


def test_the_experiment_has_events_beside_readings_and_a_small_budget():
    full, small = (read_settings(compose([NAME, f"budget={budget}"])) for budget in ("full", "small"))
    assert (full.model.events, full.model.observations, full.data.observations) == (True, True, True)
    # The likelihood of the Poisson process, in nats.
    assert (full.loss.reduction, full.loss.event_weight) == ("sum", 1.0)
    assert small.trainer.epochs < full.trainer.epochs
    assert small.trainer.batch_size == full.trainer.batch_size


@pytest.mark.parametrize(
    ("overrides", "has_values"),
    [([], True), (["data.observations=false", "model.observations=false"], False)],
    ids=["beside readings", "alone"],
)
def test_a_step_lowers_the_loss_and_the_rate_is_measured(overrides, has_values):
    task = build(*overrides)
    batch, optimizer = task.batch(0), torch.optim.Adam(task.model.parameters(), 5e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = task.loss(batch)
        loss.value.backward()
        optimizer.step()
        losses.append(loss.value.item())
    assert losses[-1] < losses[0]
    task.limit_split("validation", 10)
    numbers = task.evaluate("validation")
    assert numbers["rate_rmse"] > 0
    assert ("mse" in numbers) == has_values


@pytest.mark.slow
def test_the_small_budget_reaches_its_floor(tmp_path):
    overrides = [NAME, "budget=small", f"outputs={tmp_path}", "device=cpu"]
    summary = read_run(train_run(compose(overrides), overrides).folder).summary
    assert summary["final/test_rate_rmse"] < FLOOR < summary["final/test_constant_rate_rmse"]

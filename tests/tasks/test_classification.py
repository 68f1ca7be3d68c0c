"""The classification task: its batches, its evaluation, and its solver."""

import numpy as np
import pytest
import torch

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.errors import Diverged
from odebench.tasks import build_task


def settings_of(tiny, *overrides):
    return read_settings(compose(["model.width=8", "model.groups=4", *tiny, *overrides]))


@pytest.fixture
def task(tiny):
    torch.manual_seed(0)
    return build_task(settings_of(tiny), torch.device("cpu"))


def test_batches_are_a_function_of_the_step(task):
    first = [task.batch(step) for step in range(8)]
    for step in (5, 0, 7):
        assert all(torch.equal(a, b) for a, b in zip(task.batch(step), first[step], strict=True))
    labels = torch.cat([labels for _, labels in first[:4]])
    assert torch.equal(labels.bincount(), torch.cat([labels for _, labels in first[4:]]).bincount())
    assert not torch.equal(first[0][0], first[4][0])


def test_a_limit_does_not_change_training_batches(task):
    before = task.batch(1)
    task.limit_split("train", 5)
    assert task.evaluate("train")["images"] == 5
    assert all(torch.equal(a, b) for a, b in zip(task.batch(1), before, strict=True))


def test_loss_and_accuracy_are_those_of_the_logits(task):
    images, labels = task.batch(0)
    loss = task.loss((images, labels))
    task.load_state_dict({"warm_step": None})  # the second solve searches its first step, as the first one did
    logits, _ = task.model(images.float() / 255, task._solve)
    assert loss.value.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())
    assert loss.metrics["train/accuracy"].item() == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_backward_statistics_are_there_after_the_backward_pass(task):
    loss = task.loss(task.batch(0))
    (stats,) = loss.solves
    assert stats.backward is None
    loss.value.backward()
    assert stats.backward.nfe > 0


def test_evaluation_does_not_depend_on_the_batch_size_at_fixed_steps(tiny):
    found = []
    for size in (7, 40):
        torch.manual_seed(0)
        fixed = settings_of(tiny, "solver=rk4", "solver.steps=2", f"trainer.eval_batch_size={size}")
        found.append(build_task(fixed, torch.device("cpu")).evaluate("validation"))
    assert found[0]["accuracy"] == found[1]["accuracy"]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)


def test_the_interval_is_wilsons(task):
    numbers = task.evaluate("validation")
    n, p, z = numbers["images"], numbers["accuracy"], 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (numbers["low"], numbers["high"]) == pytest.approx((middle - half, middle + half), rel=1e-5)


def test_predictions_agree_with_the_evaluation(task):
    rows = task.predict("validation")
    right = sum(a == b for a, b in zip(rows["label"], rows["prediction"], strict=True))
    assert right / len(rows["label"]) == task.evaluate("validation")["accuracy"]


def test_hidden_states_are_drawn_at_ten_times_of_the_solve(task):
    panels = task.figures()["features"].axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert (len(titles), titles[0], titles[-1]) == (10, "t = 0", "t = 1")
    first, last = (np.concatenate([line.get_xydata() for line in axes.lines]) for axes in (panels[0], panels[-1]))
    assert first.shape == last.shape
    assert not np.allclose(first, last)


def test_a_warm_first_step_is_taken_in_training_only(tiny):
    settings = settings_of(tiny, "solver.first_step=warm")
    task = build_task(settings, torch.device("cpu"))
    first = task.loss(task.batch(0)).solves[0]
    second = task.loss(task.batch(0)).solves[0]
    assert second.nfe < first.nfe
    assert second.step_sizes[0] == pytest.approx(first.warm_step)
    assert task.evaluate("validation")["nfe"] >= first.nfe - 6
    assert task.state_dict() == {"warm_step": second.warm_step}
    other = build_task(settings, torch.device("cpu"))
    other.load_state_dict(task.state_dict())
    assert other.loss(task.batch(0)).solves[0].step_sizes[0] == pytest.approx(second.warm_step)


def test_a_failed_solve_is_a_divergence(tiny):
    task = build_task(settings_of(tiny, "solver.max_steps=1"), torch.device("cpu"))
    with pytest.raises(Diverged, match="max_steps"):
        task.loss(task.batch(0))
    with pytest.raises(Diverged, match="max_steps"):
        task.evaluate("validation")

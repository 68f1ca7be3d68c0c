"""The training steps that are measured beside torchdiffeq train the same models, and the table says who is faster."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchdiffeq")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

SMALL = {
    "odenet": ["data=mnist5k", "trainer.batch_size=8", "model.width=8", "model.groups=4", "tol=1e-6"],
    "cnf": ["trainer.batch_size=16", "model.width=8", "model.end_time=1"],
    "latent_ode": ["trainer.batch_size=16"],
}


def load(name):
    """A script as a module; they find each other in their folder."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        script = importlib.util.module_from_spec(spec)
        sys.modules[name] = script
        spec.loader.exec_module(script)
    finally:
        sys.path.remove(str(SCRIPTS))
    return script


@pytest.fixture(scope="module")
def contest():
    plain = load("torchdiffeq_models")
    yield load("compare_training_step")
    del sys.modules[plain.__name__], sys.modules["compare_training_step"]


@pytest.mark.parametrize("gradient", ["adjoint", "backprop"])
@pytest.mark.parametrize("model", SMALL)
def test_the_plain_model_has_the_loss_and_the_gradient_of_ours(contest, model, gradient):
    about = contest.CONTESTS[model]
    settings = contest.settings_of(model, [*SMALL[model], f"gradient={gradient}"])
    task = contest.build(settings)
    batch = task.batch(0)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    losses = [task.loss(batch).value, about.plain(task.model, settings.tol, gradient).loss(batch)]
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in losses)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-4)
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (ours, theirs))
    assert (a - b).norm() < 2e-2 * a.norm()


def test_the_batch_of_spirals_is_all_of_them(contest):
    task = contest.build(contest.settings_of("latent_ode", ["trainer.batch_size=16"]))
    first, again, other = (contest.all_spirals(task)(step) for step in (0, 0, 1))
    assert first.inputs.values.shape == (1000, 100, 2)
    assert first.inputs.mask.all()
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, other.noise)


def test_the_table_puts_each_of_ours_beside_its_peer(contest, tmp_path, monkeypatch, capsys):
    output = tmp_path / "steps.csv"
    words = ["--model", "cnf", "--turns", "2", "--warmup", "1", "--output", str(output), *SMALL["cnf"]]
    monkeypatch.setattr(sys, "argv", ["compare_training_step.py", *words])
    contest.main()
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [(row["library"], row["first_step"]) for row in rows] == [
        *[("odebench", "search"), ("torchdiffeq", "search")],
        *[("odebench", "warm"), ("torchdiffeq", "search")],
    ]
    for row in rows:
        assert float(row["samples_per_s_best"]) >= float(row["samples_per_s_median"]) > 0
        assert float(row["samples_per_s_bare"]) > 0
        assert float(row["nfe_forward"]) > 0
        assert float(row["nfe_backward"]) > 0
    assert "times as many" in capsys.readouterr().out
    table = load("render_tables").step_table(rows)
    assert "odebench, samples/s (NFE)" in table
    assert rows[0]["samples_per_s_bare"] in table
    without = [{name: row[name] for name in row if not name.endswith("_bare")} for row in rows]
    assert "bare" not in load("render_tables").step_table(without)


def test_sides_that_train_other_models_are_told(contest):
    sides = [
        contest.TimedTraining(name, "adjoint", "search", None, None, None, [loss])
        for name, loss in (("a", 1), ("b", 2))
    ]
    with pytest.raises(SystemExit, match="the losses differ"):
        contest.check_losses(sides, 1e-5)

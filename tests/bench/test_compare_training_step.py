"""The training steps compared with torchdiffeq train the same models, and the table has their ratio."""

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
    """Import a script, which may import others of its folder."""
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
def comparison():
    torchdiffeq_models = load("torchdiffeq_models")
    yield load("compare_training_step")
    del sys.modules[torchdiffeq_models.__name__], sys.modules["compare_training_step"]


@pytest.mark.parametrize("gradient", ["adjoint", "backprop"])
@pytest.mark.parametrize("model", SMALL)
def test_the_torchdiffeq_model_has_the_same_loss_and_gradient(comparison, model, gradient):
    case = comparison.COMPARISONS[model]
    settings = comparison.settings_of(model, [*SMALL[model], f"gradient={gradient}"])
    task = comparison.build(settings)
    batch = task.batch(0)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    losses = [task.loss(batch).value, case.torchdiffeq_model(task.model, settings.tol, gradient).loss(batch)]
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in losses)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-4)
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (ours, theirs))
    assert (a - b).norm() < 2e-2 * a.norm()


def test_the_batch_of_spirals_is_all_of_them(comparison):
    task = comparison.build(comparison.settings_of("latent_ode", ["trainer.batch_size=16"]))
    first, again, other = (comparison.all_spirals(task)(step) for step in (0, 0, 1))
    assert first.inputs.values.shape == (1000, 100, 2)
    assert first.inputs.mask.all()
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, other.noise)


def test_the_table_pairs_each_gradient_mode_with_torchdiffeq(comparison, tmp_path, monkeypatch, capsys):
    output = tmp_path / "steps.csv"
    words = ["--model", "cnf", "--turns", "2", "--warmup", "1", "--output", str(output), *SMALL["cnf"]]
    monkeypatch.setattr(sys, "argv", ["compare_training_step.py", *words])
    comparison.main()
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
    assert "ratio: " in capsys.readouterr().out
    tables = load("render_tables")
    monkeypatch.setattr(tables, "TRAINING_STEPS", {"steps": "`cnf`"})
    monkeypatch.setattr(tables.results, "read", {"steps": rows}.__getitem__)
    speeds = [float(row["samples_per_s_median"]) for row in rows]
    search, warm = (f"{ours / theirs:.1f}" for ours, theirs in (speeds[:2], speeds[2:]))
    assert tables.step_table().splitlines()[2] == f"| `cnf` | adjoint | {search} | {warm} |"


def test_different_losses_raise_an_error(comparison):
    trainings = [
        comparison.TimedTraining(name, "adjoint", "search", None, None, None, [loss])
        for name, loss in (("a", 1), ("b", 2))
    ]
    with pytest.raises(SystemExit, match="the losses differ"):
        comparison.check_losses(trainings, 1e-5)

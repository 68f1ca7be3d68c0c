"""Names that users rely on: in their code, in their scripts, and in the files of their runs.

Names may be added; those here must not disappear or change their meaning.
"""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import odebench
from odebench import errors, ode
from odebench.cli import main
from odebench.cli.command import COMMANDS
from odebench.config.files import known_keys
from odebench.data import DensityData, ImageData, ImageSplit, SeriesData, SeriesSplit
from odebench.models.flow import Flow
from odebench.record import layout

OLD_RUNS = Path(__file__).parent / "training" / "old_runs"
ONE, SPAN = torch.ones(3, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
DECAYED = pytest.approx([math.exp(-1)] * 3, rel=1e-5)


def decay(t, y):
    return -y


def solve(**options):
    return ode.solve(decay, ONE, SPAN, rtol=1e-7, atol=1e-7, **options)


def gradient_by(gradient):
    y0 = ONE.clone().requires_grad_()
    ode.solve(decay, y0, SPAN, rtol=1e-7, atol=1e-7, gradient=gradient).y[-1].sum().backward()
    return y0.grad.tolist()


def failing_solve():
    with pytest.raises(ode.SolveError) as caught:
        solve(max_steps=1)
    return caught.value


def one_step_of_users_tableau():
    heun = ode.Tableau(name="mine", source="Heun 1900", order=2, c=(0.0, 1.0), a=((), (1.0,)), b=(0.5, 0.5))
    return ode.solve(decay, ONE, SPAN, method=heun, steps=1).y[-1, 0].item()


def solve_per_sample():
    """Three rows, each with its own decay rate."""
    rates = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    scaled = (lambda t, y, rate: -rate * y, ONE.unsqueeze(1), SPAN)
    return ode.solve(*scaled, args=(ode.Rows(rates),), stepping="per_sample", rtol=1e-7, atol=1e-7)


USES = {
    "solve": lambda: solve().y[-1].tolist() == DECAYED,
    "odeint": lambda: ode.odeint(decay, ONE, SPAN)[-1].tolist() == DECAYED,
    "odeint_adjoint": lambda: ode.odeint_adjoint(decay, ONE, SPAN, adjoint_params=())[-1].tolist() == DECAYED,
    "odeint_event": lambda: (
        ode.odeint_event(decay, ONE, SPAN[0], event_fn=lambda t, y: y[0] - 0.5)[0].item()
        == pytest.approx(math.log(2), rel=1e-5)
    ),
    "OdeintError": lambda: issubclass(ode.OdeintError, AssertionError),
    "Solution": lambda: isinstance(solve(), ode.Solution) and solve().status is ode.Status.success,
    "DenseOutput": lambda: isinstance(solve(dense=True).dense, ode.DenseOutput),
    "Event": lambda: (
        solve(event=ode.Event(lambda t, y: y[0] - 0.5, terminal=True)).events[0].t.item()
        == pytest.approx(math.log(2), rel=1e-5)
    ),
    "RowStats": lambda: isinstance(solve_per_sample().rows, ode.RowStats),
    "Rows": lambda: (
        solve_per_sample().y[-1].flatten().tolist() == pytest.approx([math.exp(-rate) for rate in (1, 2, 3)], rel=1e-5)
    ),
    "SolveError": lambda: failing_solve().outcome.status is ode.Status.max_steps,
    "Stats": lambda: isinstance(solve().stats, ode.Stats) and solve().stats.nfe > 0,
    "Status": lambda: {status.value for status in ode.Status} >= {"success", "max_steps", "non_finite", "event"},
    "METHODS": lambda: len(ode.METHODS) == 43 and ode.METHODS["dopri5"].order == 5,
    "Tableau": lambda: one_step_of_users_tableau() == 0.5,
    "GRADIENTS": lambda: (
        set(ode.GRADIENTS) == {"backprop", "checkpoint", "adjoint", "interpolated_adjoint", "reversible"}
    ),
    "Adjoint": lambda: gradient_by(ode.Adjoint(norm="full")) == DECAYED,
    "Backprop": lambda: gradient_by(ode.Backprop()) == DECAYED,
    "Checkpoint": lambda: gradient_by(ode.Checkpoint(checkpoints=2)) == DECAYED,
    "InterpolatedAdjoint": lambda: gradient_by(ode.InterpolatedAdjoint()) == DECAYED,
}


@pytest.mark.parametrize("name", USES)
def test_each_name_of_the_solver_works(name):
    assert name in ode.__all__
    assert USES[name]()


def test_names_of_the_package():
    names = {
        "train",
        "load_run",
        "load_runs",
        "solve",
        "odeint",
        "odeint_adjoint",
        "odeint_event",
        "Solution",
        "SolveError",
        "__version__",
    }
    assert names <= set(odebench.__all__)
    assert all(getattr(odebench, name) is getattr(ode, name) for name in names & set(ode.__all__))


def test_load_run_gives_model_settings_and_task(tmp_path):
    run = odebench.load_run(shutil.copytree(OLD_RUNS / "odenet_done", tmp_path / "run"), ["device=cpu"])
    assert run.settings.model.name == "odenet"
    assert isinstance(run.model, torch.nn.Module)
    assert run.task.model is run.model


def test_train_gives_the_run_that_load_run_gives(tiny_odenet, without_figures, tmp_path):
    run = odebench.train([*tiny_odenet, f"outputs={tmp_path}", "tol=1e-2"])
    assert run.settings.tol == 1e-2
    loaded = odebench.load_run(run.path)
    assert type(run) is type(loaded)
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(run.model(images)[0], loaded.model(images)[0])
    table = odebench.load_runs(tmp_path)
    assert [*table["folder"]] == [str(run.path)]
    assert table["final/test_accuracy"][0] == run.task.evaluate("test")["accuracy"]


def test_train_raises_an_error_that_names_the_folder_unless_the_run_is_done(tiny_odenet, without_figures, tmp_path):
    with pytest.raises(errors.UsageError, match=r"settings are a list, such as \['tol=1', 'seed=1'\]"):
        odebench.train("tol=1 seed=1")
    with pytest.raises(errors.Diverged, match=rf"after step \d: .*\(record in {tmp_path}/run\)"):
        odebench.train([*tiny_odenet, f"run_dir={tmp_path / 'run'}", "trainer.max_nfe=1"])


class Halve(torch.nn.Module):
    """A transform to the base by z = x / 2, without an ODE."""

    duration = 0.0

    def to_base(self, x, solve, trace):
        return x / 2, x.new_full((len(x),), -x.shape[1] * math.log(2)), ()


def test_data_classes_and_flow_take_a_plugins_arguments():
    x = torch.zeros(8, 2)
    data = DensityData(x, x, x, draw=None, log_density=None, log_normaliser=None, note="", provenance={})
    assert data.train is x
    split = ImageSplit(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    images = ImageData(split, split, split, num_classes=2, note="", crop_padding=0, provenance={})
    assert images.test is split
    ids, offsets, all_of_them = torch.arange(2), torch.tensor([0, 2, 4]), torch.ones(4, dtype=torch.bool)
    times, values, mask = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.zeros(4, 1), torch.ones(4, 1, dtype=torch.bool)
    series = SeriesSplit(ids, offsets, times, values, mask, is_input=all_of_them, is_target=all_of_them)
    assert SeriesData(series, series, series, span=1.0, channels=("x",), num_classes=0).span == 1.0
    flow = Flow((2,), [Halve()], base_variance=1.0)
    log_prob, _ = flow.log_prob(torch.zeros(1, 2))
    assert log_prob.item() == pytest.approx(-math.log(2 * math.pi) - 2 * math.log(2))


def test_commands_and_exit_codes(capsys):
    assert [*COMMANDS] == [
        "train",
        "sweep",
        "eval",
        "predict",
        "sample",
        "resume",
        "list",
        "report",
        "export",
        "reproduce",
        "tensorboard",
        "bench",
        "doctor",
    ]
    codes = (errors.DONE, errors.FAILED, errors.WRONG_USAGE, errors.DIVERGED, errors.STOPPED)
    assert codes == (0, 1, 2, 3, 75)
    assert main(["list", "models"]) == 0
    assert main(["train", "tol=-1"]) == 2
    assert "tol=-1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["odenet_done", "cnf_interrupted", "latent_ode_done"])
def test_settings_files_and_tags_of_old_runs_are_known(name):
    run = OLD_RUNS / name
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    groups = {key: value for key, value in settings.items() if isinstance(value, dict)}
    keys = [f"{group}.{key}" for group, inner in groups.items() for key in inner if group != "budgets"]
    assert {*settings, *keys} - set(known_keys()) <= {"config_dir", "budgets"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    tags = {tag for row in rows for tag in row} - {"step", "elapsed_s"}
    assert tags
    assert all(map(layout.is_tag, tags))
    assert json.loads((run / "status.json").read_text())["status"] in layout.STATUSES
    files = {layout.SETTINGS, layout.OVERRIDES, layout.MANIFEST, layout.STATUS, layout.METRICS, layout.LOG}
    assert all((run / name).is_file() for name in files)


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        (["predict", "odenet_done"], "index label prediction probability"),
        (["predict", "latent_ode_done"], "series time x x_mean x_std y y_mean y_std"),
        (["predict", "cnf_interrupted"], "index log_prob_nats"),
        (["sample", "cnf_interrupted"], "x0 x1"),
    ],
    ids=" ".join,
)
def test_columns_of_predictions_and_samples(words, columns, tmp_path):
    command, name = words
    run, output = shutil.copytree(OLD_RUNS / name, tmp_path / name), tmp_path / "out.csv"
    assert main([command, str(run), "device=cpu", "--output", str(output)]) == 0
    assert header(output) == columns.split()


def test_columns_of_a_report(tmp_path):
    assert main(["report", str(OLD_RUNS), "--output", str(tmp_path / "out.csv")]) == 0
    assert [name for name in header(tmp_path / "out.csv") if "." not in name and not name.endswith("_std")] == [
        *("tol", "task", "runs", "done", "seeds", "best/loss", "final/test_loss", "best/accuracy"),
        *("final/test_accuracy", "final/nfe_forward", "final/nfe_backward", "final/peak_mib", "final/minutes"),
        *("final/step_ms", "parameters"),
    ]


def header(path):
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))

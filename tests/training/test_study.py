"""Evaluating a trained model with many solvers and tolerances."""

import csv
import json
import math
import shutil

import pytest
import torch

from odebench.cli import main
from odebench.errors import Diverged, UsageError
from odebench.reporting import figures
from odebench.reporting.runs import collect_runs
from odebench.training import study
from odebench.training.study import (
    REFERENCE_SOLVER,
    REFERENCE_TOL,
    ReferenceModel,
    _loss_gradient,
    cast_floats,
    relative_error,
    study_run,
    task_outputs,
    to_double,
)
from odebench.training.trained_run import evaluate_run, load_run, read_trained_run


@pytest.fixture
def run(cnf_run):
    return cnf_run


@pytest.fixture(scope="module")
def odenet(finished, tiny_odenet):
    return finished(*tiny_odenet, "trainer.epochs=1", "data.train_limit=16")


@pytest.fixture(scope="module")
def latent(finished):
    return finished("model=latent_ode", "data.train_limit=20", "trainer.batch_size=10", "trainer.epochs=1")


def lines(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_the_output_error_falls_with_the_tolerance_and_nfe_rises(run):
    rows = study_run(run, [[f"tol={tol}"] for tol in (1e-2, 1e-3, 1e-4)])
    errors, nfe = ([row[name] for row in rows] for name in ("output_error", "nfe"))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert nfe[0] < nfe[1] < nfe[2]


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
def test_the_output_error_of_fixed_steps_falls_by_the_order_of_the_method(solver, order, run):
    combinations = [[f"solver={solver}", f"solver.steps={steps}"] for steps in (64, 128)]
    coarse, fine = (row["output_error"] for row in study_run(run, combinations))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_the_reference_is_in_float64_and_another_solver_agrees(run):
    reference = ReferenceModel(read_trained_run(run), (), "validation", with_gradient=False)
    loaded = load_run(run, [f"solver={REFERENCE_SOLVER}", f"tol={REFERENCE_TOL}"])
    to_double(loaded.task)
    found = task_outputs(loaded.task, "validation", 100)
    assert found.dtype == torch.float64
    assert relative_error(found, reference.outputs) == 0
    other = load_run(run, ["solver=dopri8", f"tol={REFERENCE_TOL}"])
    to_double(other.task)
    assert relative_error(task_outputs(other.task, "validation", 100), found) < 1e-8


@pytest.mark.parametrize(
    ("model", "count"), [("odenet", 40), ("run", 100), pytest.param("latent", None, marks=pytest.mark.slow)]
)
def test_outputs_are_the_same_each_time_and_in_double_but_for_rounding(model, count, request):
    loaded = load_run(request.getfixturevalue(model), ["solver=rk4", "solver.steps=2"])
    torch.manual_seed(3)
    single = task_outputs(loaded.task, "validation", 100)
    assert torch.equal(task_outputs(loaded.task, "validation", 100), single)
    assert count is None or len(single) == count
    to_double(loaded.task)
    double = task_outputs(loaded.task, "validation", 100)
    assert 0 < relative_error(single, double) < 1e-5
    batch = cast_floats(loaded.task.batch(0), torch.float64)
    assert double.dtype == loaded.task.loss(batch).value.dtype == torch.float64


@pytest.mark.parametrize(
    ("model", "counted"),
    [("odenet", "images"), ("run", "samples"), pytest.param("latent", "series", marks=pytest.mark.slow)],
)
def test_a_limit_evaluates_the_first_samples_of_the_split_alone(model, counted, request, capsys):
    folder = request.getfixturevalue(model)
    overrides = ["solver=rk4", "solver.steps=2"]
    assert main(["eval", str(folder), *overrides, "--limit", "5"]) == 0
    assert lines(folder)[-1][counted] == 5
    loaded = load_run(folder, overrides)
    full = task_outputs(loaded.task, "validation", 5)
    loaded.task.limit_split("validation", 5)
    found = task_outputs(loaded.task, "validation", 100)
    assert found.shape == full.shape
    # The samples of latent states are drawn for all series of a split at once.
    assert counted == "series" or torch.allclose(found, full, atol=1e-6)
    assert main(["eval", str(folder), "--limit", "0"]) == 2
    assert "--limit 0: must be at least 1" in capsys.readouterr().err


def test_a_study_prints_the_times_of_a_training_step_and_the_evaluated_samples(run, capsys):
    rows = study_run(run, [["solver=rk4", "solver.steps=2"], ["solver=rk4", "solver.steps=200"]], limit=7)
    assert [row["samples"] for row in rows] == [7, 7]
    for pass_ms in ("forward_ms", "backward_ms"):
        assert rows[1][pass_ms] > rows[0][pass_ms] > 0  # a hundred times as many steps
    assert "evaluated: first 7 samples of the validation split" in capsys.readouterr().out


def test_the_numbers_of_a_study_go_to_a_file(run, tmp_path, capsys):
    output = tmp_path / "numbers.csv"
    words = ["solver=tsit5,dopri5", "solver.max_steps=100,1", "--limit", "5", "--output", str(output)]
    assert main(["eval", str(run), *words]) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file))
    expected = [("tsit5", "100"), ("tsit5", "1"), ("dopri5", "100"), ("dopri5", "1")]
    assert [(row["solver"], row["solver.max_steps"]) for row in rows] == expected
    assert "max_steps" in rows[-1]["failed"]
    for row, line in zip(rows, lines(run)[-len(rows) :], strict=True):
        expected = {key: "" if value is None else str(value) for key, value in line.items() if key != "overrides"}
        assert {key: row[key] for key in expected} == expected
    assert main(["eval", str(run), "--output", str(output)]) == 2
    assert "exists; name a new file" in capsys.readouterr().err


def test_the_numbers_of_one_evaluation_go_to_a_file(run, tmp_path):
    output = tmp_path / "numbers.csv"
    assert main(["eval", str(run), "--limit", "5", "--output", str(output)]) == 0
    with output.open() as file:
        (row,) = csv.DictReader(file)
    assert (row["split"], row["limit"], row["solver"], row["samples"]) == ("validation", "5", "dopri5", "5")


def test_a_limit_of_the_training_split_is_of_its_evaluation_alone(odenet):
    overrides = ["solver=rk4", "solver.steps=2"]
    (full,), (part,) = (study_run(odenet, [overrides], "train", limit) for limit in (None, 5))
    assert (full["images"], part["images"]) == (16, 5)
    limited = load_run(odenet, overrides)
    limited.task.limit_split("train", 5)
    assert torch.equal(_loss_gradient(limited), _loss_gradient(load_run(odenet, overrides)))


def test_a_run_of_an_earlier_version_gives_one_warning_however_often_it_is_loaded(run, tmp_path, caplog):
    older = shutil.copytree(run, tmp_path / "older")
    text = (older / "settings.yaml").read_text()
    assert "  patience: null\n" in text
    (older / "settings.yaml").write_text(text.replace("  patience: null\n", ""))
    study_run(older, [[f"tol={tol}", "gradient=adjoint"] for tol in (0.1, 0.01)], gradients=True)
    assert caplog.text.count("was made before these settings existed") == 1


def test_a_line_a_row_is_added_that_the_reports_figure_reads(run, capsys):
    study_run(run, [["solver=dopri5", "tol=0.1"], ["solver=dopri5", "tol=0.01"], ["solver=bosh3", "tol=0.1"]], "test")
    found = lines(run)[-3:]
    assert [(row["solver"], row["tol"], row["split"]) for row in found] == [
        ("dopri5", 0.1, "test"),
        ("dopri5", 0.01, "test"),
        ("bosh3", 0.1, "test"),
    ]
    assert all(row["output_error"] > 0 and row["nfe"] > 0 and row["batch_ms"] > 0 for row in found)
    assert all(row["nfe_backward"] > 0 and row["reference"] == "dopri5 at 1e-09 in float64" for row in found)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["solver", "tol", "NLL", "sampling"]
    assert [row.split()[:2] for row in rows[:3]] == [["dopri5", "0.1"], ["dopri5", "0.01"], ["bosh3", "0.1"]]
    shown = figures.content("error-tolerance", collect_runs([run]))
    assert {line.label for line in shown.panels[0].lines} >= {"dopri5, split=test", "bosh3, split=test"}
    shown = figures.content("figure3", collect_runs([run]))
    assert [panel.title[:3] for panel in shown.panels] == ["(a)", "(b)", "(c)", "(d)"]


def test_an_adaptive_method_with_fixed_steps_is_evaluated_once(run):
    assert len(study_run(run, [["tol=0.1", "solver.steps=2"], ["tol=0.01", "solver.steps=2"]], limit=7)) == 1


def test_an_evaluation_uses_the_threads_of_its_settings(run, monkeypatch):
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    study_run(run, [["trainer.threads=3"], ["trainer.threads=2"]], limit=7)
    evaluate_run(run, ["trainer.threads=4"], limit=7)
    assert used == [3, 2, 4]


def test_a_solver_of_fixed_steps_is_evaluated_once_whatever_the_tolerance(run):
    combinations = [[f"tol={tol}", f"solver={solver}"] for tol in (0.1, 0.01) for solver in ("dopri5", "rk4")]
    assert len(study_run(run, combinations)) == 3
    found = [(row["solver"], row["tol"]) for row in lines(run)[-3:]]
    assert found == [("dopri5", 0.1), ("rk4", None), ("dopri5", 0.01)]


def test_a_training_step_is_solved_alike_whichever_comes_first(run):
    """With a warm first step, an earlier solve would change the first step of the measured one."""
    combinations = [["solver=dopri5", "solver.first_step=warm", f"tol={tol}"] for tol in (1e-2, 1e-3)]
    forth, back = study_run(run, combinations), study_run(run, combinations[::-1])
    assert [row["nfe_forward"] for row in forth] == [row["nfe_forward"] for row in back[::-1]]


@pytest.mark.slow
def test_several_gradient_modes_show_the_errors_of_the_gradient(run):
    modes = ("backprop", "adjoint")
    combinations = [[f"gradient={mode}", f"tol={tol}"] for mode in modes for tol in (1e-2, 1e-5)]
    rows = study_run(run, combinations)
    backprop, adjoint = rows[:2], rows[2:]
    assert max(row["gradient_error_discrete"] for row in backprop) < 1e-3  # round-off
    assert adjoint[0]["gradient_error_discrete"] > 0.1
    assert max(row["nfe_backward"] for row in backprop) == 0 < min(row["nfe_backward"] for row in adjoint)
    for coarse, fine in (backprop, adjoint):
        assert fine["gradient_error"] < 0.01 < coarse["gradient_error"]
        assert 0 < fine["reversal_error"] < 0.1 * coarse["reversal_error"]


def test_asked_for_gradients_one_mode_is_compared_too_and_the_memory_of_the_step(run):
    study_run(run, [["gradient=backprop", f"trainer.batch_size={size}"] for size in (512, 64)], gradients=True)
    full, part = lines(run)[-2:]
    assert {"gradient_error", "gradient_error_discrete"} <= full.keys()
    assert full["peak_mib"] > 3 * part["peak_mib"] > 0
    assert full["step_ms"] == pytest.approx(full["forward_ms"] + full["backward_ms"])
    study_run(run, [["gradient=adjoint"]])
    assert not {"gradient_error", "peak_mib"} & lines(run)[-1].keys()


def test_a_gradient_is_compared_with_another_mode_of_the_very_same_solve(run):
    """The step uses the training solver, not the evaluation solver; checkpoint, itself exact, is compared with
    backprop."""
    overrides = ["eval_solver=rk4", "eval_tol=1e-4"]
    (row,) = study_run(run, [[*overrides, "gradient=checkpoint"]], gradients=True)
    line = lines(run)[-1]
    assert 0 < row["gradient_error_discrete"] < 1e-4 < row["gradient_error"] < 0.1  # two approximations of one gradient
    assert (line["solver"], line["step_solver"], line["step_tol"]) == ("rk4", "dopri5", 1e-3)
    assert line["gradient"] == "checkpoint"


@pytest.mark.slow
def test_a_reversible_solve_is_compared_with_its_own_solver(run):
    overrides = ["solver=reversible_heun", "gradient=reversible"]
    coarse, fine = study_run(run, [[*overrides, f"tol={tol}"] for tol in (1e-2, 1e-4)], gradients=True)
    assert max(row["gradient_error_discrete"] for row in (coarse, fine)) < 1e-3 < coarse["gradient_error"]
    assert fine["gradient_error"] < 0.3 * coarse["gradient_error"]


def test_a_reversible_solve_of_many_times_is_compared_with_a_solve_that_stops_at_them(latent):
    (row,) = study_run(latent, [["solver=reversible_heun", "gradient=reversible", "tol=1e-2"]], gradients=True)
    assert row["gradient_error_discrete"] < 1e-5


def test_a_failed_solve_gives_a_warning_and_the_others_are_evaluated(run, caplog, monkeypatch):
    full = ReferenceModel.compare

    def compare(self, run, overrides, split):
        if overrides == ["tol=0.1"]:
            raise Diverged("solve failed: max_steps")
        return full(self, run, overrides, split)

    monkeypatch.setattr(study.ReferenceModel, "compare", compare)
    assert len(study_run(run, [["tol=0.1"], ["tol=0.01"]])) == 1
    assert "skipped: tol=0.1: solve failed: max_steps" in caplog.text
    assert [row.get("failed") for row in lines(run)[-2:]] == ["solve failed: max_steps", None]


def test_a_backward_solve_that_fails_costs_the_row_its_training_step_alone(run, caplog):
    overrides = ["gradient=adjoint", "tol=1e-2", "gradient.rtol=1e-9", "gradient.atol=1e-9", "solver.max_steps=30"]
    (row,) = study_run(run, [overrides])
    assert row["output_error"] > 0
    assert "nfe_backward" not in row
    assert "the training step was not measured: gradient=adjoint" in caplog.text


def test_invalid_settings_raise_an_error_before_anything_is_evaluated(run, monkeypatch):
    monkeypatch.setattr(study, "ReferenceModel", None)
    with pytest.raises(UsageError, match="tol=-1: must be greater than 0"):
        study_run(run, [["tol=0.1"], ["tol=-1"]])


@pytest.mark.slow
def test_a_model_without_an_ode_raises_an_error(tiny, capsys, tmp_path):
    folder = tmp_path / "mlp"
    assert main(["train", "model=mlp", *tiny, f"run_dir={folder}"]) == 0
    capsys.readouterr()
    assert main(["eval", str(folder), "data.train_limit=64,64"]) == 2
    assert "mlp has no ODE; evaluate it once: odebench eval " in capsys.readouterr().err


def test_cast_floats_skips_integers_and_converts_inside_tuples():
    labels, values = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    found = cast_floats((labels, (values, None)), torch.float64)
    assert found[0] is labels
    assert found[1][0].dtype == torch.float64
    assert found[1][1] is None

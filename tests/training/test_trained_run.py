"""Loading, evaluating, predicting and sampling with finished runs, from the command line and from Python."""

import csv
import errno
import json
import math
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import odebench
from odebench.cli import main
from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.config.schema import PluginSettings
from odebench.data import DATA
from odebench.errors import UsageError
from odebench.record.reader import read_run
from odebench.tasks.classification import ClassificationTask
from odebench.training.trained_run import _check_data


@pytest.fixture
def run(odenet_run):
    return odenet_run


def evaluations(run):
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def test_load_run_gives_the_model_that_was_tested(run):
    loaded = odebench.load_run(run)
    assert not loaded.model.training
    assert loaded.settings.tol == 1e-3
    numbers = loaded.task.evaluate("test")
    assert numbers == read_run(run).summary["test"]
    with torch.no_grad():
        logits, (stats,) = loaded.model(torch.rand(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    assert stats.nfe > 0


@pytest.mark.parametrize(
    ("words", "times"),
    [
        ("train model=mlp trainer.iterations=1 data.train_limit=512 data.validation=100 run_dir=new device=cpu", 1),
        ("resume RUN", 1),
        ("eval RUN --limit 10", 1),
        ("eval RUN --limit 10 tol=1e-2", 2),
        ("eval RUN --limit 10 solver=euler solver.steps=1,2", 4),
        ("sweep --dry-run seed=0,1,2 eval_solver=tsit5", 3),
    ],
)
def test_a_command_reads_each_set_of_settings_once(words, times, run, monkeypatch, tmp_path):
    """The run's own, those of each evaluation and of a study's reference, and those of each job."""
    read = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("odebench.config.read.validate_settings", read.append)
    monkeypatch.setattr(ClassificationTask, "figures", lambda self: {})
    assert main([word.replace("RUN", str(run)) for word in words.split()]) == 0
    assert len(read) == times


def test_eval_uses_the_validation_split_by_default(run, capsys):
    assert main(["eval", str(run)]) == 0
    assert "validation accuracy" in capsys.readouterr().out
    assert evaluations(run)[-1]["accuracy"] == read_run(run).summary["best/accuracy"]
    assert evaluations(run)[-1]["weights_step"] == read_run(run).summary["best/step"]
    assert main(["eval", str(run), "split=test"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert evaluations(run)[-1]["split"] == "test"


def test_eval_takes_another_solver_and_tolerance(run, capsys):
    nfe = {}
    for override in ("tol=1e-1", "tol=1e-6", "solver=rk4", "solver=tsit5", "solver.steps=3"):
        assert main(["eval", str(run), override]) == 0
        nfe[override] = evaluations(run)[-1]["nfe"]
    assert nfe["tol=1e-1"] < nfe["tol=1e-6"]
    assert nfe["solver=rk4"] == 80
    assert nfe["solver.steps=3"] == 18
    assert "rk4, 20 steps" in capsys.readouterr().out


@pytest.mark.parametrize("overrides", [[], ["tol=1e-1,1e-2"]], ids=["evaluation", "study"])
def test_an_evaluation_that_cannot_be_saved_is_printed_with_a_warning(overrides, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations.jsonl"))
    (copy / "evaluations.jsonl").mkdir()  # not even root can append to it
    assert main(["eval", str(copy), *overrides]) == 0
    out, err = capsys.readouterr()
    assert "accuracy" in out
    assert f"this evaluation was not saved: {copy / 'evaluations.jsonl'} cannot be written (Is a directory)" in err


def test_an_evaluation_is_saved_even_if_it_cannot_be_printed(run, monkeypatch):
    before = len(evaluations(run)) if (run / "evaluations.jsonl").exists() else 0
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["eval", str(run)]) == 128 + signal.SIGPIPE
    assert len(evaluations(run)) == before + 1


def change_weights(run, folder, change):
    """A copy of the run, with other content of best.pt."""
    copy = shutil.copytree(run, folder)
    path = copy / "checkpoints/best.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    return copy


@pytest.mark.parametrize("words", [["eval"], ["predict"], ["eval", "tol=1e-1,1e-2"]], ids=" ".join)
def test_weights_that_are_not_finite_are_one_line(words, run, tmp_path, capsys):
    def spoil(content):
        list(content["model"].values())[-1].fill_(math.nan)
        return content

    copy = change_weights(run, tmp_path / "run", spoil)
    assert main([words[0], str(copy), *words[1:]]) == 2
    assert "holds NaN or infinities; restore the file" in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_without_weights_is_one_line(run, tmp_path, capsys):
    copy = change_weights(run, tmp_path / "run", lambda content: content | {"model": 5})
    assert main(["eval", str(copy)]) == 2
    line = "best.pt is damaged: it holds no weights; restore the file, or train the run again\n"
    assert capsys.readouterr().err.endswith(line)


def test_overrides_without_effect_in_an_evaluation_give_warnings(run, capsys):
    assert main(["eval", str(run), "solver=rk4", "tol=1e-2"]) == 0
    assert "tol=1e-2 has no effect: rk4 has fixed steps" in capsys.readouterr().err
    assert evaluations(run)[-1]["limit"] is None


def test_eval_with_the_other_name_of_the_same_network(run):
    assert main(["eval", str(run), "model=rknet", "model.width=8", "model.groups=4"]) == 0


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["solver=dopri6"], "unknown solver dopri6; did you mean dopri5?"),
        (["tol=-1"], "tol=-1: must be greater than 0"),
        (["model=mlp"], "solver=dopri5: mlp has no ODE"),
        (
            ["model=resnet", "solver=none", "gradient=backprop"],
            "best.pt does not fit model resnet: it holds model odenet",
        ),
        (["model.width=16"], "eval: model.width=16: the weights of "),
        (["model.width=16"], "/run fit model.width=8\n"),
        (["model=rknet"], "eval: model.width=64, model.groups=32: the weights of "),
        (["data=mnist", "data.root=/nowhere"], "/nowhere"),
        (["data.validation=100"], "data.validation: cannot change after training"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_eval_refuses_what_does_not_fit_in_one_line(overrides, line, run, capsys):
    before = (run / "checkpoints" / "best.pt").read_bytes()
    assert main(["eval", str(run), *overrides]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("odebench eval: ")
    assert line in err
    assert err.count("\n") == 1
    assert (run / "checkpoints" / "best.pt").read_bytes() == before


def checked(data, other):
    """Check an evaluation on other data than the training's, before anything is loaded."""
    model = ["model=mlp"] if "mnist" in data else ["model=latent_ode"]
    _check_data(*(read_settings(compose([*model, *arguments.split()])) for arguments in (data, other)))


@pytest.mark.parametrize(
    ("name", "setting", "refused"),
    [
        ("mnist5k", "validation=100", True),
        ("mnist5k", "augment=false", False),
        ("physionet2012", "random_state=7", True),
        ("physionet2012", "sets=a", True),
        ("physionet2012", "quantisation=60", False),
        ("hopper", "random_state=7", True),
        ("hopper", "train_limit=100", True),
        ("hopper", "mode=extrapolation", False),
        ("periodic", "random_state=7", False),  # simulates other series
    ],
)
def test_no_setting_that_changes_the_splits_can_change_after_training(name, setting, refused):
    both = f"data={name}", f"data={name} data.{setting}"
    if not refused:
        return checked(*both)
    with pytest.raises(UsageError, match=rf"^data.{setting.partition('=')[0]}: cannot change after training"):
        checked(*both)


def test_split_settings_of_a_plugins_data_cannot_change_either():
    trained = read_settings(compose(["model=mlp"]))
    before, now = (replace(trained, data=PluginSettings("mine", {"validation": num})) for num in (40, 50))
    with pytest.raises(UsageError, match=r"^data.validation: cannot change after training"):
        _check_data(before, now)


def test_evaluating_on_images_shared_with_the_training_data_gives_a_warning(run, caplog, monkeypatch):
    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(DATA, name, DATA["mnist5k"])  # their files are large
        odebench.load_run(run, [f"data={name}", "data.validation=40"])
    (line,) = caplog.messages
    assert line.startswith("data=mnist shares images with data=mnist5k of the training; only the test images")


def test_a_failed_solve_is_one_line_and_exit_3(run, capsys):
    assert main(["eval", str(run), "solver.max_steps=1"]) == 3
    assert capsys.readouterr().err.startswith("odebench eval: solve failed: max_steps")


def test_load_run_does_not_change_the_callers_random_state(run):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    odebench.load_run(run)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_evaluations_of_an_estimated_trace_are_reproducible_by_the_seed(finished, tmp_path, monkeypatch):
    """The noise of Hutchinson's trace is drawn from torch's global random state."""
    monkeypatch.setattr("odebench.tasks.density.EXACT_TRACE_LIMIT", 1)
    small = ["model.dims=[4]", "trainer.iterations=2", "trainer.batch_size=8", "data.validation=100", "data.test=100"]
    run = finished("model=ffjord", "model.trace=hutchinson", "tol=1e-2", *small)
    state = torch.get_rng_state()
    for words in [], [], ["seed=7"], ["tol=1e-1,1e-2"], ["tol=1e-1,1e-2"]:
        assert main(["eval", str(run), *words, "split=test"]) == 0
    first, again, other, *study = [(line["nll_nats"], line["trace_std_nats"]) for line in evaluations(run)]
    assert first == again != other
    assert study[:2] == study[2:]
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for path in paths:
        assert main(["predict", str(run), "--output", str(path)]) == 0
    assert paths[0].read_text() == paths[1].read_text()
    assert torch.equal(torch.get_rng_state(), state)


def test_predict_writes_a_row_for_each_image(run, tmp_path, capsys):
    target = tmp_path / "predictions.csv"
    assert main(["predict", str(run), "split=test", "--output", str(target)]) == 0
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert len(rows) == 1000
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / 1000 == read_run(run).summary["test"]["accuracy"]
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)
    capsys.readouterr()
    assert main(["predict", str(run)]) == 0
    assert capsys.readouterr().out.count("\n") == 41


def test_an_evaluation_takes_no_output_folder(run, capsys):
    assert main(["eval", str(run), "run_dir=x", "tol=1e-2,1e-3"]) == 2
    assert "run_dir=x: has no effect after the training; leave it out" in capsys.readouterr().err


def test_a_full_disk_leaves_no_partial_prediction_file(run, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("odebench.record.files.os.fsync", full)
    assert main(["predict", str(run), "--output", str(tmp_path / "p.csv")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_into_memory_is_one_line(tmp_path, capsys):
    arguments = ["train", "model=mlp", "model.hidden=10000000000", f"run_dir={tmp_path / 'run'}"]
    assert main(arguments) == 2
    assert "model=mlp and data=mnist5k do not fit into memory" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["odenet_run", "cnf_run"])
@pytest.mark.slow
def test_predict_takes_the_first_samples_of_the_split(name, request, capsys):
    folder = str(request.getfixturevalue(name))
    capsys.readouterr()  # of the training
    fixed = ["solver=rk4", "solver.steps=8"]  # adaptive steps depend on the batch
    assert main(["predict", folder, "split=test", *fixed]) == 0
    every = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert main(["predict", folder, "split=test", *fixed, "--limit", "3"]) == 0
    few = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert len(few) == 4
    assert few[0] == every[0]
    numbers = [[float(value) for row in rows[1:4] for value in row] for rows in (few, every)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)
    assert main(["predict", folder, "--limit", "0"]) == 2
    assert "--limit 0: must be at least 1" in capsys.readouterr().err


def test_predict_writes_over_nothing(run, tmp_path, capsys):
    target = tmp_path / "thesis.csv"
    target.write_text("years of work")
    assert main(["predict", str(run), "--output", str(target)]) == 2
    assert "exists; name a new file" in capsys.readouterr().err
    assert target.read_text() == "years of work"


@pytest.mark.parametrize("command", ["eval", "predict", "sample"])
def test_an_unfinished_run_uses_its_best_checkpoint_or_is_refused_without_any(command, request, tmp_path, capsys):
    run = request.getfixturevalue("cnf_run" if command == "sample" else "odenet_run")
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "status.json").write_text(json.dumps({"status": "interrupted", "step": 3}))
    assert main([command, str(unfinished)]) == 0
    out, err = capsys.readouterr()
    assert "not finished (status interrupted, step 3): using its best checkpoint so far" in err
    assert out
    (unfinished / "checkpoints/best.pt").unlink()
    assert main([command, str(unfinished)]) == 2
    assert "not finished (status interrupted, step 3); resume it with: odebench resume" in capsys.readouterr().err
    (unfinished / "status.json").write_text(json.dumps({"status": "running", "step": 3}))  # by this process
    assert main([command, str(unfinished)]) == 2
    assert "wait for its first validation, which saves its weights" in capsys.readouterr().err
    assert main([command, str(Path(run).parent / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_evaluation_names_its_solver_and_its_tolerance(run):
    assert main(["eval", str(run), "solver=rk4"]) == 0
    assert main(["eval", str(run), "tol=1e-2"]) == 0
    fixed, adaptive = evaluations(run)[-2:]
    assert (fixed["solver"], fixed["tol"]) == ("rk4", None)
    assert (adaptive["solver"], adaptive["tol"]) == ("dopri5", 0.01)


def test_sample_prints_what_the_model_draws_by_the_seed(cnf_run, capsys):
    drawn = {}
    for seed in ("0", "1"):
        assert main(["sample", str(cnf_run), "--num", "5", "--seed", seed]) == 0
        drawn[seed] = capsys.readouterr().out
    header, *rows = drawn["0"].splitlines()
    assert header == "x0,x1"
    expected = odebench.load_run(cnf_run).task.sample(5, 0)
    printed = torch.tensor([[float(x) for x in row.split(",")] for row in rows])
    assert torch.equal(printed, expected)
    assert drawn["0"] != drawn["1"]


def test_sample_writes_npy_and_csv_and_over_nothing(cnf_run, tmp_path, capsys):
    for name in ("samples.npy", "samples.csv"):
        assert main(["sample", str(cnf_run), "--num", "5", "--output", str(tmp_path / name)]) == 0
    text = np.loadtxt(tmp_path / "samples.csv", delimiter=",", skiprows=1)
    assert np.allclose(np.load(tmp_path / "samples.npy"), text, rtol=1e-7, atol=0)
    assert main(["sample", str(cnf_run), "--output", str(tmp_path / "samples.npy")]) == 2
    assert "exists; name a new file" in capsys.readouterr().err
    assert main(["sample", str(cnf_run), "seed=5"]) == 2
    assert capsys.readouterr().err == "odebench sample: seed=5: set the seed of the samples with --seed 5\n"


def test_samples_that_are_images_become_a_picture_and_no_csv(tmp_path):
    from odebench.training.trained_run import _check_format, _write_samples

    images = np.zeros((12, 1, 8, 8))
    _write_samples(images, tmp_path / "grid.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "grid.png").shape
    assert width > height > 100
    for output in (None, tmp_path / "images.csv"):
        with pytest.raises(UsageError, match=r"the samples are images \[1, 8, 8\]; write them to a file"):
            _check_format([1, 8, 8], output)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--num", "0"], "--num 0: must be at least 1"),
        (["--num", "99999999999999999999"], "--num 99999999999999999999: at most 1,000,000,000"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--output", "x.txt"], "--output x.txt: samples are written to files ending with .csv, .npy, .png"),
        (["--output", "/tmp/no.png"], "the samples are vectors [2], not images; use FILE.csv or FILE.npy"),
        (["--output", "/nowhere/x.csv"], "--output /nowhere/x.csv: the folder /nowhere does not exist; create it"),
        (["model.width=9", "model.hidden=5"], "sample: model.width=9, model.hidden=5: the weights of "),
        (["tol=-1"], "tol=-1: must be greater than 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sample_refuses_what_cannot_be_in_one_line(arguments, line, cnf_run, capsys):
    assert main(["sample", str(cnf_run), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err
    assert err.count("\n") == 1


def test_a_model_that_draws_no_samples_raises_an_error(run, capsys):
    assert main(["sample", str(run)]) == 2
    assert capsys.readouterr().err.startswith("odebench sample: odenet draws no samples: its task is classification")

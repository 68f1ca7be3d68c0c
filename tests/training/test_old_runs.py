"""The current version evaluates, resumes and reports the runs of an earlier version."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from odebench.cli import main

OLD_RUNS = Path(__file__).parent / "old_runs"
DONE, INTERRUPTED = ("odenet_done", "latent_ode_done"), "cnf_interrupted"

# Other machines and versions of torch round differently; untrained weights would differ by far more.
CLOSE = 1e-3
# Counts of steps and measures of speed may differ more.
JUMPING = ("nfe", "samples_per_s")

# Validation loss of cnf_interrupted's settings after all 30 steps, without interruption.
UNDISTURBED_LOSS = 4.0834


@pytest.fixture
def old_runs(tmp_path):
    """A copy of the old runs, which a test may change."""
    return shutil.copytree(OLD_RUNS, tmp_path / "old_runs")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def recorded(run):
    """The validation metrics of the best weights in the run's record."""
    validations = [row for row in rows(run / "metrics.jsonl") if "val/loss" in row]
    if (run / "summary.json").exists():
        best = json.loads((run / "summary.json").read_text())["best/step"]
        validations = [row for row in validations if row["step"] == best]
    numbers = {tag.removeprefix("val/"): value for tag, value in validations[-1].items() if tag.startswith("val/")}
    return {name: value for name, value in numbers.items() if not name.endswith(JUMPING)}


@pytest.mark.parametrize("name", [*DONE, INTERRUPTED])
def test_eval_gives_the_numbers_that_the_training_recorded(name, old_runs):
    run = old_runs / name
    assert main(["eval", str(run), "device=cpu"]) == 0
    (evaluation,) = rows(run / "evaluations.jsonl")
    expected = recorded(run)
    assert "loss" in expected
    assert {name: evaluation[name] for name in expected} == pytest.approx(expected, rel=CLOSE)


@pytest.mark.slow
def test_resume_ends_where_an_undisturbed_training_ends(old_runs):
    run = old_runs / INTERRUPTED
    before = rows(run / "metrics.jsonl")
    assert main(["resume", str(run)]) == 0
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["step"]) == ("done", 30)
    assert rows(run / "metrics.jsonl")[: len(before)] == before
    summary = json.loads((run / "summary.json").read_text())
    assert summary["final/val_loss"] == pytest.approx(UNDISTURBED_LOSS, rel=CLOSE)


def test_report_has_a_row_for_each_old_run(old_runs, tmp_path):
    table = tmp_path / "table.csv"
    assert main(["report", str(old_runs), "--output", str(table)]) == 0
    with table.open(newline="") as file:
        found = {row["model.name"]: row for row in csv.DictReader(file)}
    assert {model: row["done"] for model, row in found.items()} == {"odenet": "1", "cnf": "0", "latent_ode": "1"}
    for name in DONE:
        row = found[name.removesuffix("_done")]
        summary = json.loads((old_runs / name / "summary.json").read_text())
        assert float(row["best/loss"]) == pytest.approx(summary["best/loss"])

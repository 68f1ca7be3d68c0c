"""Finished runs taken up again: load, evaluate, predict."""

import csv
import json
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from odebench.errors import UsageError
from odebench.record import schema
from odebench.record.files import plain
from odebench.record.reader import read_run
from odebench.settings import Settings, override_saved, read_settings
from odebench.tasks import Task, build_task
from odebench.training.checkpoint import load_weights
from odebench.training.machine import choose_device
from odebench.training.summary import aligned, describe


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its settings, the task (which holds the data) and the trained model in it."""

    path: Path
    settings: Settings
    task: Task

    @property
    def model(self) -> nn.Module:
        """The trained model, in evaluation mode."""
        return self.task.model.eval()


def load_run(path: Path | str, overrides: list[str] | None = None) -> Run:
    """The trained model of a finished run, its settings and its task.

    overrides: settings in place of the saved ones, as on the command line: ``["solver=rk4", "device=cpu"]``.
    Raises UsageError where the folder is no finished run, the data is missing, or the overrides do not fit.
    """
    run = read_run(path, metrics=False)
    status = run.status["status"]
    if status != "done":
        raise UsageError(f"{path} is not finished (status {status}); go on with it: odebench resume {path}")
    settings = read_settings(override_saved(run.settings, overrides or []))
    _check_data(read_settings(run.settings), settings)
    with torch.random.fork_rng([]):  # initial weights are drawn, then replaced: no trace for the caller
        task = build_task(settings, choose_device(settings.device))
    load_weights(task.model, run.path / schema.BEST_CHECKPOINT, settings.model.name)
    task.model.eval()
    return Run(run.path, settings, task)


def _check_data(trained: Settings, asked: Settings) -> None:
    """UsageError where the images held out for validation would be others than in training: it saw these."""
    if trained.data.name != asked.data.name:
        return
    for key in ("validation", "train_limit"):
        if getattr(trained.data, key, None) != getattr(asked.data, key, None):
            raise UsageError(f"data.{key}: cannot change after training, or it would be tested on what it has seen")


def evaluate_run(path: Path, overrides: list[str], split: str = "validation") -> dict[str, float]:
    """Evaluate a finished run under other settings, print the result, and add it to the run's evaluations.jsonl."""
    run = load_run(path, overrides)
    numbers = run.task.evaluate(split)
    rows = [("run", describe(_as_evaluated(run.settings)))]
    rows += [(f"{split} {name}", text) for name, text in run.task.rows(numbers)]
    if "nfe" in numbers:
        rows.append(("NFE a batch", f"{numbers['nfe']:.1f}"))
    print(aligned(rows))
    line = {
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "overrides": overrides,
        "split": split,
        **numbers,
    }
    with open(path / schema.EVALUATIONS, "a", encoding="utf-8") as file:
        file.write(json.dumps(plain(line)) + "\n")
    return numbers


def predict_run(path: Path, overrides: list[str], split: str = "validation", output: Path | None = None) -> None:
    """Write what a finished run's model says of each sample of a split, as CSV, to a new file or to stdout."""
    if output is not None and output.exists():
        raise UsageError(f"--output {output} exists; name a new file")
    columns = load_run(path, overrides).task.predict(split)
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    if output is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    else:
        with open(output, "x", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def _as_evaluated(settings: Settings) -> Settings:
    return replace(settings, solver=settings.evaluation_solver)

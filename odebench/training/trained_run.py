"""Load trained runs, evaluate them, and write their predictions and samples."""

import contextlib
import csv
import io
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from odebench.config.choices import options_of
from odebench.config.compose import compose
from odebench.config.parsing import as_written
from odebench.config.read import read_settings
from odebench.config.saved import read_saved, saved_settings
from odebench.config.schema.data import SPLIT_KEYS
from odebench.config.settings import Settings
from odebench.config.warnings import without_effect
from odebench.console import print_table
from odebench.errors import UsageError
from odebench.plots.image_grid import image_grid
from odebench.record import layout
from odebench.record.files import check_file_can_be_made, json_line, utc_now, write_atomically
from odebench.record.reader import RunRecord, read_overview, read_run
from odebench.tasks import Task, build_task
from odebench.tasks.build import ConfiguredSolver
from odebench.training.checkpoint import load_weights
from odebench.training.environment import choose_device, prepare_processor
from odebench.training.summary import describe_settings

log = logging.getLogger(__name__)

# Data sets that share images: mnist5k is a subset of MNIST's training images.
DATA_SHARING_IMAGES = {"mnist", "mnist5k"}


@dataclass(frozen=True)
class TrainedRun:
    """A trained run: its folder, its settings, and its task with the data and the trained model.

    weights_step: the training step of the model's weights, the best on validation; None if it is unknown.
    """

    path: Path
    settings: Settings
    task: Task
    weights_step: int | None = None

    @property
    def model(self) -> nn.Module:
        """The trained model, in evaluation mode."""
        return self.task.model.eval()

    @property
    def solve(self) -> ConfiguredSolver | None:
        """The solver of its evaluations, as in ``run.model(images, run.solve)``; None without an ODE."""
        return self.task.eval_solve


@dataclass(frozen=True)
class SavedRun:
    """A run that has weights: its record, with settings completed by ``saved_settings``, and these settings parsed."""

    record: RunRecord
    settings: Settings

    def override(self, overrides: Sequence[str]) -> Settings:
        """Return the settings with the overrides applied. Raises UsageError if they do not fit."""
        return read_settings(compose(overrides, saved=self.record.settings)) if overrides else self.settings


def load_run(path: Path | str, overrides: list[str] | None = None) -> TrainedRun:
    """Load the trained model of a run, its settings and its task.

    path: the run's folder. overrides: settings that replace saved ones, as on the command line: ``["solver=rk4",
    "device=cpu"]``. ``["solver.compile=solve"]`` compiles the solves of ``TrainedRun.solve``, which is worth it for
    hundreds of them. Otherwise nothing is compiled, even if the run was trained with ``solver.compile=solve``.

    Raises UsageError if the folder is no run or holds no weights, the data is missing, or the overrides do not fit.
    """
    saved = read_trained_run(path)
    return build_trained_run(saved, saved.override(overrides or []))


def build_trained_run(saved: SavedRun, settings: Settings) -> TrainedRun:
    """Build the task of a run with these settings, and load the trained model. See ``load_run`` for errors."""
    _check_data(saved.settings, settings)
    with torch.random.fork_rng([]):  # drawing initial weights must not change the caller's random state
        task = build_task(settings, choose_device(settings.device))
    weights_step = load_best_weights(task.model, saved.record, settings)
    task.model.eval()
    if settings.evaluation_solver.compile == "solve":
        task.eval_solve = ConfiguredSolver(settings.evaluation_solver, settings.gradient, settings.extensions, False)
    names = settings.data.name, saved.settings.data.name
    if set(names) == DATA_SHARING_IMAGES:
        line = "data=%s shares images with data=%s of the training; only the test images of data=mnist are surely new"
        log.warning(line, *names)
    return TrainedRun(saved.record.path, settings, task, weights_step)


def read_trained_run(path: Path | str) -> SavedRun:
    """Read the record and the settings of a run.

    If the run is not finished, logs a warning that its best checkpoint so far is used. Raises UsageError if there is
    none.
    """
    run = read_run(path, metrics=False)
    overview = read_overview(run.path)
    if overview.status != "done":
        unfinished = f"{path} is not finished (status {overview.status}, step {overview.step})"
        if not (run.path / layout.BEST_CHECKPOINT).exists():
            hint = f"resume it with: odebench resume {shlex.quote(str(path))}"
            if overview.status == "running":
                hint = "wait for its first validation, which saves its weights"
            raise UsageError(f"{unfinished}; {hint}")
        log.warning("%s: using its best checkpoint so far", unfinished)
    completed = saved_settings(run.settings, run.path)
    if OmegaConf.select(completed, "solver.compile") == "solve":
        completed.solver.compile = False  # overrides may ask for it
    return SavedRun(replace(run, settings=completed), read_saved(completed, run.path / layout.SETTINGS))


def load_best_weights(model: nn.Module, run: RunRecord, requested: Settings) -> int | None:
    """Load the best weights of a run into a model that was built with the requested settings; return their step.

    The step is None if it is unknown.
    Raises UsageError as ``load_weights`` does. If the weights do not fit, the error names the settings that differ.
    """
    path = run.path / layout.BEST_CHECKPOINT
    try:
        step = load_weights(model, path, requested.model.name)
        return run.summary.get("best/step") if step is None else step
    except UsageError as error:
        if "model" not in error.settings:
            raise
        trained = read_settings(saved_settings(run.settings, run.path))
        if not (differ := _differing_settings(trained, requested)):
            raise
        now, before = (", ".join(f"{key}={as_written(pair[i])}" for key, pair in differ.items()) for i in (0, 1))
        raise UsageError(f"{now}: the weights of {run.path} fit {before}", *differ) from None


def _differing_settings(trained: Settings, requested: Settings) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, key -> (requested, trained): the model's, else the data set.

    Empty if the two models have other kinds of settings.
    """
    before, now = options_of(trained.model), options_of(requested.model)
    if before.keys() != now.keys():
        return {}
    model = {f"model.{key}": (now[key], before[key]) for key in now if now[key] != before[key]}
    data = {"data": (requested.data.name, trained.data.name)} if requested.data.name != trained.data.name else {}
    return model or data


def _check_data(trained: Settings, requested: Settings) -> None:
    """Raise UsageError if other samples would be held out: the model may have been trained on them."""
    if trained.data.name != requested.data.name:
        return
    before, now = options_of(trained.data), options_of(requested.data)
    for key in getattr(trained.data, "split_keys", SPLIT_KEYS):
        if before.get(key) != now.get(key):
            line = "cannot change after training, or the model would be tested on its training samples"
            raise UsageError(f"data.{key}: {line}")


@contextlib.contextmanager
def seeded(run: TrainedRun) -> Iterator[None]:
    """Set torch's seed to the run's seed inside the block, then restore the random states of the caller.

    The noise of Hutchinson's trace estimator, for example, is then the same in every evaluation.
    """
    device = next(run.task.model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(run.settings.seed)
        yield


def _load_and_warn(path: Path, overrides: list[str]) -> TrainedRun:
    """Load a run, prepare the processor as in training, and warn about each override that has no effect."""
    run = load_run(path, overrides)
    prepare_processor(run.settings, choose_device(run.settings.device))
    for line in without_effect(run.settings, overrides):
        log.warning(line)
    return run


def evaluate_run(
    path: Path,
    overrides: list[str],
    split: str = "validation",
    limit: int | None = None,
    output: Path | None = None,
) -> dict[str, float]:
    """Evaluate a finished run with other settings, print the metrics, and append them to the run's evaluations.jsonl.

    limit: evaluate only this many samples of the split. output: a new CSV file for the numbers.
    """
    run = _load_and_warn(path, overrides)
    if limit is not None:
        run.task.limit_split(split, limit)
    with seeded(run):
        metrics = run.task.evaluate(split)
    rows = [("run", describe_settings(with_evaluation_solver(run.settings)))]
    rows += [(f"{split} {name}", text) for name, text in run.task.format_metrics(metrics)]
    if "nfe" in metrics:
        rows.append(("NFE per batch", f"{metrics['nfe']:.1f}"))
    line = append_evaluation(run, overrides, split, limit, metrics)
    if output is not None:
        write_evaluations([line], output)
    print_table(rows)
    return metrics


def append_evaluation(
    run: TrainedRun, overrides: Sequence[str], split: str, limit: int | None, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """Append a line to the run's evaluations.jsonl: time, overrides, split, solver and metrics. Return its content.

    Logs a warning if the file cannot be written, for example because the folder belongs to another user.
    """
    solver = run.settings.evaluation_solver
    tol = solver.rtol if solver.rtol == solver.atol else f"{solver.rtol or 0:g}/{solver.atol or 0:g}"
    line = {
        "time": utc_now(),
        "overrides": overrides,
        "split": split,
        "limit": limit,
        "weights_step": run.weights_step,
        "solver": solver.name,
        "tol": None if solver.fixed else tol,
        **metrics,
    }
    path = run.path / layout.EVALUATIONS
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json_line(line))
    except OSError as error:
        log.warning("this evaluation was not saved: %s cannot be written (%s)", path, error.strerror)
    return line


def write_evaluations(lines: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Write lines of evaluations.jsonl as CSV. Each override has a column, a value that a line lacks is empty."""
    rows = [dict(one.split("=", 1) for one in line["overrides"]) | dict(line) for line in lines]
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "overrides"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(output, text.getvalue().encode())


def predict_run(
    path: Path,
    overrides: list[str],
    split: str = "validation",
    output: Path | None = None,
    limit: int | None = None,
) -> None:
    """Write a run's predictions for the first `limit` samples of a split as CSV, to a new file or to stdout."""
    if output is not None:
        check_file_can_be_made(output, f"--output {output}")
    run = _load_and_warn(path, overrides)
    if limit is not None:
        run.task.limit_split(split, limit)
    with seeded(run):
        columns = run.task.predict(split)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(columns), *zip(*columns.values(), strict=True)])
    _write_text(text.getvalue(), output)


def _write_text(text: str, output: Path | None) -> None:
    """Write to a new file, or to stdout."""
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text.encode())


SAMPLE_SUFFIXES = (".csv", ".npy", ".png")
MAX_SAMPLES = 1_000_000_000


def sample_run(
    path: Path, overrides: list[str], num: int = 100, seed: int = 0, output: Path | None = None
) -> np.ndarray:
    """Draw samples [num, *shape] from a finished density model. The same seed gives the same samples.

    They are written to stdout as CSV with columns x0, x1, ..., or to a new file (.csv or .npy; images: .npy or .png).
    Raises UsageError if the model draws no samples, or if a file of this type cannot hold them.
    """
    if not 1 <= num <= MAX_SAMPLES:
        raise UsageError(f"--num {num}: must be at least 1" if num < 1 else f"--num {num}: at most {MAX_SAMPLES:,}")
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: must be at least 0 and below 2^63")
    if output is not None and output.suffix not in SAMPLE_SUFFIXES:
        raise UsageError(f"--output {output}: samples are written to files ending with {', '.join(SAMPLE_SUFFIXES)}")
    if output is not None:
        check_file_can_be_made(output, f"--output {output}")
    if seeds := [override for override in overrides if override.partition("=")[0] == "seed"]:
        raise UsageError(f"{seeds[0]}: set the seed of the samples with --seed {seeds[0].partition('=')[2]}")
    run = _load_and_warn(path, overrides)
    draw = getattr(run.task, "sample", None)
    if draw is None:
        line = f"its task is {run.settings.task}; only density models do, such as model=cnf"
        raise UsageError(f"{run.settings.model.name} draws no samples: {line}")
    _check_format(list(draw(1, seed).shape[1:]), output)
    samples: np.ndarray = draw(num, seed).numpy()
    _write_samples(samples, output)
    return samples


def _check_format(shape: list[int], output: Path | None) -> None:
    """Raise UsageError if samples of this shape cannot be written to this file, or to stdout."""
    are_images, suffix = len(shape) == 3, ".csv" if output is None else output.suffix
    if are_images and suffix == ".csv":
        raise UsageError(f"the samples are images {shape}; write them to a file: --output FILE.png or FILE.npy")
    if suffix == ".png" and not are_images:
        raise UsageError(f"--output {output}: the samples are vectors {shape}, not images; use FILE.csv or FILE.npy")


def _write_samples(samples: np.ndarray, output: Path | None) -> None:
    if output is None or output.suffix == ".csv":
        text = io.StringIO()
        header = ",".join(f"x{i}" for i in range(samples.shape[1]))
        np.savetxt(text, samples, fmt="%.9g", delimiter=",", header=header, comments="")
        _write_text(text.getvalue(), output)
        return
    file = io.BytesIO()
    if output.suffix == ".npy":
        np.save(file, samples)
    else:
        image_grid(samples).savefig(file, format="png", dpi=150)
    write_atomically(output, file.getvalue())


def with_evaluation_solver(settings: Settings) -> Settings:
    """Return the settings, with the solver replaced by the evaluation solver."""
    return replace(settings, solver=settings.evaluation_solver)

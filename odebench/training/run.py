"""A run from settings to record: train it, go on with it."""

import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from odebench.errors import Diverged, UsageError
from odebench.plots.curves import training_curves
from odebench.record import manifest, schema
from odebench.record.reader import RunRecord, read_metrics, read_run
from odebench.record.writer import Record
from odebench.settings import Settings, read_settings, run_name, warnings
from odebench.tasks import build_task
from odebench.training.checkpoint import Training, load_weights
from odebench.training.loop import fit
from odebench.training.machine import compile_model, prepare
from odebench.training.signals import StopRequest
from odebench.training.summary import closing_numbers, describe, training_table

log = logging.getLogger(__name__)

DONE, FAILED, DIVERGED, STOPPED = 0, 1, 3, 75


@dataclass(frozen=True)
class RunResult:
    """How a run ended: the command's exit code, the run's folder, the objective's best value."""

    exit_code: int
    folder: Path
    objective: float | None = None


def train_run(config: DictConfig, overrides: list[str]) -> RunResult:
    """Train as the composed settings say, into a new record, and print what came out.

    Raises UsageError, with nothing written, where the settings cannot be meant or their data is missing.
    """
    settings = read_settings(config)
    training = _build(settings)
    device = next(training.task.model.parameters()).device
    about = manifest.gather(config, device, training.task.provenance, {"seed": settings.seed})
    with Record.create(_folder(settings), config, overrides, about) as record:
        return _run(training, settings, record)


def resume_run(path: Path) -> RunResult:
    """Go on with a run from its last checkpoint, or from its start where it left none.

    A run that is done is left alone: its result is printed again. Raises UsageError where there is no run.
    """
    run = read_run(path)
    settings = read_settings(run.settings)
    if run.status["status"] == "done":
        log.info("%s is done already", path)
        print(training_table(run.summary, path))
        return RunResult(DONE, path, run.summary.get("objective"))
    training = _build(settings)
    checkpoint = path / schema.LAST_CHECKPOINT
    if checkpoint.exists():
        training.load(checkpoint)
    device = next(training.task.model.parameters()).device
    about = manifest.gather(run.settings, device, training.task.provenance, {"seed": settings.seed})
    with Record.reopen(path, training.progress.step, about) as record:
        log.info("going on after step %d", training.progress.step)
        return _run(training, settings, record)


def _build(settings: Settings) -> Training:
    for warning in warnings(settings):
        log.warning(warning)
    device = prepare(settings)
    task = build_task(settings, device)
    if settings.init_from is not None:
        source = read_run(settings.init_from, metrics=False)
        load_weights(task.model, source.path / schema.BEST_CHECKPOINT, settings.model.name)
        _warn_of_leakage(source, task.provenance)
    if settings.trainer.compile:
        compile_model(task)
    return Training(settings, task)


def _warn_of_leakage(source: RunRecord, provenance: Mapping[str, Any]) -> None:
    theirs, ours = source.manifest.get("data", {}), provenance
    if theirs.get("name") == ours["name"] and theirs["splits"]["validation"] != ours["splits"]["validation"]:
        log.warning(
            "init_from=%s was trained with other validation images: some of these may be among its training images",
            source.path,
        )


def _folder(settings: Settings) -> Path:
    if settings.run_dir is not None:
        return Path(settings.run_dir)
    now = datetime.now()
    # Microseconds, so that runs that start together have folders of their own.
    return Path(settings.outputs) / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}_{run_name(settings)}"


def _run(training: Training, settings: Settings, record: Record) -> RunResult:
    """Train, test once, and end with a status whatever happens."""
    folder, progress = record.path, training.progress
    log.info("%s on %s, record in %s", describe(settings), settings.data.name, folder)
    if training.task.note:
        log.info(training.task.note)
    try:
        # A signal that comes during the test only waits for its end.
        with StopRequest() as stop:
            if not fit(training, settings, record, stop):
                message = f"stopped by {stop.name} after step {progress.step}"
                record.status("interrupted", step=progress.step, message=message)
                log.warning("%s; go on with: odebench resume %s", message, folder)
                return RunResult(STOPPED, folder, progress.best)
            summary = _finish(training, settings, record)
            record.status("done", step=progress.step)
        print(training_table(summary, folder))
        return RunResult(DONE, folder, progress.best)
    except Diverged as error:
        message = f"after step {progress.step}: {error}"
        record.status("diverged", step=progress.step, message=message)
        log.error("diverged %s (record in %s)", message, folder)
        return RunResult(DIVERGED, folder, progress.best)
    except KeyboardInterrupt:
        record.status("interrupted", step=progress.step, message="stopped at once by a second Ctrl-C")
        log.warning("stopped at once; go on with: odebench resume %s", folder)
        return RunResult(STOPPED, folder, progress.best)
    except UsageError:
        record.status("failed", step=progress.step, traceback=traceback.format_exc())
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        log.error("failed: %s (traceback in %s)", message, folder / schema.LOG)
        record.status("failed", step=progress.step, message=message, traceback=traceback.format_exc())
        return RunResult(FAILED, folder, progress.best)


def _finish(training: Training, settings: Settings, record: Record) -> dict[str, Any]:
    """Test the best weights, once; draw; sum up. Returns the summary."""
    task, progress, folder = training.task, training.progress, record.path
    load_weights(task.model, folder / schema.BEST_CHECKPOINT, settings.model.name)
    test = task.evaluate("test")
    record.flush()
    rows = read_metrics(folder / schema.METRICS)
    summary = {
        "run": describe(settings),
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "objective": progress.best,
        "test": test,
        **closing_numbers(rows, progress.best_step, task.steps_per_epoch),
        **{f"final/test_{name}": x for name, x in test.items() if schema.is_tag(f"final/test_{name}")},
        "final/minutes": record.elapsed_s / 60,
    }
    for name, figure in {"curves": training_curves(rows), **task.figures()}.items():
        record.figure(name, figure, progress.step)
    record.log(progress.step, {f"test/{name}": x for name, x in test.items() if schema.is_tag(f"test/{name}")})
    record.summary(summary)
    return summary

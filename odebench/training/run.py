"""A run from settings to record: train it, go on with it."""

import contextlib
import errno
import itertools
import logging
import os
import resource
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from odebench.config.read import read_settings
from odebench.config.saved import read_saved, saved_settings
from odebench.config.settings import Settings, run_name
from odebench.config.warnings import probable_mistakes, without_effect
from odebench.errors import DIVERGED, DONE, FAILED, STOPPED, Diverged, UsageError, did_you_mean
from odebench.plots.curves import training_curves
from odebench.record import layout, manifest
from odebench.record.files import locked, make_folder, refuse_folder
from odebench.record.profiling import MIB
from odebench.record.reader import RunRecord, has_checkpoint, read_metrics, read_run
from odebench.record.writer import NullRunWriter, RunWriter, claim, is_started, refuse_taken, settings_text
from odebench.tasks import Task, build_task
from odebench.training import distributed
from odebench.training.checkpoint import TrainingState, load_weights
from odebench.training.environment import choose_device, compile_model, prepare
from odebench.training.inference import SAME_IMAGES, load_fitting
from odebench.training.loop import fit
from odebench.training.signals import StopRequest
from odebench.training.summary import closing_numbers, describe, results, training_table

log = logging.getLogger(__name__)

# Also a validation or a test, which may take minutes, comes to its end first.
_STOPPING = "finishes what is under way, saves and leaves"


@dataclass(frozen=True)
class RunResult:
    """How a run ended: the command's exit code, the run's folder, the objective's best value."""

    exit_code: int
    folder: Path
    objective: float | None = None


def train_run(config: DictConfig, overrides: list[str]) -> RunResult:
    """Train as the composed settings say, into a new record, and print what came out.

    Where run_dir holds a run of the same settings already, it is that run which goes on: the same command, given again
    by a job script, ends in the same numbers. Raises UsageError, with nothing written, where the settings cannot be
    meant or their data is missing.
    """
    if root := OmegaConf.select(config, "data.root"):
        # So that the run can be evaluated from anywhere.
        OmegaConf.update(config, "data.root", str(Path(root).expanduser().absolute()))
    settings = read_settings(config)
    with distributed.joined(choose_device(settings.device)):
        if distributed.from_first(lambda: _holds(settings.run_dir, config)):
            return resume_run(Path(str(settings.run_dir)))
        distributed.from_first(lambda: refuse_folder(*_place(settings)))
        for line in without_effect(settings, overrides):
            log.warning(line)
        training = _build(settings)
        folder = distributed.from_first(lambda: _make_folder(settings))
        about, measured = _about(config, training, settings), training.task.measured
        with (
            _locked(folder),
            StopRequest(at_once=_STOPPING) as stop,
            _record(folder, lambda: RunWriter.create(folder, config, overrides, about, measured)) as record,
        ):
            result = _run(training, settings, record, stop)
    return _passed_on(result, stop)


def resume_run(path: Path) -> RunResult:
    """Go on with a run from its last checkpoint, or from its start where it left none.

    A run that is done is left alone: its result is printed again. Raises UsageError where there is no run, or another
    process has it.
    """
    run = read_run(path)
    saved = saved_settings(run.settings, run.path)
    settings = read_saved(saved, run.path / layout.SETTINGS)
    with distributed.joined(choose_device(settings.device)):
        if distributed.from_first(lambda: run.status["status"] == "done"):
            if distributed.is_first():
                log.info("%s is done already", path)
                if "run" not in run.summary:
                    raise UsageError(f"{path / layout.SUMMARY} is damaged: it holds no result; odebench eval gives one")
                print(training_table(run.summary, path))
            return RunResult(DONE, path, run.summary.get("objective"))
        with _locked(path):
            last = path / layout.LAST_CHECKPOINT
            found = has_checkpoint(path)
            # A checkpoint's weights replace those of init_from, a run that may be gone by now.
            training = _build(replace(settings, init_from=None) if found else settings)
            _load_newest(training, last)
            step, elapsed_s = training.progress.step, training.progress.elapsed_s
            about, measured = _about(saved, training, settings), training.task.measured
            with (
                StopRequest(at_once=_STOPPING) as stop,
                _record(path, lambda: RunWriter.reopen(path, step, about, measured, elapsed_s)) as record,
            ):
                if found:
                    log.info("going on after step %d", step)
                else:
                    log.warning("no checkpoint is left in %s: starts anew", last.parent)
                result = _run(training, settings, record, stop)
    return _passed_on(result, stop)


def _holds(folder: str | None, config: DictConfig) -> bool:
    """Whether the folder holds a run of these very settings. UsageError where it holds anything else."""
    if folder is None:
        return False
    path = Path(folder)
    if is_started(path) and (path / layout.SETTINGS).read_bytes() == settings_text(config).encode():
        return True
    refuse_taken(path)
    return False


def _about(config: DictConfig, training: TrainingState, settings: Settings) -> dict[str, Any]:
    """The manifest."""
    task, num_ranks = training.task, distributed.num_ranks()
    processes = {"number": num_ranks, "batch_size": task.batch_size, "batch_size_each": task.batch_size // num_ranks}
    device = next(task.model.parameters()).device
    return manifest.gather(config, device, task.provenance, {"seed": settings.seed}) | {"processes": processes}


def _locked(folder: Path) -> AbstractContextManager[None]:
    return locked(folder / layout.LOG) if distributed.is_first() else contextlib.nullcontext()


def _record(folder: Path, make: Callable[[], RunWriter]) -> AbstractContextManager[RunWriter | NullRunWriter]:
    return make() if distributed.is_first() else contextlib.nullcontext(NullRunWriter(folder))


def _load_newest(training: TrainingState, path: Path) -> None:
    # The first process puts a checkpoint before a damaged one in its place; then all read the same.
    distributed.from_first(lambda: training.load_newest(path))
    if not distributed.is_first() and path.exists():
        training.load(path)


def _passed_on(result: RunResult, stop: StopRequest) -> RunResult:
    if result.exit_code == STOPPED:
        stop.pass_on()
    return result


def _build(settings: Settings) -> TrainingState:
    distributed.check_batch(settings.trainer.batch_size)
    for warning in probable_mistakes(settings):
        log.warning(warning)
    source = None if settings.init_from is None else _source(settings.init_from)
    device = prepare(settings)
    with distributed.first_ahead():
        try:
            task = build_task(settings, device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            both = f"model={settings.model.name} and data={settings.data.name}"
            line = f"{both} do not fit into memory; choose a smaller model, or less data"
            raise UsageError(line, "model", "data") from error
    _check_objective(settings, task)
    if source is not None:
        load_fitting(task.model, source, settings)
        _warn_of_leakage(source, task.provenance)
    if settings.trainer.compile:
        compile_model(task)
    return TrainingState(settings, task)


def _source(init_from: str) -> RunRecord:
    try:
        return read_run(init_from, metrics=False)
    except UsageError as error:
        raise UsageError(f"init_from={init_from}: {error}", "init_from") from None


def _check_objective(settings: Settings, task: Task) -> None:
    """UsageError for a number that this model, or these data, have not: it would be missed after the first epoch."""
    objective, measured = settings.trainer.objective, [f"val/{name}" for name in task.measured]
    if objective not in measured:
        raise UsageError(
            f"trainer.objective={objective}: with model={settings.model.name} and data={settings.data.name} it is not "
            f"measured{did_you_mean(objective, measured)} (there are {', '.join(measured)})",
            "trainer.objective",
        )


def _warn_of_leakage(source: RunRecord, provenance: Mapping[str, Any]) -> None:
    theirs, ours = source.manifest.get("data", {}), provenance
    validation = ours["splits"]["validation"]
    divides_otherwise = (
        theirs.get("name") == ours["name"] and theirs.get("splits", {}).get("validation", validation) != validation
    )
    if divides_otherwise or {theirs.get("name"), ours["name"]} == SAME_IMAGES:
        log.warning(
            "init_from=%s was trained with other validation samples: some of these may be among its training samples",
            source.path,
        )


def _place(settings: Settings) -> tuple[Path, str]:
    """The folder that is asked for, of the run or of its parents, and how."""
    chosen = settings.run_dir or settings.outputs
    return Path(chosen), f"{'outputs' if settings.run_dir is None else 'run_dir'}={chosen}"


def _make_folder(settings: Settings) -> Path:
    """The folder of a new run: the one asked for, or one of its own, named by the time."""
    if settings.run_dir is not None:
        claim(folder := Path(settings.run_dir))
        return folder
    now = datetime.now()
    (outputs, named), name = _place(settings), f"{now:%H-%M-%S-%f}_{run_name(settings)}"
    parent = outputs / f"{now:%Y-%m-%d}"
    make_folder(parent, named)
    # Of runs that start in one microsecond, or after the clock was set back, all but one get a number more.
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _run(
    training: TrainingState, settings: Settings, record: RunWriter | NullRunWriter, stop: StopRequest
) -> RunResult:
    """Train, test once, and end with a status whatever happens."""
    folder, progress = record.path, training.progress
    way_on = f"go on with: odebench resume {shlex.quote(str(folder))}"
    log.info("%s on %s, record in %s", describe(settings), settings.data.name, folder)
    if training.task.note:
        log.info(training.task.note)
    try:
        distributed.copy_from_first(training.task.model)
        if not fit(training, settings, record, stop):
            message = f"stopped by {stop.name} after step {progress.step}"
            record.status("interrupted", step=progress.step, message=message)
            log.warning("%s; %s", message, way_on)
            # All leave together, here as below: what started them ends the others once one has left.
            with contextlib.suppress(ConnectionError):
                distributed.wait_for_all()
            return RunResult(STOPPED, folder, progress.best)
        # A signal that comes during the test only waits for its end.
        if isinstance(record, RunWriter):
            summary = _finish(training, settings, record)
            record.flush()
            record.status("done", step=progress.step)
            print(training_table(summary, folder))
        # All leave together: gloo's threads can end a process that leaves while another is connected to it.
        distributed.wait_for_all()
        return RunResult(DONE, folder, progress.best)
    except Diverged as error:
        message = f"after step {progress.step}: {error}"
        record.status("diverged", step=progress.step, message=message)
        log.error("diverged %s (record in %s)", message, folder)
        return RunResult(DIVERGED, folder, progress.best)
    except KeyboardInterrupt:
        record.status("interrupted", step=progress.step, message="stopped at once by a second Ctrl-C")
        log.warning("stopped at once; %s", way_on)
        return RunResult(STOPPED, folder, progress.best)
    except UsageError as error:
        record.status("failed", step=progress.step, message=str(error), traceback=traceback.format_exc())
        raise
    except Exception as error:
        message = reason(error, settings, folder)
        log.critical("failed: %s (record in %s)", message, folder)
        with contextlib.suppress(OSError):  # a folder that cannot be written to any more
            record.status("failed", step=progress.step, message=message, traceback=traceback.format_exc())
        return RunResult(FAILED, folder, progress.best)


def _finish(training: TrainingState, settings: Settings, record: RunWriter) -> dict[str, Any]:
    """Test the best weights, once; draw; sum up. Returns the summary."""
    task, progress, folder = training.task, training.progress, record.path
    load_weights(task.model, folder / layout.BEST_CHECKPOINT, settings.model.name)
    test = task.evaluate("test")
    record.flush()
    rows = read_metrics(folder / layout.METRICS)
    closing = closing_numbers(rows, progress.best_step, task.steps_per_epoch)
    best = {tag.removeprefix("best/"): value for tag, value in closing.items() if tag.startswith("best/")}
    summary = {
        "run": describe(settings),
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "objective": progress.best,
        "test": test,
        "results": results(task.rows(test), task.rows(best), best["epoch"]),
        **closing,
        **{f"final/test_{name}": x for name, x in test.items() if layout.is_tag(f"final/test_{name}")},
        "final/minutes": record.elapsed_s / 60,
    }
    for name, figure in {"curves": training_curves(rows), **task.figures()}.items():
        record.figure(name, figure, progress.step)
    record.log(progress.step, {f"test/{name}": x for name, x in test.items() if layout.is_tag(f"test/{name}")})
    record.summary(summary)
    return summary


_FULL = (errno.ENOSPC, errno.EDQUOT)


def reason(error: Exception, settings: Settings, folder: Path) -> str:
    """Why the run in a folder failed, in one line."""
    if is_out_of_memory(error):
        return _out_of_memory(settings)
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        way_out = (
            f"; make room, then go on with: odebench resume {shlex.quote(str(folder))}" if error.errno in _FULL else ""
        )
        return f"{os.strerror(error.errno)}{where}{way_out}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory left, on the CPU or on a GPU."""
    # The CPU's allocator raises a bare RuntimeError; nothing but its text tells.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory(settings: Settings) -> str:
    trainer = settings.trainer
    ways_out = [f"lower trainer.batch_size={trainer.batch_size}"]
    if settings.has_ode and settings.gradient.name == "backprop":
        ways_out.append("choose gradient=checkpoint or gradient=adjoint")
    ways_out.append(f"lower trainer.eval_batch_size={trainer.eval_batch_size} where an evaluation failed")
    return f"out of memory after a peak of {_peak_mib():,.0f} MiB; {', or '.join(ways_out)}"


def _peak_mib() -> float:
    """The most that this process has held: of the GPU's memory, else of the machine's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB

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
from odebench.record.files import check_folder_can_be_made, file_lock, make_folder
from odebench.record.profiling import MIB
from odebench.record.reader import RunRecord, has_checkpoint, read_metrics, read_run
from odebench.record.writer import (
    NullRunWriter,
    RunWriter,
    check_folder_is_free,
    claim_folder,
    has_started,
    settings_yaml,
)
from odebench.tasks import Task, build_task
from odebench.training import distributed
from odebench.training.checkpoint import TrainingState, load_weights
from odebench.training.environment import choose_device, compile_model, prepare_environment
from odebench.training.inference import DATA_SHARING_IMAGES, load_best_weights
from odebench.training.loop import fit
from odebench.training.signals import StopRequest
from odebench.training.summary import describe_settings, result_rows, summary_metrics, training_table

log = logging.getLogger(__name__)

# Also a validation or a test, which may take minutes, comes to its end first.
_STOP_NOTICE = "finishes what is under way, saves and leaves"


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
    with distributed.process_group(choose_device(settings.device)):
        if distributed.broadcast_result(lambda: _contains_same_run(settings.run_dir, config)):
            return resume_run(Path(str(settings.run_dir)))
        distributed.broadcast_result(lambda: check_folder_can_be_made(*_requested_folder(settings)))
        for line in without_effect(settings, overrides):
            log.warning(line)
        training = _build_training(settings)
        folder = distributed.broadcast_result(lambda: _make_folder(settings))
        manifest_content, quantities = _manifest(config, training, settings), training.task.quantities
        with (
            _run_lock(folder),
            StopRequest(notice=_STOP_NOTICE) as stop,
            _open_writer(
                folder, lambda: RunWriter.create(folder, config, overrides, manifest_content, quantities)
            ) as record,
        ):
            result = _train_and_test(training, settings, record, stop)
    return _forward_signal(result, stop)


def resume_run(path: Path) -> RunResult:
    """Go on with a run from its last checkpoint, or from its start where it left none.

    A run that is done is left alone: its result is printed again. Raises UsageError where there is no run, or another
    process has it.
    """
    run = read_run(path)
    saved = saved_settings(run.settings, run.path)
    settings = read_saved(saved, run.path / layout.SETTINGS)
    with distributed.process_group(choose_device(settings.device)):
        if distributed.broadcast_result(lambda: run.status["status"] == "done"):
            if distributed.is_rank_zero():
                log.info("%s is done already", path)
                if "run" not in run.summary:
                    raise UsageError(f"{path / layout.SUMMARY} is damaged: it holds no result; odebench eval gives one")
                print(training_table(run.summary, path))
            return RunResult(DONE, path, run.summary.get("objective"))
        with _run_lock(path):
            last = path / layout.LAST_CHECKPOINT
            found = has_checkpoint(path)
            # A checkpoint's weights replace those of init_from, a run that may be gone by now.
            training = _build_training(replace(settings, init_from=None) if found else settings)
            _load_latest(training, last)
            step, elapsed_s = training.progress.step, training.progress.elapsed_s
            manifest_content, quantities = _manifest(saved, training, settings), training.task.quantities
            with (
                StopRequest(notice=_STOP_NOTICE) as stop,
                _open_writer(
                    path, lambda: RunWriter.reopen(path, step, manifest_content, quantities, elapsed_s)
                ) as record,
            ):
                if found:
                    log.info("going on after step %d", step)
                else:
                    log.warning("no checkpoint is left in %s: starts anew", last.parent)
                result = _train_and_test(training, settings, record, stop)
    return _forward_signal(result, stop)


def _contains_same_run(folder: str | None, config: DictConfig) -> bool:
    """Whether the folder holds a run of these very settings. UsageError where it holds anything else."""
    if folder is None:
        return False
    path = Path(folder)
    if has_started(path) and (path / layout.SETTINGS).read_bytes() == settings_yaml(config).encode():
        return True
    check_folder_is_free(path)
    return False


def _manifest(config: DictConfig, training: TrainingState, settings: Settings) -> dict[str, Any]:
    """The manifest."""
    task, num_ranks = training.task, distributed.world_size()
    processes = {"number": num_ranks, "batch_size": task.batch_size, "batch_size_each": task.batch_size // num_ranks}
    device = next(task.model.parameters()).device
    return manifest.build_manifest(config, device, task.provenance, {"seed": settings.seed}) | {"processes": processes}


def _run_lock(folder: Path) -> AbstractContextManager[None]:
    return file_lock(folder / layout.LOG) if distributed.is_rank_zero() else contextlib.nullcontext()


def _open_writer(folder: Path, make: Callable[[], RunWriter]) -> AbstractContextManager[RunWriter | NullRunWriter]:
    return make() if distributed.is_rank_zero() else contextlib.nullcontext(NullRunWriter(folder))


def _load_latest(training: TrainingState, path: Path) -> None:
    # The first process puts a checkpoint before a damaged one in its place; then all read the same.
    distributed.broadcast_result(lambda: training.load_latest(path))
    if not distributed.is_rank_zero() and path.exists():
        training.load(path)


def _forward_signal(result: RunResult, stop: StopRequest) -> RunResult:
    if result.exit_code == STOPPED:
        stop.forward()
    return result


def _build_training(settings: Settings) -> TrainingState:
    distributed.check_batch_size(settings.trainer.batch_size)
    for warning in probable_mistakes(settings):
        log.warning(warning)
    source = None if settings.init_from is None else _read_init_run(settings.init_from)
    device = prepare_environment(settings)
    with distributed.rank_zero_first():
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
        load_best_weights(task.model, source, settings)
        _warn_about_leakage(source, task.provenance)
    if settings.trainer.compile:
        compile_model(task)
    return TrainingState(settings, task)


def _read_init_run(init_from: str) -> RunRecord:
    try:
        return read_run(init_from, metrics=False)
    except UsageError as error:
        raise UsageError(f"init_from={init_from}: {error}", "init_from") from None


def _check_objective(settings: Settings, task: Task) -> None:
    """UsageError for a number that this model, or these data, have not: it would be missed after the first epoch."""
    objective, measured = settings.trainer.objective, [f"val/{name}" for name in task.quantities]
    if objective not in measured:
        raise UsageError(
            f"trainer.objective={objective}: with model={settings.model.name} and data={settings.data.name} it is not "
            f"measured{did_you_mean(objective, measured)} (there are {', '.join(measured)})",
            "trainer.objective",
        )


def _warn_about_leakage(source: RunRecord, provenance: Mapping[str, Any]) -> None:
    theirs, ours = source.manifest.get("data", {}), provenance
    validation = ours["splits"]["validation"]
    divides_otherwise = (
        theirs.get("name") == ours["name"] and theirs.get("splits", {}).get("validation", validation) != validation
    )
    if divides_otherwise or {theirs.get("name"), ours["name"]} == DATA_SHARING_IMAGES:
        log.warning(
            "init_from=%s was trained with other validation samples: some of these may be among its training samples",
            source.path,
        )


def _requested_folder(settings: Settings) -> tuple[Path, str]:
    """The folder that is asked for, of the run or of its parents, and how."""
    chosen = settings.run_dir or settings.outputs
    return Path(chosen), f"{'outputs' if settings.run_dir is None else 'run_dir'}={chosen}"


def _make_folder(settings: Settings) -> Path:
    """The folder of a new run: the one asked for, or one of its own, named by the time."""
    if settings.run_dir is not None:
        claim_folder(folder := Path(settings.run_dir))
        return folder
    now = datetime.now()
    (outputs, named), name = _requested_folder(settings), f"{now:%H-%M-%S-%f}_{run_name(settings)}"
    parent = outputs / f"{now:%Y-%m-%d}"
    make_folder(parent, named)
    # Of runs that start in one microsecond, or after the clock was set back, all but one get a number more.
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _train_and_test(
    training: TrainingState, settings: Settings, record: RunWriter | NullRunWriter, stop: StopRequest
) -> RunResult:
    """Train, test once, and end with a status whatever happens."""
    folder, progress = record.path, training.progress
    way_on = f"go on with: odebench resume {shlex.quote(str(folder))}"
    log.info("%s on %s, record in %s", describe_settings(settings), settings.data.name, folder)
    if training.task.note:
        log.info(training.task.note)
    try:
        distributed.broadcast_model(training.task.model)
        if not fit(training, settings, record, stop):
            message = f"stopped by {stop.name} after step {progress.step}"
            record.write_status("interrupted", step=progress.step, message=message)
            log.warning("%s; %s", message, way_on)
            # All leave together, here as below: what started them ends the others once one has left.
            with contextlib.suppress(ConnectionError):
                distributed.barrier()
            return RunResult(STOPPED, folder, progress.best)
        # A signal that comes during the test only waits for its end.
        if isinstance(record, RunWriter):
            summary = _test_and_summarise(training, settings, record)
            record.flush()
            record.write_status("done", step=progress.step)
            print(training_table(summary, folder))
        # All leave together: gloo's threads can end a process that leaves while another is connected to it.
        distributed.barrier()
        return RunResult(DONE, folder, progress.best)
    except Diverged as error:
        message = f"after step {progress.step}: {error}"
        record.write_status("diverged", step=progress.step, message=message)
        log.error("diverged %s (record in %s)", message, folder)
        return RunResult(DIVERGED, folder, progress.best)
    except KeyboardInterrupt:
        record.write_status("interrupted", step=progress.step, message="stopped at once by a second Ctrl-C")
        log.warning("stopped at once; %s", way_on)
        return RunResult(STOPPED, folder, progress.best)
    except UsageError as error:
        record.write_status("failed", step=progress.step, message=str(error), traceback=traceback.format_exc())
        raise
    except Exception as error:
        message = failure_message(error, settings, folder)
        log.critical("failed: %s (record in %s)", message, folder)
        with contextlib.suppress(OSError):  # a folder that cannot be written to any more
            record.write_status("failed", step=progress.step, message=message, traceback=traceback.format_exc())
        return RunResult(FAILED, folder, progress.best)


def _test_and_summarise(training: TrainingState, settings: Settings, record: RunWriter) -> dict[str, Any]:
    """Test the best weights, once; draw; sum up. Returns the summary."""
    task, progress, folder = training.task, training.progress, record.path
    load_weights(task.model, folder / layout.BEST_CHECKPOINT, settings.model.name)
    test = task.evaluate("test")
    record.flush()
    rows = read_metrics(folder / layout.METRICS)
    closing = summary_metrics(rows, progress.best_step, task.steps_per_epoch)
    best = {tag.removeprefix("best/"): value for tag, value in closing.items() if tag.startswith("best/")}
    summary = {
        "run": describe_settings(settings),
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "objective": progress.best,
        "test": test,
        "results": result_rows(task.format_metrics(test), task.format_metrics(best), best["epoch"]),
        **closing,
        **{f"final/test_{name}": x for name, x in test.items() if layout.is_tag(f"final/test_{name}")},
        "final/minutes": record.elapsed_s / 60,
    }
    for name, figure in {"curves": training_curves(rows), **task.figures()}.items():
        record.write_figure(name, figure, progress.step)
    record.log(progress.step, {f"test/{name}": x for name, x in test.items() if layout.is_tag(f"test/{name}")})
    record.write_summary(summary)
    return summary


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def failure_message(error: Exception, settings: Settings, folder: Path) -> str:
    """Why the run in a folder failed, in one line."""
    if is_out_of_memory(error):
        return _out_of_memory_message(settings)
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        way_out = (
            f"; make room, then go on with: odebench resume {shlex.quote(str(folder))}"
            if error.errno in _DISK_FULL
            else ""
        )
        return f"{os.strerror(error.errno)}{where}{way_out}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory left, on the CPU or on a GPU."""
    # The CPU's allocator raises a bare RuntimeError; nothing but its text tells.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory_message(settings: Settings) -> str:
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

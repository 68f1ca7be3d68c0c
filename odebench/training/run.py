"""Train a run and write its record, or resume it."""

import contextlib
import errno
import itertools
import logging
import os
import resource
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.config.saved import saved_settings
from odebench.config.settings import Settings, run_name
from odebench.config.warnings import probable_mistakes, without_effect
from odebench.console import print_results, terminal_width
from odebench.errors import DIVERGED, DONE, FAILED, STOPPED, WRONG_USAGE, Diverged, UsageError, did_you_mean
from odebench.plots.comparison import comparison_figure
from odebench.plots.curves import training_curves
from odebench.plots.step_sizes import step_size_panel
from odebench.record import layout, manifest
from odebench.record.files import check_folder_can_be_made, file_lock, make_folder
from odebench.record.profiling import MIB
from odebench.record.reader import RunRecord, has_checkpoint, read_metrics, read_run
from odebench.record.steps import read_longest_solve
from odebench.record.writer import (
    NullRunWriter,
    RunWriter,
    change_labels,
    check_folder_is_free,
    claim_folder,
    has_started,
    settings_yaml,
)
from odebench.tasks import Task, build_task
from odebench.training import distributed
from odebench.training.changes import apply_changes, check_new_length, log_new_schedule
from odebench.training.checkpoint import TrainingState, load_weights
from odebench.training.environment import choose_device, compile_model, prepare_environment
from odebench.training.loop import fit
from odebench.training.preflight import check_batch_size, check_folders, read_init_run, requested_folder
from odebench.training.signals import StopRequest
from odebench.training.summary import describe_settings, result_rows, summary_metrics, training_table
from odebench.training.trained_run import DATA_SHARING_IMAGES, TrainedRun, load_best_weights, load_run

log = logging.getLogger(__name__)

# The current operation may be a validation or a test, which can take minutes.
_STOP_NOTICE = "finishing the current operation, then saving and exiting"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class RunResult:
    """How a run ended: exit code of the command, folder of the run, best value of the objective."""

    exit_code: int
    folder: Path
    objective: float | None = None


def train_run(config: DictConfig, overrides: list[str], settings: Settings | None = None) -> RunResult:
    """Train with the composed settings, write a new record, and print the results.

    settings: the settings in ``config``, if they have been read already. If run_dir holds a run with the same settings,
    that run is resumed, because a job script may repeat its command. Raises UsageError, before anything is written, if
    the settings are invalid or the data is missing.
    """
    settings = read_settings(config) if settings is None else settings
    with distributed.process_group(choose_device(settings.device)):
        if distributed.broadcast_result(lambda: _contains_same_run(settings.run_dir, config)):
            return resume_run(Path(str(settings.run_dir)))
        distributed.broadcast_result(lambda: check_folder_can_be_made(*requested_folder(settings)))
        for line in without_effect(settings, overrides):
            log.warning(line)
        training = _build_training(settings)
        folder = distributed.broadcast_result(lambda: _make_folder(settings))
        content, quantities = _manifest(config, training, settings), training.task.quantities
        with (
            _run_lock(folder),
            StopRequest(notice=_STOP_NOTICE) as stop,
            _open_writer(folder, lambda: RunWriter.create(folder, config, overrides, content, quantities)) as writer,
        ):
            result = _train_and_test(training, settings, writer, stop)
    return _forward_signal(result, stop)


def train(overrides: Sequence[str] = (), config_dir: Path | str | None = None) -> TrainedRun:
    """Train a model from Python, and load it as `load_run` does. The record and the printed results are the command's.

    overrides: settings as on the command line: ``["model=odenet", "tol=1e-3"]``. config_dir: see ``--config-dir``.

    Raises UsageError for wrong settings, Diverged, RuntimeError if the training failed, and KeyboardInterrupt if it was
    stopped. The last three name the folder, which can be resumed or loaded.
    """
    if isinstance(overrides, str):
        raise UsageError(f"{overrides}: settings are a list, such as {overrides.split()}")
    config = compose(overrides, config_dir)
    settings = read_settings(config)
    check_folders(settings)
    result = train_run(config, list(overrides), settings)
    if result.exit_code == DONE:
        return load_run(result.folder)
    kind = {DIVERGED: Diverged, STOPPED: KeyboardInterrupt}.get(result.exit_code, RuntimeError)
    raise kind(f"{read_run(result.folder, metrics=False).status.get('message')} (record in {result.folder})")


def resume_run(path: Path, overrides: Sequence[str] = ()) -> RunResult:
    """Resume a run from its last checkpoint, or from the start if there is none.

    overrides: settings to change; see `check_resumable`. A finished run is not trained unless they make it longer; its
    results are printed again. Raises UsageError, before anything is written, if there is no run in ``path``, if another
    process uses it, or if it cannot go on with these settings.
    """
    run = read_run(path)
    saved = saved_settings(run.settings, run.path)
    settings, is_length_new = apply_changes(saved, overrides, run)
    with distributed.process_group(choose_device(settings.device)):
        is_done = distributed.broadcast_result(lambda: run.status["status"] == "done")
        if is_done and not is_length_new:
            return _finish_again(run, saved, overrides)
        with _run_lock(path):
            last = path / layout.LAST_CHECKPOINT
            found = has_checkpoint(path)
            if is_done and not found:
                raise UsageError(f"no checkpoint in {last.parent}: this finished run cannot be trained longer")
            # Without init_from: the checkpoint replaces its weights, and that run may no longer exist.
            training = _build_training(replace(settings, init_from=None) if found else settings)
            _load_latest(training, last)
            if is_length_new:
                check_new_length(settings.trainer, training.progress, training.task.steps_per_epoch)
            if training.progress.finished and is_length_new:
                training.progress.finished = False
                training.save(last)  # before the record changes: if this process is killed, the next one goes on
            step, elapsed_s = training.progress.step, training.progress.elapsed_s
            content, quantities = _manifest(saved, training, settings), training.task.quantities
            changed = (saved, overrides) if overrides else None
            with (
                StopRequest(notice=_STOP_NOTICE) as stop,
                _open_writer(
                    path, lambda: RunWriter.reopen(path, step, content, quantities, elapsed_s, changed)
                ) as writer,
            ):
                log_new_schedule(run.settings, settings, training)
                if found:
                    log.info("resuming after step %d", step)
                else:
                    log.warning("no checkpoint in %s: starting from the beginning", last.parent)
                result = _train_and_test(training, settings, writer, stop)
    return _forward_signal(result, stop)


def _finish_again(run: RunRecord, saved: DictConfig, overrides: Sequence[str]) -> RunResult:
    """Print the results of a finished run again. overrides: those that changed its name, tags or notes."""
    for override in overrides:
        if override.partition("=")[0] not in layout.LABELS:
            raise UsageError(f"{override}: has no effect on a finished run; trainer.epochs=N trains it longer")
    if distributed.is_rank_zero():
        log.info("%s is already done", run.path)
        if "run" not in run.summary:
            raise UsageError(f"{run.path / layout.SUMMARY} is damaged: it holds no results; use odebench eval")
        summary = change_labels(run, saved, overrides) if overrides else run.summary
        print_results(training_table(summary, run.path, terminal_width()), run.path / layout.SUMMARY)
    return RunResult(DONE, run.path, run.summary.get("objective"))


def _contains_same_run(folder: str | None, config: DictConfig) -> bool:
    """Whether the folder holds a run with exactly these settings. Raises UsageError if it holds anything else."""
    if folder is None:
        return False
    path = Path(folder)
    if has_started(path) and (path / layout.SETTINGS).read_bytes() == settings_yaml(config).encode():
        return True
    check_folder_is_free(path)
    return False


def _manifest(config: DictConfig, training: TrainingState, settings: Settings) -> dict[str, Any]:
    """Collect the manifest of the run, with the number of processes and their batch sizes."""
    task, num_ranks = training.task, distributed.world_size()
    processes = {"number": num_ranks, "batch_size": task.batch_size, "batch_size_each": task.batch_size // num_ranks}
    device = next(task.model.parameters()).device
    return manifest.build_manifest(config, device, task.provenance, {"seed": settings.seed}) | {"processes": processes}


def _run_lock(folder: Path) -> AbstractContextManager[None]:
    return file_lock(folder / layout.LOG) if distributed.is_rank_zero() else contextlib.nullcontext()


def _open_writer(folder: Path, make: Callable[[], RunWriter]) -> AbstractContextManager[RunWriter | NullRunWriter]:
    return make() if distributed.is_rank_zero() else contextlib.nullcontext(NullRunWriter(folder))


def _load_latest(training: TrainingState, path: Path) -> None:
    # Rank 0 loads first, and may replace a damaged checkpoint by the previous one. Then all read the same file.
    distributed.broadcast_result(lambda: training.load_latest(path))
    if not distributed.is_rank_zero() and path.exists():
        training.load(path)


def _forward_signal(result: RunResult, stop: StopRequest) -> RunResult:
    if result.exit_code == STOPPED:
        stop.forward()
    return result


def _build_training(settings: Settings) -> TrainingState:
    check_batch_size(settings.trainer.batch_size, distributed.world_size())
    for warning in probable_mistakes(settings):
        log.warning(warning)
    source = None if settings.init_from is None else read_init_run(settings.init_from)
    device = prepare_environment(settings)
    with distributed.rank_zero_first():
        try:
            task = build_task(settings, device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            both = f"model={settings.model.name} and data={settings.data.name}"
            line = f"{both} do not fit into memory; choose a smaller model or data set"
            raise UsageError(line, "model", "data") from error
    _check_objective(settings, task)
    if source is not None:
        load_best_weights(task.model, source, settings)
        _warn_about_leakage(source, task.provenance)
    if settings.trainer.compile:
        compile_model(task)
    return TrainingState(settings, task)


def _check_objective(settings: Settings, task: Task) -> None:
    """Raise UsageError if the objective is not measured for this model and data. Called before training starts."""
    objective, measured = settings.trainer.objective, [f"val/{name}" for name in task.quantities]
    if objective not in measured:
        hint = f"{did_you_mean(objective, measured)} (it measures {', '.join(measured)})"
        line = f"model={settings.model.name} with data={settings.data.name} does not measure it{hint}"
        raise UsageError(f"trainer.objective={objective}: {line}", "trainer.objective")


def _warn_about_leakage(source: RunRecord, provenance: Mapping[str, Any]) -> None:
    source_data = source.manifest.get("data", {})
    validation = provenance["splits"]["validation"]
    same_name = source_data.get("name") == provenance["name"]
    splits_differ = same_name and source_data.get("splits", {}).get("validation", validation) != validation
    if splits_differ or {source_data.get("name"), provenance["name"]} == DATA_SHARING_IMAGES:
        log.warning(
            "init_from=%s was trained with another validation split: its training samples may include some of this one",
            source.path,
        )


def _make_folder(settings: Settings) -> Path:
    """Make the folder of a new run: the one that run_dir requests, or one named after the time."""
    if settings.run_dir is not None:
        claim_folder(folder := Path(settings.run_dir))
        return folder
    now = datetime.now()
    (outputs, option), name = requested_folder(settings), f"{now:%H-%M-%S-%f}_{run_name(settings)}"
    parent = outputs / f"{now:%Y-%m-%d}"
    make_folder(parent, option)
    # If the name is taken (same microsecond, or the clock was set back), a number is appended.
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _train_and_test(
    training: TrainingState, settings: Settings, writer: RunWriter | NullRunWriter, stop: StopRequest
) -> RunResult:
    """Train, then test once. Writes the final status, even after an error."""
    folder, progress = writer.path, training.progress
    resume_hint = f"resume with: odebench resume {shlex.quote(str(folder))}"

    def end(exit_code: int, status: str, **fields: Any) -> RunResult:
        writer.write_status(status, step=progress.step, **fields)
        return RunResult(exit_code, folder, progress.best)

    log.info("%s on %s", describe_settings(settings), settings.data.name)
    log.info("record in %s", folder)
    if training.task.note:
        log.info(training.task.note)
    try:
        distributed.broadcast_model(training.task.model)
        if not fit(training, settings, writer, stop):
            message = f"stopped by {stop.name} after step {progress.step}"
            result = end(STOPPED, "interrupted", message=message)
            log.warning("%s; %s", message, resume_hint)
            # All processes must exit together, here and below: the launcher kills the others once one has exited.
            with contextlib.suppress(ConnectionError):
                distributed.barrier()
            return result
        # A signal during the test is ignored: the run ends as done.
        summary: dict[str, Any] = {}
        if isinstance(writer, RunWriter):
            summary = _test_and_summarise(training, settings, writer)
            writer.flush()
        # All exit together: gloo's threads can abort a process that exits while others are connected to it.
        distributed.barrier()
        result = end(DONE, "done")
    except Diverged as error:
        message = f"after step {progress.step}: {error}"
        hint = f"; test the best weights with: odebench eval {shlex.quote(str(folder))} split=test"
        log.error("diverged %s (record in %s)%s", message, folder, hint if progress.best_step else "")
        return end(DIVERGED, "diverged", message=message)
    except KeyboardInterrupt:
        log.warning("stopped at once; %s", resume_hint)
        return end(STOPPED, "interrupted", message="stopped at once by a second Ctrl-C")
    except UsageError as error:
        end(WRONG_USAGE, "failed", message=str(error), traceback=traceback.format_exc())
        raise
    except Exception as error:
        message = failure_message(error, settings, folder)
        log.critical("failed: %s (record in %s)", message, folder)
        with contextlib.suppress(OSError):  # the folder may no longer be writable
            end(FAILED, "failed", message=message, traceback=traceback.format_exc())
        return RunResult(FAILED, folder, progress.best)
    # Print after the last error handler, so that an error in printing cannot change the status.
    if summary:
        print_results(training_table(summary, folder, terminal_width()), folder / layout.SUMMARY)
    return result


def _test_and_summarise(training: TrainingState, settings: Settings, writer: RunWriter) -> dict[str, Any]:
    """Test the best weights once, draw the figures, and write the summary; return the summary."""
    task, progress, folder = training.task, training.progress, writer.path
    load_weights(task.model, folder / layout.BEST_CHECKPOINT, settings.model.name)
    test = task.evaluate("test")
    writer.flush()
    rows = read_metrics(folder / layout.METRICS)
    final_metrics = summary_metrics(rows, progress.best_step, task.steps_per_epoch)
    best = {tag.removeprefix("best/"): value for tag, value in final_metrics.items() if tag.startswith("best/")}
    summary = {
        "run": describe_settings(settings),
        **{key: value for key in layout.LABELS if (value := getattr(settings, key))},
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "objective": progress.best,
        "test": test,
        "results": result_rows(task.format_metrics(test), task.format_metrics(best), best["epoch"]),
        **final_metrics,
        **{f"final/test_{name}": x for name, x in test.items() if layout.is_tag(f"final/test_{name}")},
        "final/minutes": writer.elapsed_s / 60,
    }
    figures = {"curves": training_curves(rows), **task.figures()} if settings.trainer.figures else {}
    if figures and (steps := read_longest_solve(folder)):
        lines = {"accepted steps": (steps.start, steps.sizes, steps.rejected)}
        figures["step_sizes"] = comparison_figure([step_size_panel(settings.model.name, steps.place, lines)])
    for name, figure in figures.items():
        writer.write_figure(name, figure, progress.step)
    writer.log(progress.step, {f"test/{name}": x for name, x in test.items() if layout.is_tag(f"test/{name}")})
    writer.write_summary(summary)
    return summary


def failure_message(error: Exception, settings: Settings, folder: Path) -> str:
    """Explain in one line why the run in a folder failed, and what to do."""
    if is_out_of_memory(error):
        return _out_of_memory_message(settings)
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        resume = f"; free disk space, then resume with: odebench resume {shlex.quote(str(folder))}"
        return f"{os.strerror(error.errno)}{where}{resume if error.errno in _DISK_FULL else ''}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error means that the memory of the CPU or of a GPU is full."""
    # The CPU allocator raises a plain RuntimeError, recognisable only by its text.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory_message(settings: Settings) -> str:
    trainer = settings.trainer
    hints = [f"lower trainer.batch_size={trainer.batch_size}"]
    if settings.has_ode and settings.gradient.name == "backprop":
        hints.append("choose gradient=checkpoint or gradient=adjoint")
    hints.append(f"lower trainer.eval_batch_size={trainer.eval_batch_size} if an evaluation failed")
    return f"out of memory after a peak of {_peak_mib():,.0f} MiB; {', or '.join(hints)}"


def _peak_mib() -> float:
    """Return the peak memory of this process, on the GPU if it was used, else on the host."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB

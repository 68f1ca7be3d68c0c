"""Send runs to a tracker: Weights & Biases, MLflow or trackio. No training imports one, so none can disturb a run.

A run is sent in the order of its steps. The next call asks the tracker for the last step that it has, and sends the
rest; a call that was killed or lost its server has no other effect. W&B offline has no such memory: the run's folder
keeps it.
"""

import hashlib
import importlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pandas
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from odebench.errors import NothingFoundError, UsageError, unknown_name
from odebench.record import layout
from odebench.record.files import read_if_exists, write_json
from odebench.record.reader import RunOverview, find_runs, read_metrics, read_overview

# How many of each MLflow takes in a call.
_MLFLOW_METRICS, _MLFLOW_PARAMS = 1000, 100
_MLFLOW_STATUSES = {"running": "RUNNING", "done": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}
# By its own limits MLflow would wait minutes for a server that does not exist. The user's variables take precedence.
_VARIABLES = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "WANDB_SILENT": "true"}


_WANDB_SETTINGS: dict[str, Any] = {
    **{"console": "off", "disable_git": True, "disable_code": True, "x_disable_stats": True, "x_disable_meta": True},
    **{"init_timeout": 20, "finish_timeout": 120, "finish_timeout_raises": True},
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SentRun:
    """A run as a tracker gets it.

    id: the same in every call, also after the folder has moved. settings: dotted key -> value. rows: step -> values by
    tag. times: step -> Unix time in seconds. figures: files, empty until the run is done.
    """

    overview: RunOverview
    id: str
    settings: dict[str, Any]
    rows: dict[int, dict[str, float]]
    times: dict[int, float]
    figures: list[Path]

    @property
    def name(self) -> str:
        """The run's name in the tracker: the setting, else that of its folder."""
        return str(self.overview.setting("name") or self.overview.path.resolve().name)

    def steps_after(self, last: int) -> list[int]:
        """The steps that a tracker lacks if `last` is the last one that it has; warns if the record ends before it."""
        if last > max(self.rows):
            line = "%s was resumed before step %d, which the tracker has; delete the run there, and export it again"
            log.warning(line, self.overview.path, last)
        return [step for step in self.rows if step > last]


def export_runs(folders: Sequence[str], tracker: str, project: str) -> None:
    """Send all runs in the folders to a project of a tracker, and print a line for each.

    Raises UsageError if the tracker is unknown, not installed or does not answer; NothingFoundError without runs.
    """
    if tracker not in TRACKERS:
        raise unknown_name("tracker", tracker, TRACKERS, "trackers")
    if not folders:
        raise UsageError("name runs, or a folder of runs, such as outputs")
    paths = [path for folder in folders for path in find_runs(folder)]
    if not paths:
        raise NothingFoundError(f"no runs in {', '.join(folders)}")
    failures = _import(tracker)
    for path in dict.fromkeys(paths):
        try:
            run = _read(path)
        except UsageError as error:
            log.warning("not sent: %s", error)
            continue
        if not run.rows:
            print(f"{path}: no steps yet")
            continue
        try:
            steps = TRACKERS[tracker](run, project)
        except failures as error:
            reason = str(error).strip().partition("\n")[0]
            line = f"{path} could not be sent to {tracker} ({reason}); once this is solved, the same command goes on"
            raise UsageError(line) from None
        print(f"{path}: {f'{steps} steps sent' if steps else 'no new steps'}", flush=True)


def _import(tracker: str) -> tuple[type[Exception], ...]:
    """Import a tracker; return the errors that it raises if it cannot store a run."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        module = importlib.import_module(tracker)
    except ModuleNotFoundError:
        module = None
    if module is None or module.__file__ is None:  # no file: just a folder with this name, such as W&B's own
        line = f'--to {tracker}: {tracker} is not installed; from the checkout, pip install -e ".[{tracker}]"'
        raise UsageError(line)
    own = {"mlflow": "MlflowException", "wandb": "Error"}
    return ConnectionError, TimeoutError, sqlite3.Error, getattr(module, own.get(tracker, ""), OSError)


def _read(path: Path) -> SentRun:
    overview = read_overview(path)  # first: if the run ends meanwhile, its last rows come with the next call
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    times = {event.step: event.wall_time for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    # The last step of a run that goes on, or may, is not complete: more values of it may follow.
    is_complete = overview.status in ("done", "diverged")
    end = float("inf") if is_complete else max(times, default=0)
    started, machine = overview.manifest.get("started", ""), overview.manifest.get("machine", {})
    if not started:
        raise UsageError(f"{path / layout.MANIFEST} is damaged or missing")
    rows: dict[int, dict[str, float]] = {}
    for row in read_metrics(path / layout.METRICS):
        step, elapsed_s = row.pop("step"), row.pop("elapsed_s", 0.0)
        if step < end:
            rows.setdefault(step, {}).update(row)
            times.setdefault(step, datetime.fromisoformat(started).timestamp() + elapsed_s)
    if rows and "parameters" in overview.summary:
        rows[max(rows)]["parameters"] = overview.summary["parameters"]
    identity = [started, machine.get("host"), machine.get("pid"), machine.get("began")]
    return SentRun(
        overview,
        hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        pandas.json_normalize(overview.settings).to_dict("records")[0],
        rows,
        times,
        sorted((path / layout.FIGURES).glob("*.*")) if overview.status == "done" else [],
    )


def _to_mlflow(run: SentRun, project: str) -> int:
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else "sqlite:///mlflow.db"
    if urlparse(uri).scheme in ("", "file") and uri != "databricks":
        raise UsageError(f"MLFLOW_TRACKING_URI={uri}: MLflow has given up its file store; use sqlite:///mlflow.db")
    client, path = mlflow.MlflowClient(uri), run.overview.path
    times_ms = {step: int(1000 * time) for step, time in run.times.items()}
    sent = _run_in_mlflow(client, run, project, min(times_ms.values()))
    run_id, status = sent.info.run_id, _MLFLOW_STATUSES.get(run.overview.status, "KILLED")
    steps = run.steps_after(int(sent.data.tags.get("odebench.step", -1)))
    labels = {
        "tags": ", ".join(run.overview.setting("tags") or []),
        "mlflow.note.content": run.overview.setting("notes"),
    }
    tags = {"odebench.step": max(run.rows), "odebench.folder": path.resolve(), "mlflow.runName": run.name, **labels}
    tags = {key: str(value) for key, value in tags.items() if value not in (None, "")}
    if sent.info.status == status and tags.items() <= sent.data.tags.items():
        return 0
    texts = {key: str(value) for key, value in run.settings.items() if key not in layout.LABELS}
    if fixed := [key for key, value in sent.data.params.items() if texts.get(key) != value]:
        log.warning("%s: MLflow cannot change parameters; it keeps the first value of %s", path, ", ".join(fixed))
    for part in _parts([Param(*one) for one in texts.items() if one[0] not in sent.data.params], _MLFLOW_PARAMS):
        client.log_batch(run_id, params=part)
    for figure in run.figures:
        client.log_artifact(run_id, str(figure), layout.FIGURES)
    # A call that is killed before the tags is repeated: MLflow stores a metric with the same step and time only once.
    metrics = [Metric(*row, times_ms[step], step) for step in steps for row in run.rows[step].items()]
    for part in _parts(metrics, _MLFLOW_METRICS):
        client.log_batch(run_id, part)
    client.log_batch(run_id, tags=[RunTag(*one) for one in tags.items()])
    client.update_run(run_id, status)
    if status != "RUNNING":
        client.set_terminated(run_id, status, max(times_ms.values()))
    return len(steps)


def _run_in_mlflow(client: Any, run: SentRun, project: str, start_ms: int) -> Any:
    """Find the run in the experiment, or create both."""
    experiment = client.get_experiment_by_name(project)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(project)
    found = client.search_runs([experiment_id], f"tags.`odebench.id` = '{run.id}'")
    return found[0] if found else client.create_run(experiment_id, start_ms, {"odebench.id": run.id}, run.name)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _to_trackio(run: SentRun, project: str) -> int:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        if name in os.environ:
            raise UsageError(f"{name} is set, but runs go to trackio's local store; unset it, then use trackio sync")
    last = SQLiteStorage.get_max_step_for_run(project, run_id=run.id)
    steps = run.steps_after(-1 if last is None else last)
    if not steps:
        return 0
    rows: list[dict[str, Any]] = [dict(run.rows[step]) for step in steps]
    for path in run.figures:
        image = trackio.Image(path)
        image._save(project, run.name, steps[-1])
        rows[-1][f"{layout.FIGURES}/{path.stem}"] = image._to_dict()
    # trackio.log knows no time but the present. This is one transaction, as in trackio.import_csv.
    SQLiteStorage.bulk_log(
        project,
        run.name,
        rows,
        steps,
        [datetime.fromtimestamp(run.times[step], UTC).isoformat() for step in steps],
        run.settings,
        [f"{run.id}-{step}" for step in steps],
        run_id=run.id,
    )
    return len(steps)


def _to_wandb(run: SentRun, project: str) -> int:
    import wandb

    mode = wandb.setup().settings.mode
    if mode == "disabled":
        raise UsageError("WANDB_MODE=disabled: nothing would be sent; unset it, or write WANDB_MODE=offline")
    is_offline = mode in ("offline", "dryrun")
    note_file = run.overview.path / layout.EXPORTS
    note = json.loads(read_if_exists(note_file) or "{}") if is_offline else {}
    last, unfinished = note.get(project, (-1, None))
    if is_offline and not run.steps_after(last):
        return 0
    if unfinished is not None:  # a call that was killed left these files; the rows in them are sent again below
        shutil.rmtree(unfinished, ignore_errors=True)
    sent = wandb.init(
        project=project,
        id=run.id,
        name=run.name,
        tags=run.overview.setting("tags"),
        notes=run.overview.setting("notes"),
        config=run.overview.settings,
        resume="allow",
        settings=wandb.Settings(**_WANDB_SETTINGS),
    )
    steps = run.steps_after(last if is_offline else sent.step - 1)
    if is_offline:
        write_json(note_file, {**note, project: (last, str(Path(sent.dir).parent.resolve()))})
    for step in steps:
        row: dict[str, Any] = {**run.rows[step], "_timestamp": run.times[step]}
        if step == steps[-1]:
            for path in run.figures:
                kind = wandb.Video if path.suffix == ".gif" else wandb.Image
                row[f"{layout.FIGURES}/{path.stem}"] = kind(str(path))
        sent.log(row, step=step)
    sent.finish(exit_code=int(run.overview.status in ("diverged", "failed")))
    if is_offline:
        write_json(note_file, {**note, project: (max(run.rows), None)})
    return len(steps)


# Tracker -> a function that sends what is new in a run to a project of it, and returns the number of steps sent.
TRACKERS: dict[str, Callable[[SentRun, str], int]] = {"wandb": _to_wandb, "mlflow": _to_mlflow, "trackio": _to_trackio}

"""Write the record of one run.

Every number is written once to metrics.jsonl and once to TensorBoard, with the same tag and the optimiser's step; see
`layout.dashboard_tag`.
metrics.jsonl and the other JSON files are strict JSON: NaN and infinities are written as null, which pandas and
`reader` read as NaN.
"""

import contextlib
import json
import logging
import os
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard import SummaryWriter

from odebench.config.compose import resolved
from odebench.errors import UsageError
from odebench.ode import Stats
from odebench.record import layout, reader, tensorboard
from odebench.record.files import (
    TIME_FORMAT,
    is_temporary,
    json_line,
    make_folder,
    read_if_exists,
    remove_temporary_files,
    to_json,
    write_atomically,
    write_json,
)
from odebench.record.status import write_status

# details: more than a terminal shows, as in log.info(line, extra={"details": "..."}).
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(details)s"
FIGURE_DPI = 150
# Files that a run may write before its first status. If it is killed then, a new run may reuse the folder.
_FILES_BEFORE_STATUS = {
    layout.LOG,
    layout.SETTINGS,
    layout.OVERRIDES,
    layout.MANIFEST,
    layout.CHECKPOINTS,
    layout.FIGURES,
    layout.STATUS,
}

log = logging.getLogger(__name__)


def settings_yaml(config: DictConfig) -> str:
    """Return the composed settings in the format of settings.yaml."""
    return OmegaConf.to_yaml(config, resolve=False)


def _change_settings(folder: Path, config: DictConfig, overrides: Sequence[str]) -> None:
    """Replace settings.yaml, and add the overrides that changed it to overrides.txt."""
    write_atomically(folder / layout.SETTINGS, settings_yaml(config).encode())
    before = read_if_exists(folder / layout.OVERRIDES) or b""
    write_atomically(folder / layout.OVERRIDES, before + "".join(f"{line}\n" for line in overrides).encode())


def change_labels(run: reader.RunRecord, config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Write a new name, tags or notes into the record of a finished run; return its new summary.

    config: the composed settings with these labels. overrides: those that changed them.
    """
    settings = resolved(config)
    _change_settings(run.path, config, overrides)
    [run.manifest, *run.manifest.get("resumed", [])][-1]["settings"] = settings
    write_json(run.path / layout.MANIFEST, run.manifest)
    others = {key: value for key, value in run.summary.items() if key not in layout.LABELS}
    summary = others | {key: settings[key] for key in layout.LABELS if settings[key]}
    write_json(run.path / layout.SUMMARY, summary)
    return summary


def has_started(folder: Path) -> bool:
    """Whether a run has started in the folder: its record is complete, and its status is not "queued"."""
    return reader.is_run(folder) and _status(folder) != "queued"


class RunWriter:
    """Writes the record of a running training. Open it with `create` or `reopen`; close it with `close` or ``with``."""

    def __init__(
        self,
        path: Path,
        writer: SummaryWriter,
        rows: Sequence[Mapping[str, Any]] = (),
        step: int = 0,
        elapsed_s: float = 0.0,
    ) -> None:
        """Open the record. Call `create` or `reopen` instead.

        rows: the rows already in metrics.jsonl. step: the last optimiser step. elapsed_s: training time up to this
        step, which may be later than the last row.
        """
        self.path = path
        self.step = step
        self._tensorboard = writer
        self._last_logged = {tag: row["step"] for row in rows for tag in row}
        self._metrics_file = open(path / layout.METRICS, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)
        self._started = time.monotonic() - max(elapsed_s, rows[-1]["elapsed_s"] if rows else 0.0)
        self._status = "running"
        self._closed = False
        self._log_handler = _attach_log_file(path / layout.LOG)
        self._excepthook = threading.excepthook
        threading.excepthook = self._handle_thread_exception
        self._tensorboard.flush()

    @classmethod
    def create(
        cls,
        folder: Path,
        config: DictConfig,
        overrides: Sequence[str],
        manifest: Mapping[str, Any],
        quantities: Sequence[str] = (),
    ) -> Self:
        """Start the record of a new run in `folder`; see `claim_folder` for the folders that are allowed.

        config: the composed settings. They are saved with their interpolations, so that ``tol=`` can change them later.
        quantities: the quantities that the task measures, for TensorBoard's charts.
        """
        folder = Path(folder)
        claim_folder(folder)
        remove_temporary_files(folder)
        write_atomically(folder / layout.SETTINGS, settings_yaml(config).encode())
        write_atomically(folder / layout.OVERRIDES, "".join(f"{line}\n" for line in overrides).encode())
        write_json(folder / layout.MANIFEST, manifest)
        _make_folders(folder)
        # The status comes last: it marks the other files as complete, should the process die.
        write_status(folder, "running")
        return cls(folder, tensorboard.open_writer(folder, resolved(config), overrides, quantities))

    @classmethod
    def reopen(
        cls,
        folder: Path,
        step: int,
        manifest: Mapping[str, Any] | None = None,
        quantities: Sequence[str] = (),
        elapsed_s: float = 0.0,
        changed: tuple[DictConfig, Sequence[str]] | None = None,
    ) -> Self:
        """Reopen the record of a run that resumes from its checkpoint at `step`.

        Rows and TensorBoard events after that step, and those of the run's end, are dropped: they will be written
        again.

        manifest: the manifest of the resuming process. It is appended, with the step, to the list "resumed" in
        manifest.json. quantities: see `create`. elapsed_s: seconds of training when the checkpoint was saved. changed:
        the composed settings and the overrides that changed them, if they have changed. Raises UsageError if the folder
        is not a run's.
        """
        run = reader.read_run(folder)
        remove_temporary_files(run.path)
        _make_folders(run.path)
        rows = [
            {tag: value for tag, value in row.items() if not layout.is_end_tag(tag)}
            for row in run.metrics
            if row["step"] <= step
        ]
        rows = [row for row in rows if row.keys() - {"step", "elapsed_s"}]
        write_atomically(run.path / layout.METRICS, "".join(map(json_line, rows)).encode())
        (run.path / layout.SUMMARY).unlink(missing_ok=True)
        if changed is not None:
            _change_settings(run.path, *changed)
        if manifest is not None:
            resumed = [*run.manifest.get("resumed", []), {"step": step, **manifest}]
            write_json(run.path / layout.MANIFEST, {**run.manifest, "resumed": resumed})
        write_status(run.path, "running", step)
        _rename_future_event_files(sorted(run.path.glob(layout.EVENT_FILES)))
        settings = resolved(run.settings if changed is None else changed[0])
        writer = tensorboard.reopen_writer(run.path, settings, step, quantities)
        return cls(run.path, writer, rows, step, elapsed_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run started, without the time between an interruption and a resume."""
        return time.monotonic() - self._started

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one row of metrics at an optimiser step.

        metrics: Python, numpy or torch scalars by tag. A tag is in `layout.TAGS` or starts with ``task/``. Each tag can
        be logged once per step, and steps must increase.
        """
        values = {tag: _to_python_number(value) for tag, value in metrics.items()}
        new = values.keys() - self._last_logged.keys()
        for tag in values:
            assert layout.is_tag(tag), f"{tag} is not in layout.TAGS; tags of a single task start with task/"
            last = self._last_logged.get(tag, -1)
            assert step > last, f"{tag} at step {step}, but it was already logged at step {last}"
            self._last_logged[tag] = step
        self.step = max(self.step, step)
        self._metrics_file.write(json_line({"step": step, "elapsed_s": round(self.elapsed_s, 3), **values}))
        self._metrics_file.flush()
        for tag, value in values.items():
            tensorboard.write_scalar(self._tensorboard, tag, value, step, described=tag in new)

    def log_histogram(self, tag: str, values: Any, step: int) -> None:
        """Add a histogram of the finite `values` (any shape) to TensorBoard."""
        assert tag in layout.HISTOGRAMS or tag.startswith(layout.TASK_PREFIX), tag
        array = np.asarray(to_json(values), dtype=np.float64).reshape(-1)
        array = array[np.isfinite(array)]
        if array.size:
            self._tensorboard.add_histogram(tag, array, step)

    def write_step_sizes(self, solves: Sequence[Stats], step: int) -> None:
        """Write start, accepted step sizes and rejected steps of each solve in a training step to steps.json.

        The file is replaced. A histogram of the sizes is added to TensorBoard. Does nothing if there are no solves.
        """
        if solves:
            content = {
                "step": step,
                "solves": [stats.step_sizes for stats in solves],
                "starts": [stats.start for stats in solves],
                "rejected": [stats.rejected_steps for stats in solves],
            }
            write_json(self.path / layout.STEP_SIZES, content)
            self.log_histogram("steps/size", [abs(size) for stats in solves for size in stats.step_sizes], step)

    def write_figure(self, name: str, figure: Figure | bytes, step: int, to_folder: bool = True) -> None:
        """Add a figure, or the bytes of a GIF, to TensorBoard at `step`.

        to_folder: also save it as figures/NAME.png or NAME.gif. An existing file is replaced.
        """
        if isinstance(figure, bytes):
            image, suffix = figure, "gif"
        else:
            buffer = BytesIO()
            figure.savefig(buffer, format="png", dpi=FIGURE_DPI)
            image, suffix = buffer.getvalue(), "png"
        if to_folder:
            write_atomically(self.path / layout.FIGURES / f"{name}.{suffix}", image)
        tensorboard.write_image(self._tensorboard, f"figures/{name}", image, step)

    def write_status(self, name: str, **fields: Any) -> None:
        """Write status.json: the status `name` (one of `layout.STATUSES`), the step, the time and `fields`.

        fields: other entries, such as message and traceback; a traceback is also appended to log.txt. The step is that
        of the last row unless `fields` contains "step".
        """
        self._status = name
        write_status(self.path, name, **{"step": self.step, **fields})
        if fields.get("traceback"):
            with contextlib.suppress(OSError), open(self.path / layout.LOG, "a", encoding="utf-8") as log:
                log.write(f"{str(fields['traceback']).rstrip()}\n")

    def write_summary(self, metrics: Mapping[str, Any]) -> None:
        """Write summary.json, and log its ``best/...`` and ``final/...`` metrics at the last step."""
        write_json(self.path / layout.SUMMARY, metrics)
        values = {tag: value for tag, value in metrics.items() if layout.is_summary_tag(tag) and value is not None}
        if values:
            self.log(self.step, values)

    def flush(self) -> None:
        """Write everything logged so far to disk. Call this before saving a checkpoint, so that no row is lost."""
        self._metrics_file.flush()
        os.fsync(self._metrics_file.fileno())
        self._tensorboard.flush()

    def close(self) -> None:
        """Write the last status to TensorBoard and close all files. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        logging.getLogger("odebench").removeHandler(self._log_handler)
        for close in (self._close_tensorboard, self._metrics_file.close, self._log_handler.close):
            try:
                close()
            except OSError as error:  # for example a full disk; the status and the metrics are already on disk
                log.warning("%s could not be closed: %s", self.path, error)
        threading.excepthook = self._excepthook

    def _close_tensorboard(self) -> None:
        tensorboard.write_end(self._tensorboard, self._status)
        self._tensorboard.close()

    def _handle_thread_exception(self, arguments: threading.ExceptHookArgs) -> None:
        """Print no traceback for TensorBoard's writer thread: its errors are raised again in the main thread."""
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._excepthook(arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NullRunWriter:
    """Used in place of RunWriter in processes other than rank 0; it writes nothing."""

    elapsed_s = 0.0

    def __init__(self, path: Path) -> None:
        """path: the folder that rank 0 writes to."""
        self.path = path

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def write_step_sizes(self, solves: Sequence[Stats], step: int) -> None:
        """Do nothing."""

    def write_figure(self, name: str, figure: Figure | bytes, step: int, to_folder: bool = True) -> None:
        """Do nothing."""

    def write_status(self, name: str, **fields: Any) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


def claim_folder(folder: Path) -> None:
    """Make the folder of a new run.

    The folder may exist if it is empty, if its status is "queued", or if it holds only files of a run that was killed
    while starting. Otherwise, or if the folder cannot be made, raises UsageError and changes nothing.
    """
    check_folder_is_free(folder)
    make_folder(folder, f"run_dir={folder}")


def check_folder_is_free(folder: Path) -> None:
    """Raise UsageError if a folder is not free for a new run; see `claim_folder`."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give another run_dir", "run_dir")
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir() if not is_temporary(path.name)}
    if not names <= _FILES_BEFORE_STATUS or (layout.STATUS in names and _status(folder) != "queued"):
        problem = f"{folder} is not empty;"
        if reader.is_run(folder):
            hint = f"resume that run (odebench resume {shlex.quote(str(folder))}) or"
            problem = f"{folder} holds a finished run;" if _status(folder) == "done" else f"{problem} {hint}"
        raise UsageError(f"{problem} give another run_dir", "run_dir")


def _status(folder: Path) -> str | None:
    try:
        return json.loads((folder / layout.STATUS).read_bytes()).get("status")
    except (ValueError, AttributeError):  # not written by odebench
        return None


def _make_folders(folder: Path) -> None:
    for name in (layout.CHECKPOINTS, layout.FIGURES):
        (folder / name).mkdir(exist_ok=True)


def _rename_future_event_files(files: Sequence[Path]) -> None:
    """Rename event files whose names contain the current time or a later one, so that the next file comes last.

    TensorBoard reads the files in the order of their names, which contain the time of creation. This time is in the
    future if the clock was set back since.
    """
    now = int(time.time())
    for place, path in enumerate(files):
        *head, seconds, tail = path.name.split(".", 4)
        if int(seconds) > (latest := now - len(files) + place):
            path.rename(path.with_name(".".join([*head, f"{latest:010d}", tail])))


def _attach_log_file(path: Path) -> logging.FileHandler:
    """Write further messages of the logger "odebench" to a file; return the handler that does."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk must not fill the screen
    formatter = logging.Formatter(LOG_FORMAT, TIME_FORMAT, defaults={"details": ""})
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("odebench")
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:  # otherwise the root logger's level WARNING would drop INFO messages
        logger.setLevel(logging.INFO)
    return handler


def _to_python_number(value: Any) -> float | int:
    """Convert a Python, numpy or torch scalar to a Python number."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)

"""The record of one run, as it is written.

Every number goes to metrics.jsonl and to TensorBoard once, under one tag, at the optimiser's step.
metrics.jsonl and the other JSON files are strict JSON: NaN and infinities are written as null, which pandas
and `reader` read as NaN.
"""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard import SummaryWriter

from odebench.errors import UsageError
from odebench.record import reader, schema, tensorboard
from odebench.record.files import plain, write_atomically, write_json

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
FIGURE_DPI = 150


def write_status(folder: Path, name: str, step: int = 0, **fields: Any) -> None:
    """Write status.json atomically: one of `schema.STATUSES`, the step, the time (UTC) and `fields`
    (message, traceback)."""
    assert name in schema.STATUSES, name
    content = {"status": name, "step": step, "time": datetime.now(UTC).strftime(TIME_FORMAT), **fields}
    write_json(folder / schema.STATUS, content)


class Record:
    """The open record of a running training; made by `create` or `reopen`, closed by `close` or ``with``."""

    def __init__(
        self, path: Path, writer: SummaryWriter, rows: Sequence[Mapping[str, Any]] = (), step: int = 0
    ) -> None:
        """Use `create` or `reopen`. `rows` are those already in metrics.jsonl, `step` the last one taken."""
        self.path = path
        self.step = step
        self._writer = writer
        self._last_logged = {tag: row["step"] for row in rows for tag in row}
        self._metrics = open(path / schema.METRICS, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)
        self._started = time.monotonic() - (rows[-1]["elapsed_s"] if rows else 0.0)
        self._status = "running"
        self._closed = False
        self._log = _attach_log(path / schema.LOG)

    @classmethod
    def create(cls, folder: Path, config: DictConfig, overrides: Sequence[str], manifest: Mapping[str, Any]) -> Self:
        """Start the record of a new run in `folder`, which is made where it does not exist.

        config: the composed settings; saved with their interpolations, so that ``tol=`` can change later.
        Raises UsageError, and touches nothing, where the folder holds anything but a status of "queued".
        """
        folder = Path(folder)
        _claim(folder)
        write_atomically(folder / schema.SETTINGS, OmegaConf.to_yaml(config, resolve=False).encode())
        write_atomically(folder / schema.OVERRIDES, "".join(f"{line}\n" for line in overrides).encode())
        write_json(folder / schema.MANIFEST, manifest)
        write_status(folder, "running")
        (folder / schema.CHECKPOINTS).mkdir()
        (folder / schema.FIGURES).mkdir()
        return cls(folder, tensorboard.open_writer(folder, _resolved(config)))

    @classmethod
    def reopen(cls, folder: Path, step: int, manifest: Mapping[str, Any] | None = None) -> Self:
        """Go on with a run from its checkpoint at `step`.

        Rows and TensorBoard's events after that step, and those of a run's end, are dropped: they come again.
        manifest: of the process that goes on; added to the list "resumed" in manifest.json, with the step.
        Raises UsageError where the folder is no run.
        """
        run = reader.read_run(folder)
        rows = [
            {tag: value for tag, value in row.items() if not schema.is_of_the_end(tag)}
            for row in run.metrics
            if row["step"] <= step
        ]
        rows = [row for row in rows if row.keys() - {"step", "elapsed_s"}]
        write_atomically(run.path / schema.METRICS, "".join(map(_line, rows)).encode())
        (run.path / schema.SUMMARY).unlink(missing_ok=True)
        if manifest is not None:
            resumed = [*run.manifest.get("resumed", []), {"step": step, **manifest}]
            write_json(run.path / schema.MANIFEST, {**run.manifest, "resumed": resumed})
        write_status(run.path, "running", step)
        writer = tensorboard.reopen_writer(run.path, _resolved(run.settings), step)
        return cls(run.path, writer, rows, step)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run started; the time between an interruption and its resumption is left out."""
        return time.monotonic() - self._started

    def log(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Write one row: numbers (Python's, numpy's or torch's) by tag, at the optimiser step `step`.

        A tag can be logged once a step, in rising order. Tags are those of `schema.TAGS` and ``task/...``.
        """
        values = {tag: _number(value) for tag, value in numbers.items()}
        for tag in values:
            assert schema.is_tag(tag), f"{tag} is not in schema.TAGS; a task's own tags start with task/"
            last = self._last_logged.get(tag, -1)
            assert step > last, f"{tag} at step {step}, but it was logged at step {last} already"
            self._last_logged[tag] = step
        self.step = max(self.step, step)
        self._metrics.write(_line({"step": step, "elapsed_s": round(self.elapsed_s, 3), **values}))
        self._metrics.flush()
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def histogram(self, tag: str, values: Any, step: int) -> None:
        """Add a histogram of `values` (any shape) to TensorBoard; NaN and infinities are left out."""
        assert tag in schema.HISTOGRAMS or tag.startswith(schema.FREE_GROUP), tag
        array = np.asarray(plain(values), dtype=np.float64).reshape(-1)
        array = array[np.isfinite(array)]
        if array.size:
            self._writer.add_histogram(tag, array, step)

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """Save the figure as figures/NAME.png, over an earlier one, and add it to TensorBoard at `step`."""
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=FIGURE_DPI)
        png = buffer.getvalue()
        write_atomically(self.path / schema.FIGURES / f"{name}.png", png)
        tensorboard.write_png(self._writer, f"figures/{name}", png, step)

    def status(self, name: str, **fields: Any) -> None:
        """Write status.json: one of `schema.STATUSES`, step, time. A traceback goes to log.txt too.

        fields: message, traceback, or others. The step is that of the last row, where `fields` names none.
        """
        self._status = name
        write_status(self.path, name, **{"step": self.step, **fields})
        if fields.get("traceback"):
            with open(self.path / schema.LOG, "a", encoding="utf-8") as log:
                log.write(f"{str(fields['traceback']).rstrip()}\n")

    def summary(self, numbers: Mapping[str, Any]) -> None:
        """Write summary.json; its ``best/...`` and ``final/...`` are logged too, at the last step."""
        write_json(self.path / schema.SUMMARY, numbers)
        closing = [tag for tag, value in numbers.items() if schema.is_closing(tag) and value is not None]
        if closing:
            self.log(self.step, {tag: numbers[tag] for tag in closing})

    def flush(self) -> None:
        """Hand all that was logged to the system; call it before a checkpoint, so that no row is lost."""
        self._metrics.flush()
        self._writer.flush()

    def close(self) -> None:
        """Tell TensorBoard the status last written, and close all files. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        tensorboard.write_end(self._writer, self._status)
        self._writer.close()
        self._metrics.close()
        logging.getLogger("odebench").removeHandler(self._log)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _claim(folder: Path) -> None:
    """Make the folder ours, or raise UsageError: of two processes that come at once, one gets it."""
    taken = UsageError(f"{folder} is not empty; go on with that run (odebench resume {folder}) or give another run_dir")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give another run_dir")
    folder.mkdir(parents=True, exist_ok=True)
    content = {path.name for path in folder.iterdir()}
    if content and not (content == {schema.STATUS} and _is_queued(folder)):
        raise taken
    try:
        open(folder / schema.METRICS, "x").close()
    except FileExistsError:
        raise taken from None


def _is_queued(folder: Path) -> bool:
    return json.loads((folder / schema.STATUS).read_bytes()).get("status") == "queued"


def _attach_log(path: Path) -> logging.FileHandler:
    """Send what the logger "odebench" gets to the file, from now on."""
    handler = logging.FileHandler(path, encoding="utf-8")
    formatter = logging.Formatter(LOG_FORMAT, TIME_FORMAT)
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("odebench")
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:  # else the root logger's level, WARNING, keeps the story of the run out
        logger.setLevel(logging.INFO)
    return handler


def _resolved(config: DictConfig) -> dict[str, Any]:
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    return {str(name): value for name, value in settings.items()}


def _number(value: Any) -> float | int:
    """A Python number from a Python, numpy or torch scalar."""
    if hasattr(value, "item"):
        value = value.item()
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)


def _line(row: Mapping[str, Any]) -> str:
    values = {tag: value if math.isfinite(value) else None for tag, value in row.items()}
    return json.dumps(values, allow_nan=False) + "\n"

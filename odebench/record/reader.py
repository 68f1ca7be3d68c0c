"""Read the records of runs. Imports no torch, so that listing and reporting start fast."""

import functools
import json
import logging
import math
import os
import shlex
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from odebench.config.compose import refuse_resolvers
from odebench.config.files import read_yaml
from odebench.config.schema.solver import NO_SOLVER
from odebench.errors import NothingFoundError, UsageError
from odebench.record import layout
from odebench.record.files import read_if_exists
from odebench.record.manifest import process_start

_TAIL_BYTES = 1 << 16
MAX_FOLDERS_WITHOUT_RUN = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """The record of one run, read from its folder.

    settings: unresolved, with their interpolations. manifest, summary: empty if the run has not written them. metrics:
    one dict for each logged row, with "step", "elapsed_s" and the values by tag.
    """

    path: Path
    settings: DictConfig
    manifest: dict[str, Any]
    status: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]

    def series(self, tag: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of one tag, in the order in which they were logged."""
        rows = [row for row in self.metrics if tag in row]
        return [row["step"] for row in rows], [row[tag] for row in rows]


def is_run(path: Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    # os.path: a Path raises OSError for a name that is too long.
    return os.path.isfile(path / layout.SETTINGS) and os.path.isfile(path / layout.STATUS)


def has_checkpoint(path: Path) -> bool:
    """Whether the run has a checkpoint to resume from: the last one or the one before it."""
    return (path / layout.LAST_CHECKPOINT).exists() or (path / layout.PREVIOUS_CHECKPOINT).exists()


def read_run(path: Path | str, metrics: bool = True) -> RunRecord:
    """Read the run in folder `path`. metrics: whether to read the rows of metrics too, which is slow for many runs.

    Raises UsageError if the folder is not a run's or one of its files is damaged; NothingFoundError if the folder
    exists, but there is no run in it or below.
    """
    path = Path(path)
    if not is_run(path):
        raise _not_a_run(path)
    return RunRecord(
        path=path,
        settings=_read_settings(path / layout.SETTINGS),
        manifest=_read_manifest(path),
        status=_read_status(path),
        summary=_read_json(path / layout.SUMMARY),
        metrics=read_metrics(path / layout.METRICS) if metrics else [],
    )


def _not_a_run(path: Path) -> UsageError:
    """Return the error for a path that is not a run's folder: NothingFoundError if no run is in it or below."""
    reason = f"{path} is not a run's folder"
    if not os.path.isdir(path):
        return UsageError(f"{reason}: it {'is a file' if os.path.exists(path) else 'does not exist'}")
    problems: list[str] = []
    if runs := len(find_runs(path, problems=problems)):
        return UsageError(f"{reason}: it holds {runs}; name one (odebench list runs {shlex.quote(str(path))})")
    if problems:
        return UsageError(problems[0])
    return NothingFoundError(f"{reason}: {layout.SETTINGS} or {layout.STATUS} is missing")


def find_runs(folder: Path | str, queued: bool = False, problems: list[str] | None = None) -> list[Path]:
    """Return the sorted folders of all runs in `folder` and below, or `folder` itself if it is a run. Follows links.

    queued: also find jobs of a sweep that have not started; their folders hold only a status. problems: a list to which
    a line is added for each folder that cannot be read, and for each run whose status is missing. Raises UsageError if
    `folder` is not a folder, or if it holds more than MAX_FOLDERS_WITHOUT_RUN folders without a run (such as ``/``):
    searching them would take minutes.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UsageError(f"{folder} is not a folder")
    found: list[Path] = []
    seen: set[str] = set()
    problems = [] if problems is None else problems

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    for parent, children, files in os.walk(folder, onerror=unreadable, followlinks=True):
        if (real_path := os.path.realpath(parent)) in seen:  # reached before, for example by a link to a parent
            children.clear()
            continue
        seen.add(real_path)
        if len(seen) - len(found) > MAX_FOLDERS_WITHOUT_RUN:
            line = f"holds more than {MAX_FOLDERS_WITHOUT_RUN:,} folders without a run; name a folder of runs"
            raise UsageError(f"{folder} {line}")
        if layout.STATUS in files and (queued or layout.SETTINGS in files):
            found.append(Path(parent))
        elif layout.MANIFEST in files and layout.SETTINGS in files:
            problems.append(f"{parent} is damaged: {layout.STATUS} is missing")
        else:
            continue
        children.clear()  # runs do not contain runs
    return sorted(found)


@dataclass(frozen=True)
class RunOverview:
    """The summary of a run for lists, fast to read.

    settings: resolved. eta_s: estimated seconds until the training ends; None unless the run is running and its number
    of steps is known. message: why the run ended, if it is not done. time: when the status was written, UTC, as
    2026-11-24T14:03:22Z.
    """

    path: Path
    status: str
    step: int
    eta_s: float | None
    message: str
    settings: dict[str, Any]
    summary: dict[str, Any]
    time: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)

    def setting(self, key: str) -> Any:
        """Return a setting by its dotted key, None if it does not exist."""
        return _setting(self.settings, key)

    @property
    def tol(self) -> float | str | None:
        """The solver's tolerance, ``rtol/atol`` if these differ; None for fixed steps or without a solver."""
        fixed = self.setting("solver.steps") or self.setting("solver.step_size")
        if fixed or self.setting("solver.name") == NO_SOLVER:
            return None
        rtol, atol = self.setting("solver.rtol"), self.setting("solver.atol")
        return rtol if rtol == atol else f"{rtol or 0:g}/{atol or 0:g}"


def _setting(settings: dict[str, Any], key: str) -> Any:
    node: Any = settings
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def read_overview(path: Path, trust_status: bool = False) -> RunOverview:
    """Read status, settings and summary of the run or queued job in folder `path`.

    If the status is "running", but the process was on this machine and has ended, the returned status is "interrupted".
    trust_status: return the written status even then. Raises UsageError if a file is damaged.
    """
    content, manifest = _read_status(path), _read_manifest(path)
    status, step, eta_s = content.get("status", "queued"), content.get("step", 0), None
    processes = [manifest, *manifest.get("resumed", [])]
    settings = next((one["settings"] for one in reversed(processes) if "settings" in one), None)
    if settings is None and (path / layout.SETTINGS).exists():
        settings = OmegaConf.to_container(_read_settings(path / layout.SETTINGS), resolve=True)
    settings = settings if isinstance(settings, dict) else {}
    if status == "running":
        last = _last_row(path / layout.METRICS)
        step = max(step, last.get("step", 0))
        if not trust_status and _process_has_ended(manifest):
            status = "interrupted"
        elif step and content.get("steps"):
            elapsed_s = last.get("elapsed_s", 0.0)
            eta_s = elapsed_s / step * (content["steps"] - step)
            if minutes := _setting(settings, "trainer.max_minutes"):
                eta_s = max(min(eta_s, 60 * minutes - elapsed_s), 0.0)
    return RunOverview(
        path=path,
        status=status,
        step=step,
        eta_s=eta_s,
        message=_one_line(str(content.get("message") or "")),
        settings=settings,
        summary=_read_json(path / layout.SUMMARY),
        time=str(content.get("time", "")),
        manifest=manifest,
    )


def read_overrides(path: Path) -> dict[str, str]:
    """Read the overrides of the command line: key -> its last value."""
    try:
        lines = (path / layout.OVERRIDES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {key.lstrip("+~"): value for key, _, value in (line.partition("=") for line in lines)}


def _one_line(text: str) -> str:
    """Put the text on one line, without control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _process_has_ended(manifest: dict[str, Any]) -> bool:
    """Whether the last process that started or resumed the run was on this machine and has ended."""
    machine = [manifest, *manifest.get("resumed", [])][-1].get("machine", {})
    if machine.get("host") != socket.gethostname() or not isinstance(machine.get("pid"), int):
        return False
    if (began := machine.get("began")) is not None and (now := process_start(machine["pid"])) is not None:
        return began != now  # another process may now have this number; in containers, every run may have number 1
    try:
        os.kill(machine["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # the process runs, but belongs to another user
        pass
    return False


def _last_row(path: Path) -> dict[str, Any]:
    """Return the last complete row of a metrics.jsonl; empty if there is none. Reads only the end of the file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    rows = (_row(line) for line in reversed(lines[:-1]))
    return next((row for row in rows if row is not None), {})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl, with null as NaN; no rows if it does not exist.

    Damaged lines at the end are dropped with a warning. Raises UsageError if a row follows a damaged line.
    """
    # The last part is empty, or a truncated line without a newline.
    *lines, truncated = (read_if_exists(path) or b"").split(b"\n")
    rows = [_row(line) for line in lines]
    while rows and rows[-1] is None:
        rows.pop()
    if dropped := len(lines) - len(rows) + bool(truncated):
        warn_of_dropped_lines(path, dropped)
    if None in rows:
        raise UsageError(f"{path} is damaged: line {rows.index(None) + 1} is not a row of metrics")
    return [{tag: math.nan if x is None else x for tag, x in row.items()} for row in rows if row is not None]


@functools.cache  # several figures of a report read the same file
def warn_of_dropped_lines(path: Path, number: int) -> None:
    """Warn, once for each file, that damaged or incomplete lines are not used."""
    log.warning("%s: %d damaged or incomplete line%s left out", path, number, " is" if number == 1 else "s are")


def _row(line: bytes) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _read_settings(path: Path) -> DictConfig:
    """Read a run's settings without resolving interpolations.

    Raises UsageError if the file is damaged, or if resolving it would read, for example, environment variables.
    """
    settings = read_yaml(path)
    try:
        refuse_resolvers(settings)
        OmegaConf.to_container(settings, resolve=True)
    except (UsageError, OmegaConfBaseException) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None
    return settings


def _read_status(folder: Path) -> dict[str, Any]:
    content = _read_json(folder / layout.STATUS)
    known = isinstance(content.get("status"), str) and isinstance(content.get("step", 0), int)
    if not known and (folder / layout.STATUS).exists():
        raise UsageError(f"{folder / layout.STATUS} is damaged: its status or its step is missing or wrong")
    return content


def _read_manifest(folder: Path) -> dict[str, Any]:
    content = _read_json(folder / layout.MANIFEST)
    resumed = content.get("resumed", [])
    if not isinstance(resumed, list) or not all(isinstance(entry, dict) for entry in resumed):
        raise UsageError(f"{folder / layout.MANIFEST} is damaged: its entry resumed is not a list of objects")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    text = read_if_exists(path)
    if text is None:  # never written, or just removed by a run that resumes
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: deeply nested brackets
        raise UsageError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is damaged: it is not a JSON object")
    return content

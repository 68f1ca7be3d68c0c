"""Read what runs left. Free of torch, so that listing and reporting start at once."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from odebench.errors import UsageError
from odebench.record import schema


@dataclass(frozen=True)
class RunRecord:
    """One run, as its folder tells it.

    settings are unresolved (interpolations kept); manifest and summary are empty where the run has not
    written them; metrics holds one dict a logged row: "step", "elapsed_s" and the tags logged there.
    """

    path: Path
    settings: DictConfig
    manifest: dict[str, Any]
    status: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]

    def series(self, tag: str) -> tuple[list[int], list[float]]:
        """Steps and values of one tag, in the order logged."""
        rows = [row for row in self.metrics if tag in row]
        return [row["step"] for row in rows], [row[tag] for row in rows]


def is_run(path: Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    return (path / schema.SETTINGS).is_file() and (path / schema.STATUS).is_file()


def read_run(path: Path | str, metrics: bool = True) -> RunRecord:
    """Read the run in folder `path`; ``metrics=False`` leaves its rows out, for lists of many runs.

    Raises UsageError where the folder is no run or one of its files is damaged.
    """
    path = Path(path)
    if not is_run(path):
        reason = f"{schema.SETTINGS} or {schema.STATUS} is missing" if path.exists() else "it does not exist"
        raise UsageError(f"{path} is not a run's folder: {reason}")
    settings = OmegaConf.load(path / schema.SETTINGS)
    if not isinstance(settings, DictConfig):
        raise UsageError(f"{path / schema.SETTINGS} is damaged: it holds no settings")
    return RunRecord(
        path=path,
        settings=settings,
        manifest=_read_json(path / schema.MANIFEST),
        status=_read_json(path / schema.STATUS),
        summary=_read_json(path / schema.SUMMARY),
        metrics=read_metrics(path / schema.METRICS) if metrics else [],
    )


def find_runs(folder: Path | str) -> list[Path]:
    """The folders of all runs in `folder` and below, sorted; the folder itself where it is a run."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    found = []
    for parent, children, _ in os.walk(folder):
        if is_run(Path(parent)):
            found.append(Path(parent))
            children.clear()  # runs do not hold runs
    return sorted(found)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, with null read as NaN. A last line that was cut off is left out.

    Raises UsageError for a line that is damaged elsewhere. A file that does not exist has no rows.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines):  # what follows the last newline: nothing, or a line cut off
            break
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines) - 1:
                break
            raise UsageError(f"{path} is damaged: line {number} is not JSON") from None
        rows.append({tag: math.nan if value is None else value for tag, value in row.items()})
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        raise UsageError(f"{path} is damaged: it is not JSON") from None

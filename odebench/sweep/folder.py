"""Write and read the folder of a sweep: sweep.yaml with the jobs, a lock, and a folder and a log for each job.

outputs/sweeps/2026-11-24/14-03-22-123456/
  sweep.yaml  lock  logs/0000.txt ...  0000_tol=0.1/ ...  slurm/
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from odebench.config.files import check_aliases
from odebench.config.parsing import read_value
from odebench.errors import UsageError
from odebench.record import layout
from odebench.record.files import check_folder_can_be_made, make_folder, utc_now, write_atomically
from odebench.sweep.validate import Job

SWEEP_FILE, LOCK_FILE, LOGS_FOLDER = "sweep.yaml", "lock", "logs"
FORMAT_VERSION = 1
_HEADER = "# `odebench resume` reads this file. A job's overrides are those of `odebench train`.\n"
_JOB_NAME = re.compile(r"\d+_[A-Za-z0-9_.=+-]+")
_ENTRIES: dict[str, Any] = {
    "jobs": tuple[dict[str, Any], ...],
    "cluster": tuple[str, ...],
    "search": tuple[str, ...],
    "cwd": str,
    "config_dir": str | None,
}


@dataclass(frozen=True)
class Sweep:
    """A sweep in its folder.

    cluster: overrides that set where its jobs run. cwd: the folder to which its relative paths refer. search: overrides
    of the sweeper if one chooses the jobs, else empty.
    """

    path: Path
    jobs: tuple[Job, ...]
    cluster: tuple[str, ...]
    config_dir: Path | None
    cwd: Path
    search: tuple[str, ...] = ()

    def job_folder(self, job: Job) -> Path:
        """Return the folder of a job's record."""
        return self.path / job.name

    def log_path(self, job: Job) -> Path:
        """Return the file with the output of a job's processes. It is locked while one of them is alive."""
        return self.path / LOGS_FOLDER / f"{job.name.partition('_')[0]}.txt"


def is_sweep(path: Path) -> bool:
    """Whether the folder holds a sweep."""
    return (path / SWEEP_FILE).is_file()


def create_folder(chosen: Path | None, outputs: str) -> Path:
    """Create the folder of a new sweep; see `choose_folder`."""
    path = choose_folder(chosen, outputs)
    make_folder(path, f"the sweep's folder {path}")
    return path


def choose_folder(chosen: Path | None, outputs: str) -> Path:
    """Return the folder for a new sweep, without creating it: `chosen`, or one in `outputs` named after the time.

    Raises UsageError if it is not empty or cannot be created.
    """
    now = datetime.now()
    path = chosen or Path(outputs) / "sweeps" / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}"
    path = path.absolute()
    if "${" in str(path) or not str(path).isprintable():
        raise UsageError(f"{str(path)!r}: the path of a sweep's folder must not contain ${{ or control characters")
    if os.path.isdir(path) and any(path.iterdir()):
        hint = f" continue that sweep (odebench resume {shlex.quote(str(path))}) or" if is_sweep(path) else ""
        raise UsageError(f"{path} is not empty;{hint} name another folder")
    check_folder_can_be_made(path, f"the sweep's folder {chosen}" if chosen else f"outputs={outputs}")
    return path


def write_sweep(sweep: Sweep) -> None:
    """Write a new sweep: a folder for each job, with the status queued, then sweep.yaml."""
    (sweep.path / LOGS_FOLDER).mkdir()
    for job in sweep.jobs:
        reset_job(sweep, job)
    content = {
        "format": FORMAT_VERSION,
        "command": list(sys.argv),
        "created": utc_now(),
        "cwd": str(sweep.cwd),
        "config_dir": None if sweep.config_dir is None else str(sweep.config_dir),
        "cluster": list(sweep.cluster),
        "search": list(sweep.search),
    }
    _write(sweep, content)


def add_jobs(sweep: Sweep, jobs: Sequence[Job]) -> Sweep:
    """Add queued jobs to a sweep and return it. The caller must hold its lock. New numbers follow the existing ones."""
    new = [
        Job(number, f"{number:04d}_{job.name.partition('_')[2]}", job.overrides)
        for number, job in enumerate(jobs, start=len(sweep.jobs))
    ]
    larger = replace(sweep, jobs=(*sweep.jobs, *new))
    for job in new:
        reset_job(larger, job)
    _write(larger, _load(sweep.path / SWEEP_FILE))
    return larger


def _write(sweep: Sweep, content: dict[str, Any]) -> None:
    import yaml

    content["jobs"] = [{"name": job.name, "overrides": list(job.overrides)} for job in sweep.jobs]
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True, width=1000)
    write_atomically(sweep.path / SWEEP_FILE, (_HEADER + text).encode())


def reset_job(sweep: Sweep, job: Job) -> None:
    """Remove everything in a job's folder but the status, which becomes queued."""
    folder = sweep.job_folder(job)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # No fsync: a thousand calls are slow, and a job runs even if a power failure damages this file.
    now = utc_now()
    (folder / layout.STATUS).write_text(f'{{"status": "queued", "step": 0, "time": "{now}"}}\n', encoding="utf-8")


def load_sweep(path: Path) -> Sweep:
    """Read the sweep in a folder. Raises UsageError if sweep.yaml is invalid, or names a folder outside the sweep's."""
    path = path.absolute()
    file = path / SWEEP_FILE
    content = {"search": []} | _load(file)
    if content.get("format", FORMAT_VERSION) != FORMAT_VERSION:
        raise UsageError(f"{file} was written by another version of odebench (format {content['format']})")
    values: dict[str, Any] = {}
    for key, kind in _ENTRIES.items():
        try:
            values[key] = read_value(kind, key, content[key])
            if key == "jobs":
                values[key] = _read_jobs(values[key])
        except (UsageError, KeyError):
            raise UsageError(f"{file} is damaged: its entry {key} is missing or wrong; start a new sweep") from None
    for job in values["jobs"]:
        if not _JOB_NAME.fullmatch(job.name):
            raise UsageError(f"{file} is damaged: {job.name!r} is not a valid folder name of a job")
    config_dir = values.pop("config_dir")
    return Sweep(path, cwd=Path(values.pop("cwd")), config_dir=config_dir and Path(config_dir), **values)


def _read_jobs(entries: Sequence[Mapping[str, Any]]) -> tuple[Job, ...]:
    if not entries:
        raise UsageError("no jobs")
    return tuple(
        Job(
            number, read_value(str, "name", entry["name"]), read_value(tuple[str, ...], "overrides", entry["overrides"])
        )
        for number, entry in enumerate(entries)
    )


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        check_aliases(path.read_bytes())
        # For a thousand jobs, CSafeLoader is twenty times faster, but some builds of PyYAML lack it.
        content = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise UsageError(f"{path.parent} is not a sweep's folder: {path.name} is missing") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is damaged: not a sweep")
    return content

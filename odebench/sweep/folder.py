"""The folder of a sweep: sweep.yaml with the jobs as text, a lock, and a folder and a log for each job.

outputs/sweeps/2026-11-24/14-03-22-123456/
  sweep.yaml  lock  logs/0000.txt ...  0000_odenet_dopri5/ ...  slurm/
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from odebench.config.files import check_aliases
from odebench.errors import UsageError
from odebench.record import layout
from odebench.record.files import check_folder_can_be_made, make_folder, utc_now, write_atomically
from odebench.sweep.validate import Job

SWEEP_FILE, LOCK_FILE, LOGS_FOLDER = "sweep.yaml", "lock", "logs"
FORMAT_VERSION = 1
_HEADER = "# `odebench resume` reads this file. A job's overrides are those of `odebench train`.\n"
_JOB_NAME = re.compile(r"\d+_[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Sweep:
    """A sweep in its folder.

    cluster: overrides that set where it runs; cwd: the base of its relative paths; search: overrides of the sweeper
    that chooses its jobs, if they are no grid.
    """

    path: Path
    jobs: tuple[Job, ...]
    cluster: tuple[str, ...]
    config_dir: Path | None
    cwd: Path
    search: tuple[str, ...] = ()

    def job_folder(self, job: Job) -> Path:
        """The folder of a job's record."""
        return self.path / job.name

    def log_path(self, job: Job) -> Path:
        """The file with the output of a job's processes; locked while one of them is alive."""
        return self.path / LOGS_FOLDER / f"{job.name.partition('_')[0]}.txt"


def is_sweep(path: Path) -> bool:
    """Whether the folder holds a sweep."""
    return (path / SWEEP_FILE).is_file()


def create_folder(chosen: Path | None, outputs: str) -> Path:
    """Create the folder of a new sweep; see `choose_folder`."""
    path = choose_folder(chosen, outputs)
    make_folder(path, _option_text(chosen, outputs))
    return path


def choose_folder(chosen: Path | None, outputs: str) -> Path:
    """The folder for a new sweep, not created yet: `chosen`, or one named after the time. UsageError if it is not empty
    or cannot be created."""
    now = datetime.now()
    path = chosen or Path(outputs) / "sweeps" / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}"
    path = path.absolute()
    if "${" in str(path) or not str(path).isprintable():
        raise UsageError(f"{str(path)!r}: the path of a sweep's folder must not contain ${{ or control characters")
    if os.path.isdir(path) and any(path.iterdir()):
        hint = f" continue that sweep (odebench resume {shlex.quote(str(path))}) or" if is_sweep(path) else ""
        raise UsageError(f"{path} is not empty;{hint} name another folder")
    check_folder_can_be_made(path, _option_text(chosen, outputs))
    return path


def _option_text(chosen: Path | None, outputs: str) -> str:
    return f"the sweep's folder {chosen}" if chosen else f"outputs={outputs}"


def write_sweep(sweep: Sweep) -> None:
    """Write a new sweep: a folder with the status queued for each job, then sweep.yaml."""
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
        "jobs": _jobs_as_dicts(sweep.jobs),
    }
    _write(sweep, content)


def add_jobs(sweep: Sweep, jobs: Sequence[Job]) -> Sweep:
    """Add queued jobs to a sweep that was read under its lock; they are numbered after the existing ones."""
    numbered = (
        Job(number, f"{number:04d}_{job.name.partition('_')[2]}", job.overrides)
        for number, job in enumerate(jobs, start=len(sweep.jobs))
    )
    larger = replace(sweep, jobs=(*sweep.jobs, *numbered))
    for job in larger.jobs[len(sweep.jobs) :]:
        reset_job(larger, job)
    _write(larger, _load(sweep.path / SWEEP_FILE) | {"jobs": _jobs_as_dicts(larger.jobs)})
    return larger


def _jobs_as_dicts(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    return [{"name": job.name, "overrides": list(job.overrides)} for job in jobs]


def _write(sweep: Sweep, content: dict[str, Any]) -> None:
    write_atomically(sweep.path / SWEEP_FILE, (_HEADER + _dump(content)).encode())


def reset_job(sweep: Sweep, job: Job) -> None:
    """Reset a job's folder to its state before the start: only the status queued."""
    folder = sweep.job_folder(job)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # No fsync: a thousand of them are slow, and a job whose status a power failure corrupts runs anyway.
    now = utc_now()
    (folder / layout.STATUS).write_text(f'{{"status": "queued", "step": 0, "time": "{now}"}}\n', encoding="utf-8")


def load_sweep(path: Path) -> Sweep:
    """Read the sweep in a folder. UsageError if sweep.yaml is invalid, or names a folder outside."""
    path = path.absolute()
    content = _load(path / SWEEP_FILE)
    if content.get("format", FORMAT_VERSION) != FORMAT_VERSION:
        raise UsageError(f"{path / SWEEP_FILE} was written by another version of odebench (format {content['format']})")
    for key, is_valid in _VALID.items():
        if not is_valid(content.get(key, [] if key == "search" else None)):
            raise UsageError(f"{path / SWEEP_FILE} is damaged: its entry {key} is missing or wrong; start a new sweep")
    for job in content["jobs"]:
        if not _JOB_NAME.fullmatch(job["name"]):
            raise UsageError(f"{path / SWEEP_FILE} is damaged: {job['name']!r} is not a valid folder name of a job")
    jobs = tuple(Job(number, job["name"], tuple(job["overrides"])) for number, job in enumerate(content["jobs"]))
    config_dir = None if content["config_dir"] is None else Path(content["config_dir"])
    search = tuple(content.get("search", []))
    return Sweep(path, jobs, tuple(content["cluster"]), config_dir, Path(content["cwd"]), search)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _are_jobs(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(job, dict) and isinstance(job.get("name"), str) and _are_texts(job.get("overrides"))
        for job in values
    )


_VALID: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: True,
    "jobs": lambda value: _are_jobs(value) and bool(value),
    "cluster": _are_texts,
    "cwd": lambda value: isinstance(value, str),
    "config_dir": lambda value: isinstance(value, str | None),
}


def _dump(content: dict[str, Any]) -> str:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump(content, Dumper=dumper, sort_keys=False, allow_unicode=True, width=1000)


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        check_aliases(path.read_bytes())
        # CSafeLoader, if PyYAML was built with it, is twenty times faster for a thousand jobs.
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

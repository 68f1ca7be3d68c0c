"""Compose, check and name every job of a sweep before the first one starts."""

import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from odebench.config.compose import compose
from odebench.config.groups import PLURALS
from odebench.config.read import read_settings
from odebench.config.settings import Settings, run_name
from odebench.errors import UsageError
from odebench.record.differences import name_by
from odebench.training.preflight import check_batch_size, read_init_run


@dataclass(frozen=True)
class Job:
    """One training of a sweep: its number, the name of its folder and its overrides, as text."""

    number: int
    name: str
    overrides: tuple[str, ...]


def job_labels(jobs: Sequence[Job]) -> list[str]:
    """Return a label for each job: its overrides, without those that all jobs share."""
    return [" ".join(overrides) for overrides in _varied([job.overrides for job in jobs])]


def _varied(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the overrides of each job that not all jobs share; all of them if there is one job."""
    shared = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    return [[override for override in overrides if override not in shared] for overrides in jobs]


def validate_jobs(
    jobs: Sequence[Sequence[str]],
    config_dir: Path | None = None,
    num_processes: int = 1,
    uncertain_keys: Collection[str] = (),
) -> tuple[list[Job], str]:
    """Check the overrides of every job. Returns the jobs with their names, and the setting ``outputs``, their folder.

    num_processes: number of processes that train each model together. uncertain_keys: keys about which errors are not
    reported, because invalid overrides were left out. A UsageError lists every other error with the jobs that have it.
    """
    valid: list[Job] = []
    errors: dict[str, list[int]] = {}
    outputs = ""
    width = max(4, len(str(len(jobs) - 1)))
    for number, overrides in enumerate(jobs):
        settings, found = _read_job(overrides, config_dir, num_processes)
        for error in found:
            if not set(error.settings) & set(uncertain_keys):
                errors.setdefault(str(error), []).append(number)
        if settings is None:
            continue
        valid.append(Job(number, f"{number:0{width}d}_{run_name(settings)}", tuple(overrides)))
        outputs = settings.outputs
    if errors:
        bad = len(set().union(*errors.values()))
        lines = [f"{bad} of {len(jobs)} jobs are invalid; none was started"]
        for error_text, (first, *others) in errors.items():
            more = f" and {len(others)} more" if others else ""
            lines.append(f"job {first} ({' '.join(jobs[first])}){more}: {error_text}")
        raise UsageError("\n".join(lines))
    varied = _varied([job.overrides for job in valid]) if len(valid) > 1 else [[] for _ in valid]
    return [named_by(*pair) for pair in zip(valid, varied, strict=True)], outputs


def named_by(job: Job, varied: Sequence[str]) -> Job:
    """Name the folder of a job by overrides, as ``0002_tol=0.01_gradient=adjoint``; keep its name if there are none."""
    number, _, name = job.name.partition("_")
    values = dict(override.split("=", 1) for override in varied if "=" in override)
    name = name_by(values) or re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:80]
    return replace(job, name=f"{number}_{name}")


def _read_job(
    overrides: Sequence[str], config_dir: Path | None, num_processes: int
) -> tuple[Settings | None, list[UsageError]]:
    """Return the settings of a job and no errors, or None and its errors.

    After an error, the job is checked again without the settings that the error names, to find further errors.
    """
    remaining, errors = list(overrides), list[UsageError]()
    while True:
        try:
            settings = read_settings(compose(remaining, config_dir))
            _check_device_and_batch(settings, num_processes)
            if settings.init_from is not None:
                _check_init_run(settings.init_from)
        except UsageError as error:
            errors.append(error)
            # Keep the options of groups: without an option, its settings might become invalid.
            blamed = set(error.settings) - PLURALS.keys()
            rest = [override for override in remaining if override.partition("=")[0] not in blamed]
            if len(rest) == len(remaining):
                return None, errors
            remaining = rest
        else:
            return (None if errors else settings), errors


def _check_device_and_batch(settings: Settings, num_processes: int) -> None:
    if settings.device.startswith("cuda:"):
        raise UsageError(
            f"device={settings.device}: a sweep assigns devices to jobs; leave it out, or give cluster.devices=[0,1]",
            "device",
        )
    check_batch_size(settings.trainer.batch_size, num_processes)


_check_init_run = functools.cache(read_init_run)  # cached: usually all jobs start from the same run

"""A sweep from its words to its table: validated, written down, run, resumed."""

import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from odebench.console import print_table
from odebench.errors import UsageError
from odebench.record.files import file_lock
from odebench.sweep import slurm
from odebench.sweep.attempts import FINAL_STATUSES, FailurePolicy, read_status
from odebench.sweep.cluster import GROUP, LocalCluster, is_cluster_override, read_cluster
from odebench.sweep.display import STATE_COLUMNS, SweepDisplay, format_counts, state_columns
from odebench.sweep.expand import expand_valid, merge_grids, read_grids
from odebench.sweep.folder import LOCK_FILE, Sweep, create_folder, load_sweep, write_sweep
from odebench.sweep.local import LocalRunner
from odebench.sweep.validate import Job, job_labels, validate_jobs
from odebench.training.signals import StopRequest

log = logging.getLogger(__name__)

# The exit code of the whole is that of the worst status of a job, which stand first.
_EXIT_CODES_WORST_FIRST = {"failed": 1, "diverged": 3, "timeout": 75, "interrupted": 75, "queued": 75, "running": 75}


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that could start: its jobs, all valid, and where they run."""

    jobs: list[Job]
    outputs: str
    cluster: tuple[str, ...]
    config_dir: Path | None


def plan_sweep(words: Sequence[str], file: Path | None, config_dir: Path | None) -> SweepPlan:
    """Expand and validate; nothing is written. UsageError tells every fault."""
    if config_dir is not None:
        config_dir = config_dir.absolute()
    cluster = tuple(word for word in words if is_cluster_override(word))
    own = [word for word in words if not is_cluster_override(word)]
    if not own and file is None:
        raise UsageError("which jobs? give settings and their values, such as tol=1e-2,1e-3, or --file FILE")
    num_processes = read_cluster(cluster, config_dir).num_processes
    grids = merge_grids([[]] if file is None else read_grids(file), own)
    overrides, errors, uncertain_keys = expand_valid(grids, config_dir)
    try:
        jobs, outputs = validate_jobs(overrides, config_dir, num_processes, uncertain_keys)
    except UsageError as error:
        if not errors:
            raise
        # Beside the words at fault, what is wrong whatever stands in their place.
        errors += str(error).splitlines()[1:]
    if errors:
        raise UsageError("\n".join(errors))
    return SweepPlan(jobs, outputs, cluster, config_dir)


def print_plan(plan: SweepPlan) -> None:
    """The jobs of a sweep that is not started."""
    rows = [(str(job.number), job.name, label) for job, label in zip(plan.jobs, job_labels(plan.jobs), strict=True)]
    print_table([("JOB", "FOLDER", "SETTINGS"), *rows])
    print(f"{_count_jobs(len(plan.jobs))}, all valid; nothing was started")


def run_sweep(plan: SweepPlan, output: Path | None, policy: FailurePolicy, follow: bool) -> int:
    """Write the sweep down and run it; returns the exit code of the whole."""
    path = create_folder(output, plan.outputs)
    with file_lock(path / LOCK_FILE):
        sweep = Sweep(path, tuple(plan.jobs), plan.cluster, plan.config_dir, Path.cwd())
        write_sweep(sweep)
        return _run(sweep, (), policy, follow)


def resume_sweep(path: Path, words: Sequence[str], policy: FailurePolicy, follow: bool) -> int:
    """Run what has not ended yet. words: settings of the cluster to change. Returns the exit code of the whole."""
    for word in words:
        if not is_cluster_override(word):
            raise UsageError(f"{word}: the jobs of a sweep are fixed; only where they run (cluster...) can change")
    with file_lock(path / LOCK_FILE):
        return _run(load_sweep(path), words, policy, follow)


def _run(sweep: Sweep, words: Sequence[str], policy: FailurePolicy, follow: bool) -> int:
    """Runs what has not ended and is in no queue."""
    replaces_cluster = any(word.startswith(f"{GROUP}=") for word in words)
    cluster = read_cluster([*(() if replaces_cluster else sweep.cluster), *words], sweep.config_dir)
    queue = slurm.jobs_in_queue(sweep)
    slurm.mark_lost_jobs(sweep, queue)
    overviews = [read_status(sweep, job) for job in sweep.jobs]
    unfinished = [
        job for job, overview in zip(sweep.jobs, overviews, strict=True) if overview.status not in FINAL_STATUSES
    ]
    todo = [job for job in unfinished if job.number not in queue]
    if queue:
        log.info("left in SLURM's queue: %s", _count_jobs(len(queue)))
    log.info("to run: %d of %s in %s", len(todo), _count_jobs(len(sweep.jobs)), _shell_path(sweep.path))
    if isinstance(cluster, LocalCluster):
        with StopRequest() as stop, SweepDisplay(sweep.jobs, overviews, cluster.jobs) as display:
            LocalRunner(sweep, cluster, policy, display).run(todo, stop)
        return print_sweep(sweep)
    for array in slurm.submit(sweep, todo, cluster, policy):
        print(f"submitted array {array}; scancel {array} stops it")
    if follow:
        with StopRequest() as stop, SweepDisplay(sweep.jobs, overviews, len(sweep.jobs)) as display:
            slurm.follow(sweep, stop, display)
        return print_sweep(sweep)
    print(f"how far the jobs are: odebench list runs {_shell_path(sweep.path)}")
    return 0


def print_sweep(sweep: Sweep) -> int:
    """One row a job, the reasons of those that were not done, and how many are in which status; the exit code."""
    overviews = [read_status(sweep, job) for job in sweep.jobs]
    rows_of_jobs = zip(sweep.jobs, overviews, job_labels(sweep.jobs), strict=True)
    rows = [(str(job.number), *state_columns(overview), label) for job, overview, label in rows_of_jobs]
    print_table([("JOB", *STATE_COLUMNS, "SETTINGS"), *rows])
    for job, overview in zip(sweep.jobs, overviews, strict=True):
        if overview.status not in ("done", "queued", "running"):
            print(
                f"job {job.number} {overview.status}: {overview.message or 'no reason told'}  ({sweep.log_path(job)})"
            )
    counts = Counter(overview.status for overview in overviews)
    print(f"{_count_jobs(len(sweep.jobs))} in {_shell_path(sweep.path)}: {format_counts(counts)}")
    if set(counts) - set(FINAL_STATUSES):
        print(f"go on with: odebench resume {_shell_path(sweep.path)}")
    return next((code for status, code in _EXIT_CODES_WORST_FIRST.items() if counts[status]), 0)


def _count_jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"


def _shell_path(path: Path) -> str:
    """The path as a word of a shell's command line, relative where it lies below this folder."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))

"""Plan, write, run and resume a sweep, and print its table."""

import logging
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from odebench.console import print_table
from odebench.errors import DONE, UsageError
from odebench.record.files import file_lock
from odebench.sweep import slurm
from odebench.sweep.attempts import EXIT_CODES, FINAL_STATUSES, FailurePolicy, read_status
from odebench.sweep.cluster import HydraLauncher, LocalCluster, SlurmCluster, is_cluster_override, read_cluster
from odebench.sweep.display import LESS_IMPORTANT, STATE_COLUMNS, SweepDisplay, format_counts, state_columns
from odebench.sweep.expand import expand_valid, merge_grids, read_grids
from odebench.sweep.folder import LOCK_FILE, Sweep, create_folder, load_sweep, write_sweep
from odebench.sweep.hydra_launcher import launch
from odebench.sweep.local import LocalRunner
from odebench.sweep.validate import Job, job_labels, validate_jobs
from odebench.training.signals import StopRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepPlan:
    """A validated sweep that has not started: its jobs and where they run."""

    jobs: list[Job]
    outputs: str
    cluster: tuple[str, ...]
    config_dir: Path | None


def plan_sweep(overrides: Sequence[str], file: Path | None, config_dir: Path | None) -> SweepPlan:
    """Expand and validate the jobs of a sweep, without writing anything. A UsageError lists every error."""
    config_dir = None if config_dir is None else config_dir.absolute()
    cluster = tuple(filter(is_cluster_override, overrides))
    grid = [override for override in overrides if override not in cluster]
    if not grid and file is None:
        raise UsageError("no jobs given: give settings and their values, such as tol=1e-2,1e-3, or --file FILE")
    num_processes = read_cluster(cluster, config_dir).num_processes
    grids = merge_grids([[]] if file is None else read_grids(file), grid)
    combinations, errors, uncertain_keys = expand_valid(grids, config_dir)
    distinct = list(dict.fromkeys(map(tuple, combinations)))
    if repeated := len(combinations) - len(distinct):
        log.warning("%s given more than once: each runs once", _count_jobs(repeated))
    try:
        jobs, outputs = validate_jobs(distinct, config_dir, num_processes, uncertain_keys)
    except UsageError as error:
        # Add the jobs' errors, which do not depend on invalid overrides. Their first line only counts jobs.
        errors = [*errors, *str(error).splitlines()[bool(errors) :]]
    if errors:
        raise UsageError("\n".join(errors))
    return SweepPlan(jobs, outputs, cluster, config_dir)


def print_plan(plan: SweepPlan) -> None:
    """Print the jobs of a sweep without starting it."""
    rows = [(str(job.number), job.name, label) for job, label in zip(plan.jobs, job_labels(plan.jobs), strict=True)]
    print_table([("JOB", "FOLDER", "SETTINGS"), *rows], ["FOLDER"])
    print(f"{_count_jobs(len(plan.jobs))}, all valid; nothing was started")


def run_sweep(plan: SweepPlan, output: Path | None, policy: FailurePolicy, follow: bool) -> int:
    """Write the sweep to its folder and run it. Returns its exit code."""
    path = create_folder(output, plan.outputs)
    with file_lock(path / LOCK_FILE):
        sweep = Sweep(path, tuple(plan.jobs), plan.cluster, plan.config_dir, Path.cwd())
        write_sweep(sweep)
        return _run(sweep, (), policy, follow)


def resume_sweep(path: Path, overrides: Sequence[str], policy: FailurePolicy, follow: bool) -> int:
    """Run the jobs that have not ended yet. overrides: cluster settings to change. Returns the sweep's exit code."""
    for override in overrides:
        if not is_cluster_override(override):
            raise UsageError(f"{override}: the jobs of a sweep are fixed; only where they run (cluster...) can change")
    with file_lock(path / LOCK_FILE):
        sweep = load_sweep(path)
        if sweep.search:
            log.warning(
                "the search is not continued: this command runs only those of its jobs that have not ended. To be "
                "able to continue a search, set hydra.sweeper.storage in its command, and run that command again"
            )
        return _run(sweep, overrides, policy, follow)


def _run(sweep: Sweep, overrides: Sequence[str], policy: FailurePolicy, follow: bool) -> int:
    """Run the jobs that have not ended and are not in SLURM's queue. Returns the exit code."""
    replaces_cluster = any(re.match("(cluster|hydra/launcher)=", override) for override in overrides)
    cluster = read_cluster([*(() if replaces_cluster else sweep.cluster), *overrides], sweep.config_dir)
    queue = slurm.jobs_in_queue(sweep)
    slurm.mark_lost_jobs(sweep, queue)
    overviews = [read_status(sweep, job) for job in sweep.jobs]
    states = zip(sweep.jobs, overviews, strict=True)
    todo = [job for job, state in states if state.status not in FINAL_STATUSES and job.number not in queue]
    if queue:
        log.info("still in SLURM's queue: %s", _count_jobs(len(queue)))
    log.info("to run: %d of %s in %s", len(todo), _count_jobs(len(sweep.jobs)), _shell_path(sweep.path))
    if not isinstance(cluster, SlurmCluster):
        run_jobs(sweep, todo, cluster, policy)
        return print_sweep(sweep)
    for array in slurm.submit(sweep, todo, cluster, policy):
        print(f"submitted array {array}; scancel {array} stops it")
    if follow:
        with StopRequest() as stop, SweepDisplay(sweep.jobs, overviews, len(sweep.jobs)) as display:
            slurm.follow(sweep, stop, display)
        return print_sweep(sweep)
    print(f"show their progress: odebench list runs {_shell_path(sweep.path)}")
    return 0


def run_jobs(sweep: Sweep, jobs: Sequence[Job], cluster: LocalCluster | HydraLauncher, policy: FailurePolicy) -> None:
    """Run jobs until all have ended, or a signal has stopped them."""
    if isinstance(cluster, HydraLauncher):
        if jobs:  # submitit fails if there are no jobs
            launch(sweep, jobs, cluster, policy)
        return
    overviews = [read_status(sweep, job) for job in sweep.jobs]
    with StopRequest() as stop, SweepDisplay(sweep.jobs, overviews, cluster.jobs) as display:
        LocalRunner(sweep, cluster, policy, display).run(jobs, stop)


def print_sweep(sweep: Sweep) -> int:
    """Print a row for each job, why jobs failed, and the number of jobs by status. Returns the exit code."""
    overviews = [read_status(sweep, job) for job in sweep.jobs]
    rows_of_jobs = zip(sweep.jobs, overviews, job_labels(sweep.jobs), strict=True)
    rows = [(str(job.number), *state_columns(overview), label) for job, overview, label in rows_of_jobs]
    print_table([("JOB", *STATE_COLUMNS, "SETTINGS"), *rows], LESS_IMPORTANT)
    for job, overview in zip(sweep.jobs, overviews, strict=True):
        if overview.status not in ("done", "queued", "running"):
            reason = overview.message or "no reason recorded"
            print(f"job {job.number} {overview.status}: {reason}  ({sweep.log_path(job)})")
    counts = Counter(overview.status for overview in overviews)
    print(f"{_count_jobs(len(sweep.jobs))} in {_shell_path(sweep.path)}: {format_counts(counts)}")
    if set(counts) - set(FINAL_STATUSES):
        print(f"continue with: odebench resume {_shell_path(sweep.path)}")
    return exit_code(sweep)


def exit_code(sweep: Sweep) -> int:
    """The exit code of a sweep, by the statuses of its jobs."""
    statuses = {read_status(sweep, job).status for job in sweep.jobs}
    return next((code for status, code in EXIT_CODES.items() if status in statuses), DONE)


def _count_jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"


def _shell_path(path: Path) -> str:
    """Quote a path for a shell. It becomes relative if it is below the current folder."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))

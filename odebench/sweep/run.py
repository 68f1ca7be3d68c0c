"""A sweep from its words to its table: validated, written down, run, resumed."""

import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from odebench.console import print_table
from odebench.errors import UsageError
from odebench.record.files import locked
from odebench.sweep import slurm
from odebench.sweep.attempts import ENDED, Policy, look
from odebench.sweep.cluster import GROUP, Local, is_of_cluster, read_cluster
from odebench.sweep.display import STATE_COLUMNS, Display, count_text, state_columns
from odebench.sweep.expand import combine, expand_sound, read_grids
from odebench.sweep.folder import LOCK, Sweep, claim_folder, load_sweep, write_sweep
from odebench.sweep.local import LocalRunner
from odebench.sweep.validate import Job, labels, validate
from odebench.training.signals import StopRequest

log = logging.getLogger(__name__)

# The exit code of the whole is that of the worst status of a job, which stand first.
_WORST_FIRST = {"failed": 1, "diverged": 3, "timeout": 75, "interrupted": 75, "queued": 75, "running": 75}


@dataclass(frozen=True)
class Plan:
    """A sweep that could start: its jobs, all valid, and where they run."""

    jobs: list[Job]
    outputs: str
    cluster: tuple[str, ...]
    config_dir: Path | None


def plan_sweep(words: Sequence[str], file: Path | None, config_dir: Path | None) -> Plan:
    """Expand and validate; nothing is written. UsageError tells every fault."""
    if config_dir is not None:
        config_dir = config_dir.absolute()
    cluster = tuple(word for word in words if is_of_cluster(word))
    own = [word for word in words if not is_of_cluster(word)]
    if not own and file is None:
        raise UsageError("which jobs? give settings and their values, such as tol=1e-2,1e-3, or --file FILE")
    processes = read_cluster(cluster, config_dir).num_processes
    grids = combine([[]] if file is None else read_grids(file), own)
    overrides, faults, doubtful = expand_sound(grids, config_dir)
    try:
        jobs, outputs = validate(overrides, config_dir, processes, doubtful)
    except UsageError as error:
        if not faults:
            raise
        # Beside the words at fault, what is wrong whatever stands in their place.
        faults += str(error).splitlines()[1:]
    if faults:
        raise UsageError("\n".join(faults))
    return Plan(jobs, outputs, cluster, config_dir)


def print_plan(plan: Plan) -> None:
    """The jobs of a sweep that is not started."""
    rows = [(str(job.number), job.name, label) for job, label in zip(plan.jobs, labels(plan.jobs), strict=True)]
    print_table([("JOB", "FOLDER", "SETTINGS"), *rows])
    print(f"{_jobs(len(plan.jobs))}, all valid; nothing was started")


def run_sweep(plan: Plan, output: Path | None, policy: Policy, follow: bool) -> int:
    """Write the sweep down and run it; returns the exit code of the whole."""
    path = claim_folder(output, plan.outputs)
    with locked(path / LOCK):
        sweep = Sweep(path, tuple(plan.jobs), plan.cluster, plan.config_dir, Path.cwd())
        write_sweep(sweep)
        return _run(sweep, (), policy, follow)


def resume_sweep(path: Path, words: Sequence[str], policy: Policy, follow: bool) -> int:
    """Run what has not ended yet. words: settings of the cluster to change. Returns the exit code of the whole."""
    for word in words:
        if not is_of_cluster(word):
            raise UsageError(f"{word}: the jobs of a sweep are fixed; only where they run (cluster...) can change")
    with locked(path / LOCK):
        return _run(load_sweep(path), words, policy, follow)


def _run(sweep: Sweep, words: Sequence[str], policy: Policy, follow: bool) -> int:
    """Runs what has not ended and is in no queue."""
    elsewhere = any(word.startswith(f"{GROUP}=") for word in words)
    cluster = read_cluster([*(() if elsewhere else sweep.cluster), *words], sweep.config_dir)
    queue = slurm.in_queue(sweep)
    slurm.settle_lost(sweep, queue)
    overviews = [look(sweep, job) for job in sweep.jobs]
    unfinished = [job for job, overview in zip(sweep.jobs, overviews, strict=True) if overview.status not in ENDED]
    todo = [job for job in unfinished if job.number not in queue]
    if queue:
        log.info("left in SLURM's queue: %s", _jobs(len(queue)))
    log.info("to run: %d of %s in %s", len(todo), _jobs(len(sweep.jobs)), _short(sweep.path))
    if isinstance(cluster, Local):
        with StopRequest() as stop, Display(sweep.jobs, overviews, cluster.jobs) as display:
            LocalRunner(sweep, cluster, policy, display).run(todo, stop)
        return print_sweep(sweep)
    for array in slurm.submit(sweep, todo, cluster, policy):
        print(f"submitted array {array}; scancel {array} stops it")
    if follow:
        with StopRequest() as stop, Display(sweep.jobs, overviews, len(sweep.jobs)) as display:
            slurm.follow(sweep, stop, display)
        return print_sweep(sweep)
    print(f"how far the jobs are: odebench list runs {_short(sweep.path)}")
    return 0


def print_sweep(sweep: Sweep) -> int:
    """One row a job, the reasons of those that were not done, and how many are in which status; the exit code."""
    overviews = [look(sweep, job) for job in sweep.jobs]
    told = zip(sweep.jobs, overviews, labels(sweep.jobs), strict=True)
    rows = [(str(job.number), *state_columns(overview), label) for job, overview, label in told]
    print_table([("JOB", *STATE_COLUMNS, "SETTINGS"), *rows])
    for job, overview in zip(sweep.jobs, overviews, strict=True):
        if overview.status not in ("done", "queued", "running"):
            print(f"job {job.number} {overview.status}: {overview.message or 'no reason told'}  ({sweep.log(job)})")
    counts = Counter(overview.status for overview in overviews)
    print(f"{_jobs(len(sweep.jobs))} in {_short(sweep.path)}: {count_text(counts)}")
    if set(counts) - set(ENDED):
        print(f"go on with: odebench resume {_short(sweep.path)}")
    return next((code for status, code in _WORST_FIRST.items() if counts[status]), 0)


def _jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"


def _short(path: Path) -> str:
    """The path as a word of a shell's command line, relative where it lies below this folder."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))

"""`odebench train -m`: run a sweep as Hydra users do. In a search, a sweeper (Optuna) chooses jobs in batches."""

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from odebench.config.compose import compose_with_hydra, explain_hydra_error, parse_overrides
from odebench.config.schema.quantities import higher_is_better
from odebench.errors import FAILED, STOPPED, UsageError
from odebench.record.files import file_lock
from odebench.record.reader import RunOverview
from odebench.sweep.attempts import FailurePolicy, read_status
from odebench.sweep.cluster import HydraLauncher, LocalCluster, SlurmCluster, is_cluster_override, read_cluster
from odebench.sweep.expand import expand
from odebench.sweep.folder import LOCK_FILE, Sweep, add_jobs, create_folder, write_sweep
from odebench.sweep.hydra_launcher import compose_for_plugins, explain_plugin_error
from odebench.sweep.run import plan_sweep, print_sweep, run_jobs, run_sweep
from odebench.sweep.validate import Job, named_by, validate_jobs

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from hydra.core.utils import JobReturn
    from hydra.plugins.sweeper import Sweeper

log = logging.getLogger(__name__)

_NO_RETRIES = FailurePolicy(fail_fast=False, retry=0)


def run_multirun(overrides: Sequence[str], config_dir: Path | None = None) -> int:
    """Run a sweep of all combinations of the values, or a search if a sweeper is chosen. Returns the exit code."""
    config_dir = None if config_dir is None else config_dir.absolute()
    folder = [override for override in overrides if override.startswith("hydra.sweep.dir=")]
    sweeper = [override for override in overrides if re.match(r"hydra[/.]sweeper[/.=]", override)]
    others = [override for override in overrides if override not in (*folder, *sweeper)]
    if sweeper:
        return _search(others, sweeper, folder, config_dir)
    plan = plan_sweep(others, None, config_dir)
    output = None
    if folder:
        output = _sweep_dir(compose_with_hydra([*plan.jobs[0].overrides, *folder], config_dir))
    return run_sweep(plan, output, _NO_RETRIES, follow=False)


def _sweep_dir(config: DictConfig) -> Path:
    try:
        return Path(str(config.hydra.sweep.dir))
    except OmegaConfBaseException as error:  # it contains an interpolation that cannot be resolved
        raise explain_hydra_error(error) from error


def _search(others: Sequence[str], sweeper: list[str], folder: Sequence[str], config_dir: Path | None) -> int:
    """Run the jobs that a sweeper of Hydra chooses. Prints a table and the best job; returns the exit code."""
    cluster = tuple(filter(is_cluster_override, others))
    grid = [override for override in others if override not in cluster]
    where = read_cluster(cluster, config_dir)
    if isinstance(where, SlurmCluster):
        raise UsageError("a search waits for its jobs; choose hydra/launcher=submitit_slurm in place of cluster=slurm")
    parsed = parse_overrides(grid, config_dir)
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    first = [_first_value(override, config_dir) for override in parsed]
    validate_jobs([first], config_dir, uncertain_keys=swept)
    config = compose_with_hydra([*first, *sweeper, *folder], config_dir)
    directions = [one.partition("=")[2] for one in sweeper if one.startswith("hydra.sweeper.direction=")]
    if "direction" in config.hydra.sweeper and not directions:
        higher = higher_is_better(str(config.trainer.objective).partition("/")[2])
        directions = ["maximize" if higher else "minimize"]
        sweeper.append(f"hydra.sweeper.direction={directions[0]}")
    path = create_folder(_sweep_dir(config) if folder else None, str(config.outputs))
    with file_lock(path / LOCK_FILE):
        sweep = Sweep(path, (), cluster, config_dir, Path.cwd(), tuple(sweeper))
        write_sweep(sweep)
        search = _Search(sweep, where, [override for override in grid if override.partition("=")[0] not in swept])
        completed = search.run(grid)
        code = print_sweep(search.sweep)
    if directions:
        _print_best(search.sweep, directions[-1])
    return code if completed else FAILED


def _first_value(override: "Override", config_dir: Path | None) -> str:
    """Return an override with only the first of its values."""
    if override.is_interval_sweep():
        return f"{override.key_or_group}={override.value().start}"  # type: ignore[union-attr]
    return expand([[str(override.input_line)]], config_dir)[0][0]


def _print_best(sweep: Sweep, direction: str) -> None:
    objectives = {job: _objective(read_status(sweep, job)) for job in sweep.jobs}
    done = {job: value for job, value in objectives.items() if value is not None}
    if done:
        best = (max if direction == "maximize" else min)(done, key=lambda job: done[job])
        print(f"best: job {best.number}, {done[best]:.4f}, {sweep.job_folder(best)}")


def _objective(overview: RunOverview) -> float | None:
    objective = overview.summary.get("objective")
    return objective if overview.status == "done" and isinstance(objective, int | float) else None


class _Search:
    """A sweep to which a sweeper adds the jobs that it chooses. The sweeper uses this object as its launcher."""

    def __init__(self, sweep: Sweep, where: LocalCluster | HydraLauncher, fixed: Sequence[str]) -> None:
        """fixed: the overrides that all jobs share."""
        self.sweep, self._where, self._fixed = sweep, where, fixed

    def run(self, grid: Sequence[str]) -> bool:
        """Let the sweeper choose and run jobs. Returns whether it ended without an error.

        If it fails before it chooses a job, removes the sweep's folder and raises UsageError.
        """
        try:
            self._sweeper().sweep(list(grid))
        except SystemExit:
            log.warning("the search stops")
        except Exception as error:
            problem = explain_plugin_error(error, self.sweep.config_dir)
            if not self.sweep.jobs:
                shutil.rmtree(self.sweep.path)
                raise problem from error
            log.error("%s", problem)
            return False
        return True

    def _sweeper(self) -> "Sweeper":
        from hydra.core.plugins import Plugins

        config, context = compose_for_plugins(self.sweep.search, self.sweep)
        plugins = Plugins.instance()
        # A sweeper calls instantiate_launcher when it is set up.
        plugins.instantiate_launcher = lambda **_: self  # type: ignore[method-assign, assignment]
        try:
            return plugins.instantiate_sweeper(hydra_context=context, task_function=lambda _: None, config=config)
        finally:
            del plugins.instantiate_launcher

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> "list[JobReturn]":
        """Run a batch of jobs and return their objectives. None means for Optuna that the trial failed.

        Raises SystemExit if a job was interrupted, so that a signal stops the search.
        """
        from hydra.core.utils import JobReturn, JobStatus

        self.sweep = add_jobs(self.sweep, [self._job(overrides) for overrides in job_overrides])
        new = self.sweep.jobs[-len(job_overrides) :]
        run_jobs(self.sweep, new, self._where, _NO_RETRIES)
        overviews = [read_status(self.sweep, job) for job in new]
        if any(overview.status in ("interrupted", "queued") for overview in overviews):
            raise SystemExit(STOPPED)
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=_objective(overview)) for overview in overviews]

    def _job(self, overrides: Sequence[str]) -> Job:
        keys = {override.partition("=")[0] for override in self._fixed}
        drawn = [override for override in overrides if override.partition("=")[0] not in keys]
        try:
            jobs, _ = validate_jobs([[*drawn, *self._fixed]], self.sweep.config_dir)
        except UsageError:  # the job will fail with this error; the search continues
            return Job(0, "0_invalid", (*drawn, *self._fixed))
        return named_by(jobs[0], drawn)

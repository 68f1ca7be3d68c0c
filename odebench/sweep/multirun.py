"""`odebench train -m`: a sweep in Hydra's words. A sweeper (Optuna) chooses the jobs of a search in batches."""

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from odebench.config.compose import compose_with_hydra, parse_overrides
from odebench.config.schema.quantities import higher_is_better
from odebench.errors import FAILED, STOPPED, UsageError
from odebench.record.files import file_lock
from odebench.record.reader import RunOverview
from odebench.sweep.attempts import FailurePolicy, read_status
from odebench.sweep.cluster import HydraLauncher, LocalCluster, SlurmCluster, is_cluster_override, read_cluster
from odebench.sweep.expand import expand_override
from odebench.sweep.folder import LOCK_FILE, Sweep, add_jobs, create_folder, write_sweep
from odebench.sweep.hydra_launcher import compose_for_plugins, explain_plugin_error
from odebench.sweep.run import plan_sweep, print_sweep, run_jobs, run_sweep
from odebench.sweep.validate import Job, validate_jobs

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.plugins.sweeper import Sweeper

log = logging.getLogger(__name__)

_NO_RETRIES = FailurePolicy(fail_fast=False, retry=0)
_SWEEPER = re.compile(r"hydra[/.]sweeper[/.=]")


def run_multirun(overrides: Sequence[str], config_dir: Path | None = None) -> int:
    """Run every combination of the values as a sweep, or a search where a sweeper is chosen; returns the exit code."""
    if any(map(_SWEEPER.match, overrides)):
        return _search(overrides, config_dir)
    folder = [override for override in overrides if override.startswith("hydra.sweep.dir=")]
    plan = plan_sweep([override for override in overrides if override not in folder], None, config_dir)
    output = None
    if folder:
        output = _sweep_dir(compose_with_hydra([*plan.jobs[0].overrides, *folder], config_dir), config_dir)
    return run_sweep(plan, output, _NO_RETRIES, follow=False)


def _sweep_dir(config: DictConfig, config_dir: Path | None) -> Path:
    try:
        return Path(str(config.hydra.sweep.dir))
    except Exception as error:  # an interpolation that cannot be resolved
        raise explain_plugin_error(error, config_dir) from error


def _search(overrides: Sequence[str], config_dir: Path | None) -> int:
    """Run the jobs that a sweeper of Hydra chooses; prints their table and the best one, returns the exit code."""
    config_dir = None if config_dir is None else config_dir.absolute()
    sweeper = [override for override in overrides if _SWEEPER.match(override)]
    folder = [override for override in overrides if override.startswith("hydra.sweep.dir=")]
    cluster = tuple(filter(is_cluster_override, overrides))
    grid = [override for override in overrides if override not in (*sweeper, *folder, *cluster)]
    where = read_cluster(cluster, config_dir)
    if isinstance(where, SlurmCluster):
        raise UsageError("a search waits for its jobs; choose hydra/launcher=submitit_slurm in place of cluster=slurm")
    first, swept = _first_values(grid, config_dir)
    validate_jobs([first], config_dir, uncertain_keys=swept)
    config = compose_with_hydra([*first, *sweeper, *folder], config_dir)
    direction = _direction(config, sweeper)
    if direction is not None:
        sweeper.append(f"hydra.sweeper.direction={direction}")
    path = create_folder(_sweep_dir(config, config_dir) if folder else None, str(config.outputs))
    with file_lock(path / LOCK_FILE):
        sweep = Sweep(path, (), cluster, config_dir, Path.cwd(), tuple(sweeper))
        write_sweep(sweep)
        search = _Search(sweep, where, [override for override in grid if override.partition("=")[0] not in swept])
        completed = search.run(grid)
        code = print_sweep(search.sweep)
    if direction is not None:
        _print_best(search.sweep, direction)
    return code if completed else FAILED


def _first_values(grid: Sequence[str], config_dir: Path | None) -> tuple[list[str], set[str]]:
    """The overrides with the first of their values, and the keys that have several."""
    first, swept, errors = list[str](), set[str](), list[str]()
    for override in parse_overrides(grid, config_dir):
        if override.is_interval_sweep():
            values = [f"{override.key_or_group}={override.value().start}"]  # type: ignore[union-attr]
        else:
            values = expand_override(str(override.input_line), config_dir, True, errors)
        if override.is_sweep_override():
            swept.add(override.key_or_group)
        first += values[:1]
    if errors:
        raise UsageError("\n".join(errors))
    return first, swept


def _direction(config: DictConfig, sweeper: Sequence[str]) -> str | None:
    """Direction of an optimising sweeper: maximize if a larger objective is better, unless the user sets it.

    None for a sweeper that does not optimise.
    """
    if "direction" not in config.hydra.sweeper:
        return None
    given = [word.partition("=")[2] for word in sweeper if word.startswith("hydra.sweeper.direction=")]
    default = "maximize" if higher_is_better(str(config.trainer.objective).partition("/")[2]) else "minimize"
    return given[-1] if given else default


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
    """A sweep that grows by the jobs that a sweeper chooses; for the sweeper it is a launcher."""

    def __init__(self, sweep: Sweep, where: LocalCluster | HydraLauncher, fixed: Sequence[str]) -> None:
        """fixed: the overrides that all jobs share."""
        self.sweep, self._where, self._fixed = sweep, where, fixed

    def run(self, grid: Sequence[str]) -> bool:
        """Let the sweeper choose and run jobs; returns whether it ended without an error.

        A UsageError if it chose none: nothing is left of the sweep then.
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
        # A sweeper asks for its launcher when it is set up.
        plugins.instantiate_launcher = lambda **_: self  # type: ignore[method-assign, assignment]
        try:
            return plugins.instantiate_sweeper(hydra_context=context, task_function=lambda _: None, config=config)
        finally:
            del plugins.instantiate_launcher

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> "list[JobReturn]":
        """Run a batch of jobs; each returns its objective, None if it has none: a trial of Optuna that failed.

        SystemExit if one was interrupted: a signal stops the search.
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
        except UsageError:  # the job will fail with this error, and the search continues
            return Job(0, "0_invalid", (*drawn, *self._fixed))
        return jobs[0]

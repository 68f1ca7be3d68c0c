"""Run the jobs of a sweep with a launcher of Hydra, such as joblib or submitit.

Hydra does not compose their settings: a launched process gets the number of a job, and starts it as in every sweep.
"""

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from odebench.config.compose import config_dir_overrides, explain_hydra_error, quoted
from odebench.config.files import CONFIGS
from odebench.console import console_log
from odebench.errors import STOPPED, UsageError
from odebench.sweep.attempts import FailurePolicy, end_lost_jobs, read_status
from odebench.sweep.cluster import HydraLauncher
from odebench.sweep.display import job_line
from odebench.sweep.folder import Sweep, load_sweep
from odebench.sweep.slurm_task import run_job
from odebench.sweep.validate import Job, job_labels
from odebench.training.signals import StopRequest

if TYPE_CHECKING:
    from hydra.types import HydraContext

log = logging.getLogger(__name__)


def launch(sweep: Sweep, jobs: Sequence[Job], launcher: HydraLauncher, policy: FailurePolicy) -> None:
    """Run jobs with Hydra's launcher until all have ended, or a signal has stopped them.

    If the launcher fails, its error becomes the message of the jobs that it killed. Raises UsageError if it failed
    before it started a job.
    """
    from hydra.core.plugins import Plugins

    task = functools.partial(_run_launched_job, sweep.path, [job.number for job in jobs], policy, os.getpid())
    try:
        config, context = compose_for_plugins(launcher.overrides, sweep)
        plugin = Plugins.instance().instantiate_launcher(context, task, config)
        plugin.launch([[] for _ in jobs], initial_job_idx=0)
    except (KeyboardInterrupt, SystemExit):
        log.warning("stopped: no further job starts")
    except Exception as error:
        problem = explain_plugin_error(error, sweep.config_dir)
        if all(read_status(sweep, job).status == "queued" for job in jobs):
            raise problem from error
        log.error("%s", problem)
        end_lost_jobs(sweep, jobs, "failed", str(problem))


def compose_for_plugins(overrides: Sequence[str], sweep: Sweep) -> "tuple[DictConfig, HydraContext]":
    """Compose Hydra's settings with these overrides. Returns them, and the context that its plugins need."""
    import hydra
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import HydraContext

    folder = f"hydra.sweep.dir={quoted(str(sweep.path))}"
    with hydra.initialize_config_dir(str(CONFIGS), job_name="odebench", version_base="1.3"):
        words = [*overrides, folder, *config_dir_overrides(sweep.config_dir)]
        config = hydra.compose("train", words, return_hydra_config=True)
        return config, HydraContext(GlobalHydra.instance().config_loader(), Callbacks(config))


def explain_plugin_error(error: Exception, config_dir: Path | None) -> UsageError:
    """Convert an error of Hydra, a launcher or a sweeper to one line. With HYDRA_FULL_ERROR=1, raise it unchanged."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    try:
        return explain_hydra_error(error, config_dir)
    except UsageError as cause:  # the cause is a file that cannot be read
        return cause
    except Exception:
        return UsageError(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _run_launched_job(
    path: Path, numbers: Sequence[int], policy: FailurePolicy, parent: int, config: DictConfig
) -> None:
    """Run one job of the sweep in folder ``path``. Hydra's launcher calls this function in this or another process.

    numbers: the numbers of the launched jobs, in order. parent: the id of the process that called the launcher. config:
    Hydra's settings for the job, with its place among the launched jobs; the job's own settings are not in it.
    """
    from hydra.core.hydra_config import HydraConfig

    sweep = load_sweep(path)
    job = sweep.jobs[numbers[HydraConfig.get().job.num]]
    if policy.fail_fast and any(read_status(sweep, other).status == "failed" for other in sweep.jobs):
        return
    with console_log(), StopRequest() as stop:
        label = job_labels(sweep.jobs)[job.number]
        log.info("job %d: running  %s", job.number, label)
        after = run_job(sweep, job, policy, stop)
        log.info(job_line(job.number, after, label))
    if after.status == "interrupted" and stop.name:
        stop.forward()  # submitit then requeues the job and exits
        # Hydra does not catch this exception, so the signal stops all jobs of this process. Under submitit the job must
        # exit without a result: with a result it would count as done, even if SLURM requeues it.
        if os.getpid() == parent or "SUBMITIT_EXECUTOR" in os.environ:
            raise SystemExit(STOPPED)

"""Run one attempt at one job: start it in its own process, and record a status however it ends."""

import contextlib
import fcntl
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from odebench.config.compose import quoted
from odebench.errors import DIVERGED, DONE, FAILED, STOPPED, WRONG_USAGE, UsageError
from odebench.record.files import utc_now
from odebench.record.reader import RunOverview, has_checkpoint, read_overview
from odebench.record.status import write_status as write_run_status
from odebench.sweep.folder import Sweep, reset_job
from odebench.sweep.validate import Job

_LOG = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "odebench")
# Jobs with these statuses are not run again. A diverged job would diverge again with the same seed.
FINAL_STATUSES = ("done", "diverged")
# Any other exit code means failed. The code of torchrun only tells that one of its processes failed.
_STATUS_BY_EXIT_CODE = {DONE: "done", WRONG_USAGE: "failed", DIVERGED: "diverged", STOPPED: "interrupted"}
# Exit code of a job by its status. That of a sweep is given by the first of these statuses that one of its jobs has.
EXIT_CODES = {
    "failed": FAILED,
    "diverged": DIVERGED,
    "timeout": STOPPED,
    "interrupted": STOPPED,
    "queued": STOPPED,
    "running": STOPPED,
    "done": DONE,
}
_TAIL_BYTES = 1 << 14


@dataclass
class Attempt:
    """A running job. Its log is open and locked until `finish`. distributed: whether torchrun starts its processes."""

    job: Job
    process: subprocess.Popen[bytes]
    log: BinaryIO
    distributed: bool = False
    stopped: bool = False

    def stop(self) -> None:
        """Ask the job to save a checkpoint and exit.

        A distributed job gets USR1, which srun forwards. After SIGTERM, srun would soon kill all processes.
        """
        self.stopped = True
        self.process.send_signal(signal.SIGUSR1 if self.distributed else signal.SIGTERM)

    def kill(self) -> None:
        """Kill the job and all processes that it has started."""
        self.stopped = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class FailurePolicy:
    """The rules for failed jobs: each is retried up to ``retry`` times; ``fail_fast`` then stops the sweep."""

    fail_fast: bool
    retry: int

    def should_retry(self, attempt: Attempt, failures: int) -> bool:
        """Whether to retry a job after this number of failures.

        Not if its settings are invalid: it would fail again.
        """
        return attempt.process.returncode != WRONG_USAGE and failures <= self.retry


def acquire(sweep: Sweep, job: Job) -> BinaryIO | None:
    """Open and lock the job's log. Returns None if a process of an earlier attempt is still alive.

    The processes of a job inherit the open file and its lock, so the job stays locked if the sweep crashes. If the file
    system has no locks, the log is not locked.
    """
    sweep.log_path(job).parent.mkdir(exist_ok=True)  # a user may have removed the logs
    log = sweep.log_path(job).open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    except OSError as error:
        _LOG.warning("%s cannot be locked: %s", sweep.log_path(job), error.strerror)
    return log


def start(
    sweep: Sweep, job: Job, log: BinaryIO, environment: Mapping[str, str], launcher: Sequence[str] = ()
) -> Attempt:
    """Start a job, from its checkpoint if it has one. launcher: a command that starts several processes of the job."""
    folder = sweep.job_folder(job)
    if has_checkpoint(folder):
        write_status(sweep, job, "queued", "")  # any other status is then from this attempt
        arguments = ["resume", str(folder)]
    else:
        reset_job(sweep, job)
        option = [] if sweep.config_dir is None else ["--config-dir", str(sweep.config_dir)]
        arguments = ["train", *job.overrides, f"run_dir={quoted(str(folder))}", *option]
    log.write(f"== {utc_now()}: odebench {shlex.join(arguments)}\n".encode())
    log.flush()
    process = subprocess.Popen(
        [*launcher, "-m", "odebench", *arguments] if launcher else [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=sweep.cwd if sweep.cwd.is_dir() else None,
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C reaches only the sweep, which asks its jobs to stop
    )
    return Attempt(job, process, log, distributed=bool(launcher))


def finish(sweep: Sweep, attempt: Attempt) -> RunOverview:
    """Wait for an attempt to end and return its result. If the job died without writing its status, write it here."""
    job, code = attempt.job, attempt.process.wait()
    expected = "interrupted" if code < 0 and attempt.stopped else _STATUS_BY_EXIT_CODE.get(code, "failed")
    recorded = read_status(sweep, job, trust_status=True).status
    if attempt.distributed and code:
        expected = (
            recorded if recorded in _STATUS_BY_EXIT_CODE.values() else "interrupted" if attempt.stopped else "failed"
        )
    if recorded != expected:
        status = "failed" if expected == "done" else expected
        write_status(sweep, job, status, _failure_reason(sweep, attempt))
    attempt.log.close()
    return read_status(sweep, job)


def read_status(sweep: Sweep, job: Job, trust_status: bool = False) -> RunOverview:
    """Read the status of a job from its folder. If a file is damaged, the status is failed."""
    try:
        return read_overview(sweep.job_folder(job), trust_status)
    except UsageError as error:
        return RunOverview(sweep.job_folder(job), "failed", 0, None, str(error), {}, {})


def write_status(sweep: Sweep, job: Job, status: str, message: str) -> None:
    """Write the status of a job in its place; the step does not change."""
    write_run_status(sweep.job_folder(job), status, read_status(sweep, job).step, message=message)


def end_lost_jobs(sweep: Sweep, jobs: Iterable[Job], status: str, message: str) -> None:
    """Write a new status for those jobs whose status is running, but whose processes no longer exist."""
    for job in jobs:
        if read_status(sweep, job, trust_status=True).status == "running" and (log := acquire(sweep, job)) is not None:
            write_status(sweep, job, status, message)
            log.close()


def _failure_reason(sweep: Sweep, attempt: Attempt) -> str:
    code = attempt.process.returncode
    if code < 0 and attempt.stopped:
        return "stopped with its sweep"
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + ", perhaps out of memory" * (name == "SIGKILL")
    printed = sweep.log_path(attempt.job).read_bytes()[-_TAIL_BYTES:].decode(errors="replace").splitlines()
    # torchrun prints a long report after the error message of the training.
    messages = [line for line in printed if line.startswith("odebench ")] if attempt.distributed else []
    last = next((line for line in reversed(messages or printed) if line.strip()), "")
    return last if code and not last.startswith("== ") else f"exited with code {code} without a result"

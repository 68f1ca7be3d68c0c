"""One attempt at one job: start it in its own process, and record a status however it ends."""

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
# A diverged job is final too: with the same seed it would diverge again.
FINAL_STATUSES = ("done", "diverged")
# Any other exit code is a failure. torchrun's code only says that one of its processes failed.
_STATUS_BY_EXIT_CODE = {DONE: "done", WRONG_USAGE: "failed", DIVERGED: "diverged", STOPPED: "interrupted"}
# Of a job, and of a sweep by the worst status among its jobs, which comes first.
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
    """A running job. Its log stays open and locked until `finish`. distributed: runs as processes of torchrun."""

    job: Job
    process: subprocess.Popen[bytes]
    log: BinaryIO
    distributed: bool = False
    stopped: bool = False

    def stop(self) -> None:
        """Ask the job to save a checkpoint and exit. srun forwards USR1, but kills all soon after a SIGTERM."""
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
    """Reaction to a failed job: retry it at most ``retry`` times, then stop the sweep if ``fail_fast``."""

    fail_fast: bool
    retry: int

    def should_retry(self, attempt: Attempt, failures: int) -> bool:
        """Whether to retry a job after this number of failures; invalid settings would fail again."""
        return attempt.process.returncode != WRONG_USAGE and failures <= self.retry


def acquire(sweep: Sweep, job: Job) -> BinaryIO | None:
    """Open and lock the job's log; None while a process of an earlier attempt is still alive.

    The processes of a job inherit the open file and its lock, so the lock survives a crash of the sweep. On a file
    system without locks, the log stays unlocked.
    """
    sweep.log_path(job).parent.mkdir(exist_ok=True)  # somebody may have removed the logs
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
    """Start a job, from its checkpoint if there is one. launcher: command that starts it as several processes."""
    folder = sweep.job_folder(job)
    if has_checkpoint(folder):
        write_status(sweep, job, "queued", "")  # so that a later status comes from this attempt
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
        start_new_session=True,  # Ctrl-C goes to the sweep, which asks its jobs to stop
    )
    return Attempt(job, process, log, distributed=bool(launcher))


def finish(sweep: Sweep, attempt: Attempt) -> RunOverview:
    """Wait for an attempt to end and read its result; write the status that the job could not write itself."""
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
    """Read the job's status from its folder; damaged files count as failed."""
    try:
        return read_overview(sweep.job_folder(job), trust_status)
    except UsageError as error:
        return RunOverview(sweep.job_folder(job), "failed", 0, None, str(error), {}, {})


def write_status(sweep: Sweep, job: Job, status: str, message: str) -> None:
    """Write a status on behalf of a job, at its current step."""
    write_run_status(sweep.job_folder(job), status, read_status(sweep, job).step, message=message)


def end_lost_jobs(sweep: Sweep, jobs: Iterable[Job], status: str, message: str) -> None:
    """Write the status of jobs that are running by their files, but have no process any more."""
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
    # torchrun prints a long report after the training's own message.
    messages = [line for line in printed if line.startswith("odebench ")] if attempt.distributed else []
    last = next((line for line in reversed(messages or printed) if line.strip()), "")
    return last if code and not last.startswith("== ") else f"exited with code {code} without a result"

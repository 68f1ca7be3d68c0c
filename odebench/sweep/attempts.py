"""One attempt at one job: started in a process of its own, and settled into a status however it ended."""

import contextlib
import fcntl
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from odebench.config.compose import quoted
from odebench.errors import DIVERGED, DONE, STOPPED, WRONG_USAGE, UsageError
from odebench.record.files import utc_now
from odebench.record.reader import RunOverview, has_checkpoint, read_overview
from odebench.record.status import write_status as write_run_status
from odebench.sweep.folder import Sweep, reset_job
from odebench.sweep.validate import Job

_LOG = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "odebench")
# A diverged job has ended, too: from the same seed it would diverge again.
FINAL_STATUSES = ("done", "diverged")
# What a job's exit code says of its status; another code is a failure. That of torchrun says no more than that one of
# its processes has failed.
_STATUS_BY_EXIT_CODE = {DONE: "done", WRONG_USAGE: "failed", DIVERGED: "diverged", STOPPED: "interrupted"}
_TAIL_BYTES = 1 << 14


@dataclass
class Attempt:
    """A job under way. Its log is open, and locked, until it is settled. together: in processes of torchrun."""

    job: Job
    process: subprocess.Popen[bytes]
    log: BinaryIO
    distributed: bool = False
    stopped: bool = False

    def stop(self) -> None:
        """Asks the job to save and to leave. srun passes USR1 on to all, but ends all soon after a SIGTERM."""
        self.stopped = True
        self.process.send_signal(signal.SIGUSR1 if self.distributed else signal.SIGTERM)

    def kill(self) -> None:
        """Ends the job and the processes that it has started, at once."""
        self.stopped = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class FailurePolicy:
    """What a failure leads to: so many further attempts at the job, and then perhaps the end of the sweep."""

    fail_fast: bool
    retry: int

    def should_retry(self, attempt: Attempt, failures: int) -> bool:
        """Whether a job is tried again that has failed so often; wrong settings are wrong again."""
        return attempt.process.returncode != WRONG_USAGE and failures <= self.retry


def acquire(sweep: Sweep, job: Job) -> BinaryIO | None:
    """The job's log, locked; None where a process of an earlier attempt still lives.

    The processes of a job inherit the open file and with it the lock, so that it outlives a sweep that crashed. A file
    system without locks goes without.
    """
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
    """Start a job: from its checkpoint where it left one, else anew. launcher: starts it as several processes."""
    folder = sweep.job_folder(job)
    if has_checkpoint(folder):
        write_status(sweep, job, "queued", "")  # so that what it says at the end is of this attempt
        words = ["resume", str(folder)]
    else:
        reset_job(sweep, job)
        own = [] if sweep.config_dir is None else ["--config-dir", str(sweep.config_dir)]
        words = ["train", *job.overrides, f"run_dir={quoted(str(folder))}", *own]
    log.write(f"== {utc_now()}: odebench {shlex.join(words)}\n".encode())
    log.flush()
    process = subprocess.Popen(
        [*launcher, "-m", "odebench", *words] if launcher else [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=sweep.cwd if sweep.cwd.is_dir() else None,
        env={**os.environ, **environment},
        start_new_session=True,  # a Ctrl-C is meant for the sweep, which asks its jobs to stop
    )
    return Attempt(job, process, log, distributed=bool(launcher))


def finish(sweep: Sweep, attempt: Attempt) -> RunOverview:
    """What an attempt that ended came to. A status that it could not write itself is written for it."""
    job, code = attempt.job, attempt.process.wait()
    expected = "interrupted" if code < 0 and attempt.stopped else _STATUS_BY_EXIT_CODE.get(code, "failed")
    told = read_status(sweep, job, trust_status=True).status
    if attempt.distributed and code:
        expected = told if told in _STATUS_BY_EXIT_CODE.values() else "interrupted" if attempt.stopped else "failed"
    if told != expected:
        status = "failed" if expected == "done" else expected
        write_status(sweep, job, status, _reason(sweep, attempt))
    attempt.log.close()
    return read_status(sweep, job)


def read_status(sweep: Sweep, job: Job, trust_status: bool = False) -> RunOverview:
    """The job as its folder tells it; one whose files are damaged counts as failed."""
    try:
        return read_overview(sweep.job_folder(job), trust_status)
    except UsageError as error:
        return RunOverview(sweep.job_folder(job), "failed", 0, None, str(error), {}, {})


def write_status(sweep: Sweep, job: Job, status: str, message: str) -> None:
    """Write a job's status in its place, at the step that it has come to."""
    write_run_status(sweep.job_folder(job), status, read_status(sweep, job).step, message=message)


def _reason(sweep: Sweep, attempt: Attempt) -> str:
    code = attempt.process.returncode
    if code < 0 and attempt.stopped:
        return "stopped with its sweep"
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + ", perhaps for want of memory" * (name == "SIGKILL")
    printed = sweep.log_path(attempt.job).read_bytes()[-_TAIL_BYTES:].decode(errors="replace").splitlines()
    # torchrun reports at length after what the training has said.
    said = [line for line in printed if line.startswith("odebench ")] if attempt.distributed else []
    last = next((line for line in reversed(said or printed) if line.strip()), "")
    return last if code and not last.startswith("== ") else f"ended with code {code} and left no result"

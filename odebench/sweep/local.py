"""Run the jobs of a sweep on this machine, several at a time. They share its cores and CUDA devices."""

import os
import shutil
import subprocess
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

from odebench.sweep.attempts import FINAL_STATUSES, Attempt, FailurePolicy, acquire, finish, read_status, start
from odebench.sweep.cluster import LocalCluster
from odebench.sweep.display import SweepDisplay
from odebench.sweep.folder import Sweep
from odebench.sweep.validate import Job
from odebench.training.signals import StopRequest

POLL_S, REFRESH_S = 0.05, 1.0


class LocalRunner:
    """Runs jobs of a sweep, each in its own slot.

    If an earlier process of this sweep crashed, its jobs may still run. Such an orphaned job occupies a slot until it
    ends.
    """

    def __init__(self, sweep: Sweep, cluster: LocalCluster, policy: FailurePolicy, display: SweepDisplay) -> None:
        self._sweep, self._policy, self._display = sweep, policy, display
        self._environments = slot_environments(cluster)
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Attempt] = {}
        self._orphaned: dict[int, Job] = {}
        self._failures: Counter[int] = Counter()
        self._stop_reason: str | None = None  # why no further job starts; None: jobs may start

    def run(self, jobs: Sequence[Job], stop: StopRequest) -> None:
        """Run the jobs until all have ended, or a signal or a failure has stopped them.

        A second Ctrl-C kills the jobs that have not finished saving.
        """
        self._waiting.extend(jobs)
        next_refresh = 0.0
        try:
            while self._waiting or self._running or self._orphaned:
                self._finish_attempts()
                if stop.name:
                    self._stop(stop.name)
                self._fill_slots()
                if time.monotonic() >= next_refresh:
                    next_refresh = time.monotonic() + REFRESH_S
                    self._refresh()
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            for attempt in self._running.values():
                attempt.kill()
                self._display.update(attempt.job, finish(self._sweep, attempt))

    def _finish_attempts(self) -> None:
        for slot, attempt in list(self._running.items()):
            if attempt.process.poll() is None:
                continue
            del self._running[slot]
            job, after = attempt.job, finish(self._sweep, attempt)
            self._display.update(job, after)
            if after.status != "failed":
                continue
            self._failures[job.number] += 1
            if self._stop_reason is None and self._policy.should_retry(attempt, self._failures[job.number]):
                self._waiting.appendleft(job)
            elif self._policy.fail_fast:
                self._stop(f"job {job.number} failed")

    def _stop(self, reason: str) -> None:
        if self._stop_reason is not None:
            return
        self._stop_reason = reason
        stopping = "1 saves and exits" if len(self._running) == 1 else f"{len(self._running)} save and exit"
        self._display.warn(f"{reason}: no further job starts, {stopping}")
        for job in self._orphaned.values():
            self._display.warn(f"job {job.number} is still running: an earlier process of this sweep started it")
        self._waiting.clear()
        self._orphaned.clear()
        for attempt in self._running.values():
            attempt.stop()

    def _fill_slots(self) -> None:
        for slot, environment in enumerate(self._environments):
            while slot not in self._running and slot not in self._orphaned and self._waiting:
                job = self._waiting.popleft()
                log = acquire(self._sweep, job)
                if log is None:
                    self._orphaned[slot] = job
                elif read_status(self._sweep, job).status in FINAL_STATUSES:
                    log.close()
                else:
                    self._running[slot] = start(self._sweep, job, log, environment)

    def _refresh(self) -> None:
        """Update the display, and check whether orphaned jobs have ended."""
        for attempt in self._running.values():
            # Until the training starts in the new process, the status file is still that of the attempt before.
            overview = replace(read_status(self._sweep, attempt.job), status="running", message="")
            self._display.update(attempt.job, overview)
        for slot, job in list(self._orphaned.items()):
            self._display.update(job, read_status(self._sweep, job))
            if (log := acquire(self._sweep, job)) is not None:
                log.close()
                del self._orphaned[slot]
                self._waiting.appendleft(job)
        self._display.refresh()


def slot_environments(cluster: LocalCluster) -> list[dict[str, str]]:
    """Return the environment variables for the jobs in each slot: the number of threads, and the CUDA device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared: dict[str, str] = {}
    if cluster.threads is not None or "OMP_NUM_THREADS" not in os.environ:
        threads = str(cluster.threads or max(1, cores // cluster.jobs))
        shared = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    devices = cuda_devices() if cluster.devices is None else [str(device) for device in cluster.devices]
    slots = [dict(shared) for _ in range(cluster.jobs)]
    for slot, environment in enumerate(slots if devices else ()):
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return slots


def cuda_devices() -> list[str]:
    """Return the CUDA devices that this process may use, as named in CUDA_VISIBLE_DEVICES. Does not import torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [device for device in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if device.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []

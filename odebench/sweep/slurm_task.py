"""Run one job in a task of a SLURM array, and requeue it when the time limit is near.

    python -m odebench.sweep.slurm_task SWEEP LIST --warning-s=S [--retry=N] [--fail-fast] [--nodes=N] [--processes=N]

The batch script is replaced by this process (exec), which therefore receives SLURM's warning (USR1). It forwards
signals to the training, which saves a checkpoint and exits. After the warning, this process then asks SLURM to requeue
the task. After SIGTERM it only exits: SLURM itself requeues pre-empted jobs, and cancelled jobs must not return. For a
job of several processes, srun starts torchrun once on each node.
"""

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from odebench.errors import FAILED
from odebench.record.reader import RunOverview
from odebench.sweep.attempts import (
    EXIT_CODES,
    FINAL_STATUSES,
    Attempt,
    FailurePolicy,
    acquire,
    finish,
    read_status,
    start,
    write_status,
)
from odebench.sweep.folder import Sweep, load_sweep
from odebench.sweep.slurm import cancel, read_job_list
from odebench.sweep.validate import Job
from odebench.training.signals import StopRequest

WARNING_SIGNAL = signal.SIGUSR1
POLL_S, _STOP_REQUEST_S = 0.2, 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job on this task's line of the list. Returns the exit code of the training."""
    parser = argparse.ArgumentParser(prog="python -m odebench.sweep.slurm_task")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("list")
    parser.add_argument("--warning-s", type=int, required=True)
    parser.add_argument("--retry", type=int, default=0)
    parser.add_argument("--fail-fast", action="store_true")
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes that train the job's model")
    parser.add_argument("--processes", type=int, default=1, help="number of processes on each node")
    arguments = parser.parse_args(argv)
    policy = FailurePolicy(arguments.fail_fast, arguments.retry)
    with StopRequest() as stop:
        sweep = load_sweep(arguments.sweep)
        job = sweep.jobs[read_job_list(sweep, arguments.list)[int(os.environ["SLURM_ARRAY_TASK_ID"])]]
        before = read_status(sweep, job)
        after = run_job(sweep, job, policy, stop, arguments.nodes, arguments.processes)
        print(f"job {job.number} {after.status} at step {after.step}: {after.message}", flush=True)
        if after.status == "failed" and policy.fail_fast:
            cancel(sweep)
        if after.status == "interrupted" and stop.signal_number == WARNING_SIGNAL:
            after = requeue(sweep, job, before, after, arguments.warning_s)
    return EXIT_CODES.get(after.status, FAILED)


def run_job(
    sweep: Sweep, job: Job, policy: FailurePolicy, stop: StopRequest, nodes: int = 1, processes: int = 1
) -> RunOverview:
    """Run the job unless it has already ended, and retry it if it fails. Returns its state.

    nodes: number of nodes. processes: number of processes on each node. A second Ctrl-C kills the job.
    """
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    threads = str(max(1, int(cpus) // processes)) if cpus else None
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} if threads else {}
    for failures in range(1, policy.retry + 2):
        while (log := acquire(sweep, job)) is None:  # a process of the previous task is still exiting
            if stop.name:
                return read_status(sweep, job)
            time.sleep(POLL_S)
        after = read_status(sweep, job)
        if after.status in FINAL_STATUSES or stop.name:
            log.close()
            return after
        launcher = torchrun_command(nodes, processes) if nodes * processes > 1 else ()
        attempt = start(sweep, job, log, environment, launcher)
        _wait_for_end(attempt, stop)
        after = finish(sweep, attempt)
        if after.status != "failed" or not policy.should_retry(attempt, failures):
            break
    return after


def torchrun_command(nodes: int, processes: int) -> list[str]:
    """Return the command that starts ``processes`` processes of a Python module on each node of this task.

    They meet on the first node. The signal that asks trainings to save and exit (USR1) is ignored by torchrun, and by
    processes whose training has not started.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        *("sh", "-c", 'trap "" USR1; exec "$@"', "sh"),
        *(sys.executable, "-m", "torch.distributed.run"),
        f"--nnodes={nodes}",
        f"--nproc-per-node={processes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={socket.gethostname()}:{port}",
        f"--rdzv-id={os.environ['SLURM_JOB_ID']}",
    ]


def _wait_for_end(attempt: Attempt, stop: StopRequest) -> None:
    """Wait for the attempt to end. A distributed job is asked to stop repeatedly: it ignores the first requests."""
    next_request = 0.0
    try:
        while attempt.process.poll() is None:
            if stop.name and time.monotonic() >= next_request:
                attempt.stop()
                next_request = time.monotonic() + _STOP_REQUEST_S if attempt.distributed else math.inf
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        attempt.kill()


def requeue(sweep: Sweep, job: Job, before: RunOverview, after: RunOverview, warning_s: int) -> RunOverview:
    """Ask SLURM to requeue this task. If it took no step within a whole time limit, set the status timeout instead."""
    end = int(os.environ.get("SLURM_JOB_END_TIME", "0"))
    # SLURM may warn of a time limit a minute early. A warning before that means a pre-emption.
    if after.step <= before.step and time.time() > end - 2 * 60 - warning_s > 0:
        write_status(sweep, job, "timeout", "a step and a checkpoint do not fit into cluster.time; increase it")
        return read_status(sweep, job)
    task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", task], check=False)
    return after


if __name__ == "__main__":
    sys.exit(main())

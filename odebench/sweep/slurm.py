"""Run the jobs of a sweep on a SLURM cluster, as job arrays. A file lists the numbers of the jobs in each array.

    SWEEP/slurm/
      task.sh         script of each task
      0.txt ...       the numbers of the jobs in an array, one per line; task 0 runs the first
      arrays.jsonl    one line per submitted array: its SLURM id, and the name of its list
      12_0.txt ...    output of the tasks

Names and paths are passed to sbatch as command-line arguments. They are never written into a script.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from odebench.errors import UsageError
from odebench.record.files import read_if_exists
from odebench.sweep.attempts import FINAL_STATUSES, FailurePolicy, end_lost_jobs, read_status
from odebench.sweep.cluster import SlurmCluster
from odebench.sweep.display import SweepDisplay
from odebench.sweep.folder import Sweep
from odebench.sweep.validate import Job
from odebench.training.signals import StopRequest

SLURM_FOLDER, ARRAYS_FILE = "slurm", "arrays.jsonl"
# Most clusters limit an array to 1,000 tasks (MaxArraySize=1001).
MAX_ARRAY_SIZE = 1000
# Poll the queue less often than the jobs' folders: all users of the cluster share it.
REFRESH_S, QUEUE_POLL_S = 2.0, 20.0


def submit(sweep: Sweep, jobs: Sequence[Job], cluster: SlurmCluster, policy: FailurePolicy) -> list[str]:
    """Submit the jobs in arrays of at most `MAX_ARRAY_SIZE`. Returns the SLURM ids of the arrays.

    Raises UsageError if sbatch rejects an array. The arrays before it stay submitted.
    """
    folder = sweep.path / SLURM_FOLDER
    folder.mkdir(exist_ok=True)
    arrays: list[str] = []
    several = [f"--nodes={cluster.nodes}", f"--processes={cluster.processes_per_node}"]
    for first in range(0, len(jobs), MAX_ARRAY_SIZE):
        part = jobs[first : first + MAX_ARRAY_SIZE]
        job_list = folder / f"{len(_submitted_arrays(sweep))}.txt"
        job_list.write_text("".join(f"{job.number}\n" for job in part), encoding="utf-8")
        script = folder / "task.sh"
        script.write_text("\n".join(["#!/bin/sh", *cluster.setup, 'exec "$@"', ""]), encoding="utf-8")
        # If the number of simultaneous jobs is limited, each array waits for the one before it.
        after = arrays[-1] if arrays and cluster.jobs is not None else None
        command = [
            *sbatch_command(sweep, len(part), cluster, after),
            str(script),
            *(sys.executable, "-m", "odebench.sweep.slurm_task", str(sweep.path), job_list.name),
            *(f"--warning-s={cluster.warning_s}", f"--retry={policy.retry}"),
            *(several if cluster.num_processes > 1 else []),
            *(["--fail-fast"] if policy.fail_fast else []),
        ]
        array = _run_command(command).strip().partition(";")[0]
        with (folder / ARRAYS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"array": array, "list": job_list.name}) + "\n")
        arrays.append(array)
    return arrays


def sbatch_command(sweep: Sweep, num_tasks: int, cluster: SlurmCluster, after: str | None = None) -> list[str]:
    """Return the sbatch command that submits an array, up to the script. after: the id of an array to wait for."""
    at_a_time = "" if cluster.jobs is None else f"%{cluster.jobs}"
    # In the output path, sbatch replaces patterns that start with %.
    output = str(sweep.path / SLURM_FOLDER).replace("%", "%%") + "/%A_%a.txt"
    options = {
        "partition": cluster.partition,
        "account": cluster.account,
        "time": cluster.time,
        "nodes": None if cluster.nodes == 1 else cluster.nodes,
        "ntasks-per-node": None if cluster.nodes == 1 else 1,
        "gres": None if cluster.gpus is None else f"gpu:{cluster.gpus}",
        "cpus-per-task": cluster.cpus,
        "mem": cluster.memory,
        "dependency": None if after is None else f"afterany:{after}",
        **cluster.directives,
    }
    return [
        "sbatch",
        "--parsable",
        f"--job-name=odebench-{re.sub(r'[^A-Za-z0-9_.-]+', '-', sweep.path.name)[:40]}",
        f"--array=0-{num_tasks - 1}{at_a_time}",
        f"--output={output}",
        f"--chdir={sweep.cwd}",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{cluster.warning_s}",
        *(
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in options.items()
            if value not in (None, False)
        ),
    ]


def jobs_in_queue(sweep: Sweep) -> set[int]:
    """Return the numbers of the jobs that are pending or running in SLURM's queue; empty if none was submitted."""
    arrays = _submitted_arrays(sweep)
    if not arrays or shutil.which("squeue") is None:
        return set()
    found = set()
    lists: dict[str, list[int]] = {}
    for line in _run_command(
        ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%F %K"]
    ).splitlines():
        array, _, task = line.strip().partition(" ")
        if array in arrays and task.isdigit():
            if array not in lists:
                lists[array] = read_job_list(sweep, arrays[array])
            found.update(lists[array][int(task) : int(task) + 1])
    return found


def read_job_list(sweep: Sweep, name: str) -> list[int]:
    """Read the job numbers of an array from file ``name``. Raises UsageError if it is missing or damaged."""
    path = sweep.path / SLURM_FOLDER / name
    try:
        numbers = [int(line) for line in path.read_bytes().split()]
    except (OSError, ValueError):
        numbers = [-1]
    if not all(0 <= number < len(sweep.jobs) for number in numbers):
        raise UsageError(
            f"{path} is damaged: it must contain numbers of jobs; cancel its array (scancel), and remove its line from "
            f"{ARRAYS_FILE} beside it"
        )
    return numbers


def cancel(sweep: Sweep) -> None:
    """Cancel all jobs of the sweep in SLURM. Those that run save a checkpoint and exit."""
    if arrays := _submitted_arrays(sweep):
        _run_command(["scancel", *arrays])


def _submitted_arrays(sweep: Sweep) -> dict[str, str]:
    """Return the name of the job list of every submitted array, by SLURM id."""
    path = sweep.path / SLURM_FOLDER / ARRAYS_FILE
    arrays = {}
    for number, line in enumerate((read_if_exists(path) or b"").splitlines(), start=1):
        try:
            row = json.loads(line)
            array, name = str(row["array"]), str(row["list"])
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UsageError(
                f"{path} is damaged: line {number} does not describe an array; cancel the array that it "
                "was written for (squeue --me lists arrays), and remove the line"
            ) from None
        if re.fullmatch(r"\d+", array):
            arrays[array] = name
    return arrays


def _run_command(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        raise UsageError(
            f"{command[0]} not found: start the sweep where SLURM's commands are installed, or choose cluster=local"
        )
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UsageError(" ".join(done.stderr.split()) or f"{command[0]} exited with code {done.returncode}")
    return done.stdout


def mark_lost_jobs(sweep: Sweep, queue: set[int]) -> None:
    """Change the status of submitted jobs from running to interrupted if they are no longer in SLURM's queue."""
    submitted = {number for name in _submitted_arrays(sweep).values() for number in read_job_list(sweep, name)}
    lost = [sweep.jobs[number] for number in sorted(submitted - queue)]
    end_lost_jobs(sweep, lost, "interrupted", "its SLURM task is gone: it was killed, or its node failed")


def follow(sweep: Sweep, stop: StopRequest, display: SweepDisplay) -> None:
    """Show progress until no job of the sweep is in the queue. A signal ends this display, not the jobs."""
    next_queue_poll = 0.0
    while not stop.name:
        active = [job for job in sweep.jobs if display.status(job) not in FINAL_STATUSES]
        for job in active:
            display.update(job, read_status(sweep, job))
        display.refresh()
        if not active or time.monotonic() >= next_queue_poll:
            next_queue_poll = time.monotonic() + QUEUE_POLL_S
            if not (queue := jobs_in_queue(sweep)):
                mark_lost_jobs(sweep, queue)
                return
        time.sleep(REFRESH_S)
    display.warn(f"{stop.name}: the jobs continue")

"""Run slow tests of SLURM on a local cluster.

    python scripts/run_slurm_tests.py [EPOCHS]

Tests a training that is longer than its time limit, a node that fails, and more jobs than fit into an array. Prints the
outcome of each. Results of trainings are compared with those of an uninterrupted run. Needs Debian's SLURM
(local_slurm.sh).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "sweep"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from conftest import TINY, TINY_MODEL
from sweep_testing import LONG, logged_values, parent, statuses, training_process, wait_until

from odebench.cli import main
from odebench.sweep.folder import Sweep, load_sweep
from odebench.sweep.slurm import jobs_in_queue

SCRIPT = Path(__file__).resolve().parent / "local_slurm.sh"
# So many epochs that the training takes some minutes, longer than its time limit.
EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 2500
TRAINING = [*TINY_MODEL, *TINY, *LONG, f"trainer.epochs={EPOCHS}", "trainer.checkpoint_minutes=0.05"]
TRAINING += [f"trainer.measure_every={EPOCHS}"]


def submit(path: Path, *words: str) -> Sweep:
    assert main(["sweep", *words, "cluster=slurm", "cluster.memory=500M", "--output", str(path)]) == 0
    return load_sweep(path)


def restarts(sweep: Sweep) -> int:
    """The number of times that the first job was resumed."""
    manifest = json.loads((sweep.job_folder(sweep.jobs[0]) / "manifest.json").read_text())
    return len(manifest.get("resumed", []))


def wait_for_end(sweep: Sweep) -> None:
    """Wait until a job that SLURM requeues has ended."""
    wait_until(lambda: not jobs_in_queue(sweep), 1800)
    assert statuses(sweep.path) == ["done"], statuses(sweep.path)


def lose_node(sweep: Sweep, slurm: Path) -> None:
    """Kill all processes on the node of the first job: slurmd, the job, and its parents."""
    listed = subprocess.run(["squeue", "-h", "-o", "%N", "-t", "RUNNING"], capture_output=True, text=True, check=True)
    slurmd = int((slurm / "run" / f"{listed.stdout.strip()}.pid").read_text().split()[0])
    training = training_process(sweep.job_folder(sweep.jobs[0]))
    task = parent(training)
    for process in (slurmd, parent(task), task, training):
        os.kill(process, signal.SIGKILL)


def try_all(folder: Path, slurm: Path) -> None:
    uninterrupted = folder / "uninterrupted"
    assert main(["sweep", *TRAINING, "--output", str(uninterrupted)]) == 0
    expected = logged_values(uninterrupted / "0000_odenet_rk4")

    sweep = submit(folder / "limit", *TRAINING, "cluster.time=0:02:00", "cluster.warning_s=60")
    wait_for_end(sweep)
    equal = logged_values(sweep.job_folder(sweep.jobs[0])) == expected
    print(f"time limit of 2 minutes: done after {restarts(sweep)} returns, numbers equal: {equal}", flush=True)

    sweep = submit(folder / "node", *TRAINING)
    wait_until((sweep.job_folder(sweep.jobs[0]) / "checkpoints" / "last.pt").exists, 300)
    start = time.monotonic()
    lose_node(sweep, slurm)
    wait_until(lambda: restarts(sweep) > 0, 600)
    back = time.monotonic() - start
    wait_for_end(sweep)
    equal = logged_values(sweep.job_folder(sweep.jobs[0])) == expected
    print(f"a node lost: back on another after {back:.0f} s, done, numbers equal: {equal}", flush=True)

    paused = ["cluster.directives={hold: true}", "seed=range(0,1200)"]
    start = time.monotonic()
    sweep = submit(folder / "many", "model=mlp", *paused)
    taken = time.monotonic() - start
    arrays = [json.loads(line)["array"] for line in (sweep.path / "slurm" / "arrays.jsonl").read_text().splitlines()]
    print(f"1,200 jobs: {len(arrays)} arrays after {taken:.0f} s, {len(jobs_in_queue(sweep))} in the queue", flush=True)
    subprocess.run(["scancel", *arrays], check=True)
    wait_until(lambda: not jobs_in_queue(sweep), 60)


if __name__ == "__main__":
    # munge needs a folder that all users can read.
    slurm = Path(tempfile.mkdtemp(prefix="odebench-slurm-", dir="/tmp"))
    subprocess.run([SCRIPT, "start", slurm], check=True, stdout=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = str(slurm / "slurm.conf")
    try:
        with tempfile.TemporaryDirectory() as name:
            try_all(Path(name), slurm)
    finally:
        subprocess.run([SCRIPT, "stop", slurm], check=True)
        shutil.rmtree(slurm, ignore_errors=True)

"""Measure the overhead of sweeps.

    python scripts/measure_sweeps.py [FOLDER]

Measures the time to compose and validate 1,000 jobs; the time of `odebench list runs` over 5,000 records; and the time
that a sweep adds to each job, with fake trainings that end at once (tests/sweep/fake_training.py). The first two are
processor times, which equal wall time on an idle machine; the third is wall time. Writes docs/results/sweeps.*.csv.
"""

import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import results

from odebench.sweep import attempts
from odebench.sweep.expand import expand
from odebench.sweep.run import plan_sweep, run_sweep
from odebench.sweep.validate import validate_jobs

ROOT = Path(__file__).resolve().parent.parent
FAKE_TRAINING = (sys.executable, "-I", "-S", str(ROOT / "tests" / "sweep" / "fake_training.py"))
GRID = ["solver=dopri5,tsit5,bosh3,rk4", "tol=1e-2,1e-3,1e-4,1e-5,1e-6", "seed=range(0,50)"]
NUM_STARTS, NUM_RECORDS = 100, 5000


def validation_s() -> float:
    """The seconds to compose and validate the 1,000 jobs of `GRID`."""
    jobs = expand([GRID])
    start = time.process_time()
    validate_jobs(jobs)
    return time.process_time() - start


def overhead_ms(folder: Path) -> float:
    """The milliseconds that a sweep adds to each job, beside the time of the job's process."""
    plan = plan_sweep(["model=mlp", f"seed=range(0,{NUM_STARTS})"], None, None)
    (folder / "notes").mkdir()
    os.environ["FAKE_TRAINING_NOTES"] = str(folder / "notes")
    attempts.COMMAND = FAKE_TRAINING
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run_sweep(plan, folder / "sweep", attempts.FailurePolicy(fail_fast=False, retry=0), follow=False)
    together = time.perf_counter() - start
    shutil.rmtree(folder / "notes")
    (folder / "notes").mkdir()
    start = time.perf_counter()
    for number in range(NUM_STARTS):
        alone = folder / f"alone{number}"
        alone.mkdir()
        (alone / "status.json").touch()
        subprocess.run([*FAKE_TRAINING, "train", f"run_dir='{alone}'"], check=True)
    return 1e3 * (together - (time.perf_counter() - start)) / NUM_STARTS


def listing_s(folder: Path) -> float:
    """The seconds of `odebench list runs` over copies of a real record without its large files."""
    run = [sys.executable, "-m", "odebench", "train", "model=mlp", "trainer.epochs=1", f"run_dir='{folder / 'run'}'"]
    subprocess.run(run, check=True, capture_output=True)
    small = shutil.ignore_patterns("*.pt", "*.png", "events.*")
    for number in range(NUM_RECORDS):
        shutil.copytree(folder / "run", folder / "records" / f"{number // 500}" / f"{number:04d}", ignore=small)
    start = children_s()
    listed = subprocess.run(
        [sys.executable, "-m", "odebench", "list", "runs", str(folder / "records")], check=True, capture_output=True
    )
    taken = children_s() - start
    assert listed.stdout.count(b"\n") == NUM_RECORDS + 1
    return taken


def children_s() -> float:
    """The processor time of all child processes that have ended, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parent = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        measured = {
            "1,000 jobs composed and validated": (validation_s(), "s of a processor"),
            "`odebench list runs` over 5,000 records": (listing_s(folder), "s of a processor"),
            "what a sweep adds to a job": (overhead_ms(folder), "ms"),
        }
    machine = {**results.machine_here(), **results.versions_here(), "hydra_core": version("hydra-core")}
    rows = [
        {"what": what, "taken": f"{taken:.3g}", "unit": unit, **machine} for what, (taken, unit) in measured.items()
    ]
    print(results.keep("sweeps", rows))


if __name__ == "__main__":
    main()

"""Real trainings on a real SLURM, which is started here; what SLURM does to a job must not change its numbers."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from staging import LONG, numbers, parent, statuses, training_process, until

from odebench.cli import main
from odebench.record import schema
from odebench.sweep.folder import load_sweep
from odebench.sweep.slurm import in_queue

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "local_slurm.sh"
AT_ONCE = ["cluster=slurm", "cluster.time=0:30:00", "cluster.memory=500M"]


@pytest.fixture(scope="module")
def slurm():
    """A cluster of two nodes with two CPUs each. munge wants a folder that everybody can reach."""
    folder = tempfile.mkdtemp(prefix="odebench-slurm-", dir="/tmp")
    subprocess.run([SCRIPT, "start", folder], check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        patch.setattr("odebench.sweep.slurm._QUEUE_S", 1.0)
        yield folder
        subprocess.run([SCRIPT, "stop", folder], check=True, capture_output=True)
    shutil.rmtree(folder)


def submit(path, *words):
    assert main(["sweep", *words, *AT_ONCE, "--output", str(path)]) == 0
    sweep = load_sweep(path)
    array = json.loads((path / "slurm" / "arrays.jsonl").read_text())["array"]
    return sweep, array


def test_whatever_slurm_does_a_job_goes_on_and_its_numbers_are_those_of_an_undisturbed_run(
    slurm, tiny_odenet, tmp_path, capfd
):
    """Four equal jobs: one cancelled, one requeued, one killed with its task, one pre-empted."""
    hostile = tmp_path / "a 'b' \"c\"; $(touch ran) %A"
    sweep, array = submit(hostile, *tiny_odenet, *LONG, "seed=0,0,0,0")
    started = lambda: all((sweep.folder(job) / schema.LAST_CHECKPOINT).exists() for job in sweep.jobs)  # noqa: E731
    until(started, 90)
    subprocess.run(["scancel", f"{array}_0"], check=True)
    subprocess.run(["scontrol", "requeue", f"{array}_1"], check=True)
    training = training_process(sweep, sweep.jobs[2])
    for process in (parent(training), training):  # the task first, so that it cannot tell
        os.kill(process, signal.SIGKILL)
    until(lambda: in_queue(sweep) == {1, 3}, 30)
    high = ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(high, check=True)
    until(lambda: statuses(hostile)[3] in ("interrupted", "done"), 60)

    assert main(["resume", str(hostile), "--follow"]) == 0
    assert statuses(hostile) == ["done"] * 4
    undisturbed = tmp_path / "undisturbed"
    assert main(["sweep", *tiny_odenet, *LONG, "seed=0", "--output", str(undisturbed)]) == 0
    expected = numbers(undisturbed / "0000_odenet_rk4")
    for job in sweep.jobs:
        assert numbers(sweep.folder(job)) == expected, job.name
    assert not list(tmp_path.rglob("ran"))
    assert "4 jobs in " in capfd.readouterr().out


def test_a_job_that_cannot_run_says_why_and_slurm_is_told(slurm, tmp_path, capfd):
    sweep, array = submit(tmp_path / "s", "data=mnist", f"data.root={tmp_path}", "data.download=false", "seed=1,2")
    assert main(["resume", str(sweep.path), "--follow"]) == 1
    assert statuses(sweep.path) == ["failed", "failed"]
    assert "job 0 failed: odebench train: " in capfd.readouterr().out
    shown = subprocess.run(["scontrol", "-o", "show", "job", f"{array}_0"], capture_output=True, text=True, check=True)
    assert "JobState=FAILED" in shown.stdout

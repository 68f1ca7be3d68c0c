"""Real trainings on a real SLURM, which is started here; what SLURM does to a job must not change its numbers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sweep_testing import LONG, continue_after_signal, logged_values, parent, pause_trainings, statuses, wait_until

from odebench.cli import main
from odebench.record import layout
from odebench.record.reader import read_overview, read_run
from odebench.sweep.folder import load_sweep
from odebench.sweep.slurm import jobs_in_queue

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "local_slurm.sh"
CLUSTER = ["cluster=slurm", "cluster.time=0:30:00", "cluster.memory=500M"]


@pytest.fixture(scope="module")
def slurm():
    """A cluster of two nodes with two CPUs each. munge needs a folder that all users can read."""
    folder = tempfile.mkdtemp(prefix="odebench-slurm-", dir="/tmp")
    subprocess.run([SCRIPT, "start", folder], check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", f"{folder}/slurm.conf")
        patch.setattr("odebench.sweep.slurm.QUEUE_POLL_S", 1.0)
        yield folder
        subprocess.run([SCRIPT, "stop", folder], check=True, capture_output=True)
    shutil.rmtree(folder)


def submit(path, *arguments):
    assert main(["sweep", *arguments, *CLUSTER, "--output", str(path)]) == 0
    sweep = load_sweep(path)
    array = json.loads((path / "slurm" / "arrays.jsonl").read_text())["array"]
    return sweep, array


def test_interrupted_slurm_jobs_continue_with_the_results_of_an_uninterrupted_run(slurm, tiny_odenet, tmp_path, capfd):
    """Four equal jobs: one cancelled, one requeued, one killed with its task, one pre-empted."""
    path = tmp_path / "a 'b' \"c\"; $(touch ran) %A"
    sweep, array = submit(path, *tiny_odenet, *LONG, "trainer.max_minutes=60,61,62,63")
    cancelled, requeued, killed, preempted = pause_trainings([sweep.job_folder(job) for job in sweep.jobs])
    subprocess.run(["scancel", f"{array}_0"], check=True)
    subprocess.run(["scontrol", "requeue", f"{array}_1"], check=True)
    continue_after_signal(cancelled, signal.SIGTERM)
    continue_after_signal(requeued, signal.SIGTERM)
    for process in (parent(killed), killed):  # the task first, so that it cannot report it
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: jobs_in_queue(sweep) == {1, 3})
    high = ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(high, check=True)
    continue_after_signal(preempted, signal.SIGTERM)
    wait_until(lambda: statuses(path)[3] in ("interrupted", "done"))

    assert main(["resume", str(path), "--follow"]) == 0
    assert statuses(path) == ["done"] * 4
    uninterrupted = tmp_path / "uninterrupted"
    assert main(["sweep", *tiny_odenet, *LONG, "seed=0", "--output", str(uninterrupted)]) == 0
    expected = logged_values(uninterrupted / "0000_odenet_rk4")
    for job in sweep.jobs:
        assert read_run(sweep.job_folder(job)).manifest["resumed"], job.name
        assert logged_values(sweep.job_folder(job)) == expected, job.name
    assert not list(tmp_path.rglob("ran"))
    assert "4 jobs in " in capfd.readouterr().out


def test_a_job_with_an_error_reports_it_and_fails_in_slurm(slurm, tmp_path, capfd):
    sweep, array = submit(tmp_path / "s", "data=mnist", f"data.root={tmp_path}", "data.download=false", "seed=1,2")
    assert main(["resume", str(sweep.path), "--follow"]) == 1
    assert statuses(sweep.path) == ["failed", "failed"]
    assert "job 0 failed: odebench train: " in capfd.readouterr().out
    shown = subprocess.run(["scontrol", "-o", "show", "job", f"{array}_0"], capture_output=True, text=True, check=True)
    assert "JobState=FAILED" in shown.stdout


QUICK = ["model=mlp", "optim=sgd", "optim.lr=0.01", "trainer.checkpoint_minutes=0.005", "trainer.measure_every=30"]


def test_training_on_two_nodes_is_requeued_and_matches_one_process(slurm, tiny, tmp_path):
    arguments = [*tiny, *QUICK, "trainer.epochs=30"]
    sweep, array = submit(tmp_path / "two", *arguments, "cluster.nodes=2")
    (job,) = sweep.jobs
    (first,) = pause_trainings([sweep.job_folder(job)])  # the other one waits for it
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{array}_0"], check=True)  # the warning
    continue_after_signal(first, signal.SIGUSR1)
    wait_until(lambda: statuses(sweep.path) == ["done"] and not jobs_in_queue(sweep), 240)
    assert main(["sweep", *arguments, "--output", str(tmp_path / "one")]) == 0
    two, one = read_run(sweep.job_folder(job)), read_run(tmp_path / "one" / job.name)
    assert (two.manifest["processes"]["number"], len(two.manifest["resumed"])) == (2, 1)
    for tag in ("train/loss", "optim/grad_norm", "val/loss"):
        assert two.series(tag)[0] == one.series(tag)[0]
        assert two.series(tag)[1] == pytest.approx(one.series(tag)[1], rel=1e-4), tag


def test_a_killed_process_stops_the_run_of_all_with_a_status(slurm, tiny, tmp_path):
    sweep, _ = submit(tmp_path / "s", *tiny, *QUICK, "trainer.epochs=30", "cluster.processes=2")
    (job,) = sweep.jobs
    (first,) = pause_trainings([sweep.job_folder(job)])
    torchrun = parent(first)
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    (second,) = {int(child) for child in children} - {first}
    os.kill(second, signal.SIGKILL)
    os.kill(first, signal.SIGCONT)
    wait_until(lambda: statuses(sweep.path) == ["failed"] and not jobs_in_queue(sweep))
    assert "another process of this run has ended" in read_overview(sweep.job_folder(job)).message
    assert main(["resume", str(sweep.path), "--follow"]) == 0
    assert statuses(sweep.path) == ["done"]


def test_submitit_jobs_are_requeued_with_their_checkpoints_and_hydra_waits_for_them(slurm, tiny, tmp_path):
    """One is requeued and gets SIGTERM, the other one is pre-empted and gets submitit's own signal."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason='no submitit (pip install -e ".[launchers]")')
    arguments = ["-m", "hydra/launcher=submitit_slurm", "hydra.launcher.max_num_timeout=10", "hydra.sweep.dir=here"]
    command = [sys.executable, "-m", "odebench", "train", *arguments, *tiny, *QUICK, "trainer.epochs=30", "seed=1,2"]
    environment = {**os.environ, "PATH": f"{slurm}/bin:{os.environ['PATH']}"}
    hydra = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    runs = [tmp_path / "here" / name for name in ("0000_seed=1", "0001_seed=2")]
    requeued, warned = pause_trainings(runs)
    array = json.loads((runs[0] / layout.MANIFEST).read_text())["slurm"]["SLURM_ARRAY_JOB_ID"]
    subprocess.run(["scontrol", "requeue", f"{array}_0"], check=True)
    subprocess.run(["scancel", "--signal=USR2", f"{array}_1"], check=True)
    continue_after_signal(requeued, signal.SIGTERM)
    continue_after_signal(warned, signal.SIGUSR2)
    out, _ = hydra.communicate(timeout=400)
    assert hydra.returncode == 0
    assert [len(json.loads((run / layout.MANIFEST).read_text())["resumed"]) for run in runs] == [1, 1]
    assert [line.split()[1] for line in out.splitlines() if line.startswith(("0 ", "1 "))] == ["done", "done"]

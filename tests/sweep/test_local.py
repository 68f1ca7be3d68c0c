"""Local sweeps of fake trainings."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from sweep_testing import FAKE_TRAINING, LONG, logged_values, run_when, starts, statuses, training_process, wait_until

from odebench.cli import main
from odebench.errors import UsageError
from odebench.record import layout
from odebench.record.files import file_lock
from odebench.sweep import attempts, local
from odebench.sweep.cluster import LocalCluster
from odebench.sweep.folder import LOCK_FILE, load_sweep
from odebench.sweep.local import cuda_devices, slot_environments
from odebench.sweep.run import resume_sweep, run_sweep

POLICY = attempts.FailurePolicy(fail_fast=False, retry=0)


def test_every_job_ends_with_a_status_and_the_worst_is_the_exit_code(sweep, tmp_path, capsys):
    assert sweep("model.hidden=10,1,2,3,9") == 1
    assert statuses(tmp_path / "sweep") == ["done", "failed", "failed", "diverged", "failed"]
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["JOB", "STATUS", "STEP", "ETA", "BEST", "TEST", "NFE", "MEMORY", "MINUTES", "SETTINGS"]
    assert out[1].split() == ["0", "done", "20", "-", "val/accuracy", "0.5000", *"----", "model.hidden=10"]
    reasons = [line.partition("  (")[0] for line in out[6:10]]
    assert reasons == [
        "job 1 failed: RuntimeError: it broke",
        "job 2 failed: odebench train: no data there",
        "job 3 diverged: the loss is nan",
        "job 4 failed: killed by SIGKILL, perhaps out of memory",
    ]
    assert out[10] == "5 jobs in sweep: 1 done, 1 diverged, 3 failed"


@pytest.mark.parametrize(("hidden", "code"), [("10,11", 0), ("10,3", 3)])
def test_exit_codes(sweep, hidden, code):
    assert sweep(f"model.hidden={hidden}") == code


def test_cluster_jobs_limits_simultaneous_jobs(sweep, fake_training, tmp_path, caplog):
    running = lambda: len(list((tmp_path / "sweep").glob("*/ready")))  # noqa: E731
    thread = run_when(lambda: running() == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert sweep("model.hidden=50", "seed=range(0,4)", "cluster.jobs=2") == 75
    thread.join()
    assert statuses(tmp_path / "sweep") == ["interrupted", "interrupted", "queued", "queued"]
    assert "SIGTERM: no further job starts, 2 save and exit" in caplog.messages


def test_resume_runs_what_has_not_ended_and_nothing_else(sweep, fake_training, tmp_path, capsys, caplog):
    first = tmp_path / "sweep"
    thread = run_when(
        lambda: (first / "0003_hidden=50" / "ready").exists(), lambda: os.kill(os.getpid(), signal.SIGINT)
    )
    assert sweep("model.hidden=10,3,4,50,11") == 1
    thread.join()
    assert statuses(first) == ["done", "diverged", "failed", "interrupted", "queued"]
    assert "SIGINT: no further job starts, 1 saves and exits" in caplog.messages
    assert "continue with: odebench resume sweep" in capsys.readouterr().out
    before = len(starts(fake_training))
    last = first / "0003_hidden=50" / layout.LAST_CHECKPOINT
    last.rename(first / "0003_hidden=50" / layout.PREVIOUS_CHECKPOINT)  # which is enough to go on from
    assert main(["resume", str(first), "cluster.jobs=2"]) == 3
    assert statuses(first) == ["done", "diverged", "done", "done", "done"]
    again = {(command, job) for command, job, _ in starts(fake_training)[before:]}
    assert again == {("train", "0002_hidden=4"), ("resume", "0003_hidden=50"), ("train", "0004_hidden=11")}
    assert main(["resume", str(first)]) == 3
    assert len(starts(fake_training)) == before + 3
    assert len(load_sweep(first).log_path(load_sweep(first).jobs[3]).read_text().splitlines()) == 2


def test_only_the_cluster_can_change_when_a_sweep_is_resumed(sweep, tmp_path):
    sweep("model.hidden=10")
    with pytest.raises(UsageError, match="tol=1: the jobs of a sweep are fixed"):
        resume_sweep(tmp_path / "sweep", ["tol=1"], POLICY, False)


def test_a_second_process_cannot_resume_the_same_sweep(sweep, tmp_path, capsys):
    sweep("model.hidden=10")
    with file_lock(tmp_path / "sweep" / LOCK_FILE):
        assert main(["resume", str(tmp_path / "sweep")]) == 2
    assert "sweep is in use by another process" in capsys.readouterr().err


def test_a_failed_job_is_retried_unless_its_settings_are_invalid(sweep, fake_training, tmp_path):
    assert sweep("model.hidden=4,1,2,10", retry=2) == 1
    assert statuses(tmp_path / "sweep") == ["done", "failed", "failed", "done"]
    assert [job for _, job, _ in starts(fake_training)] == ["0000_hidden=4"] * 2 + ["0001_hidden=1"] * 3 + [
        "0002_hidden=2",
        "0003_hidden=10",
    ]


def test_fail_fast_stops_the_sweep_at_the_first_failure_but_not_at_a_divergence(sweep, tmp_path):
    assert sweep("model.hidden=3,50,1,10", "cluster.jobs=2", fail_fast=True) == 1
    assert statuses(tmp_path / "sweep") == ["diverged", "interrupted", "failed", "queued"]


def test_a_second_ctrl_c_kills_the_jobs(sweep, tmp_path, monkeypatch):
    ready, stop_requests = tmp_path / "sweep" / "0000_hidden=50" / "ready", []
    monkeypatch.setattr(
        attempts.Attempt, "stop", lambda attempt: stop_requests.append(attempt)
    )  # never finishes saving
    run_when(ready.exists, lambda: os.kill(os.getpid(), signal.SIGINT))
    second = run_when(lambda: stop_requests, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert sweep("model.hidden=50,10") == 75
    second.join()
    assert statuses(tmp_path / "sweep") == ["interrupted", "queued"]


CRASH = """
import sys
from pathlib import Path
from odebench.sweep import attempts
from odebench.sweep.run import plan_sweep, run_sweep
attempts.COMMAND = (sys.executable, "-I", "-S", sys.argv[1])
plan = plan_sweep(["model=mlp", "model.hidden=50,10", "cluster.jobs=1"], None, None)
run_sweep(plan, Path("sweep"), attempts.FailurePolicy(False, 0), False)
"""


def test_jobs_survive_a_killed_sweep_and_are_not_started_twice(fake_training, tmp_path, monkeypatch):
    crashed = subprocess.Popen([sys.executable, "-c", CRASH, str(FAKE_TRAINING)], stderr=subprocess.DEVNULL)
    job = tmp_path / "sweep" / "0000_hidden=50"
    wait_until((job / "ready").exists)
    crashed.kill()
    crashed.wait()
    pid = json.loads((job / "manifest.json").read_text())["machine"]["pid"]
    started, refused, acquire = [], [], attempts.acquire

    def counting_acquire(*arguments):
        log = acquire(*arguments)
        refused.extend([arguments] if log is None else [])
        return log

    monkeypatch.setattr(local, "acquire", counting_acquire)
    stop = lambda: (started.extend(starts(fake_training)), os.kill(pid, signal.SIGTERM))  # noqa: E731
    thread = run_when(lambda: len(refused) > 2, stop)
    assert resume_sweep(tmp_path / "sweep", (), POLICY, False) == 0
    thread.join()
    assert len(started) == 1
    assert [(command, name) for command, name, _ in starts(fake_training)] == [
        ("train", "0000_hidden=50"),
        ("resume", "0000_hidden=50"),
        ("train", "0001_hidden=10"),
    ]


def test_threads_and_devices_are_assigned_to_slots(sweep, fake_training, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert sweep("model.hidden=10,11,12", "cluster.jobs=3", "cluster.threads=2", "cluster.devices=[4,7]") == 0
    given = {job: environment for _, job, environment in starts(fake_training)}
    assert {environment["OMP_NUM_THREADS"] for environment in given.values()} == {"2"}
    assert [given[f"000{n}_hidden={10 + n}"]["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["4", "7", "4"]


def test_cores_are_shared_unless_the_user_sets_the_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cluster = LocalCluster(name="local", jobs=3, threads=None, devices=None)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert slot_environments(cluster) == [{}, {}, {}]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert slot_environments(cluster)[0] == {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}


def test_cuda_devices_are_those_visible_to_this_process(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,3")
    assert cuda_devices() == ["GPU-1", "3"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert cuda_devices() == ["0", "1"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert shutil.which("nvidia-smi") is None
    assert cuda_devices() == []


def test_a_folder_with_quotes_and_commands_in_its_path_is_only_a_path(fake_training, tmp_path):
    from odebench.sweep.run import plan_sweep

    path = tmp_path / "a 'b' \"c\"; $(touch ran) `touch ran` %A \\x"
    plan = plan_sweep(["model=mlp", "model.hidden=10,11"], None, None)
    assert run_sweep(plan, path, POLICY, False) == 0
    assert statuses(path) == ["done", "done"]
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.slow
def test_a_killed_and_retried_training_gives_the_results_of_an_uninterrupted_one(tiny_odenet, tmp_path):
    path = tmp_path / "sweep"
    checkpoint = path / "0000_max_minutes=98" / layout.LAST_CHECKPOINT
    thread = run_when(checkpoint.exists, lambda: os.kill(training_process(checkpoint.parents[1]), signal.SIGKILL))
    arguments = ["sweep", *tiny_odenet, *LONG, "trainer.max_minutes=98,99", "--retry", "1", "--output", str(path)]
    assert main(arguments) == 0
    thread.join()
    killed, uninterrupted = (path / f"000{number}_max_minutes={98 + number}" for number in range(2))
    assert "resumed" in (killed / layout.MANIFEST).read_text()
    assert logged_values(killed) == logged_values(uninterrupted)

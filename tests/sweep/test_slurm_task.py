"""A task of a SLURM array: what it does at each signal, with stand-ins for the training and for SLURM."""

import os
import re
import signal
import socket
import sys
import time

import pytest
from sweep_testing import calls, run_when, starts, statuses

from odebench.record.reader import read_overview
from odebench.sweep import slurm_task
from odebench.sweep.attempts import acquire, write_status
from odebench.sweep.folder import load_sweep
from odebench.training.signals import SIGNALS


@pytest.fixture
def task(submit, tmp_path, monkeypatch):
    """Run task 0 of a sweep of one job, which a signal may stop as soon as it can be; gives the exit code."""
    monkeypatch.setattr(slurm_task, "_POLL_S", 0.01)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")
    monkeypatch.setenv("SLURM_JOB_ID", "102")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    sweep = tmp_path / "sweep"

    def run(hidden, *options, stop=None):
        if not sweep.exists():
            submit(f"model.hidden={hidden}")
        if stop is not None:
            run_when((sweep / "0000_mlp" / "ready").exists, lambda: os.kill(os.getpid(), stop))
        return slurm_task.main([str(sweep), "0.txt", "--warning-s=120", *options])

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_warning_saves_and_brings_the_task_back_and_it_goes_on(task, commands, fake_training, tmp_path):
    assert task(50, stop=signal.SIGUSR1) == 75
    assert statuses(tmp_path / "sweep") == ["interrupted"]
    assert calls(commands, "scontrol") == [["requeue", "101_0"]]
    assert task(50) == 0
    assert [verb for verb, *_ in starts(fake_training)] == ["train", "resume"]
    assert statuses(tmp_path / "sweep") == ["done"]


def test_sigterm_saves_but_what_was_cancelled_does_not_come_back(task, commands, tmp_path):
    assert task(50, stop=signal.SIGTERM) == 75
    assert statuses(tmp_path / "sweep") == ["interrupted"]
    assert calls(commands, "scontrol") == []


def test_a_task_that_is_run_again_after_its_end_returns_the_stored_result(task, fake_training):
    assert task(10) == 0
    assert task(10) == 0
    assert len(starts(fake_training)) == 1


def test_a_time_limit_that_no_step_fits_into_ends_as_timeout(task, submit, commands, tmp_path, monkeypatch):
    submit("model.hidden=50")
    sweep = load_sweep(tmp_path / "sweep")
    before = tmp_path / "sweep" / "0000_mlp" / "status.json"
    before.write_text('{"status": "queued", "step": 7}')
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    assert task(50, stop=signal.SIGUSR1) == 75
    overview = read_overview(sweep.job_folder(sweep.jobs[0]))
    assert overview.status == "timeout"
    assert "cluster.time" in overview.message
    assert calls(commands, "scontrol") == []


@pytest.mark.parametrize(("hidden", "code"), [(1, 1), (2, 1), (3, 3), (9, 1)])
def test_the_exit_code_tells_slurm_how_it_ended(task, hidden, code):
    assert task(hidden) == code


def test_a_failure_is_tried_again_and_the_last_one_may_end_the_sweep(task, commands, fake_training):
    assert task(1, "--retry=1", "--fail-fast") == 1
    assert len(starts(fake_training)) == 2
    assert calls(commands, "scancel") == [["101"]]


def test_two_tasks_of_one_job_do_not_run_at_once(task, submit, fake_training, tmp_path, monkeypatch):
    submit("model.hidden=10")
    sweep = load_sweep(tmp_path / "sweep")
    log, refused = acquire(sweep, sweep.jobs[0]), []

    def counting_acquire(*arguments):
        found = acquire(*arguments)
        if found is None and refused.append(arguments) is None and len(refused) == 3:
            # The one that holds the log comes to its end.
            write_status(sweep, sweep.jobs[0], "done", "")
            log.close()
        return found

    monkeypatch.setattr(slurm_task, "acquire", counting_acquire)
    assert task(10) == 0
    assert len(refused) == 3
    assert starts(fake_training) == []


SEVERAL_PROCESSES = ("--nodes=2", "--processes=4")


def test_several_processes_are_started_by_srun_and_torchrun(task, commands, fake_training, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert task(10, *SEVERAL_PROCESSES) == 0
    (words,) = calls(commands, "srun")
    shell = words.index("sh")
    assert words[:shell] == [
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        "--cpus-per-task=8",
    ]
    assert words[shell : shell + 4] == ["sh", "-c", 'trap "" USR1; exec "$@"', "sh"]
    assert words[shell + 4 : shell + 7] == [sys.executable, "-m", "torch.distributed.run"]
    endpoint = words.index("-m", shell + 7) - 2
    assert words[shell + 7 : endpoint] == ["--nnodes=2", "--nproc-per-node=4", "--rdzv-backend=c10d"]
    assert re.fullmatch(rf"--rdzv-endpoint={socket.gethostname()}:\d+", words[endpoint])
    assert words[endpoint + 1 : endpoint + 5] == ["--rdzv-id=102", "-m", "odebench", "train"]
    ((_, _, environment),) = starts(fake_training)
    assert environment["OMP_NUM_THREADS"] == "2"


def test_the_warning_reaches_all_processes_and_brings_the_task_back(task, commands, fake_training, tmp_path):
    assert task(50, *SEVERAL_PROCESSES, stop=signal.SIGUSR1) == 75
    overview = read_overview(tmp_path / "sweep" / "0000_mlp")
    assert (overview.status, overview.step, overview.message) == ("interrupted", 7, "stopped")
    assert calls(commands, "scontrol") == [["requeue", "101_0"]]
    assert task(50, *SEVERAL_PROCESSES) == 0
    assert statuses(tmp_path / "sweep") == ["done"]


@pytest.mark.parametrize(
    ("hidden", "code", "status", "message"),
    [
        (1, 1, "failed", "RuntimeError: it broke"),
        (2, 1, "failed", "odebench train: no data there"),
        (3, 3, "diverged", "the loss is nan"),
        (9, 1, "failed", "exited with code 1"),
    ],
)
def test_of_several_processes_the_record_says_how_it_ended(hidden, code, status, message, task, tmp_path):
    assert task(hidden, *SEVERAL_PROCESSES) == code
    overview = read_overview(tmp_path / "sweep" / "0000_mlp", trust_status=True)
    assert (overview.status, overview.message[: len(message)]) == (status, message)


def test_several_processes_that_are_killed_before_they_have_saved_are_interrupted(task, commands, tmp_path):
    srun = commands / "srun"
    srun.write_text(srun.read_text().replace("training.send_signal(number)", "training.kill()"))
    assert task(50, *SEVERAL_PROCESSES, stop=signal.SIGUSR1) == 75
    overview = read_overview(tmp_path / "sweep" / "0000_mlp")
    assert (overview.status, overview.message) == ("interrupted", "exited with code 1 without a result")


def test_what_torchrun_ends_with_is_not_told_by_the_status_of_the_attempt_before(task, commands, tmp_path):
    assert task(50, *SEVERAL_PROCESSES, stop=signal.SIGUSR1) == 75
    (commands / "srun").write_text(f"#!{sys.executable}\nimport sys\nsys.exit(1)\n")
    assert task(50, *SEVERAL_PROCESSES) == 1
    assert statuses(tmp_path / "sweep") == ["failed"]

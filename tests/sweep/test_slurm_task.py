"""Tasks of a SLURM array: their reaction to each signal, with fakes of the training and of SLURM."""

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
    monkeypatch.setattr(slurm_task, "POLL_S", 0.01)
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


def test_after_the_warning_the_task_saves_is_requeued_and_continues(task, commands, fake_training, tmp_path):
    assert task(50, stop=signal.SIGUSR1) == 75
    assert statuses(tmp_path / "sweep") == ["interrupted"]
    assert calls(commands, "scontrol") == [["requeue", "101_0"]]
    assert task(50) == 0
    assert [command for command, *_ in starts(fake_training)] == ["train", "resume"]
    assert statuses(tmp_path / "sweep") == ["done"]


def test_after_sigterm_the_task_saves_and_is_not_requeued(task, commands, tmp_path):
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
def test_exit_codes_of_a_task(task, hidden, code):
    assert task(hidden) == code


def test_a_failed_task_is_retried_and_the_last_failure_can_cancel_the_sweep(task, commands, fake_training):
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
            # The attempt that holds the log ends.
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
    (arguments,) = calls(commands, "srun")
    shell = arguments.index("sh")
    assert arguments[:shell] == [
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        "--cpus-per-task=8",
    ]
    assert arguments[shell : shell + 4] == ["sh", "-c", 'trap "" USR1; exec "$@"', "sh"]
    assert arguments[shell + 4 : shell + 7] == [sys.executable, "-m", "torch.distributed.run"]
    endpoint = arguments.index("-m", shell + 7) - 2
    assert arguments[shell + 7 : endpoint] == ["--nnodes=2", "--nproc-per-node=4", "--rdzv-backend=c10d"]
    assert re.fullmatch(rf"--rdzv-endpoint={socket.gethostname()}:\d+", arguments[endpoint])
    assert arguments[endpoint + 1 : endpoint + 5] == ["--rdzv-id=102", "-m", "odebench", "train"]
    ((_, _, environment),) = starts(fake_training)
    assert environment["OMP_NUM_THREADS"] == "2"


def test_the_warning_reaches_all_processes_and_requeues_the_task(task, commands, fake_training, tmp_path):
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
def test_the_status_of_a_distributed_job_comes_from_its_record(hidden, code, status, message, task, tmp_path):
    assert task(hidden, *SEVERAL_PROCESSES) == code
    overview = read_overview(tmp_path / "sweep" / "0000_mlp", trust_status=True)
    assert (overview.status, overview.message[: len(message)]) == (status, message)


def test_several_processes_that_are_killed_before_they_have_saved_are_interrupted(task, commands, tmp_path):
    srun = commands / "srun"
    srun.write_text(srun.read_text().replace("training.send_signal(number)", "training.kill()"))
    assert task(50, *SEVERAL_PROCESSES, stop=signal.SIGUSR1) == 75
    overview = read_overview(tmp_path / "sweep" / "0000_mlp")
    assert (overview.status, overview.message) == ("interrupted", "exited with code 1 without a result")


def test_the_status_of_an_earlier_attempt_is_not_reused_for_a_failure_of_torchrun(task, commands, tmp_path):
    assert task(50, *SEVERAL_PROCESSES, stop=signal.SIGUSR1) == 75
    (commands / "srun").write_text(f"#!{sys.executable}\nimport sys\nsys.exit(1)\n")
    assert task(50, *SEVERAL_PROCESSES) == 1
    assert statuses(tmp_path / "sweep") == ["failed"]

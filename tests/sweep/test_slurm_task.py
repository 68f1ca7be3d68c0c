"""A task of a SLURM array: what it does at each signal, with stand-ins for the training and for SLURM."""

import os
import signal
import threading
import time

import pytest
from staging import calls, starts, statuses, when

from odebench.record.reader import read_overview
from odebench.sweep import slurm_task
from odebench.sweep.attempts import take, write_status
from odebench.sweep.folder import load_sweep
from odebench.training.signals import SIGNALS


@pytest.fixture
def task(submit, tmp_path, monkeypatch):
    """Run task 0 of a sweep of one job, which a signal may stop as soon as it can be; gives the exit code."""
    monkeypatch.setattr(slurm_task, "_POLL_S", 0.01)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    sweep = tmp_path / "sweep"

    def run(hidden, *options, stop=None):
        if not sweep.exists():
            submit(f"model.hidden={hidden}")
        if stop is not None:
            when((sweep / "0000_mlp" / "ready").exists, lambda: os.kill(os.getpid(), stop))
        return slurm_task.main([str(sweep), "0.txt", "--warning-s=120", *options])

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_warning_saves_and_brings_the_task_back_and_it_goes_on(task, commands, stand_in, tmp_path):
    assert task(50, stop=signal.SIGUSR1) == 75
    assert statuses(tmp_path / "sweep") == ["interrupted"]
    assert calls(commands, "scontrol") == [["requeue", "101_0"]]
    assert task(50) == 0
    assert [verb for verb, *_ in starts(stand_in)] == ["train", "resume"]
    assert statuses(tmp_path / "sweep") == ["done"]


def test_sigterm_saves_but_what_was_cancelled_does_not_come_back(task, commands, tmp_path):
    assert task(50, stop=signal.SIGTERM) == 75
    assert statuses(tmp_path / "sweep") == ["interrupted"]
    assert calls(commands, "scontrol") == []


def test_a_task_that_is_run_again_after_its_end_returns_the_stored_result(task, stand_in):
    assert task(10) == 0
    assert task(10) == 0
    assert len(starts(stand_in)) == 1


def test_a_time_limit_that_no_step_fits_into_ends_as_timeout(task, submit, commands, tmp_path, monkeypatch):
    submit("model.hidden=50")
    sweep = load_sweep(tmp_path / "sweep")
    before = tmp_path / "sweep" / "0000_mlp" / "status.json"
    before.write_text('{"status": "queued", "step": 7}')
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    assert task(50, stop=signal.SIGUSR1) == 75
    overview = read_overview(sweep.folder(sweep.jobs[0]))
    assert overview.status == "timeout"
    assert "cluster.time" in overview.message
    assert calls(commands, "scontrol") == []


@pytest.mark.parametrize(("hidden", "code"), [(1, 1), (2, 1), (3, 3), (9, 1)])
def test_the_exit_code_tells_slurm_how_it_ended(task, hidden, code):
    assert task(hidden) == code


def test_a_failure_is_tried_again_and_the_last_one_may_end_the_sweep(task, commands, stand_in):
    assert task(1, "--retry=1", "--fail-fast") == 1
    assert len(starts(stand_in)) == 2
    assert calls(commands, "scancel") == [["101"]]


def test_two_tasks_of_one_job_do_not_run_at_once(task, submit, stand_in, tmp_path):
    submit("model.hidden=10")
    sweep = load_sweep(tmp_path / "sweep")
    log = take(sweep, sweep.jobs[0])
    # The one that holds the log comes to its end.
    threading.Timer(0.3, lambda: (write_status(sweep, sweep.jobs[0], "done", ""), log.close())).start()
    assert task(10) == 0
    assert log.closed
    assert starts(stand_in) == []

"""Faults from outside a run: each one ends with a status, and the run can be resumed."""

import errno
import functools
import math
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io import gfile

from odebench.cli import main
from odebench.config.compose import compose
from odebench.errors import UsageError
from odebench.record import files
from odebench.record.reader import read_overview, read_run
from odebench.training import loop, run
from odebench.training.checkpoint import TrainingState
from odebench.training.run import resume_run, train_run

QUICK = [
    "model=mlp",
    "data.train_limit=64",
    "data.validation=40",
    "trainer.batch_size=16",
    "trainer.epochs=2",
    "trainer.log_every=1",
    "trainer.checkpoint_minutes=1e-9",
    "trainer.measure_every=100",
    "device=cpu",
]


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


pytestmark = pytest.mark.usefixtures("without_figures")


def quick(folder, *overrides):
    given = [*QUICK, f"run_dir={folder}", *overrides]
    return train_run(compose(given), given)


@pytest.fixture(scope="module")
def uninterrupted(finished):
    """An uninterrupted run with a checkpoint at each of its eight steps."""
    return finished(*QUICK)


TRAIN_STEP = loop.train_step


def act_at_step(patch, step, act):
    """act() is called before optimiser step ``step``, counted from 1."""

    def act_and_train(training, *rest):
        if training.progress.step + 1 == step:
            act()
        return TRAIN_STEP(training, *rest)

    patch.setattr(loop, "train_step", act_and_train)


@pytest.fixture
def at_step(monkeypatch):
    return functools.partial(act_at_step, monkeypatch)


def stop_in_step_5(folder):
    with pytest.MonkeyPatch.context() as patch:
        act_at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert quick(folder).exit_code == 75


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop_in_step_5(folder)
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A copy of a run stopped by a signal in its fifth step."""
    return shutil.copytree(stopped_once, tmp_path / "run")


TIMES = ("elapsed_s", "time/", "throughput/", "final/minutes", "final/step_ms", "final/samples_per_s")


def rows(folder):
    """All logged metrics, without times."""
    return [{tag: x for tag, x in row.items() if not tag.startswith(TIMES)} for row in read_run(folder).metrics]


def equal_ends(folder, other):
    """Whether two runs have the same weights, rows and test metrics."""
    for name in ("last", "best"):
        found, expected = (
            torch.load(x / f"checkpoints/{name}.pt", weights_only=True)["model"] for x in (folder, other)
        )
        if not all(torch.equal(found[key], expected[key]) for key in expected):
            return False
    return rows(folder) == rows(other) and read_run(folder).summary["test"] == read_run(other).summary["test"]


class FullDisk:
    """Fails to write files with this in their name, and to write a second status file (no space for both)."""

    def __init__(self, patch, name):
        self._name = name
        self._fsync, self._append = os.fsync, gfile.LocalFileSystem.append
        patch.setattr(files.os, "fsync", self.fsync)
        patch.setattr(gfile.LocalFileSystem, "append", lambda system, path, *rest: self.append(system, path, *rest))

    def fsync(self, descriptor):
        self._refuse(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._fsync(descriptor)

    def append(self, system, path, *rest):
        self._refuse(os.fsdecode(path))
        self._append(system, path, *rest)

    def _refuse(self, path):
        if self._name in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds file names in /proc")


@linux
@pytest.mark.parametrize("name", ["last.pt", slow("metrics.jsonl"), "tfevents", ""])
def test_a_full_disk_ends_the_run_as_failed_and_keeps_the_previous_checkpoint(
    name, tmp_path, at_step, uninterrupted, capfd
):
    with pytest.MonkeyPatch.context() as patch:
        at_step(5, lambda: FullDisk(patch, name))
        code = main(["train", *QUICK, f"run_dir={tmp_path / 'run'}"])
    at_step(0, None)
    lines = [line for line in capfd.readouterr().err.splitlines() if "space" in line]
    status = read_run(tmp_path / "run").status
    assert (code, status["status"]) == (1, "failed")
    assert status["message"].startswith("No space left on device; free disk space, then resume with: odebench resume")
    assert [line for line in lines if line.startswith("failed: No space left")] == lines[:1]
    last = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert 4 <= last["progress"]["step"] <= 6
    assert resume_run(tmp_path / "run").exit_code == 0
    assert equal_ends(tmp_path / "run", uninterrupted)


def closed_pipe(mode):
    """A pipe to write to, whose reader has exited."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, mode)


@pytest.mark.parametrize("open_stdout", [Path("/dev/full").open, closed_pipe], ids=["full disk", "closed pipe"])
@pytest.mark.parametrize("ended", [False, True], ids=["train", "resume"])
def test_a_finished_run_stays_done_if_its_results_cannot_be_printed(
    ended, open_stdout, uninterrupted, tmp_path, monkeypatch, caplog
):
    folder = uninterrupted if ended else tmp_path / "run"
    with open_stdout("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        result = resume_run(folder) if ended else quick(folder)
    assert (result.exit_code, read_run(folder).status["status"]) == (0, "done")
    assert f"they are in {folder / 'summary.json'}" in caplog.messages[-1]


def test_ctrl_c_while_the_results_are_printed_changes_no_status(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "print_results", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "run")
    assert read_run(tmp_path / "run").status["status"] == "done"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["train", *QUICK, f"outputs={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    line = f"odebench train: outputs={tmp_path} cannot be made (Permission denied); name another folder"
    assert err.splitlines()[-1] == line


def test_a_folder_that_becomes_read_only_ends_the_run_with_one_line(tmp_path, at_step, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "last.pt")

    at_step(3, lambda: monkeypatch.setattr(files.os, "fsync", refuse))
    assert quick(tmp_path / "run").exit_code == 1
    assert "failed: Read-only file system: last.pt" in caplog.text
    monkeypatch.undo()
    assert read_overview(tmp_path / "run", trust_status=True).status == "running"  # no status could be written


@pytest.mark.parametrize(
    "damage", ["truncated", slow("empty"), "one bit", slow("foreign"), slow("other model"), slow("missing")]
)
def test_the_previous_checkpoint_is_used_if_the_last_is_damaged(damage, stopped, uninterrupted, caplog):
    path = stopped / "checkpoints/last.pt"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    elif damage == "other model":
        whole_content = torch.load(path, weights_only=True)
        torch.save({**whole_content, "optimizer": {"state": {}, "param_groups": []}}, path)
    else:
        path.unlink()
    assert resume_run(stopped).exit_code == 0
    assert f"{path}" in caplog.text
    assert "resuming after step 4" in caplog.text
    assert equal_ends(stopped, uninterrupted)


def test_two_damaged_checkpoints_are_refused_by_name_and_left(stopped):
    for name in ("last", "previous"):
        (stopped / f"checkpoints/{name}.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"previous\.pt is not a readable checkpoint"):
        resume_run(stopped)
    assert (stopped / "checkpoints/last.pt").read_bytes() == b"PK"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": 5}, "it holds no weights"),
        ({"model": {5: torch.ones(1)}}, "it holds no weights"),
        ({"model": {"a": 5}}, "does not fit model mlp"),
        ({"optimizer": 5}, "does not fit these settings"),
        ({"random": {"python": [3, [], None]}}, "does not fit these settings"),
        ({"progress": 5}, "does not fit these settings"),
        ({"progress": {"step": "x"}}, "does not fit these settings"),
        ({"progress": {"step": -3}}, "does not fit these settings"),
        ({"progress": {"elapsed_s": None}}, "does not fit these settings"),
    ],
    ids=str,
)
def test_a_malformed_checkpoint_is_one_line(change, reason, stopped, capsys):
    path = stopped / "checkpoints/last.pt"
    (stopped / "checkpoints/previous.pt").unlink()
    torch.save(torch.load(path, weights_only=True) | change, path)
    assert main(["resume", str(stopped)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"odebench resume: {path}")
    assert reason in line


def test_weights_that_are_not_finite_are_no_checkpoint_to_resume_from(stopped, capsys):
    path = stopped / "checkpoints/last.pt"
    (stopped / "checkpoints/previous.pt").unlink()
    content = torch.load(path, weights_only=True)
    next(iter(content["model"].values())).fill_(math.nan)
    torch.save(content, path)
    assert main(["resume", str(stopped)]) == 2
    assert "holds NaN or infinities; restore the file" in capsys.readouterr().err


@pytest.mark.parametrize("tail", [slow(b'{"step": 9, "tr'), slow(b"\x00" * 700), b"\x00\n\xff\xfe\n{}\n[1]\n"])
def test_a_damaged_end_of_the_metrics_is_cut_off(tail, stopped, uninterrupted):
    with open(stopped / "metrics.jsonl", "ab") as file:
        file.write(tail)
    assert resume_run(stopped).exit_code == 0
    assert equal_ends(stopped, uninterrupted)


def test_runs_started_in_the_same_microsecond_have_different_folders(tmp_path, monkeypatch):
    class Stopped(run.datetime):
        @classmethod
        def now(cls, *_):
            return cls(2026, 11, 24, 14, 3, 22, 123456)

    monkeypatch.setattr(run, "datetime", Stopped)
    arguments = [*QUICK, f"outputs={tmp_path}", "trainer.iterations=1"]
    folders = [train_run(compose(arguments), arguments).folder for _ in range(3)]
    assert [folder.name for folder in folders] == [f"14-03-22-123456_mlp{more}" for more in ("", "_2", "_3")]


def test_a_clock_set_back_gives_one_curve_in_tensorboard(stopped, uninterrupted, monkeypatch):
    import tensorboard.summary.writer.event_file_writer as writer

    monkeypatch.setattr(writer.time, "time", lambda: 1_000_000_000.0)
    assert resume_run(stopped).exit_code == 0
    monkeypatch.undo()
    names = sorted(path.name for path in stopped.glob("events*"))
    assert [int(name.split(".")[3]) for name in names] == [999_999_999, 1_000_000_000]
    assert scalars(stopped, "train/loss") == scalars(uninterrupted, "train/loss")
    assert all(row["elapsed_s"] >= 0 for row in read_run(stopped).metrics)


def scalars(folder, tag):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_can_read_at_any_moment_of_a_run(tmp_path, monkeypatch, uninterrupted):
    accumulator, seen = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0}), []
    train_step = loop.train_step

    def read_and_train(*arguments):
        accumulator.Reload()
        if "train/loss" in accumulator.Tags()["scalars"]:
            seen.append(len(accumulator.Scalars("train/loss")))
        return train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", read_and_train)
    quick(tmp_path / "run")
    assert len(set(seen)) > 3
    assert scalars(tmp_path / "run", "train/loss") == scalars(uninterrupted, "train/loss")


def test_a_second_sigterm_changes_nothing_not_even_while_a_checkpoint_is_written(
    tmp_path, at_step, monkeypatch, uninterrupted
):
    fsync = os.fsync

    def interrupted(descriptor):
        os.kill(os.getpid(), signal.SIGTERM)
        fsync(descriptor)

    def stop_twice():
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(files.os, "fsync", interrupted)

    at_step(3, stop_twice)
    assert quick(tmp_path / "run").exit_code == 75
    monkeypatch.setattr(files.os, "fsync", fsync)
    status = read_run(tmp_path / "run").status
    assert (status["status"], status["step"]) == ("interrupted", 3)
    at_step(0, None)
    assert resume_run(tmp_path / "run").exit_code == 0
    assert equal_ends(tmp_path / "run", uninterrupted)


def test_a_run_started_with_nohup_outlives_its_terminal(tmp_path, at_step):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(3, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert quick(tmp_path / "run").exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("setsid") is None, reason="no setsid")
def test_a_terminal_that_is_closed_stops_the_run_with_a_checkpoint(tmp_path):
    arguments = [*QUICK, "trainer.epochs=1000", f"run_dir={tmp_path / 'run'}"]
    terminal, child_end = pty.openpty()
    command = ["setsid", "--ctty", sys.executable, "-m", "odebench", "train", *arguments]
    training = subprocess.Popen(command, stdin=child_end, stdout=child_end, stderr=child_end)
    os.close(child_end)
    while not (tmp_path / "run/checkpoints/last.pt").exists():
        assert os.read(terminal, 1 << 16)  # otherwise the terminal's buffer fills up
    os.close(terminal)
    assert training.wait() == 75
    status = read_run(tmp_path / "run").status
    assert (status["status"], status["message"][:18]) == ("interrupted", "stopped by SIGHUP ")


@pytest.mark.parametrize("number", [signal.SIGUSR2, slow(signal.SIGTERM)])
def test_the_launchers_signal_handler_is_called_after_saving(number, tmp_path, at_step):
    calls = []

    def launcher(number, frame):
        calls.append((number, read_run(tmp_path / "run").status["status"]))

    before = signal.signal(number, launcher)
    try:
        at_step(3, lambda: os.kill(os.getpid(), number))
        assert quick(tmp_path / "run").exit_code == 75
    finally:
        signal.signal(number, before)
    assert calls == [(number, "interrupted")]


def test_a_record_holds_no_value_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "s3cr3t-of-the-user")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    folder = quick(tmp_path / "run").folder
    assert read_run(folder).manifest["slurm"]["SLURM_JOB_ID"] == "4711"
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"s3cr3t" in path.read_bytes()]


def too_large():
    torch.empty(2**55)


def no_memory():
    raise MemoryError


@pytest.mark.parametrize("allocate", [too_large, slow(no_memory)])
def test_out_of_memory_names_the_batch_the_peak_and_a_hint(allocate, tmp_path, at_step):
    at_step(3, allocate)
    assert quick(tmp_path / "run").exit_code == 1
    status = read_run(tmp_path / "run").status
    assert (status["status"], status["step"]) == ("failed", 2)
    assert "out of memory after a peak of " in status["message"]
    assert "lower trainer.batch_size=16" in status["message"]
    assert "Traceback" in status["traceback"]


def test_the_resume_command_after_a_full_disk_can_be_copied_into_a_shell():
    from odebench.config.read import read_settings
    from odebench.training.run import failure_message

    message = failure_message(OSError(errno.ENOSPC, ""), read_settings(compose([])), Path("my run"))
    assert message.endswith("resume with: odebench resume 'my run'")


def test_out_of_memory_with_backprop_names_the_modes_that_need_less(tmp_path):
    from odebench.config.read import read_settings
    from odebench.training.run import failure_message

    settings = read_settings(compose(["gradient=backprop"]))
    assert "choose gradient=checkpoint or gradient=adjoint" in failure_message(
        torch.OutOfMemoryError(), settings, tmp_path
    )
    settings = read_settings(compose(["gradient=adjoint"]))
    assert "gradient" not in failure_message(MemoryError(), settings, tmp_path)


def test_a_nan_in_the_gradient_keeps_the_weights_of_the_step_before(tmp_path, at_step, monkeypatch):
    def damage(model):
        next(model.parameters()).grad[0] = torch.nan

    at_step(5, lambda: monkeypatch.setattr(loop.distributed, "average_gradients", damage))
    assert quick(tmp_path / "run").exit_code == 3
    status = read_run(tmp_path / "run").status
    assert (status["status"], status["step"]) == ("diverged", 4)
    assert "gradient's norm is nan" in status["message"]
    last = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert last["progress"]["step"] == 4
    assert all(x.isfinite().all() for x in last["model"].values())


def test_a_run_that_is_alive_cannot_be_resumed_and_one_that_died_can(tmp_path, at_step, uninterrupted, capsys):
    refusals = []

    def resume():
        for arguments in (["resume", str(tmp_path / "run")], ["train", *QUICK, f"run_dir={tmp_path / 'run'}"]):
            refusals.append(main(arguments))

    at_step(3, resume)
    assert quick(tmp_path / "run").exit_code == 0
    assert refusals == [2, 2]
    assert capsys.readouterr().err.count(f"{tmp_path / 'run'} is in use by another process\n") == 2
    assert equal_ends(tmp_path / "run", uninterrupted)


def test_the_lock_does_not_outlive_its_process(tmp_path):
    program = "import sys, os; from pathlib import Path; from odebench.record.files import file_lock\n"
    program += "lock = file_lock(Path(sys.argv[1])); lock.__enter__(); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "log.txt")], check=False)
    assert done.returncode == -signal.SIGKILL
    with (
        files.file_lock(tmp_path / "log.txt"),
        pytest.raises(UsageError, match="in use"),
        files.file_lock(tmp_path / "log.txt"),
    ):
        pass


def test_the_same_command_resumes_an_interrupted_run_and_prints_a_finished_one(tmp_path, uninterrupted, caplog, capsys):
    folder = tmp_path / "run"
    stop_in_step_5(folder)
    assert quick(folder).exit_code == 0
    assert "resuming after step 5" in caplog.text
    assert equal_ends(folder, uninterrupted)
    table = capsys.readouterr().out
    assert quick(folder).exit_code == 0
    assert capsys.readouterr().out == table
    with pytest.raises(UsageError, match="holds a finished run"):
        quick(folder, "seed=1")


@pytest.mark.parametrize("last", [slow("settings.yaml"), slow("manifest.json"), "status.json"])
def test_a_run_killed_while_starting_can_start_again(last, tmp_path, monkeypatch, uninterrupted):
    class Killed(BaseException):
        pass

    replace = os.replace

    def kill(source, target):
        if Path(target).name == last:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", kill)
        with pytest.raises(Killed):
            quick(tmp_path / "run")
    (tmp_path / "run" / f".{last}.123.tmp").write_text("half")
    assert quick(tmp_path / "run").exit_code == 0
    assert equal_ends(tmp_path / "run", uninterrupted)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_the_status_of_a_running_run_has_its_number_of_steps(tmp_path, at_step):
    statuses = []
    at_step(3, lambda: statuses.append(read_run(tmp_path / "run").status))
    quick(tmp_path / "run")
    assert (statuses[0]["status"], statuses[0]["steps"]) == ("running", 8)


@pytest.mark.parametrize("step", [8, slow(4)])
def test_a_run_killed_right_after_a_checkpoint_loses_no_row(step, tmp_path, monkeypatch, uninterrupted):
    save = TrainingState.save

    class Killed(BaseException):
        pass

    def save_and_die(self, *paths):
        save(self, *paths)
        if self.progress.step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save_and_die)
        with pytest.raises(Killed):
            quick(tmp_path / "run")
    assert resume_run(tmp_path / "run").exit_code == 0
    assert equal_ends(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("damage", ["a later step", "missing"])
def test_best_weights_that_are_lost_are_not_tested(damage, stopped, caplog):
    last, best = (stopped / f"checkpoints/{name}.pt" for name in ("last", "best"))
    state = torch.load(last, weights_only=True)
    assert state["progress"]["best_step"] == 4
    torch.save({**state, "progress": state["progress"] | {"best": 2.0}}, last)  # no later accuracy is better
    if damage == "missing":
        best.unlink()
    else:
        torch.save(torch.load(best, weights_only=True) | {"step": 7}, best)
    assert resume_run(stopped).exit_code == 0
    assert f"{best} does not hold the best weights, those of step 4" in caplog.text
    assert read_run(stopped).summary["best/step"] == torch.load(best, weights_only=True)["step"] == 8


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_numbers():
    script = Path(__file__).parents[2] / "scripts" / "kill_and_resume_runs.py"
    done = subprocess.run([sys.executable, str(script), "--kills", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 problems" in done.stdout.splitlines()[-1]

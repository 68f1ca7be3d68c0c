"""Helpers of the sweep tests: statuses of jobs, starts of fake trainings, calls of SLURM's commands."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

from odebench.record import layout
from odebench.record.reader import read_overview, read_run
from odebench.sweep.folder import load_sweep

FAKE_TRAINING = Path(__file__).parent / "fake_training.py"
# Real trainings with frequent checkpoints and enough steps to be interrupted.
LONG = ["trainer.epochs=45", "trainer.checkpoint_minutes=0.005", "trainer.measure_every=45"]
LONG += ["solver=rk4", "solver.steps=2"]


def statuses(path):
    """The status of every job of the sweep in a folder."""
    sweep = load_sweep(path)
    return [read_overview(sweep.job_folder(job)).status for job in sweep.jobs]


def starts(notes):
    """(command, job, environment) of every start of a fake training, in order."""
    rows = [json.loads(path.read_text()) for path in sorted(notes.glob("*.json"))]
    return [(row["command"], row["job"], row["environment"]) for row in rows]


def calls(commands, name):
    path = commands / f"{name}.calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, seconds=120):
    """Wait for a condition; the timeout allows for a busy machine."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def run_when(condition, action):
    """Run an action in another thread once a condition holds."""
    thread = threading.Thread(target=lambda: (wait_until(condition), action()), daemon=True)
    thread.start()
    return thread


def logged_values(run):
    """All logged values except times and memory, and the test result."""
    record = read_run(run)
    kept = ("train/", "val/", "optim/", "nfe/", "steps/")
    rows = [{tag: row[tag] for tag in row if tag == "step" or tag.startswith(kept)} for row in record.metrics]
    return [row for row in rows if len(row) > 1], record.summary["test"]


def training_process(run):
    """The id of the process that trains in a folder."""
    manifest = json.loads((run / layout.MANIFEST).read_text())
    return [manifest, *manifest.get("resumed", [])][-1]["machine"]["pid"]


def pause_trainings(runs):
    """Pause the training in each folder at its first checkpoint, so that it cannot end before the test interrupts it;
    returns their process ids."""
    paused = {}

    def all_paused():
        for run in runs:
            if run not in paused and (run / layout.LAST_CHECKPOINT).exists():
                paused[run] = training_process(run)
                os.kill(paused[run], signal.SIGSTOP)
        return len(paused) == len(runs)

    wait_until(all_paused)
    return [paused[run] for run in runs]


def continue_after_signal(process, number):
    """Continue a paused process once this signal is pending for it, or it has been killed."""
    wait_until(lambda: not is_alive(process) or is_pending(process, number))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


def is_alive(process):
    try:
        return _process_status(process)["State"][0] not in "ZX"
    except FileNotFoundError:
        return False


def is_pending(process, number):
    """Whether a signal is pending for a process."""
    return bool(int(_process_status(process)["ShdPnd"], 16) >> (number - 1) & 1)


def _process_status(process):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def parent(pid):
    """The id of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

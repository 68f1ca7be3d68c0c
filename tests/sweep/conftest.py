"""A fake training, so that hundreds of jobs run quickly."""

import sys

import pytest
from sweep_testing import FAKE_TRAINING

from odebench.sweep import attempts, local
from odebench.sweep.run import plan_sweep, run_sweep

SLURM_COMMAND = """#!{python} -IS
import json, sys
from pathlib import Path
here = Path(__file__)
with here.with_suffix(".calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
answer = here.with_suffix(".answer")
if here.name == "sbatch":
    print(100 + len(here.with_suffix(".calls").read_text().splitlines()))
elif answer.exists():
    print(answer.read_text())
sys.exit(here.with_suffix(".fails").exists() and "error: invalid partition")
"""

# Starts one fake training, regardless of nodes and processes, and exits as torchrun does.
SRUN = """#!{python} -IS
import json, signal, subprocess, sys
from pathlib import Path
with Path(__file__).with_suffix(".calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
training = subprocess.Popen([sys.executable, "-IS", "{fake_training}", *sys.argv[sys.argv.index("odebench") + 1 :]])
signal.signal(signal.SIGUSR1, lambda number, frame: training.send_signal(number))
sys.exit(training.wait() != 0)
"""


@pytest.fixture
def fake_training(monkeypatch, tmp_path):
    """Run fake_training.py in place of odebench; model.hidden chooses how a job ends. Gives the folder of its notes."""
    monkeypatch.setattr(attempts, "COMMAND", (sys.executable, "-I", "-S", str(FAKE_TRAINING)))
    monkeypatch.setattr(local, "POLL_S", 0.01)
    monkeypatch.setattr(local, "REFRESH_S", 0.05)
    monkeypatch.setenv("FAKE_TRAINING_NOTES", str(tmp_path / "notes"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


@pytest.fixture
def sweep(fake_training, tmp_path):
    """Run a sweep of fake trainings in the folder ``sweep``; returns its exit code."""

    def run(*arguments, fail_fast=False, retry=0):
        plan = plan_sweep(["model=mlp", *arguments], None, None)
        return run_sweep(plan, tmp_path / "sweep", attempts.FailurePolicy(fail_fast, retry), follow=False)

    return run


@pytest.fixture
def commands(fake_training, tmp_path, monkeypatch):
    """A folder of fake SLURM commands: each writes its arguments to NAME.calls, and prints NAME.answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        (folder / name).write_text(SLURM_COMMAND.format(python=sys.executable))
        (folder / name).chmod(0o755)
    (folder / "srun").write_text(SRUN.format(python=sys.executable, fake_training=FAKE_TRAINING))
    (folder / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def submit(commands, tmp_path):
    """Submit a sweep of fake trainings to the fake SLURM; returns the exit code."""

    def run(*arguments, fail_fast=False, retry=0, name="sweep"):
        plan = plan_sweep(["model=mlp", "cluster=slurm", *arguments], None, None)
        return run_sweep(plan, tmp_path / name, attempts.FailurePolicy(fail_fast, retry), follow=False)

    return run

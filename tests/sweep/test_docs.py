"""The page about sweeps: its commands run, its files are valid, its tables are complete.

Trainings and SLURM are fakes, except with torchrun.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from sweep_testing import calls, statuses

from odebench import cli
from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.record import layout
from odebench.record.reader import read_run
from odebench.sweep.cluster import SlurmCluster, read_cluster
from odebench.sweep.run import plan_sweep

TRAINED_RUN = Path(__file__).resolve().parents[1] / "training" / "old_runs" / "odenet_done"
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
BLOCKS = {kind: re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for kind in ("bash", "yaml")}
COMMANDS = [shlex.split(line, comments=True)[1:] for block in BLOCKS["bash"] for line in block.splitlines()]
TEXT = "".join(re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).splitlines()


@pytest.fixture
def files(tmp_path, commands):
    """The page's files, where its commands look for them."""
    grid, mine = BLOCKS["yaml"]
    (tmp_path / "grid.yaml").write_text(grid)
    (tmp_path / "DIR" / "cluster").mkdir(parents=True)
    (tmp_path / "DIR" / "cluster" / "mine.yaml").write_text(mine)
    return tmp_path


@pytest.mark.parametrize("arguments", [arguments for arguments in COMMANDS if arguments[0] == "sweep"], ids=" ".join)
def test_every_sweep_runs_all_its_jobs_or_submits_them(arguments, files, capsys):
    assert cli.main(arguments) == 0, capsys.readouterr().err
    found = [statuses(path.parent) for path in files.glob("outputs/sweeps/*/*/sweep.yaml")]
    at_cluster = any(argument.startswith("cluster=") for argument in arguments)
    expected = set() if "--dry-run" in arguments else {"queued"} if at_cluster else {"done"}
    assert set().union(*found) == expected
    assert len(calls(files / "bin", "sbatch")) == at_cluster


@pytest.mark.parametrize("arguments", [arguments for arguments in COMMANDS if arguments[0] == "resume"], ids=" ".join)
def test_every_resume_command_runs_or_submits_the_remaining_jobs(arguments, submit, files, capsys):
    submit("seed=1,2", name="SWEEP")
    if not any(argument.startswith("cluster=") for argument in arguments):
        arguments = [arguments[0], arguments[1], "cluster=local", *arguments[2:]]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    submitted = "cluster=slurm" in arguments
    assert statuses(files / "SWEEP") == ["queued" if submitted else "done"] * 2
    assert len(calls(files / "bin", "sbatch")) == 1 + submitted


@pytest.mark.parametrize(
    "arguments", [arguments for arguments in COMMANDS if arguments[0] not in ("sweep", "resume")], ids=" ".join
)
def test_every_other_command_runs(arguments, submit, files, capsys):
    submit("seed=1,2", name="outputs/sweep")
    for tol in (1e-3, 1e-2):
        run = files / "SWEEP" / f"tol={tol}"
        shutil.copytree(TRAINED_RUN, run)
        manifest = json.loads((run / layout.MANIFEST).read_text())
        manifest["settings"]["tol"] = manifest["settings"]["solver"]["rtol"] = manifest["settings"]["solver"][
            "atol"
        ] = tol
        (run / layout.MANIFEST).write_text(json.dumps(manifest))
    assert cli.main(arguments) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_starts_and_resumes_a_training(tiny_odenet, tmp_path):
    """The page's commands, with two processes and a tiny training."""
    (command,) = [line for line in TEXT if line.startswith("torchrun ")]
    (resumption,) = re.findall(r"`(torchrun [^`]* resume RUN)`", PAGE)
    read_settings(compose([argument.replace("DIR", "/") for argument in shlex.split(command)[5:]]))
    for line, more in ((command, [*tiny_odenet, "trainer.iterations=2", f"run_dir={tmp_path}/run"]), (resumption, [])):
        _, number, *arguments = shlex.split(line.replace("RUN", f"{tmp_path}/run"))
        assert number == "--nproc-per-node=4"
        arguments = [argument for argument in arguments if "=" not in argument]
        # Otherwise torchrun uses a fixed port, which may be taken.
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run(
            [*torchrun, *arguments, *more], capture_output=True, text=True, env=os.environ, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test accuracy") == 1
    assert read_run(tmp_path / "run").manifest["processes"]["number"] == 2


def test_the_grid_file_of_the_page_has_the_expected_number_of_jobs(files):
    assert len(plan_sweep([], Path("grid.yaml"), None).jobs) == 2 * 3 * 3 + 2 * 3


def test_the_cluster_file_of_the_page_is_valid(files):
    mine = read_cluster(["cluster=mine"], files / "DIR")
    assert (mine.partition, mine.time, mine.setup) == ("gpu", "8:00:00", ("module load cuda",))
    assert set(OmegaConf.create(BLOCKS["yaml"][1])) - {"defaults"} <= {field.name for field in fields(SlurmCluster)}


def test_every_status_and_every_setting_of_slurm_is_explained():
    for status in layout.STATUSES:
        assert f"\n| `{status}` |" in PAGE
    for field in fields(SlurmCluster):
        assert field.name == "name" or f"`cluster.{field.name}" in PAGE or f"`{field.name}`" in PAGE, field.name

"""The page about sweeps: its commands run, its files are read, its tables are whole.

Trainings and SLURM are stand-ins, but for torchrun's.
"""

import os
import re
import shlex
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

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
BLOCKS = {kind: re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for kind in ("bash", "yaml")}
COMMANDS = [shlex.split(line)[1:] for block in BLOCKS["bash"] for line in block.splitlines()]
TEXT = "".join(re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).splitlines()


@pytest.fixture
def files(tmp_path, commands):
    """The page's files, where its commands look for them."""
    grid, mine = BLOCKS["yaml"]
    (tmp_path / "grid.yaml").write_text(grid)
    (tmp_path / "DIR" / "cluster").mkdir(parents=True)
    (tmp_path / "DIR" / "cluster" / "mine.yaml").write_text(mine)
    return tmp_path


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "sweep"], ids=" ".join)
def test_every_sweep_runs_all_its_jobs_or_submits_them(words, files, capsys):
    assert cli.main(words) == 0, capsys.readouterr().err
    found = [statuses(path.parent) for path in files.glob("outputs/sweeps/*/*/sweep.yaml")]
    at_cluster = any(word.startswith("cluster=") for word in words)
    expected = set() if "--dry-run" in words else {"queued"} if at_cluster else {"done"}
    assert set().union(*found) == expected
    assert len(calls(files / "bin", "sbatch")) == at_cluster


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "resume"], ids=" ".join)
def test_every_resumption_runs_or_submits_what_is_left(words, submit, files, capsys):
    submit("seed=1,2", name="SWEEP")
    if not any(word.startswith("cluster=") for word in words):
        words = [words[0], words[1], "cluster=local", *words[2:]]
    assert cli.main(words) == 0, capsys.readouterr().err
    submitted = "cluster=slurm" in words
    assert statuses(files / "SWEEP") == ["queued" if submitted else "done"] * 2
    assert len(calls(files / "bin", "sbatch")) == 1 + submitted


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] not in ("sweep", "resume")], ids=" ".join)
def test_every_other_command_runs(words, submit, files, capsys):
    submit("seed=1,2", name="outputs/sweep")
    assert cli.main(words) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_starts_a_training_and_goes_on_with_it(tiny_odenet, tmp_path):
    """The page's commands, with two processes and a tiny training."""
    (command,) = [line for line in TEXT if line.startswith("torchrun ")]
    (resumption,) = re.findall(r"`(torchrun [^`]* resume RUN)`", PAGE)
    read_settings(compose([word.replace("DIR", "/") for word in shlex.split(command)[5:]]))
    for line, more in ((command, [*tiny_odenet, "trainer.iterations=2", f"run_dir={tmp_path}/run"]), (resumption, [])):
        _, number, *words = shlex.split(line.replace("RUN", f"{tmp_path}/run"))
        assert number == "--nproc-per-node=4"
        words = [word for word in words if "=" not in word]
        # Else torchrun takes a port that is always the same, which another one may have.
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run([*torchrun, *words, *more], capture_output=True, text=True, env=os.environ, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test accuracy") == 1
    assert read_run(tmp_path / "run").manifest["processes"]["number"] == 2


def test_the_grid_of_the_page_has_as_many_jobs_as_its_blocks_say(files):
    assert len(plan_sweep([], Path("grid.yaml"), None).jobs) == 2 * 3 * 3 + 2 * 3


def test_the_clusters_file_of_the_page_is_one(files):
    mine = read_cluster(["cluster=mine"], files / "DIR")
    assert (mine.partition, mine.time, mine.setup) == ("gpu", "8:00:00", ("module load cuda",))
    assert set(OmegaConf.create(BLOCKS["yaml"][1])) - {"defaults"} <= {field.name for field in fields(SlurmCluster)}


def test_every_status_and_every_setting_of_slurm_is_explained():
    for status in layout.STATUSES:
        assert f"\n| `{status}` |" in PAGE
    for field in fields(SlurmCluster):
        assert field.name == "name" or f"`cluster.{field.name}" in PAGE or f"`{field.name}`" in PAGE, field.name

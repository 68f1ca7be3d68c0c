"""The page about sweeps: its commands are taken, its sweeps expand, its files read, its tables are whole."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from odebench import cli
from odebench.record import schema
from odebench.sweep.cluster import Slurm, read_cluster
from odebench.sweep.run import plan_sweep

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
BLOCKS = {kind: re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for kind in ("bash", "yaml")}
COMMANDS = [shlex.split(line)[1:] for block in BLOCKS["bash"] for line in block.splitlines()]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The page's files, where its commands look for them."""
    monkeypatch.chdir(tmp_path)
    grid, mine = BLOCKS["yaml"]
    (tmp_path / "grid.yaml").write_text(grid)
    (tmp_path / "DIR" / "cluster").mkdir(parents=True)
    (tmp_path / "DIR" / "cluster" / "mine.yaml").write_text(mine)
    return tmp_path


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "sweep"], ids=" ".join)
def test_every_sweep_expands_and_all_its_jobs_are_valid(words, files, capsys):
    more = [] if "--dry-run" in words else ["--dry-run"]
    assert cli.main([*words, *more]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "resume"], ids=" ".join)
def test_every_resumption_changes_the_cluster_only(words):
    read_cluster(words[2:])


def test_the_grid_of_the_page_has_as_many_jobs_as_its_blocks_say(files):
    assert len(plan_sweep([], Path("grid.yaml"), None).jobs) == 2 * 3 * 3 + 2 * 3


def test_the_clusters_file_of_the_page_is_one(files):
    mine = read_cluster(["cluster=mine"], files / "DIR")
    assert (mine.partition, mine.time, mine.setup) == ("gpu", "8:00:00", ("module load cuda",))
    assert set(OmegaConf.create(BLOCKS["yaml"][1])) - {"defaults"} <= {field.name for field in fields(Slurm)}


def test_every_status_and_every_setting_of_slurm_is_explained():
    for status in schema.STATUSES:
        assert f"\n| `{status}` |" in PAGE
    for field in fields(Slurm):
        assert field.name == "name" or f"`cluster.{field.name}" in PAGE or f"`{field.name}`" in PAGE, field.name

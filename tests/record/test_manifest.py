import json
import subprocess
from pathlib import Path

import torch
from omegaconf import DictConfig

import odebench
from odebench.record import manifest
from odebench.record.files import write_json

CPU = torch.device("cpu")


def gather(config: DictConfig) -> dict:
    return manifest.build_manifest(config, CPU, {"sha256": "ab"}, {"all": 3}, ["odebench", "train", "seed=3"])


def test_a_manifest_resolves_the_settings_and_is_json(tmp_path, config):
    write_json(tmp_path / "manifest.json", gather(config))
    read = json.loads((tmp_path / "manifest.json").read_text())
    assert read == gather(config) | {"started": read["started"]}
    assert read["settings"]["solver"]["rtol"] == 1e-3
    assert read["command"] == ["odebench", "train", "seed=3"]
    assert read["seeds"] == {"all": 3}
    assert read["data"] == {"sha256": "ab"}
    assert read["versions"]["torch"] == torch.__version__
    assert all(read["versions"][name] for name in ("numpy", "scipy", "scikit-learn", "pandas", "mlxtend"))
    assert read["machine"]["threads"] == torch.get_num_threads()
    assert read["machine"]["gpu"] is None
    assert read["machine"]["cpu"]


def test_slurm_ids_are_kept_and_null_elsewhere(config, monkeypatch):
    for name in manifest._SLURM:
        monkeypatch.delenv(name, raising=False)
    assert gather(config)["slurm"] is None
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert gather(config)["slurm"] == {"SLURM_JOB_ID": "42"}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_git_state_is_that_of_odebenchs_checkout_only(tmp_path, monkeypatch):
    package = tmp_path / "project/odebench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(odebench, "__file__", str(package / "__init__.py"))
    git(tmp_path, "init", "-q")  # a project with odebench inside
    assert manifest.git_state() is None

    git(package.parent, "init", "-q")
    assert manifest.git_state() == {"commit": None, "dirty": True}
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "one")
    assert manifest.git_state() == {"commit": git(package.parent, "rev-parse", "HEAD"), "dirty": False}
    (package / "new.py").write_text("")
    state = manifest.git_state()
    assert state is not None
    assert state["dirty"] is True


def test_without_git_the_state_is_null(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert manifest.git_state() is None

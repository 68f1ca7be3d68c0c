"""The page on extending: its module and its YAML, exactly as shown, through the real command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from odebench.cli import main
from odebench.record.reader import read_run

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
TRAININGS = re.findall(r"^PYTHONPATH=\. odebench (train .*)$", PAGE, re.MULTILINE)
MODULE = "\n\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with the files that the page shows."""
    (tmp_path / "mylab.py").write_text(MODULE)
    for name, text in re.findall(r"^`(configs/\S+)`:\n\n```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("mylab", None)


def test_the_page_names_the_files_that_it_shows(lab):
    (listed,) = re.findall(r"^```text\n(mylab\.py\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert sorted(listed.split()) == sorted(path.relative_to(lab).as_posix() for path in lab.rglob("*.*"))


def test_the_module_prints_what_the_page_says(lab):
    printed = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[-1]
    done = subprocess.run([sys.executable, "mylab.py"], check=True, capture_output=True, text=True, env=os.environ)
    assert done.stdout == printed


def test_its_model_learns_its_data_with_its_solver(lab, capsys):
    command = TRAININGS[0]
    assert main([*command.split(), "trainer.epochs=8", "device=cpu", "run_dir=run"]) == 0
    run = read_run("run")
    assert (run.settings.model.name, run.settings.data.name) == ("small_ode", "stripes")
    assert run.summary["final/test_accuracy"] > 0.9
    assert main(["eval", "run", "tol=1e-5"]) == 0
    assert "heun_euler, tol 1e-05" in capsys.readouterr().out
    assert main(["list", "models", "--config-dir", "configs"]) == 0
    assert re.search(r"^small_ode .*a small state", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(("override", "expected"), [("model=small_ode", "small_ode 4"), ("model=mlp", "mlp 16")])
def test_its_experiment_has_overrides_for_each_model(lab, override, expected):
    assert main([*TRAININGS[1].split(), override, "device=cpu", "run_dir=run"]) == 0
    settings = read_run("run").settings
    size = settings.model.dim if settings.model.name == "small_ode" else settings.model.hidden
    assert f"{settings.model.name} {size}" == expected
    assert (settings.trainer.epochs, settings.trainer.batch_size) == (2, 32)

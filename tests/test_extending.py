"""The page on extending: its modules and its YAML, exactly as shown, through the real command line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from odebench.cli import main
from odebench.record.reader import read_run
from odebench.tasks.density import DensityTask

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
TRAININGS = re.findall(r"^PYTHONPATH=\. odebench (train .*)$", PAGE, re.MULTILINE)
FILES = re.findall(r"^`(\S+)`(?:, further down)?:\n\n```(?:python|yaml)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with the files that the page shows."""
    for name, text in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in ("mylab", "mydensity"):
        sys.modules.pop(module, None)


def test_the_page_names_the_files_that_it_shows(lab):
    (listed,) = re.findall(r"^```text\n(mylab\.py\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert sorted(listed.split()) == sorted(path.relative_to(lab).as_posix() for path in lab.rglob("*.*"))


def test_the_solver_prints_what_the_page_says(lab):
    (program,) = re.findall(r"From Python .*?\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    printed = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[-1]
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ)
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


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(DensityTask, "figures", lambda self: {})


@pytest.mark.parametrize("command", TRAININGS[2:], ids=["by maximum likelihood", "by flow matching"])
def test_its_density_model_learns_its_density(command, lab, no_figures, capsys):
    small = ["trainer.epochs=3", "data.num=512", "optim.lr=0.03", "device=cpu", "run_dir=run"]
    assert main([*command.split(), *small]) == 0
    run = read_run("run")
    assert (run.settings.model.name, run.settings.data.name) == ("small_flow", "ring")
    first, *_, last = run.series("val/nll_nats")[1]
    assert last < first
    capsys.readouterr()
    assert main(["sample", "run", "--num", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["list", "models", "--config-dir", "configs"]) == 0
    assert re.search(r"^small_flow +density +A flow of one ODE", capsys.readouterr().out, re.MULTILINE)


def test_a_density_model_without_an_ode(lab, no_figures, capsys):
    (lab / "mydensity.py").write_text(
        """
from odebench.models.planar_flow import PlanarFlow
MODELS = {"planes": lambda shape, layers: PlanarFlow(shape, layers, "likelihood", 1.0)}
"""
    )
    yaml = (lab / "configs" / "model" / "small_flow.yaml").read_text()
    yaml = yaml.replace("/data: ring", "/data: two_moons").replace("small_flow\n  width", "planes\n  layers")
    words = ["train", "--config-dir", "configs", "extensions=[mydensity]", "model=planes", "trainer.iterations=2"]

    def train(*defaults):
        lines = "".join(f"  - {line}\n" for line in defaults)
        (lab / "configs" / "model" / "planes.yaml").write_text(yaml.replace("task:", f"{lines}task:"))
        return main([*words, "device=cpu", "run_dir=run"])

    solver, gradient = re.findall(r"`(override /\S+: \w+)`", PAGE)
    assert train(solver) == 2
    line = "gradient=adjoint: planes has no ODE; choose gradient=backprop, or a model"
    assert line in capsys.readouterr().err
    assert train(solver, gradient) == 0

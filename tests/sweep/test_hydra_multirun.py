"""Launchers and sweepers of Hydra under `train -m`: Optuna optimises the objective, joblib and submitit start jobs.

Skips the tests of plugins that are not installed; trainings are fakes, except with launchers.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from odebench.cli import main
from odebench.config.compose import explain_hydra_error
from odebench.record.reader import read_run
from odebench.sweep.hydra_multirun import _first_job

PLUGINS = {
    "hydra/sweeper/optuna": ("hydra_optuna_sweeper", "optuna"),
    "hydra/launcher/joblib": ("hydra_joblib_launcher", "launchers"),
    "hydra/launcher/submitit_local": ("hydra_submitit_launcher", "launchers"),
    "hydra/launcher/submitit_slurm": ("hydra_submitit_launcher", "launchers"),
}

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line)[3:] for line in re.findall(r"^odebench train -m hydra/.*$", PAGE, re.MULTILINE)]


def is_installed(plugin):
    return bool(importlib.util.find_spec("hydra_plugins")) and bool(importlib.util.find_spec(f"hydra_plugins.{plugin}"))


def needs(name):
    plugin, extra = PLUGINS[name]
    return pytest.mark.skipif(not is_installed(plugin), reason=f'no {plugin} (pip install -e ".[{extra}]")')


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Fake trainings: the objective is model.hidden / 100; 3 diverges, 5 is requeued by its launcher."""

    def train_run(config, overrides, settings):
        hidden = getattr(settings.model, "hidden", 20)
        if hidden == 5:
            raise SystemExit(0)
        return types.SimpleNamespace(exit_code=3 * (hidden == 3), folder=Path("x"), objective=hidden / 100)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "odebench.training.run", types.SimpleNamespace(train_run=train_run))


SEARCH = ["train", "-m", "hydra/sweeper=optuna", "hydra.sweep.dir=here", "model=mlp", "hydra.sweeper.n_jobs=1"]
DRAWN = [*SEARCH, "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.n_trials=12"]


@needs("hydra/sweeper/optuna")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "best"),
    [([], 0.22), (["trainer.objective=val/loss"], 0.20), (["hydra.sweeper.direction=minimize"], 0.20)],
    ids=["accuracy", "loss", "requested"],
)
def test_optuna_optimises_the_objective_and_ignores_divergences(arguments, best, trained, capsys):
    assert main([*DRAWN, "model.hidden=choice(20,3,22,21)", *arguments]) == 3
    found = OmegaConf.load("here/optimization_results.yaml")
    assert (found.best_value, found.best_params["model.hidden"]) == (best, 100 * best)
    out = capsys.readouterr().out.splitlines()
    assert {line.split()[2] for line in out[1:13]} == {"0.0300", "0.2000", "0.2100", "0.2200"}
    assert out[-2].split()[3] == f"{best:.4f},"


@needs("hydra/sweeper/optuna")
@pytest.mark.filterwarnings("ignore")
def test_optuna_draws_from_an_interval(trained):
    assert main([*SEARCH, "optim.lr=tag(log,interval(1e-4,1e-1))", "hydra.sweeper.n_trials=3"]) == 0
    rows = [json.loads(line) for line in Path("here/jobs.jsonl").read_text().splitlines()]
    rates = [float(row["overrides"][0].removeprefix("optim.lr=")) for row in rows]
    assert len(set(rates)) == 3
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)


@needs("hydra/sweeper/optuna")
@pytest.mark.filterwarnings("ignore")
def test_an_optuna_study_in_a_storage_continues(trained):
    import optuna

    (arguments,) = [arguments for arguments in COMMANDS if any("storage" in argument for argument in arguments)]
    for folder in ("one", "two"):
        assert main(["train", "-m", *arguments, "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={folder}"]) == 0
    assert len(optuna.load_study("lr", "sqlite:///study.db").trials) == 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "arguments", [pytest.param(w, marks=needs(w[0].replace("=", "/")), id=" ".join(w)) for w in COMMANDS]
)
def test_every_command_of_the_page_starts_with_its_plugin(arguments, trained):
    first = _first_job(arguments, None)
    assert str(first.hydra[arguments[0].partition("/")[2].partition("=")[0]]["_target_"]).startswith("hydra_plugins.")
    if "sweeper" in arguments[0]:
        assert main(["train", "-m", *arguments, "hydra.sweeper.n_trials=2"]) == 0


@pytest.mark.parametrize("name", PLUGINS)
def test_a_missing_plugin_is_named_with_its_install_command(name):
    from hydra.errors import MissingConfigException

    error = MissingConfigException("In 'hydra/config': Could not find it", missing_cfg_file=name, options=["basic"])
    assert (
        str(explain_hydra_error(error))
        == f'{name} is not installed: from the checkout, pip install -e ".[{PLUGINS[name][1]}]"'
    )


@pytest.mark.skipif(is_installed("hydra_optuna_sweeper"), reason="hydra_optuna_sweeper is installed")
def test_without_optuna_the_error_is_one_line(trained, capsys):
    assert main([*SEARCH, "optim.lr=interval(1e-4,1e-1)"]) == 2
    line = 'odebench train: hydra/sweeper/optuna is not installed: from the checkout, pip install -e ".[optuna]"\n'
    assert capsys.readouterr().err == line


def test_a_requeued_job_counts_by_its_last_line(trained, capsys):
    arguments = ["train", "-m", "model=mlp", "hydra.sweep.dir=here"]
    assert main([*arguments, "model.hidden=20,5"]) == 75
    rows = [json.loads(line) for line in Path("here/jobs.jsonl").read_text().splitlines()]
    assert [row["exit_code"] for row in rows] == [0, 75]
    assert "2 jobs in " in capsys.readouterr().out


def test_a_job_may_choose_another_solver_for_evaluation(trained):
    assert main(["train", "-m", "eval_solver=rk4,tsit5", "hydra.sweep.dir=here"]) == 0


def test_a_value_given_twice_runs_once(trained, capsys, caplog):
    assert main(["train", "-m", "model=mlp", "seed=1,1", "tol=1e-2,1e-3,1e-2", "hydra.sweep.dir=here"]) == 0
    rows = [json.loads(line) for line in Path("here/jobs.jsonl").read_text().splitlines()]
    assert [row["overrides"] for row in rows] == [["model=mlp", "seed=1", f"tol={tol}"] for tol in (0.01, 0.001)]
    assert caplog.messages == [
        "seed=1,1: a value given more than once runs once",
        "tol=1e-2,1e-3,1e-2: a value given more than once runs once",
    ]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seed=range(0,0)", "seed=range(0,0): gives no value"),
        (
            "seed=range(0,1000000000)",
            "seed=range(0,1000000000): more than 100,000 values; a sweep has at most that many",
        ),
        ("init_from=/nope", "init_from=/nope: /nope is not a run's folder: it does not exist"),
    ],
)
def test_values_that_no_job_can_have_start_nothing(word, line, trained, capsys):
    assert main(["train", "-m", "model=mlp", "tol=1e-2,1e-3", word]) == 2
    assert capsys.readouterr().err.startswith(f"odebench train: {line}")
    assert not Path("outputs").exists()


@pytest.mark.parametrize("line", ["\xff", '{"job": 1, "overrides": [], "objective": "a", "exit_code": 0}'])
def test_a_damaged_line_of_the_jobs_counts_as_a_failure(line, trained, monkeypatch, capsys, caplog):
    def train_run(config, overrides, settings):
        if config.seed == 1:
            Path("here/jobs.jsonl").write_bytes(line.encode("latin-1") + b"\n")
        return types.SimpleNamespace(exit_code=0, folder=Path("x"), objective=1.0)

    monkeypatch.setitem(sys.modules, "odebench.training.run", types.SimpleNamespace(train_run=train_run))
    assert main(["train", "-m", "model=mlp", "seed=1,2", "hydra.sweep.dir=here"]) == 1
    assert [message for message in caplog.messages if "here/jobs.jsonl: 1 damaged" in message]
    assert "2 jobs in" in capsys.readouterr().out


def test_an_error_of_a_launcher_is_one_line(trained, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("could not detect\nsrun")

    monkeypatch.setattr("hydra.main", lambda **_: fail)
    assert main(["train", "-m", "seed=1,2"]) == 2
    assert capsys.readouterr().err == "odebench train: RuntimeError: could not detect srun\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [pytest.param(n, marks=needs(f"hydra/launcher/{n}")) for n in ("joblib", "submitit_local")]
)
def test_a_launcher_runs_the_jobs_in_separate_processes(launcher, tmp_path, tiny):
    arguments = ["-m", f"hydra/launcher={launcher}", "hydra.sweep.dir=here", "model=mlp", "seed=1,2", *tiny]
    command = [sys.executable, "-m", "odebench", "train", *arguments, "trainer.iterations=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    runs = [read_run(tmp_path / "here" / f"{number}_mlp") for number in range(2)]
    assert [run.status["status"] for run in runs] == ["done", "done"]
    assert len({run.manifest["machine"]["pid"] for run in runs}) == 2
    objectives = [f"{run.summary['objective']:.4f}" for run in runs]
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith(("0 ", "1 "))] == objectives

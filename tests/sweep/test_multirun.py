"""`train -m` is a sweep; Hydra's launchers start its jobs, Optuna chooses them.

Skips the tests of plugins that are not installed; trainings are fakes, except with launchers.
"""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from sweep_testing import run_when, starts, statuses

from odebench.cli import main
from odebench.config.compose import compose_with_hydra, explain_hydra_error
from odebench.config.files import CONFIGS
from odebench.record.reader import read_run
from odebench.sweep import attempts, slurm_task
from odebench.sweep.cluster import HydraLauncher, read_cluster
from odebench.sweep.folder import load_sweep

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


@pytest.fixture(autouse=True)
def quick_poll(monkeypatch):
    monkeypatch.setattr(slurm_task, "POLL_S", 0.01)


def multirun(*arguments):
    return main(["train", "-m", "model=mlp", "hydra.sweep.dir=here", *arguments])


def jobs():
    return [job.overrides for job in load_sweep(Path("here")).jobs]


SEARCH = ["hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1"]
DRAWN = [*SEARCH, "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.n_trials=12"]
OPTUNA = pytest.param(SEARCH, marks=[needs("hydra/sweeper/optuna"), pytest.mark.filterwarnings("ignore")], id="optuna")


def test_every_combination_runs_as_a_job_of_a_sweep(fake_training, tmp_path, capsys):
    assert main(["train", "-m", "solver=dopri5,rk4", "tol=1e-2,1e-3"]) == 0
    (path,) = (tmp_path / "outputs" / "sweeps").glob("*/*")
    sweep = load_sweep(path)
    assert [job.name for job in sweep.jobs] == [
        "0000_solver=dopri5_tol=0.01",
        "0001_solver=dopri5_tol=0.001",
        "0002_solver=rk4_tol=0.01",
        "0003_solver=rk4_tol=0.001",
    ]
    assert sweep.jobs[0].overrides == ("solver=dopri5", "tol=0.01")
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"4 jobs in {path.relative_to(tmp_path)}: 4 done"
    assert "job 0: running  solver=dopri5 tol=0.01" in err


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=basic"]], ids=["plain", "launcher"])
def test_a_failed_job_does_not_stop_the_others_and_the_worst_code_is_returned(launcher, fake_training, capsys):
    assert multirun("model.hidden=2,3,10", *launcher) == 1
    assert statuses(Path("here")) == ["failed", "diverged", "done"]
    assert "job 0 failed: odebench train: no data there" in capsys.readouterr().out
    assert main(["list", "runs", "here"]) == 0
    assert main(["train", "-m", "model=mlp", "model.hidden=3,10", *launcher]) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("chosen", [[], ["hydra/launcher=basic"], OPTUNA], ids=["plain", "launcher", None])
def test_a_signal_stops_all_jobs_and_resume_continues_them(chosen, number, fake_training, capsys, caplog):
    thread = run_when(Path("here/0000_hidden=50/ready").exists, lambda: os.kill(os.getpid(), number))
    search = bool(chosen) and "sweeper" in chosen[0]
    assert multirun("model.hidden=choice(50)" if search else "model.hidden=50,10", *chosen) == 75
    thread.join()
    assert statuses(Path("here")) == ["interrupted"] + ["queued"] * (not search)
    assert "continue with: odebench resume here" in capsys.readouterr().out
    assert main(["resume", "here"]) == 0
    assert statuses(Path("here")) == ["done"] * (2 - search)
    assert [command for command, *_ in starts(fake_training)] == ["train", "resume"] + ["train"] * (not search)
    assert any(message.startswith("the search is not continued") for message in caplog.messages) == search


def test_a_second_ctrl_c_kills_the_job_of_a_launcher(fake_training, monkeypatch):
    stop_requests = []
    monkeypatch.setattr(attempts.Attempt, "stop", lambda attempt: stop_requests.append(attempt))
    run_when(Path("here/0000_hidden=50/ready").exists, lambda: os.kill(os.getpid(), signal.SIGINT))
    second = run_when(lambda: stop_requests, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert multirun("model.hidden=50,10", "hydra/launcher=basic") == 75
    second.join()
    assert statuses(Path("here")) == ["interrupted", "queued"]


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["model=odenet,odnet"], "unknown model odnet; did you mean odenet?"),
        (["model.hiden=1,2"], "2 of 2 jobs are invalid; none was started\njob 0 (model.hiden=1) and 1 more: unknown"),
        (["model=mlp,odenet", "model.hidden=3"], "1 of 2 jobs are invalid; none was started\njob 1 (model=odenet"),
        (["tol=1,2", "="], "malformed setting '='"),
        (["hydra.verbose=true", "tol=1,2"], "hydra.verbose=true: has no effect; leave it out"),
        (["hydra.job.chdir=true", "tol=1,2"], "hydra.job.chdir=true: has no effect; leave it out"),
        (["hydra/launcher=jobli", "tol=1,2"], "no hydra/launcher/jobli (installed: basic"),
        (["hydra/launcher=basic,joblib", "tol=1,2"], "hydra/launcher=basic,joblib: a sweep runs on one cluster"),
        (["hydra/launcher=basic", "cluster.jobs=2", "tol=1,2"], "cluster.jobs=2: has no effect with Hydra's launcher"),
        (["hydra/launcher=null", "tol=1,2"], "hydra/launcher=null: name one option, as in hydra/launcher=basic"),
        (["tol=interval(0,1)"], "tol=interval(0,1): a sweep needs values"),
        (["run_dir=x", "tol=1,2"], "run_dir=x: each job has its own folder; choose the sweep's with --output"),
        (["hydra.sweep.dir=${nope}", "tol=1,2"], "Interpolation key 'nope' not found"),
        (["seed=range(0,0)"], "seed=range(0,0): gives no value"),
        (["seed=range(0,1000000000)"], "seed=range(0,1000000000): more than 100,000 values; a sweep has at most that"),
        (["init_from=/nope", "tol=1,2"], "2 of 2 jobs are invalid; none was started\njob 0 (init_from=/nope tol=1)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_multirun_starts_nothing(words, start, fake_training, tmp_path, capsys):
    assert main(["train", "-m", *words]) == 2
    assert capsys.readouterr().err.startswith(f"odebench train: {start}")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@needs("hydra/sweeper/optuna")
@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["optim.lrr=interval(0,1)"], "unknown setting optim.lrr; did you mean optim.lr?"),
        (["tol=-1", "seed=1,2"], "1 of 1 jobs are invalid; none was started\njob 0 (tol=-1 seed=1): tol=-1: must be"),
        (["init_from=/nope", "seed=1,2"], "1 of 1 jobs are invalid; none was started\njob 0 (init_from=/nope seed"),
        (["cluster=slurm", "seed=1,2"], "a search waits for its jobs; choose hydra/launcher=submitit_slurm"),
        (["hydra.sweeper.n_trial=2", "seed=1,2"], "unknown setting hydra.sweeper.n_trial"),
        (["hydra.sweeper.sampler._target_=nope.Nope", "seed=1,2"], "Error locating target 'nope.Nope'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_search_starts_nothing(words, start, fake_training, tmp_path, capsys):
    assert main(["train", "-m", *SEARCH, "hydra.sweep.dir=here", *words]) == 2
    assert capsys.readouterr().err.startswith(f"odebench train: {start}")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize("chosen", [["hydra/launcher=basic"], OPTUNA])
def test_hydra_leaves_no_trace_and_the_sweep_holds_the_users_command(chosen, fake_training, monkeypatch):
    command = ["odebench", "train", "-m", "model=mlp", "seed=1,2", "hydra.sweep.dir=here", *chosen]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert main() == 0
    assert sys.argv == command == yaml.safe_load(Path("here/sweep.yaml").read_text())["command"]
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert "instantiate_launcher" not in vars(Plugins.instance())
    names = {path.name.split("=")[0] for path in Path("here").iterdir()}
    assert names >= {"sweep.yaml", "0000_seed", "lock", "logs"}


def test_options_of_a_users_config_dir_are_found(fake_training, tmp_path):
    folder = tmp_path / "my configs"
    (folder / "solver").mkdir(parents=True)
    (folder / "hydra" / "launcher").mkdir(parents=True)
    coarse = (CONFIGS / "solver" / "rk4.yaml").read_text() + "steps: 4\n"
    (folder / "solver" / "coarse.yaml").write_text(coarse)
    (folder / "hydra" / "launcher" / "mine.yaml").write_text("defaults: [basic]\n")
    words = ["solver=coarse,dopri5", "hydra/launcher=mine", "hydra.sweep.dir=here", "--config-dir", "my configs"]
    assert main(["train", "-m", *words]) == 0
    assert load_sweep(Path("here")).config_dir == folder
    assert [job.name for job in load_sweep(Path("here")).jobs] == ["0000_solver=coarse", "0001_solver=dopri5"]


def test_hydras_sweep_dir_is_the_folder_unless_it_is_in_use(fake_training, tmp_path, capsys):
    assert multirun("seed=1,2") == 0
    capsys.readouterr()
    assert multirun("seed=1,2") == 2
    here = tmp_path / "here"
    line = f"{here} is not empty; continue that sweep (odebench resume {here}) or name another folder"
    assert capsys.readouterr().err.startswith(f"odebench train: {line}")
    assert main(["train", "-m", "model=mlp", "seed=3", "hydra.sweep.dir='${outputs}/${model.name} ${seed}'"]) == 0
    assert statuses(tmp_path / "outputs" / "mlp 3") == ["done"]


def test_a_launcher_of_a_sweep_can_change_when_it_is_resumed(fake_training, capsys):
    assert multirun("model.hidden=4", "seed=1,2", "hydra/launcher=basic") == 1
    assert main(["resume", "here", "cluster.jobs=2"]) == 2
    assert "cluster.jobs=2: has no effect with Hydra's launcher" in capsys.readouterr().err
    assert main(["resume", "here", "cluster=local", "cluster.jobs=2"]) == 0
    assert main(["resume", "here"]) == 0
    words = ["model=mlp", "model.hidden=1,10", "hydra/launcher=basic", "--fail-fast", "--output", "x"]
    assert main(["sweep", *words]) == 1
    assert statuses(Path("x")) == ["failed", "queued"]
    assert main(["resume", "x", "--retry=1"]) == 1
    assert statuses(Path("x")) == ["failed", "done"]


def test_values_given_more_than_once_run_once(fake_training, caplog):
    assert multirun("seed=1,1", "tol=1e-2,1e-3,1e-2", "hydra/launcher=basic") == 0
    assert jobs() == [("model=mlp", "seed=1", f"tol={tol}") for tol in (0.01, 0.001)]
    assert "4 jobs given more than once: each runs once" in caplog.messages


def test_a_job_may_choose_another_solver_for_evaluation(fake_training):
    assert main(["train", "-m", "eval_solver=rk4,tsit5", "hydra.sweep.dir=here"]) == 0


@needs("hydra/sweeper/optuna")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("arguments", "best"),
    [([], 0.22), (["trainer.objective=val/loss"], 0.20), (["hydra.sweeper.direction=minimize"], 0.20)],
    ids=["accuracy", "loss", "requested"],
)
def test_optuna_optimises_the_objective_and_ignores_divergences(arguments, best, fake_training, capsys):
    assert multirun(*DRAWN, "model.hidden=choice(20,3,22,21)", *arguments) == 3
    found = OmegaConf.load("here/optimization_results.yaml")
    assert (found.best_value, found.best_params["model.hidden"]) == (best, 100 * best)
    out = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in out[1:13]} == {"done", "diverged"}
    assert out[-1].split()[3] == f"{best:.4f},"


@needs("hydra/sweeper/optuna")
@pytest.mark.filterwarnings("ignore")
def test_optuna_draws_from_an_interval_and_the_other_settings_are_as_given(fake_training):
    words = ["optim.lr=tag(log,interval(1e-4,1e-1))", "trainer.clip_grad_norm=null", "hydra.sweeper.n_trials=3"]
    assert multirun(*SEARCH, *words) == 0
    assert {job[1:] for job in jobs()} == {("model=mlp", "trainer.clip_grad_norm=null")}
    rates = [float(job[0].removeprefix("optim.lr=")) for job in jobs()]
    assert len(set(rates)) == 3
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)


@needs("hydra/sweeper/optuna")
@pytest.mark.filterwarnings("ignore")
def test_a_search_continues_after_a_trial_with_invalid_settings(fake_training, capsys):
    assert multirun(*DRAWN, "model.hidden=choice(20,-1)", "hydra.sweeper.n_jobs=12", "cluster.jobs=4") == 1
    names = {job.name[5:] for job in load_sweep(Path("here")).jobs}
    assert names == {"hidden=20", "invalid"}
    assert OmegaConf.load("here/optimization_results.yaml").best_value == 0.2
    assert capsys.readouterr().out.splitlines()[-1].startswith("best: job ")


@needs("hydra/sweeper/optuna")
@pytest.mark.filterwarnings("ignore")
def test_a_search_by_a_launcher_runs_its_jobs_in_batches(fake_training):
    words = [*DRAWN, "hydra/launcher=basic", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=4"]
    assert multirun(*words, "model.hidden=choice(20,21)") == 0
    assert statuses(Path("here")) == ["done"] * 4
    assert load_sweep(Path("here")).cluster == ("hydra/launcher=basic",)


@needs("hydra/sweeper/optuna")
@pytest.mark.filterwarnings("ignore")
def test_an_optuna_study_in_a_storage_continues(fake_training):
    import optuna

    (arguments,) = [arguments for arguments in COMMANDS if any("storage" in argument for argument in arguments)]
    for folder in ("one", "two"):
        assert main(["train", "-m", *arguments, "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={folder}"]) == 0
    assert len(optuna.load_study("lr", "sqlite:///study.db").trials) == 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "arguments", [pytest.param(w, marks=needs(w[0].replace("=", "/")), id=" ".join(w)) for w in COMMANDS]
)
def test_every_command_of_the_page_starts_with_its_plugin(arguments, fake_training):
    words = [word for word in arguments if word.startswith("hydra")]
    chosen = compose_with_hydra(words).hydra[arguments[0].partition("/")[2].partition("=")[0]]
    assert str(chosen["_target_"]).startswith("hydra_plugins.")
    if "sweeper" in arguments[0]:
        assert main(["train", "-m", *arguments, "hydra.sweeper.n_trials=2"]) == 0
    else:
        assert read_cluster(words) == HydraLauncher(tuple(words))


@pytest.mark.parametrize("name", PLUGINS)
def test_a_missing_plugin_is_named_with_its_install_command(name):
    from hydra.errors import MissingConfigException

    error = MissingConfigException("In 'hydra/config': Could not find it", missing_cfg_file=name, options=["basic"])
    assert (
        str(explain_hydra_error(error))
        == f'{name} is not installed: from the checkout, pip install -e ".[{PLUGINS[name][1]}]"'
    )


@pytest.mark.skipif(is_installed("hydra_optuna_sweeper"), reason="hydra_optuna_sweeper is installed")
def test_without_optuna_the_error_is_one_line(fake_training, capsys):
    assert multirun(*SEARCH, "optim.lr=interval(1e-4,1e-1)") == 2
    line = 'odebench train: hydra/sweeper/optuna is not installed: from the checkout, pip install -e ".[optuna]"\n'
    assert capsys.readouterr().err == line


class BrokenLauncher:
    """A launcher with an error, before its first job or while it runs one."""

    def __init__(self, job_runs):
        self._job_runs = job_runs

    def launch(self, job_overrides, initial_job_idx):
        if self._job_runs:
            Path("here/0001_seed=2/status.json").write_text('{"status": "running"}')
        raise RuntimeError("could not detect\nsrun")


@pytest.fixture
def broken(fake_training, monkeypatch):
    def choose(job_runs):
        monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: BrokenLauncher(job_runs))

    return choose


def test_an_error_of_a_launcher_is_one_line(broken, capsys):
    broken(job_runs=False)
    assert multirun("seed=1,2", "hydra/launcher=basic") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "odebench train: RuntimeError: could not detect srun"
    assert statuses(Path("here")) == ["queued", "queued"]


def test_the_jobs_that_a_launcher_killed_have_failed(broken, capsys):
    broken(job_runs=True)
    assert multirun("seed=1,2,3", "hydra/launcher=basic") == 1
    assert statuses(Path("here")) == ["queued", "failed", "queued"]
    assert "job 1 failed: RuntimeError: could not detect srun" in capsys.readouterr().out


def test_hydra_full_error_shows_the_traceback_of_a_launcher(broken, monkeypatch):
    broken(job_runs=True)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RuntimeError, match="could not detect\nsrun"):
        multirun("seed=1,2", "hydra/launcher=basic")


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [pytest.param(n, marks=needs(f"hydra/launcher/{n}")) for n in ("joblib", "submitit_local")]
)
def test_a_launcher_runs_the_jobs_in_separate_processes(launcher, tmp_path, tiny):
    arguments = ["-m", f"hydra/launcher={launcher}", "hydra.sweep.dir=here", "model=mlp", "seed=1,2", *tiny]
    command = [sys.executable, "-m", "odebench", "train", *arguments, "trainer.iterations=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    runs = [read_run(tmp_path / "here" / f"{number:04d}_seed={number + 1}") for number in range(2)]
    assert [run.status["status"] for run in runs] == ["done", "done"]
    assert len({run.manifest["machine"]["pid"] for run in runs}) == 2
    objectives = [f"{run.summary['objective']:.4f}" for run in runs]
    assert [line.split()[5] for line in done.stdout.splitlines() if line.startswith(("0 ", "1 "))] == objectives

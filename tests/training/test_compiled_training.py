"""Training with compiled solves gives the numbers of eager training, in every task.

Most tests run the compiled loops as plain Python, which takes milliseconds instead of minutes.
"""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from odebench.cli import main
from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.ode import forward_solve
from odebench.record.reader import read_run
from odebench.tasks import build_task
from odebench.training.checkpoint import TrainingState
from odebench.training.loop import train_step
from odebench.training.study import cast_floats, to_double
from odebench.training.trained_run import load_run

ODENET = ["model=odenet", "model.width=8", "model.groups=4", "data.train_limit=64", "data.validation=40"]
FLOW = ["data.validation=30", "trainer.eval_batch_size=20", "trainer.batch_size=16"]
FFJORD = ["model=ffjord", "model.dims=[8,8]", *FLOW]
SPIRALS = ["experiment=paper/latent_ode_spirals", "loss.consistency=3", "trainer.batch_size=8"]
TRAININGS = {
    "odenet": ODENET,
    "odenet-second-order": [*ODENET, "model.augment=2", "model.second_order=true", "model.groups=2"],
    "cnf": ["model=cnf", "model.width=8", *FLOW],
    "density-matching": ["experiment=paper/cnf_density_matching", "model.width=8", *FLOW],
    "ffjord": FFJORD,
    "ffjord-blocks": [*FFJORD, "model.blocks=2", "model.nonlinearity=softplus"],
    "hutchinson": [*FFJORD, "model.trace=hutchinson"],
    "images": [
        *("model=ffjord", "data=mnist5k", "data.augment=false", "tol=1e-2", "trainer.batch_size=2", "model.dims=[2]"),
        *("model.scales=2", "model.trace=hutchinson", "model.logit=1e-6", "data.validation=2", "data.train_limit=8"),
    ],
    "rnode": [*FFJORD, "dynamics=rnode"],
    "cnf-rnode": ["model=cnf", "model.width=8", *FLOW, "dynamics=rnode"],
    "rnode-hutchinson": [*FFJORD, "dynamics=rnode", "model.trace=hutchinson"],
    "steer": [*FFJORD, "dynamics=steer"],
    "latent-ode": SPIRALS,
    "latent-ode-regularised": [*SPIRALS, "dynamics.kinetic=0.01"],
    "second-order": [*SPIRALS, "model.second_order=true", "model.augment=1"],
    "events": ["experiment=paper/poisson", "trainer.batch_size=4", "trainer.eval_batch_size=4", "data.validation=8"],
    "ode-rnn-encoder": [*SPIRALS, "model.encoder=ode_rnn", "model.value_unit=1", "model.gap_unit=1"],
    "ode-rnn": ["model=ode_rnn", "model.encoder_solver=null", "trainer.batch_size=4", "model.field_units=8"],
}
HERE = Path(__file__).parent
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler (Debian: apt-get install g++)")


QUICK = (("cnf", "adjoint"), ("odenet", "backprop"))


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def train_steps(words, num=3):
    """The metrics of a few optimiser steps in float64, where rounding changes no step sizes."""
    torch.manual_seed(0)
    settings = read_settings(compose([*words, "device=cpu"]))
    task = build_task(settings, torch.device("cpu"))
    to_double(task)
    batch, training, metrics = task.batch, TrainingState(settings, task), []
    task.batch = lambda step: cast_floats(batch(step), torch.float64)
    for step in range(num):
        training.progress.step = step
        metrics.append(train_step(training, settings, 10))
    return metrics


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow)
        for pair in [*((name, "backprop") for name in TRAININGS), ("cnf", "adjoint"), ("hutchinson", "adjoint")]
    ],
)
def test_every_task_trains_as_without_compiling(uncompiled, name, gradient):
    words = [*TRAININGS[name], f"gradient={gradient}"]
    eager = train_steps(words)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile=")
        compiled = train_steps([*words, "solver.compile=solve"])
    for one, other in zip(compiled, eager, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-8)
        for tag in ("nfe/forward", "steps/accepted", "steps/rejected"):
            assert one[tag] == other[tag]


@pytest.mark.slow
def test_without_a_compiler_training_is_eager_after_one_line_in_the_log(tmp_path, without_figures, monkeypatch, capsys):
    def compile(function, **_):
        raise RuntimeError("no C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", compile)
    words = ["train", "model=cnf", "model.width=8", "gradient=backprop", *FLOW, "data.test=30", "trainer.iterations=2"]
    losses = []
    for more in ([], ["solver.compile=solve"]):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            assert main([*words, "device=cpu", f"run_dir={tmp_path}/{len(losses)}", *more]) == 0
        losses.append(read_run(tmp_path / f"{len(losses)}").series("train/loss"))
    assert losses[0] == losses[1]
    reason = "torch cannot compile it: no C++ compiler found"
    lines = [line for line in capsys.readouterr().err.splitlines() if "compile=" in line]
    assert lines == [f"compile='solve' has no effect on this solve: {reason}"]


@pytest.mark.slow
def test_evaluations_are_compiled_only_if_asked_for(uncompiled, tmp_path, without_figures, monkeypatch, capsys):
    compiled = []
    run_solve = forward_solve.run_solve
    words = ["model=cnf", "model.width=8", "gradient=backprop", *FLOW, "data.test=30", "trainer.iterations=2"]
    assert main(["train", *words, "solver.compile=solve", "device=cpu", f"run_dir={tmp_path}/run"]) == 0

    def count(problem, plan):
        compiled.append(plan.compile)
        return run_solve(problem, plan)

    monkeypatch.setattr(forward_solve, "run_solve", count)
    run, asked = load_run(tmp_path / "run"), load_run(tmp_path / "run", ["solver.compile=solve"])
    x = torch.rand(20, 2)
    with torch.no_grad():
        eager, _ = run.model.log_prob(x, run.solve)
    assert not compiled
    with torch.no_grad():
        torch.testing.assert_close(asked.model.log_prob(x, asked.solve)[0], eager)
    assert compiled == ["solve"]
    for command in ("eval", "predict", "sample"):
        outputs = []
        for more in ([], ["solver.compile=solve"]):
            compiled.clear()
            assert main([command, str(tmp_path / "run"), *more]) == 0
            assert bool(compiled) == bool(more)
            outputs.append(capsys.readouterr().out)
        assert outputs[0].split()[0] == outputs[1].split()[0]
    assert main(["eval", str(tmp_path / "run"), "solver.compile=false,solve", "--gradients", "--limit", "8"]) == 0


@needs_compiler
@pytest.mark.compiler
def test_a_compiled_training_resumes_to_the_last_bit(tmp_path, monkeypatch):
    """In a new process, which loads the compiled code from torch's cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    words = ["model=cnf", "model.width=8", "gradient=backprop", *FLOW, "data.test=30", "trainer.iterations=6"]
    stop = "from test_run import *; stop_at(pytest.MonkeyPatch(), 3, lambda: os.kill(os.getpid(), signal.SIGTERM)); "

    def odebench(command, folder, *words, before=""):
        code = f"import sys; from odebench.cli import main; {before}sys.exit(main(sys.argv[1:]))"
        words = [command, folder, *words] if command == "resume" else [command, *words, f"run_dir={folder}"]
        run = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=HERE, check=False
        )
        assert "has no effect" not in run.stderr
        return run.returncode

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    words = [*words, "solver.compile=solve", "device=cpu"]
    assert odebench("train", whole, *words) == 0
    assert odebench("train", stopped, *words, before=stop) == 75
    assert odebench("resume", stopped) == 0
    assert read_run(stopped).series("train/loss") == read_run(whole).series("train/loss")
    assert (stopped / "checkpoints" / "best.pt").read_bytes() == (whole / "checkpoints" / "best.pt").read_bytes()

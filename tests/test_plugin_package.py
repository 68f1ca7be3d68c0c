"""A small package of a user, outside the tree: its model, data and method through the real command line."""

import os
import signal
import sys
import textwrap

import pytest

import odebench.training.loop as loop
from odebench.cli import main
from odebench.record.reader import find_runs, read_run

MODULE = """\
    import torch
    from torch import nn

    from odebench.data import ImageData, ImageSplit
    from odebench.ode import Tableau


    class Spiral(nn.Module):
        \"\"\"Pixels to a small state, one linear ODE, and a linear head.\"\"\"

        def __init__(self, in_channels, image_size, num_classes, dim, end_time=1.0):
            super().__init__()
            self.end_time = end_time
            self.encode = nn.Linear(in_channels * image_size**2, dim)
            self.matrix = nn.Linear(dim, dim)
            self.head = nn.Linear(dim, num_classes)

        def forward(self, images, solve):
            solution = solve(lambda t, y: self.matrix(y).tanh(), self.encode(images.flatten(1)), (0.0, self.end_time))
            return self.head(solution.y[-1]), (solution.stats,)


    def halves(*, num, seed):
        \"\"\"Dark images of class 0 and bright ones of class 1.\"\"\"
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(100, (3, num, 1, 6, 6), dtype=torch.uint8, generator=generator)
        labels = torch.arange(num) % 2
        images += (labels * 150).to(torch.uint8).view(num, 1, 1, 1)
        train, validation, test = (ImageSplit(split, labels) for split in images)
        return ImageData(train, validation, test, num_classes=2, note="made up", provenance={"source": "noise"})


    MODELS = {"spiral": Spiral}
    DATA = {"halves": halves}
    METHODS = {"our_heun": Tableau("our_heun", "Heun 1900", 2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5))}
    """

YAML = {
    "model/spiral.yaml": """\
        # @package _global_
        # A linear ODE on a small state
        defaults:
          - override /data: halves
          - override /solver: our_heun
          - override /gradient: backprop
        task: classification
        model:
          name: spiral
          dim: 4
        """,
    "data/halves.yaml": """\
        # Dark and bright noise
        name: halves
        num: 32
        """,
    "solver/our_heun.yaml": """\
        # Heun's method, order 2, fixed steps
        defaults: [_fixed]
        name: our_heun
        steps: 5
        """,
}

TRAINER = ["trainer.epochs=4", "trainer.batch_size=16", "optim=adam", "optim.lr=0.1", "device=cpu"]


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """The folder of their YAML; their package can be imported."""
    package = tmp_path / "site" / "theirlab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(textwrap.dedent(MODULE))
    for name, text in YAML.items():
        path = tmp_path / "their configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "their configs"
    for module in ("theirlab", "theirlab.parts"):
        sys.modules.pop(module, None)


@pytest.fixture
def command(configs, tmp_path):
    """Arguments of `odebench train` that choose their model, with its runs in a temporary folder."""
    chosen = ["model=spiral", "extensions=[theirlab.parts]", *TRAINER, f"outputs={tmp_path / 'outputs'}"]
    return ["train", "--config-dir", str(configs), *chosen]


def test_it_trains_and_is_evaluated_without_naming_its_folder_again(command, tmp_path, capsys):
    assert main(command) == 0
    (folder,) = find_runs(tmp_path / "outputs")
    run = read_run(folder)
    assert (run.status["status"], run.status["step"]) == ("done", 8)
    assert (run.settings.model.name, run.settings.data.name) == ("spiral", "halves")
    assert run.manifest["data"]["source"] == "noise"
    assert run.series("nfe/forward")[1][0] == 5 * 2
    assert run.summary["final/test_accuracy"] > 0.9
    capsys.readouterr()

    assert main(["eval", str(folder), "split=test", "solver=our_heun", "solver.steps=3"]) == 0
    out = capsys.readouterr().out
    assert "test accuracy" in out
    assert "our_heun, 3 steps" in out
    assert main(["predict", str(folder), "split=test"]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [label for _, label, *_ in rows] == ["0", "1"] * 16
    assert sum(label == prediction for _, label, prediction, _ in rows) > 28


def test_it_resumes_without_naming_its_folder_again(command, tmp_path, monkeypatch):
    take = loop.train_step

    def stopped_after_two(training, *rest):
        if training.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(training, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped_after_two)
        assert main(command) == 75
    (folder,) = find_runs(tmp_path / "outputs")
    assert read_run(folder).status["step"] == 3
    assert main(["resume", str(folder)]) == 0
    assert read_run(folder).status["status"] == "done"


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("models", "A linear ODE on a small state"),
        ("data", "Dark and bright noise"),
        ("solvers", "Heun's method"),
    ],
    ids=["models", "data", "solvers"],
)
def test_its_options_are_listed(kind, row, configs, capsys):
    assert main(["list", kind, "--config-dir", str(configs)]) == 0
    assert row in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("model.dmi=3", "unknown setting model.dmi; did you mean model.dim?"),
        ("model=spirla", "unknown model spirla; did you mean spiral?"),
        ("solver=our_heum", "unknown solver our_heum; did you mean our_heun?"),
        (
            "extensions=[no_such_lab]",
            "extensions: no module no_such_lab; install its package, or put its folder on PYTHONPATH",
        ),
        (
            "extensions=[theirlab.prats]",
            "extensions: no module theirlab.prats; install its package, or put its folder on PYTHONPATH",
        ),
        ("extensions=[]", "model=spiral: its YAML file exists, but extensions=[] has no model of that name"),
    ],
    ids=lambda value: value if "=" in value else "",
)
def test_an_error_is_one_line_and_starts_nothing(word, line, command, tmp_path, capsys):
    assert main([*command, word]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"odebench train: {line}")
    assert err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_mistyped_setting_in_its_yaml_is_reported(command, configs, capsys):
    path = configs / "data" / "halves.yaml"
    path.write_text(path.read_text().replace("num:", "nun:"))
    assert main(command) == 2
    assert capsys.readouterr().err == "odebench train: unknown setting data.nun; did you mean data.num?\n"

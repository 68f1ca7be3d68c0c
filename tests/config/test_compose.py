"""Composition of settings: the overrides that an experiment lists for each of its models."""

import hydra
import pytest

from odebench.cli import main
from odebench.config import compose as composing
from odebench.config.compose import compose, finish_composition, parse_overrides
from odebench.config.files import CONFIGS
from odebench.errors import UsageError
from odebench.sweep.expand import expand
from odebench.sweep.run import plan_sweep

EXPERIMENT = """# @package _global_
# Rings by a CNF, or by a planar flow
defaults:
  - override /model: cnf
  - override /data: rings

models:
  cnf: [model.width=7, optim.lr=0.5]
  planar_nf: [model.layers=3]
"""


GRIDS = [
    ["solver=rk4,dopri5", "solver.rtol=1e-5", "tol=1e-2"],
    ["experiment=paper/mnist_odenet", "budget=small", "optim.lr=0.5,0.1"],
    ["schedule=steps", "schedule.milestones=[1,2],[3]", "model=rknet", "eval_solver=tsit5"],
    ["outputs='${oc.env:HOME}'"],
]


def test_it_gives_what_hydra_gives_which_runs_once_for_the_same_options(monkeypatch):
    calls = []
    compose_by_hydra = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *words, **more: calls.append(more) or compose_by_hydra(*words, **more))
    monkeypatch.setattr(composing, "_composed", {})
    jobs = expand(GRIDS)
    composed = [compose(job) for job in jobs]
    assert len(jobs) == 7
    assert len(calls) == 5
    for job, config in zip(jobs, composed, strict=True):
        with hydra.initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            whole = compose_by_hydra("train", overrides=job)
        assert finish_composition(whole, parse_overrides(job)) == config


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "rings.yaml").write_text(EXPERIMENT)
    return tmp_path


def test_an_experiment_sets_the_model_that_is_chosen(folder):
    config = compose(["experiment=rings"], folder)
    assert (config.model.name, config.model.width, config.optim.lr) == ("cnf", 7, 0.5)
    config = compose(["experiment=rings", "model=planar_nf"], folder)
    assert (config.model.name, config.model.layers, config.data.name) == ("planar_nf", 3, "rings")
    assert config.optim.lr != 0.5
    assert "models" not in config


@pytest.mark.parametrize(
    "models", ["3", "{cnf: model.width=7}", "{cnf: [{model.width: 3}]}", "{cnf: 3}", "[model.width=7]"]
)
def test_an_invalid_list_of_overrides_for_a_model_raises_one_line(folder, models):
    head = EXPERIMENT.partition("models:")[0]
    (folder / "experiment" / "rings.yaml").write_text(f"{head}models: {models}\n")
    with pytest.raises(UsageError, match="models: a list of KEY=VALUE for each model is needed, as in cnf: "):
        compose(["experiment=rings"], folder)


def test_yaml_of_a_user_with_wrong_content_gives_one_line(folder, capsys):
    for group, text, word in (
        ("data", "defaults: 3\nname: bad\n", "data=bad"),
        ("experiment", "# @package _global_\nbudgets: 3\n", "experiment=bad"),
        ("model", "model: 3\n", "model.hiden=3"),
    ):
        (folder / group).mkdir(exist_ok=True)
        (folder / group / "bad.yaml").write_text(text)
        assert main(["train", "--config-dir", str(folder), word, "--cfg"]) == 2, text
        assert capsys.readouterr().err.count("\n") == 1


def test_a_model_that_the_experiment_does_not_name_keeps_its_settings(folder):
    assert compose(["experiment=rings", "model=ffjord"], folder).model == compose(["model=ffjord"]).model


def test_overrides_take_precedence_over_an_experiment(folder):
    config = compose(["experiment=rings", "model.width=9"], folder)
    assert (config.model.width, config.optim.lr) == (9, 0.5)


def test_a_setting_that_the_model_does_not_have_raises_one_line(folder):
    path = folder / "experiment" / "rings.yaml"
    path.write_text(EXPERIMENT.replace("model.layers", "model.width"))
    with pytest.raises(UsageError, match=r"^model\.width: the chosen model has no such setting"):
        compose(["experiment=rings", "model=planar_nf"], folder)
    path.write_text(EXPERIMENT.replace("model.width", "model.wdth"))
    with pytest.raises(UsageError, match=r"^unknown setting model\.wdth; did you mean model\.width\?$"):
        compose(["experiment=rings"], folder)


def test_a_file_that_is_not_yaml_gives_one_line(folder, capsys):
    (folder / "model").mkdir()
    path = folder / "model" / "torn.yaml"
    path.write_text("name: mlp\nwidth: [\n")
    for words in (["train", "model=torn"], ["train", "modle=mlp"], ["sweep", "model=torn", "seed=0,1", "--dry-run"]):
        assert main([*words, "--config-dir", str(folder)]) == 2
        assert str(path) in capsys.readouterr().err.splitlines()[-1]


def test_the_jobs_of_a_multirun_compose_the_same_settings(folder):
    jobs = plan_sweep(["experiment=rings", "model=cnf,planar_nf"], None, folder).jobs
    assert [compose(job.overrides, folder).model for job in jobs] == [
        compose(["experiment=rings"], folder).model,
        compose(["experiment=rings", "model=planar_nf"], folder).model,
    ]


def test_the_folder_of_a_sweeps_job_needs_no_quotes():
    folder = "outputs/sweeps/2026-11-24/14-03-22/0002_tol=0.01_gradient=adjoint"
    assert compose([f"init_from={folder}"]).init_from == folder
    assert compose([f"init_from='{folder}'"]).init_from == folder

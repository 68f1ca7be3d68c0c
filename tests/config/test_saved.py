"""Runs of an earlier version: defaults for the settings that their files lack."""

import logging

import pytest
from omegaconf import OmegaConf, open_dict

from odebench.config.compose import compose
from odebench.config.files import CONFIGS
from odebench.config.read import read_settings
from odebench.config.saved import read_saved, saved_settings
from odebench.errors import UsageError
from odebench.record.reader import RunRecord


def run_lacking(tmp_path, overrides, *lacking):
    """A run with these overrides whose settings lack some keys."""
    settings = compose([*overrides])
    with open_dict(settings):
        for key in lacking:
            group, _, name = key.rpartition(".")
            del (settings[group] if group else settings)[name]
    return RunRecord(tmp_path / "-".join(lacking), settings, {}, {}, {}, [])


@pytest.mark.parametrize(
    ("overrides", "lacking", "reported"),
    [
        (["model=mlp"], ["trainer.patience"], "trainer.patience=null"),
        (["solver=rk4"], ["solver.stepping", "eval_tol"], "solver.stepping=shared, eval_tol=null"),
        (["model=latent_ode"], ["loss"], "loss=elbo"),
        (["model=cnf"], ["dynamics", "task"], "dynamics=plain, task=density"),
        (["model=odenet"], ["model.second_order"], "model.second_order=False"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_missing_keys_get_the_defaults_with_a_warning(overrides, lacking, reported, tmp_path, caplog):
    run = run_lacking(tmp_path, overrides, *lacking)
    with caplog.at_level(logging.WARNING, "odebench"):
        settings = saved_settings(run.settings, run.path)
        saved_settings(settings, run.path)  # no warning: these are complete
        saved_settings(run.settings, run.path)
    line, again = [record.getMessage() for record in caplog.records]
    assert line == again
    assert sorted(line.partition("; using ")[2].split(", ")) == sorted(reported.split(", "))
    assert read_settings(settings) == read_settings(compose(overrides))
    assert not set(lacking) & set(run.settings)  # the record stays as it is


def test_a_missing_key_does_not_come_from_the_file_of_the_model(tmp_path):
    """The run is older than the key, so that its training did not have what the model's file sets today."""
    model, option = (
        OmegaConf.load(path) for path in (CONFIGS / "model/latent_ode.yaml", CONFIGS / "trainer/default.yaml")
    )
    assert model.trainer.epochs != option.epochs
    run = run_lacking(tmp_path, ["model=latent_ode"], "trainer.epochs")
    assert saved_settings(run.settings, run.path).trainer.epochs == option.epochs


def test_complete_settings_are_not_changed_and_give_no_warning(tmp_path, caplog):
    run = run_lacking(tmp_path, ["model=ffjord", "data=two_moons", "tol=1e-2", "dynamics=rnode"])
    assert saved_settings(run.settings, run.path) == run.settings
    assert not caplog.records


def test_a_users_folder_that_is_gone_is_not_needed(tmp_path):
    run = run_lacking(tmp_path, ["model=mlp"], "trainer.patience")
    OmegaConf.update(run.settings, "config_dir", "/no/such/folder")
    assert saved_settings(run.settings, run.path).trainer.patience is None


def test_settings_without_a_model_are_returned_unchanged(tmp_path):
    run = run_lacking(tmp_path, [], "model")
    assert saved_settings(run.settings, run.path) == run.settings


def test_a_group_that_is_no_block_is_one_line(tmp_path):
    run = run_lacking(tmp_path, ["model=mlp"])
    with open_dict(run.settings):
        run.settings.solver = "dopri5"
    with pytest.raises(UsageError, match="solver=dopri5: must be a block of settings"):
        saved_settings(run.settings, run.path)


def test_an_error_in_a_runs_settings_names_their_file(tmp_path):
    settings = compose(["model=mlp"])
    with open_dict(settings):
        settings.of_a_newer_version = 3
    with pytest.raises(UsageError, match=rf"^{tmp_path}/settings\.yaml: unknown setting of_a_newer_version"):
        read_saved(settings, tmp_path / "settings.yaml")

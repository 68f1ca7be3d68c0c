import math

import pytest

from odebench.record import layout
from odebench.reporting import notes
from odebench.reporting.published import NFE_RATIO, compare_with_published, published_for, read_published
from odebench.reporting.runs import collect_runs

PUBLISHED = read_published()


def test_every_published_value_has_a_source_and_a_recalled_flag():
    assert all(one.of and one.row and one.printed and one.source for one in PUBLISHED)
    assert {one.recalled for one in PUBLISHED if one.of in ("table1", "figure4", "table2")} == {True}
    assert all(one.citation.endswith("(from memory)") == one.recalled for one in PUBLISHED)


def test_experiments_and_tags_of_published_values_exist(root):
    for one in PUBLISHED:
        name, *settings = one.experiment.split() or [""]
        assert not name or (root / "configs" / "experiment" / f"{name}.yaml").is_file(), one
        assert all(argument.count("=") == 1 for argument in settings)
        assert not one.tag or layout.is_summary_tag(one.tag) or one.tag in ("parameters", NFE_RATIO), one
        assert bool(one.tag) == math.isfinite(one.value), one


def test_published_errors_match_the_stored_accuracies():
    errors = [one for one in PUBLISHED if one.printed.endswith("% error")]
    assert len(errors) == 4
    for one in errors:
        assert 100 * (1 - one.value) == pytest.approx(float(one.printed.split()[0]))


def test_published_values_are_compared_only_with_runs_of_their_experiment(record, runs):
    record(experiment="paper/mnist_odenet", data__name="mnist", seed=0)
    record(experiment="paper/mnist_odenet", data__name="mnist", seed=1)
    record(model__name="resnet")
    collection = collect_runs([runs])
    compared = {one.published.tag: one for one in compare_with_published(collection)}
    assert compared.keys() == {"final/test_accuracy", "parameters", "", NFE_RATIO}
    assert compared["final/test_accuracy"].mean == 0.94
    assert compared[NFE_RATIO].mean == 1.5
    assert {run.settings["experiment"] for run in compared[""].group.runs} == {"paper/mnist_odenet"}
    row = notes.published_table(collection).texts[1]
    assert row[:5] == ["ODE-Net", "0.42 % error", "99.58 %", "94 %", "2"]
    assert row[-1] == "Chen et al. 2018, Table 1 (from memory)"


def test_other_runs_have_no_published_values(record, runs):
    record()
    collection = collect_runs([runs])
    assert notes.published_table(collection) is None
    assert published_for(collection.runs, "final/test_accuracy") == []


def test_settings_select_the_published_rows_of_an_experiment(record, runs):
    for observed, model in ((0.1, "rnn_vae"), (0.1, "latent_ode"), (0.5, "latent_ode"), (0.4, "latent_ode")):
        record(experiment="rubanova/hopper_interpolation", data__observed=observed, model__name=model)
    found = {
        one.published.row: [*one.group.varying_settings.values()]
        for one in compare_with_published(collect_runs([runs]))
    }
    assert found == {
        "RNN-VAE, interpolation, 10 % observed": ["rnn_vae", 0.1],
        "latent ODE (ODE-RNN encoder), interpolation, 10 % observed": ["latent_ode", 0.1],
        "latent ODE (ODE-RNN encoder), interpolation, 50 % observed": ["latent_ode", 0.5],
    }


def test_only_known_published_rows_have_no_experiment(root):
    without_experiment = {one.of for one in PUBLISHED if not one.experiment}
    assert without_experiment == {"ffjord"}  # tables and CIFAR-10: no experiment

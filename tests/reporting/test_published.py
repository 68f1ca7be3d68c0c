import math

import pytest

from odebench.record import layout
from odebench.reporting import notes
from odebench.reporting.published import NFE_RATIO, compare_with_published, published_for, read_published
from odebench.reporting.runs import collect_runs

PUBLISHED = read_published()


def test_every_published_value_has_its_source_and_says_whether_it_is_recalled():
    assert all(one.of and one.row and one.printed and one.source for one in PUBLISHED)
    assert {one.recalled for one in PUBLISHED if one.of in ("table1", "table2")} == {True}
    assert all(one.citation.endswith("recalled") == one.recalled for one in PUBLISHED)


def test_its_experiment_exists_and_its_tag_is_one_of_a_runs_end(root):
    for one in PUBLISHED:
        name, *settings = one.experiment.split() or [""]
        assert not name or (root / "configs" / "experiment" / f"{name}.yaml").is_file(), one
        assert all(word.count("=") == 1 for word in settings)
        assert not one.tag or layout.is_summary_tag(one.tag) or one.tag in ("parameters", NFE_RATIO), one
        assert bool(one.tag) == math.isfinite(one.value), one


def test_an_error_in_percent_is_the_accuracy_that_it_means():
    errors = [one for one in PUBLISHED if one.printed.endswith("% error")]
    assert len(errors) == 4
    for one in errors:
        assert 100 * (1 - one.value) == pytest.approx(float(one.printed.split()[0]))


def test_published_values_stand_beside_the_runs_of_their_experiment_alone(record, runs):
    record(experiment="paper/mnist_odenet", data__name="mnist", seed=0)
    record(experiment="paper/mnist_odenet", data__name="mnist", seed=1)
    record(model__name="resnet")
    collection = collect_runs([runs])
    beside = {one.published.tag: one for one in compare_with_published(collection)}
    assert beside.keys() == {"final/test_accuracy", "parameters", "", NFE_RATIO}
    assert beside["final/test_accuracy"].mean == 0.94
    assert beside[NFE_RATIO].mean == 1.5
    assert {run.settings["experiment"] for run in beside[""].group.runs} == {"paper/mnist_odenet"}
    row = notes.published_table(collection).texts[1]
    assert row[:5] == ["ODE-Net", "0.42 % error", "99.58 %", "94 %", "2"]
    assert row[-1] == "Chen et al. 2018, Table 1, recalled"


def test_there_is_none_for_other_runs(record, runs):
    record()
    collection = collect_runs([runs])
    assert notes.published_table(collection) is None
    assert published_for(collection.runs, "final/test_accuracy") == []


def test_settings_tell_the_rows_of_an_experiment_apart(record, runs):
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


def test_every_row_of_an_experiment_of_ours_is_compared_with_it(root):
    lacking = {one.of for one in PUBLISHED if not one.experiment}
    assert lacking == {"ffjord"}  # tables and CIFAR-10: no experiment

"""The figure of the paper: the same series predicted by the trained models of several runs."""

import numpy as np
import pytest
import torch

from odebench import load_run
from odebench.errors import UsageError
from odebench.training.comparison import compare_runs, main

TINY = ["data.train_limit=32", "data.validation=20", "trainer.batch_size=16", "trainer.iterations=2"]
LATENT_ODE = ["model=latent_ode", "model.encoder_width=5", "model.field_units=4", "solver=rk4", "solver.steps=4"]
RNN = ["model=rnn", "model.width=5"]


@pytest.fixture(scope="module")
def runs(finished):
    """Latent ODE and RNN with 30 and 50 points."""
    models = {"latent ODE": LATENT_ODE, "RNN": RNN}
    return {
        f"{name}, {points} points": finished(*overrides, *TINY, f"data.observed={points}")
        for name, overrides in models.items()
        for points in (30, 50)
    }


def lines(axes):
    return {line.get_label(): np.stack(line.get_data(), axis=1) for line in axes.lines}


def test_a_row_is_a_model_and_a_column_a_number_of_points_for_a_series_of_each_direction(runs):
    figure = compare_runs(runs)
    test = load_run(runs["RNN, 30 points"]).task._splits["test"]
    firsts = [int((test.labels == label).nonzero()[0]) for label in (0, 1)]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [*runs] * 2
    assert figure.axes[0].get_subplotspec().get_geometry()[:2] == (4, 2)
    for place, axes in enumerate(figure.axes):
        truth = test.noiseless(torch.tensor([firsts[place // 4]])).values[0]
        assert np.allclose(lines(axes)["truth"], truth)
        assert len(lines(axes)["observed"]) == (30, 50)[place % 2]


def test_a_panel_shows_the_predictions_of_its_runs_model(runs):
    figure = compare_runs(runs)
    for place, name in ((0, "latent ODE, 30 points"), (3, "RNN, 50 points")):
        task = load_run(runs[name]).task
        test, one = task._splits["test"], torch.tensor([int((task._splits["test"].labels == 0).nonzero()[0])])
        with torch.no_grad():
            values = task._forecast(task.model, test, one, test.noiseless(one).times).values
        drawn = lines(figure.axes[place])
        assert np.allclose(drawn["extrapolation"], values.mean(0)[0, 99:], atol=1e-5)
        assert np.allclose(drawn["reconstruction"], values.mean(0)[0, :100], atol=1e-5)


def test_it_is_drawn_into_a_file(runs, tmp_path):
    arguments = [argument for name, run in list(runs.items())[:1] for argument in (name, str(run))]
    assert main([str(tmp_path / "one.png"), *arguments]) == 0
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_cannot_be_compared_raise_one_line(runs, finished, tmp_path, capsys):
    other = finished(*RNN, *TINY, "data.random_state=1")
    with pytest.raises(UsageError, match=f"{other} was tested on series .*, the first run on series "):
        compare_runs(runs | {"RNN, other": other})
    waves = finished(*RNN, *TINY, "data=periodic")
    with pytest.raises(UsageError, match=f"{waves}: not a model of series with two channels"):
        compare_runs({"RNN": waves})
    assert main([str(tmp_path / "none.png"), "RNN", str(waves)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"comparison: {waves}: not a model of series with two channels, such as data=spirals"
    assert not (tmp_path / "none.png").exists()

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from odebench.plots import style
from odebench.plots.comparison import comparison_figure
from odebench.plots.confusion import confusion_matrix
from odebench.plots.curves import training_curves
from odebench.plots.step_sizes import REJECTED, step_size_panel

ROWS: list[dict[str, Any]] = [
    {
        "step": step,
        "elapsed_s": 6.0 * step,
        "train/loss": 1 / step,
        "nfe/forward": 20 + step,
        "nfe/backward": 32,
    }
    for step in range(1, 101)
] + [
    {"step": 50, "elapsed_s": 300.0, "val/accuracy": 0.5},
    {"step": 100, "elapsed_s": 600.0, "val/accuracy": 0.9},
]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def lines(axes) -> dict[str, list[tuple[float, float]]]:
    """Points of the lines that the legend names."""
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in named}


def test_curves_have_panels_for_logged_quantities_only():
    assert titles(training_curves(ROWS)) == ["Loss", "Accuracy", "Evaluations of the vector field"]
    assert titles(training_curves(ROWS[-2:])) == ["Accuracy"]
    assert titles(training_curves([{"step": 1, "train/loss": math.nan}])) == ["No numbers were logged"]


def test_a_loss_equal_to_a_quantity_of_the_task_is_drawn_once():
    rows = [{"step": step, "train/loss": 9.0 - step, "train/nll_nats": 9.0 - step} for step in range(3)]
    assert titles(training_curves(rows)) == ["Negative log-likelihood"]
    rows[1]["train/loss"] = 5.0  # as with a penalty
    assert titles(training_curves(rows)) == ["Loss", "Negative log-likelihood"]


def test_curves_are_in_percent_and_skip_values_that_are_not_finite():
    rows: list[dict[str, Any]] = [
        *ROWS[-2:],
        {"step": 150, "val/accuracy": None},
        {"step": 200, "val/accuracy": math.nan},
    ]
    (axes,) = training_curves(rows).axes
    assert lines(axes) == {"validation": [(50, 50.0), (100, 90.0)]}


def test_a_running_mean_stays_within_the_curve_and_keeps_a_constant():
    _, _, nfe = training_curves(ROWS).axes
    drawn = lines(nfe)
    assert {value for _, value in drawn["backward (running mean)"]} == {32.0}
    smooth = np.array(drawn["forward (running mean)"])
    assert np.allclose(smooth[5:-5, 1], 20 + smooth[5:-5, 0])  # a straight line is its own running mean
    assert smooth[:, 1].min() >= 21
    assert smooth[:, 1].max() <= 120


def test_a_confusion_matrix_shows_the_error_rate_and_each_count():
    figure = confusion_matrix(np.array([[90, 2], [0, 108]]))
    assert titles(figure)[0] == "Confusion: 2 of 200 wrong (1.00 %)"
    written = {(text.get_position(), text.get_text()) for text in figure.axes[0].texts}
    assert written == {((0, 0), "90"), ((1, 0), "2"), ((1, 1), "108")}
    with pytest.raises(ValueError, match="square"):
        confusion_matrix(np.zeros((2, 3)))


def test_steps_are_intervals_and_rejected_steps_are_marked():
    panel = step_size_panel("odenet", "", {"adjoint": (0.0, [0.1, 0.9], [(0.1, 1.5)]), "backprop": (0.0, [1.0], [])})
    (axes,) = comparison_figure([panel]).axes
    lines = {line.get_label(): line for line in axes.lines}
    x, y = lines["adjoint"].get_data()
    np.testing.assert_equal(x, [0.0, 0.1, np.nan, 0.1, 1.0, np.nan])
    np.testing.assert_equal(y, [0.1, 0.1, np.nan, 0.9, 0.9, np.nan])
    assert lines["backprop"].get_xdata()[1] == 1.0
    rejected = lines[REJECTED]
    assert (rejected.get_marker(), rejected.get_linestyle(), *rejected.get_xdata()[:2]) == ("x", ":", 0.1, 1.6)
    assert axes.get_xlim()[1] > 1.6
    assert axes.get_title(loc="left") == "odenet: step sizes of the solve of a training\nbatch"


@pytest.mark.parametrize(
    "figure",
    [
        pytest.param(lambda: training_curves(ROWS, "title"), id="curves"),
        pytest.param(lambda: training_curves([]), id="no curves"),
        pytest.param(lambda: confusion_matrix(np.zeros((3, 3), dtype=int)), id="no counts"),
        pytest.param(lambda: confusion_matrix(np.eye(30, dtype=int)), id="30"),
        pytest.param(
            lambda: comparison_figure([step_size_panel("cnf", "", {"": (1.0, [-0.5, -0.5], [])})]), id="back in time"
        ),
    ],
)
def test_every_figure_is_drawn_without_a_warning_and_labels_its_axes(tmp_path, figure):
    made = figure()
    made.savefig(tmp_path / "figure.png")
    assert made.axes[0].get_xlabel()
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_series_differ_in_colour_and_marker():
    assert len(set(style.COLOURS)) == len(style.COLOURS) == len(set(style.MARKERS))

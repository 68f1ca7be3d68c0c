import math

import pytest

from odebench.plots.solver import work_precision


def row(time_ms, nfe, error, backward=None):
    return {"time_median_ms": time_ms, "nfe_forward": nfe, "nfe_backward": backward, "state_error": error}


LINES = {
    "odebench": [row(3.0, 50, 1e-5, 20), row(1.0, 26, 1e-3, 10)],
    "torchdiffeq": [row(2.0, None, 1e-2), row(4.0, 60, math.nan), row(5.0, 70, 0.0), row(6.0, 80, None)],
}


def test_lines_follow_the_tolerances_and_omit_values_that_are_not_positive():
    time, nfe = work_precision(LINES, "state_error", "tiny").axes
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in time.lines}
    assert drawn == {"odebench": [(3.0, 1e-5), (1.0, 1e-3)], "torchdiffeq": [(2.0, 1e-2)]}
    assert [list(zip(*line.get_data(), strict=True)) for line in nfe.lines] == [[(70, 1e-5), (36, 1e-3)]]
    assert {time.get_xscale(), time.get_yscale(), nfe.get_xscale()} == {"log"}


@pytest.mark.parametrize("lines", [LINES, {}, {f"line {i}": [row(i + 1, i + 1, 0.1)] for i in range(9)}])
def test_work_precision_is_drawn_without_a_warning_and_labels_its_axes(tmp_path, lines):
    figure = work_precision(lines, "state_error", "title")
    figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_xlabel() == "median time (ms)"
    assert figure.axes[1].get_ylabel() == "relative error of the states"
    assert not any(axes.get_legend() for axes in figure.axes)  # the legend is below, not on the lines
    assert [text.get_text() for one in figure.legends for text in one.get_texts()] == list(lines)
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == len(lines)

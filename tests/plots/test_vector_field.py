import numpy as np
import pytest

from odebench.plots.density import grid_points, vector_field

LIMITS = (-2.0, 2.0)
POINTS = grid_points(LIMITS, 8)


def test_arrows_are_drawn_at_grid_points_with_one_scale_for_all_times():
    velocities = np.stack([POINTS[:, ::-1], 3 * POINTS])
    figure = vector_field([0.0, 0.5], velocities, LIMITS)
    arrows = [axes.collections[0] for axes in figure.axes]
    for one, velocity in zip(arrows, velocities, strict=True):
        assert np.array_equal(one.get_offsets(), POINTS)
        assert np.array_equal(np.stack([one.U, one.V], axis=1), velocity)
    assert arrows[0].scale == arrows[1].scale
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["t = 0", "t = 0.5"]


def test_all_but_the_fastest_arrows_end_near_their_neighbours():
    figure = vector_field([0.0], np.tile([[1e-3, 0.0]], (64, 1))[None], LIMITS)
    (arrows,) = figure.axes[0].collections[:1]
    assert 1e-3 / arrows.scale == pytest.approx(1.2 * 4 / 8)  # length in units of x, against 8 cells in 4
    assert figure.axes[0].artists[0].text.get_text() == "|dx/dt| = 0.001"


@pytest.mark.parametrize(
    "figure",
    [
        pytest.param(lambda: vector_field([], np.empty((0, 64, 2)), LIMITS), id="no times"),
        pytest.param(lambda: vector_field([1.0], np.zeros((1, 64, 2)), LIMITS), id="at rest"),
        pytest.param(lambda: vector_field([1.0], np.full((1, 64, 2), np.nan), LIMITS), id="field not a number"),
        pytest.param(lambda: vector_field(range(5), np.ones((5, 64, 2)), LIMITS), id="two rows"),
    ],
)
def test_every_figure_is_drawn_without_a_warning_and_labels_its_axes(tmp_path, figure):
    made = figure()
    made.savefig(tmp_path / "figure.png", dpi=30)
    assert made.axes[0].get_ylabel()
    assert made.axes[0].get_title(loc="left")

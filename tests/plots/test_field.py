import numpy as np
import pytest

from odebench.plots.density import grid_points
from odebench.plots.field import paths_in_plane, paths_over_time, vector_field

LIMITS = (-2.0, 2.0)
POINTS = grid_points(LIMITS, 8)
TIMES = np.linspace(0.0, 1.0, 5)


def test_arrows_stand_at_the_grid_point_along_the_velocity_in_one_scale_for_all_times():
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


def test_a_density_lies_under_the_arrows_with_a_bar():
    *panels, bar = vector_field([0.0], POINTS[None], LIMITS, -0.5 * (POINTS**2).sum(axis=1)[None]).axes
    assert len(panels[0].images) == 1
    assert bar.get_ylabel() == "density"


def test_paths_are_coloured_by_time_from_open_to_filled_circles():
    paths = np.random.RandomState(0).randn(5, 3, 2)
    paths[2, 0] = np.nan  # takes the two segments that touch it
    axes, bar = paths_in_plane(TIMES, paths, LIMITS).axes
    lines = axes.collections[0]
    assert len(lines.get_segments()) == 4 * 3 - 2
    assert sorted(set(lines.get_array())) == [0.125, 0.375, 0.625, 0.875]
    assert lines.get_clim() == (0.0, 1.0)
    ends = {line.get_label(): np.stack(line.get_data(), axis=1) for line in axes.lines}
    assert list(ends) == ["start (t = 0)", "end (t = 1)"]
    assert np.array_equal(ends["start (t = 0)"], paths[0])
    assert np.array_equal(ends["end (t = 1)"], paths[-1])
    assert bar.get_ylabel() == "t (time of the ODE)"


def test_states_over_time_are_coloured_by_their_start_and_fit_the_axes():
    states = np.array([[-1.0, 2.0], [0.0, 1.0], [np.nan, 5.0], [0.0, 1.0], [0.0, 0.0]])
    axes, bar = paths_over_time(TIMES, states).axes
    lines = axes.collections[0]
    assert lines.get_array().tolist() == [-1.0, 2.0]
    assert lines.get_clim() == (-1.0, 2.0)
    assert axes.get_xlim() == (0.0, 1.0)
    assert axes.get_ylim() == pytest.approx((-1.3, 5.3))
    assert bar.get_ylabel() == "z(t) at the start"


@pytest.mark.parametrize(
    "figure",
    [
        pytest.param(lambda: vector_field([], np.empty((0, 64, 2)), LIMITS), id="no times"),
        pytest.param(lambda: vector_field([], np.empty((0, 64, 2)), LIMITS, np.empty((0, 64))), id="no times, density"),
        pytest.param(lambda: vector_field([1.0], np.zeros((1, 64, 2)), LIMITS), id="at rest"),
        pytest.param(lambda: vector_field([1.0], np.full((1, 64, 2), np.nan), LIMITS), id="field not a number"),
        pytest.param(lambda: vector_field(range(5), np.ones((5, 64, 2)), LIMITS, np.zeros((5, 9))), id="two rows"),
        pytest.param(lambda: paths_in_plane([], np.empty((0, 3, 2)), LIMITS), id="no path"),
        pytest.param(lambda: paths_in_plane([0.0], np.zeros((1, 1, 2)), LIMITS), id="one point"),
        pytest.param(lambda: paths_in_plane(TIMES[::-1], np.full((5, 2, 2), np.nan), LIMITS), id="paths not a number"),
        pytest.param(lambda: paths_over_time([], np.empty((0, 3))), id="no states"),
        pytest.param(lambda: paths_over_time(TIMES, np.empty((5, 0))), id="no particles"),
        pytest.param(lambda: paths_over_time(TIMES, np.full((5, 1), np.nan)), id="states not a number"),
    ],
)
def test_every_figure_draws_without_a_warning_and_names_its_axes(tmp_path, figure):
    made = figure()
    made.savefig(tmp_path / "figure.png", dpi=30)
    assert made.axes[0].get_ylabel()
    assert made.axes[0].get_title(loc="left")

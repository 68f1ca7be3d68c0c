from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Ellipse

from odebench.plots.series import (
    InferredRate,
    LatentPlane,
    MeasuredValues,
    PredictedSeries,
    error_over_time,
    latent_paths,
    model_comparison,
    phase_portrait,
    rates_over_time,
    series_in_plane,
    series_over_time,
)

TIMES = np.arange(10.0)
WINDOW = (0.0, 4.0)
TRUTH = np.stack([np.cos(TIMES), np.sin(TIMES)], axis=1)
NOISE = np.random.RandomState(0).randn(7, 10, 2)
NOWHERE = MeasuredValues(np.empty(0), np.empty((0, 2)))
NAMES = ("x (m)", "y (m)")


def series(**changes: Any) -> PredictedSeries:
    observed = MeasuredValues(TIMES[:5:2], TRUTH[:5:2])
    return PredictedSeries("one", TIMES, TRUTH + 0.1 * NOISE, observed, WINDOW, TRUTH)._replace(**changes)


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.stack(line.get_data(), axis=1) for line in axes.lines}


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_row_per_series_and_one_column_per_component():
    figure = series_over_time([series(), series(label="two"), series(label="three")], NAMES, "time (s)")
    assert [axes.get_ylabel() for axes in figure.axes] == [*NAMES] * 3
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["one", "two", "three"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"time (s)"}
    assert figure.axes[0].get_subplotspec().get_geometry()[:2] == (3, 2)


def test_the_mean_is_a_reconstruction_in_the_window_and_an_extrapolation_from_its_end():
    one = series(held_out=MeasuredValues(TIMES[5:7], TRUTH[5:7]))
    drawn = lines(series_over_time([one], NAMES).axes[1])
    mean = np.stack([TIMES, one.predictions[..., 1].mean(axis=0)], axis=1)
    assert np.allclose(drawn["reconstruction"], mean[:5])
    assert np.allclose(drawn["extrapolation"], mean[4:])
    assert np.array_equal(drawn["truth"][:, 1], TRUTH[:, 1])
    assert np.array_equal(drawn["observed"][:, 0], [0, 2, 4])
    assert np.array_equal(drawn["held out from the model"][:, 1], TRUTH[5:7, 1])


def test_the_window_is_shaded_and_the_band_holds_the_percentiles():
    axes = series_over_time([series()], NAMES).axes[0]
    shade: Any = axes.patches[0]
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == WINDOW
    past, future = (band.get_paths()[0].vertices for band in axes.collections)
    assert set(past[:, 0]) == {0, 1, 2, 3, 4}
    assert set(future[:, 0]) == {4, 5, 6, 7, 8, 9}
    low, high = np.percentile(series().predictions[:, 7, 0], (5, 95))
    at_seven = future[future[:, 0] == 7, 1]
    assert (at_seven.min(), at_seven.max()) == pytest.approx((low, high))


def test_one_sample_has_no_band_and_the_legend_has_no_duplicates():
    figure = series_over_time([series(predictions=TRUTH[None])] * 2, NAMES)
    assert not any(axes.collections for axes in figure.axes)
    assert legend(figure) == ["observed window", "truth", "reconstruction", "extrapolation", "observed"]


def test_divergent_predictions_do_not_flatten_the_data():
    exploding = series(predictions=TRUTH[None] * np.geomspace(1, 1e6, 10)[None, :, None])
    for axes in (*series_over_time([exploding], NAMES).axes, *series_in_plane([exploding]).axes):
        low, high = axes.get_ylim()
        assert low <= -1
        assert high >= 1
        assert high - low < 6


def test_the_plane_shows_components_against_each_other_with_single_samples():
    axes = series_in_plane([series()]).axes[0]
    drawn = lines(axes)
    assert np.array_equal(drawn["truth"], TRUTH)
    assert np.allclose(drawn["extrapolation"], series().predictions.mean(axis=0)[4:])
    assert [len(pale.get_segments()) for pale in axes.collections] == [7, 7]
    assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))


def test_panels_of_distant_series_show_their_own_part_of_the_plane():
    moved = TRUTH + np.array([50, 0])
    far = series(predictions=moved[None], truth=moved, observed=MeasuredValues(TIMES, moved))
    near, away = series_in_plane([series(), far]).axes
    assert max(near.get_xlim()) < 10 < 40 < min(away.get_xlim())
    assert away.lines[0].get_xdata().max() < away.get_xlim()[1]


def test_models_are_rows_for_each_series_with_the_same_limits():
    names = [f"{model}, {num} points" for model in ("latent ODE", "RNN") for num in (30, 50, 100)]
    wide = series(label="two", predictions=3 * TRUTH[None])
    figure = model_comparison({name: [series(), wide] for name in names})
    assert [axes.get_title(loc="left") for axes in figure.axes] == names * 2
    assert [len({axes.get_xlim() for axes in some}) for some in (figure.axes[:6], figure.axes[6:])] == [1, 1]
    assert figure.axes[0].get_subplotspec().get_geometry()[:2] == (4, 3)
    assert np.array_equal(lines(figure.axes[6])["extrapolation"], 3 * TRUTH[4:])
    assert np.array_equal(lines(figure.axes[5])["truth"], TRUTH)


def test_models_without_variants_share_one_row():
    figure = model_comparison({name: [series(), series()] for name in ("latent ODE", "RNN", "GRU-D")})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["latent ODE", "RNN", "GRU-D"] * 2
    assert figure.axes[0].get_subplotspec().get_geometry()[:2] == (2, 3)


def test_latent_paths_are_coloured_by_class_in_their_first_two_components():
    paths, labels = np.random.RandomState(0).randn(5, 8, 4), np.array([0, 1, 1, 0, 1])
    figure = latent_paths(paths, labels, ["clockwise", "counter"])
    axes = figure.axes[0]
    counter = axes.collections[1]
    assert np.array_equal(counter.get_segments(), paths[labels == 1][..., :2])
    assert np.array_equal(np.stack(axes.lines[1].get_data(), axis=1), paths[labels == 1, 0, :2])
    assert legend(figure) == ["clockwise", "counter", "start"]
    assert not np.array_equal(axes.collections[0].get_color(), counter.get_color())


def test_a_rate_is_drawn_with_the_truth_and_one_tick_per_event():
    rates = 2 + np.abs(NOISE[..., 0])
    axes = rates_over_time([InferredRate("process", TIMES, rates, np.array([1.5, 2.5]), 1 + TIMES)]).axes[0]
    drawn = lines(axes)
    assert drawn["event"][:, 0].tolist() == [1.5, 2.5]
    assert np.allclose(drawn["inferred"][:, 1], rates.mean(axis=0))
    assert np.array_equal(drawn["truth"][:, 1], 1 + TIMES)
    assert axes.get_ylim()[0] == 0
    assert axes.get_title(loc="left") == "process (2 events)"


def test_errors_have_one_line_per_model_with_the_range_of_its_runs():
    runs = np.stack([TIMES, 3 * TIMES])
    axes = error_over_time(TIMES, {"latent ODE": runs, "RNN": runs[:1]}, WINDOW).axes[0]
    assert np.array_equal(lines(axes)["latent ODE"][:, 1], 2 * TIMES)
    assert len(axes.collections) == 1
    assert axes.collections[0].get_paths()[0].get_extents().ymax == 27
    assert axes.get_yscale() == "linear"
    assert error_over_time(TIMES, {"RNN": 10.0 ** TIMES[None]}, WINDOW).axes[0].get_yscale() == "log"


ODD = {
    "nothing observed": series(observed=NOWHERE, truth=None),
    "no sample": series(predictions=np.empty((0, 10, 2))),
    "not a number": series(
        predictions=np.full((3, 10, 2), np.nan), observed=MeasuredValues(TIMES, TRUTH * np.nan), truth=None
    ),
    "infinite": series(predictions=np.full((3, 10, 2), [np.inf, -np.inf])),
    "no times": series(times=np.empty(0), predictions=np.empty((2, 0, 2)), truth=None),
    "all in the window": series(window=(0.0, 9.0)),
    "float32": series(predictions=np.full((3, 10, 2), 3e38, dtype=np.float32)),
}


@pytest.mark.parametrize(
    "figure",
    [
        *(
            pytest.param(lambda one=one: series_over_time([one], NAMES[:1]), id=f"time, {name}")
            for name, one in ODD.items()
        ),
        *(pytest.param(lambda one=one: series_in_plane([one]), id=f"plane, {name}") for name, one in ODD.items()),
        pytest.param(lambda: series_over_time([], NAMES), id="no series"),
        pytest.param(lambda: series_in_plane([]), id="no series in the plane"),
        pytest.param(lambda: model_comparison({}), id="no models"),
        pytest.param(lambda: latent_paths(np.empty((0, 5, 2))), id="no paths"),
        pytest.param(lambda: latent_paths(np.full((1, 5, 2), np.nan)), id="paths not a number"),
        pytest.param(lambda: rates_over_time([]), id="no rates"),
        pytest.param(
            lambda: rates_over_time([InferredRate("r", TIMES, TRUTH.T * np.nan, np.empty(0))]), id="no events"
        ),
        pytest.param(lambda: error_over_time([], {}, WINDOW), id="no errors"),
        pytest.param(lambda: error_over_time(TIMES, {"m": np.full((2, 10), np.nan)}, WINDOW), id="errors not a number"),
        pytest.param(lambda: error_over_time(TIMES, {"m": np.empty((0, 10))}, WINDOW), id="no runs"),
    ],
)
def test_every_figure_is_drawn_without_a_warning_and_labels_its_axes(tmp_path, figure):
    made = figure()
    made.savefig(tmp_path / "figure.png", dpi=30)
    assert made.axes[0].get_xlabel()
    assert made.axes[0].get_title(loc="left")


def test_a_phase_portrait_has_trajectories_the_field_and_the_spread_of_their_starts():
    paths = np.random.RandomState(0).randn(3, 8, 2)
    x, y = np.linspace(-3, 3, 5), np.linspace(-2, 2, 5)
    across, up = np.meshgrid(x, y)
    covariances = np.stack([np.diag([0.04, 0.01])] * 2)
    plane = LatentPlane(paths, x, y, np.stack([-up, across], axis=-1), paths[:2, 0], covariances)
    figure = phase_portrait(plane, (0.6, 0.3), np.array([0, 1, 0]), ["clockwise", "counter"])
    axes = figure.axes[0]
    drawn = [one.get_segments() for one in axes.collections if one.get_label() in ("clockwise", "counter")]
    assert np.array_equal(drawn[0], paths[[0, 2]])
    ellipses = [patch for patch in axes.patches if isinstance(patch, Ellipse)]
    assert sorted([ellipses[0].width, ellipses[0].height]) == pytest.approx([4 * 0.1, 4 * 0.2])
    assert axes.get_xlabel() == "component 1: 60 % of the variance"
    assert legend(figure) == ["clockwise", "counter", "field", "start", "posterior, 2 std"]

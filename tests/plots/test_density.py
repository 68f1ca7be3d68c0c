import numpy as np
import pytest

from odebench.plots.density import density_comparison, grid_points, histogram, num_bins, shared_colour_scale

LIMITS = (-4.0, 4.0)
POINTS = grid_points(LIMITS, 50)
NORMAL = -0.5 * (POINTS**2).sum(axis=1) - np.log(2 * np.pi)


def normal_samples(num):
    return np.random.RandomState(0).randn(num, 2)


def test_grid_points_are_the_centres_of_cells_row_by_row_from_the_bottom():
    assert grid_points((0.0, 4.0), 2).tolist() == [[1, 1], [3, 1], [1, 3], [3, 3]]


def test_a_histogram_integrates_to_the_fraction_of_samples_inside():
    samples = np.array([[1.0, 3.0], [1.0, 3.2], [9.0, 9.0], [np.nan, 1.0]])
    density = np.exp(histogram(samples, (0.0, 4.0), 2))
    # [1, 3] is the third point; half of the samples lie there, in an area of 4.
    assert density == pytest.approx([0, 0, 0.5 / 4, 0])
    assert np.exp(histogram(normal_samples(20_000), LIMITS, 8)).sum() == pytest.approx(1, abs=1e-3)


def test_a_histogram_of_normal_samples_approaches_the_normal_density():
    num = 20
    true = np.exp(-0.5 * (grid_points(LIMITS, num) ** 2).sum(axis=1)) / (2 * np.pi)
    assert np.abs(np.exp(histogram(normal_samples(200_000), LIMITS, num)) - true).max() < 0.01


def test_all_panels_share_axes_and_the_colour_scale_of_the_target():
    peak = np.where((POINTS[:, 0] > 2) & (POINTS[:, 1] < -2), 0.0, -np.inf)
    figure = density_comparison(peak, peak + 1, normal_samples(1000), LIMITS, "title")
    *panels, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["Target density", "Model density", "1,000 model samples"]
    assert {(axes.get_xlim(), axes.get_ylim()) for axes in panels} == {(LIMITS, LIMITS)}
    assert {axes.images[0].get_clim() for axes in panels} == {(0.0, 1.0)}
    assert bar.get_ylabel() == "density"
    (image,) = panels[0].images
    assert image.origin == "lower"
    drawn = image.get_array().reshape(-1)
    assert np.array_equal(drawn == 1.0, np.isfinite(peak))
    assert panels[1].images[0].get_array().max() > 1.0  # above the target's top, and the bar's arrow says so
    assert panels[2].images[0].get_array().shape == (num_bins(1000),) * 2


def test_one_outlier_does_not_change_the_colour_scale():
    odd = NORMAL.copy()
    odd[0] = NORMAL.max() + 0.5  # 0.7 % of the mass
    assert shared_colour_scale([odd]).top == pytest.approx(shared_colour_scale([NORMAL]).top, rel=0.02)


@pytest.mark.parametrize("shift", [1e4, -1e4, 700.0])
def test_very_large_and_small_densities_are_drawn_relative_to_their_top(shift):
    scale = shared_colour_scale([NORMAL + shift])
    assert scale.top == pytest.approx(1)
    assert scale.offset == pytest.approx(shift + NORMAL.max(), abs=0.1)
    assert scale.label.startswith("density / exp(")


def test_the_colour_scale_of_several_densities_is_that_of_the_densest():
    assert shared_colour_scale([NORMAL - 3, NORMAL, np.full(4, np.nan)]) == shared_colour_scale([NORMAL])
    assert shared_colour_scale([np.full(4, -np.inf)]) == shared_colour_scale([]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("target", "samples"),
    [
        pytest.param(NORMAL.astype(np.float32), normal_samples(10), id="float32"),
        pytest.param(np.where(POINTS[:, 0] > 0, NORMAL, np.nan), normal_samples(1), id="half not a number"),
        pytest.param(np.full(len(POINTS), np.nan), np.empty((0, 2)), id="nothing"),
        pytest.param(1e5 * NORMAL, np.full((3, 2), np.nan), id="huge range"),
        pytest.param(np.where(POINTS[:, 0] > 0, np.inf, NORMAL), normal_samples(100), id="infinite"),
    ],
)
def test_values_that_are_not_finite_are_drawn_without_a_warning(tmp_path, target, samples):
    figure = density_comparison(target, target[::-1], samples, LIMITS)
    figure.savefig(tmp_path / "figure.png", dpi=30)
    assert figure.axes[0].get_xlabel() == "x₁"

import numpy as np
import pytest

from odebench.plots.comparison import MAX_LINES, Line, Panel, ReferenceLine, comparison_figure
from odebench.plots.dot_plot import dot_plot


def line(label, x, y, **more):
    return Line(label, np.array(x, dtype=float), np.array(y, dtype=float), **more)


def named(axes):
    return {one.get_label(): one for one in axes.lines if not one.get_label().startswith("_")}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_label_has_one_style_and_one_legend_entry():
    first = Panel("a", "x", "y", [line("one", [], []), line("two", [1, 2], [3, 4])])
    second = Panel("b", "x", "y", [line("two", [1], [1]), line("one", [2], [2])])
    figure = comparison_figure([first, second])
    left, right = map(named, figure.axes)
    assert left["two"].get_color() == right["two"].get_color() != right["one"].get_color()
    assert legend(figure) == ["two", "one"]


def test_a_series_has_one_style_in_several_figures_and_others_differ():
    styles = {}
    first = comparison_figure([Panel("a", "x", "y", [line("one", [1], [1]), line("two", [1], [2])])], styles=styles)
    second = comparison_figure([Panel("a", "x", "y", [line("three", [1], [1]), line("two", [1], [2])])], styles=styles)
    looks = [{label: one.get_color() for label, one in named(figure.axes[0]).items()} for figure in (first, second)]
    assert looks[0]["two"] == looks[1]["two"]
    assert len({*looks[0].values(), *looks[1].values()}) == 3


def test_lines_behind_others_are_wider_with_rings():
    x, y = [1, 2, 3], [1, 3, 2]
    lines = [line("one", x, y), line("same", x, y), line("other", x, [5, 6, 7])]
    drawn = named(comparison_figure([Panel("t", "x", "y", lines)]).axes[0])
    assert drawn["same"].get_linewidth() > drawn["one"].get_linewidth() == drawn["other"].get_linewidth()
    assert drawn["same"].get_zorder() < drawn["one"].get_zorder()
    assert drawn["same"].get_markersize() > drawn["one"].get_markersize()
    assert drawn["same"].get_fillstyle() == "none"


def test_points_without_a_line_are_open_so_that_none_is_hidden():
    (axes,) = comparison_figure([Panel("t", "x", "y", [line("one", [1], [1])], connect_points=False)]).axes
    assert named(axes)["one"].get_markerfacecolor() == "none"


@pytest.mark.parametrize("count", [1, 3])
def test_a_long_label_is_not_cut_off(count):
    label = "published, test: latent ODE (ODE-RNN encoder), interpolation, 10 % observed, 0.0036 (Rubanova et al. 2019)"
    figure = comparison_figure(
        [Panel("t", "x", "y", [line("one", [1, 2], [1, 2])], [ReferenceLine(label, 1.5)])] * count
    )
    figure.draw_without_rendering()
    box, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert " ".join(legend(figure)[1].split()) == label
    assert box.y1 < min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_points_that_are_not_finite_are_omitted_with_error_bar_and_label():
    one = line("one", [1, np.nan, 3], [4, 5, np.inf], y_error=np.array([0.5, 1, 1]), point_labels=["a", "b", "c"])
    (axes,) = comparison_figure([Panel("t", "x", "y", [one])]).axes
    assert [tuple(map(list, line.get_data())) for line in named(axes).values()] == [([1.0], [4.0])]
    assert [text.get_text() for text in axes.texts] == ["a"]
    (bar,) = [part for part in axes.collections if len(part.get_paths()) == 1]
    assert bar.get_paths()[0].vertices[:, 1].tolist() == [3.5, 4.5]


def test_every_line_that_can_be_drawn_looks_different():
    lines = [line(str(i), [0, 1], [i, i]) for i in range(MAX_LINES)]
    (axes,) = comparison_figure([Panel("t", "x", "y", lines)]).axes
    assert len({(one.get_color(), one.get_linestyle()) for one in axes.lines}) == MAX_LINES


@pytest.mark.parametrize("connect", [True, False])
def test_more_lines_than_colours_differ_by_marker_too(connect):
    panels = [
        Panel("t", "x", "y", [line(f"{i} {j}", [0], [i]) for i in range(14)], connect_points=connect) for j in (0, 1)
    ]
    drawn = [one for axes in comparison_figure(panels).axes for one in axes.lines]
    assert len({(one.get_color(), one.get_marker()) for one in drawn}) == 28


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        (["tol 1, adjoint, first 50", "tol 2, adjoint, first 50"], ["tol 1", "tol 2"]),
        (["cnf", "cnf, adjoint"], ["cnf", "cnf, adjoint"]),  # one of them would have no name
        (["hidden [8, 8], a", "hidden [8, 4], a"], ["hidden [8, 8]", "hidden [8, 4]"]),
        (["odenet, adjoint"], ["odenet, adjoint"]),
    ],
)
def test_the_legend_omits_what_all_series_share_and_lines_keep_their_label(labels, shown):
    lines = [line(label, [1], [i]) for i, label in enumerate(labels)]
    figure = comparison_figure([Panel("t", "x", "y", [*lines, line("rknet", [], [])])])
    assert legend(figure) == shown
    assert set(labels) == set(named(figure.axes[0]))


def test_a_logarithmic_axis_has_few_tick_labels():
    lines, reference = [line("one", [1e-4, 1e-1], [2e-3, 1e-1])], ReferenceLine("equal", x=[1e-5, 1e-1], y=[1e-5, 1e-1])
    for reference_lines, least, most in (((), 5, 9), ((reference,), 4, 6)):
        figure = comparison_figure([Panel("t", "x", "y", lines, reference_lines, y_log=True)])
        figure.draw_without_rendering()
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        named = [text for text in axes.yaxis.get_majorticklabels() if text.get_text()]
        assert least <= sum(low <= text.get_position()[1] <= high for text in named) <= most


def test_tick_labels_have_no_offset_and_one_format():
    """No offset to be added in the mind, and one way of writing."""
    panels = [Panel("t", "x", "y", [line("one", [1, 2], y)], y_log=log)
              for y, log in (([17.654, 17.655], False), ([2e-5, 2e-4], True))]  # fmt: skip
    figure = comparison_figure(panels)
    figure.canvas.draw()
    linear, log = figure.axes
    assert linear.yaxis.get_offset_text().get_text() == ""
    texts = [text.get_text() for text in log.get_yticklabels() if text.get_text()]
    assert texts
    assert all("10^{" in text for text in texts)


@pytest.mark.parametrize(
    ("y", "scale"), [([1, 1000], "log"), ([1, 2], "linear"), ([0, 1000], "linear"), ([], "linear")]
)
def test_an_axis_is_logarithmic_where_the_numbers_span_decades(y, scale):
    (axes,) = comparison_figure([Panel("t", "x", "y", [line("one", range(len(y)), y)])]).axes
    assert axes.get_yscale() == scale


def test_a_reference_line_is_a_level_or_points_and_error_bars_fit_the_axes():
    one = line("one", [1, 2], [1, 10], y_error=np.array([0, 5]))
    reference_lines = [ReferenceLine("level", 3.0), ReferenceLine("slope", x=[0, 2], y=[0, 2])]
    (axes,) = comparison_figure([Panel("t", "x", "y", [one], reference_lines, x_descending=True)]).axes
    assert list(named(axes)["level"].get_ydata()) == [3.0, 3.0]
    assert list(named(axes)["slope"].get_ydata()) == [0, 2]
    assert axes.get_ylim()[1] > 15
    assert axes.xaxis_inverted()


@pytest.mark.parametrize(("most", "limits"), [(2.1e-3, (2e-5, 5e-3)), (2.1e-4, (1e-5, 1e-3))])
def test_dots_are_drawn_in_the_row_of_their_category_between_round_limits(most, limits):
    panels = {"case": {"odebench": {"adjoint": 3e-5, "backprop": 0.0}, "torchdiffeq": {"backprop": most}}}
    (axes,) = dot_plot(panels, "error").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["adjoint", "backprop"]
    assert [round(float(one.get_ydata()[0])) for one in axes.lines] == [0, 1]
    assert axes.get_xlim() == pytest.approx(limits)
    assert axes.get_xlabel() == "error"


def test_a_line_connects_a_dot_with_the_end_of_its_spread():
    values = {"forward": {"odebench": {"tiny": 1.0, "mlp": 2.0}}}
    (axes,) = dot_plot(values, "ms", {"forward": {"odebench": {"mlp": 3.0}}}).axes
    spread, dots = axes.lines
    assert list(spread.get_xdata()) == [2.0, 3.0]
    assert set(spread.get_ydata()) == {dots.get_ydata()[1]}
    assert len(axes.get_legend_handles_labels()[1]) == 1


def test_many_points_and_empty_panels_are_drawn_without_a_warning(tmp_path):
    many = line("many", np.arange(1, 3001), np.arange(1, 3001))
    figure = comparison_figure(
        [Panel("t", "x", "y", [many]), Panel("u", "x", "y", [line("", [1], [1])], connect_points=False)]
    )
    figure.savefig(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size < 200_000
    dot_plot({}, "error").savefig(tmp_path / "dots.png")


def noted(*levels):
    return [ReferenceLine(f"published {level}", level, note=f"family, {level}", source="a paper") for level in levels]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_only_the_nearest_reference_lines_with_notes_are_drawn_with_one_legend_entry_per_source():
    one = line("one", [1, 2], [10, 11])
    figure = comparison_figure([Panel("t", "x", "y", [one], noted(2.0, 6.0, 7.0, 10.0, 11.5, 12.0, 90.0))])
    (axes,) = figure.axes
    assert sorted(set(named(axes)) - {"one"}) == [f"published {level}" for level in (10.0, 11.5, 12.0, 7.0)]
    assert legend(figure) == ["one", "a paper (the nearest)"]
    assert texts(axes) == ["family, 12.0", "11.5", "10.0", "7.0"]
    low, high = axes.get_ylim()
    assert low < 7 < 12 < high
    assert legend(comparison_figure([Panel("t", "x", "y", [one], noted(10.5))])) == ["one", "a paper"]
    assert legend(comparison_figure([Panel("t", "x", "y", [one], noted(90.0))])) == ["one"]


def test_a_distant_reference_line_is_omitted():
    one = line("one", [1, 2], [-2, 1])
    (axes,) = comparison_figure([Panel("t", "x", "y", [one], noted(-4.0, 3.0, -9.0, 9.0, np.nan))]).axes
    assert sorted(named(axes)) == ["one", "published -4.0", "published 3.0"]


def boxes(figure):
    figure.draw_without_rendering()
    return [text.get_window_extent() for axes in figure.axes for text in axes.texts]


def overlapping(found):
    return sum(one.overlaps(other) for i, one in enumerate(found) for other in found[:i])


@pytest.mark.parametrize("levels", [(10.0, 10.01, 10.02, 10.03), (10.0, 10.3, 11.0, 11.9), (9.9, 10.0, 12.0, 12.01)])
def test_notes_do_not_overlap(levels):
    figure = comparison_figure([Panel("t", "x", "y", [line("one", [1, 2], [9, 12])], noted(*levels))])
    assert len(boxes(figure)) == 4
    assert not overlapping(boxes(figure))


def test_a_label_is_beside_a_line_rather_than_over_it():
    def side(*references):
        panel = Panel("t", "x", "y", [line("a", [1, 1], [1, 2], point_labels=["b", ""])], references)
        (axes,) = comparison_figure([panel]).axes
        return [(text.get_ha(), text.get_va()) for text in axes.texts]

    assert side() != side(ReferenceLine("r", x=[1, 2], y=[1, 1.1]))


def test_the_legend_shows_a_line_that_is_drawn_wider_as_the_others():
    lines = [line(name, [1, 2, 3], [1, 3, 2]) for name in ("one", "two", "three")]
    handles = comparison_figure([Panel("t", "x", "y", lines)]).legends[0].legend_handles
    assert len({(one.get_linewidth(), one.get_marker() and one.get_markersize() <= 8) for one in handles}) == 1


def test_labels_of_coinciding_points_are_merged():
    one = line("one", [1, 1, 9], [1, 1, 9], point_labels=["a", "b", "c"])
    figure = comparison_figure([Panel("t", "x", "y", [one, one._replace(label="two")])])
    assert texts(figure.axes[0]) == ["a, b", "c", "a, b", "c"]
    assert not overlapping(boxes(figure))
    many = line("one", [5] * 20, np.linspace(5, 5.2, 20), point_labels=[f"name {i}" for i in range(20)])
    edge = line("two", [1, 9], [1, 9])
    figure = comparison_figure([Panel("t", "x", "y", [many, edge])])
    assert texts(figure.axes[0]) == ["name 0 … name 19"]


def test_a_label_is_written_beside_its_error_bar():
    one = line("one", [1, 5, 9], [2, 5, 8], y_error=np.ones(3), point_labels=["a", "b", "c"])
    figure = comparison_figure([Panel("t", "x", "y", [one])])
    for box, x in zip(boxes(figure), one.x, strict=True):
        (at, _) = figure.axes[0].transData.transform((x, 5))
        assert not box.x0 - 2 <= at <= box.x1 + 2


def test_a_dense_scatter_plot_has_no_labels():
    x, y = np.meshgrid(np.linspace(4, 6, 5), np.linspace(4, 5, 5))
    scatter = line("one", x.ravel(), y.ravel(), point_labels=[f"tolerance {i}" for i in range(25)])
    panel = Panel("t", "x", "y", [scatter, line("two", [0.1, 50], [0.1, 50])])
    assert texts(comparison_figure([panel]).axes[0])
    assert not texts(comparison_figure([panel._replace(connect_points=False)]).axes[0])


@pytest.mark.parametrize(("y", "least"), [("memory (MiB)", 0.25), ("NFE of a batch", 0.25), ("accuracy (%)", 0.0)])
def test_a_small_change_of_a_cost_does_not_look_steep(y, least):
    (axes,) = comparison_figure([Panel("t", "x", y, [line("one", [1, 2], [122, 123])], y_log=False)]).axes
    low, high = axes.get_ylim()
    assert low < 122 < 123 < high
    assert high - low >= least * 123
    assert (high - low < 2) == (not least)
    (axes,) = comparison_figure([Panel("t", "x", y, [line("one", [1], [0.01])], y_log=False)]).axes
    assert (axes.get_ylim()[0] >= 0) or not least


@pytest.mark.parametrize("values", [(2, 3), (7, 7), (6, 25), (66, 100), (0, 1)])
def test_evaluations_are_counted_in_whole_numbers(values):
    figure = comparison_figure([Panel("t", "forward NFE", "y", [line("one", values, [1, 2])], x_log=False)])
    figure.canvas.draw()
    (axes,) = figure.axes
    assert len(axes.get_xticks()) >= 2
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_a_logarithmic_axis_marks_values_below_zero_at_its_lower_edge():
    lines = [Line("flow", np.array([2.0, 8, 32]), np.array([0.5, 0.2, -1e-4])), Line("CNF", np.ones(1), np.ones(1))]
    figure = comparison_figure([Panel("KL", "size", "KL (nats)", lines, y_log=True)])
    axes = figure.axes[0]
    below = next(line for line in axes.lines if line.get_label() == "zero or less")
    assert axes.get_yscale() == "log"
    assert (below.get_xdata().tolist(), below.get_color()) == ([32], axes.lines[0].get_color())
    assert "zero or less" in [text.get_text() for text in figure.legends[0].get_texts()]

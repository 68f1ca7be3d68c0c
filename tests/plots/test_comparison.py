import numpy as np
import pytest

from odebench.plots.comparison import MAX_LINES, Guide, Line, Panel, comparison
from odebench.plots.dots import dots


def line(label, x, y, **more):
    return Line(label, np.array(x, dtype=float), np.array(y, dtype=float), **more)


def named(axes):
    return {one.get_label(): one for one in axes.lines if not one.get_label().startswith("_")}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_label_looks_the_same_in_every_panel_and_stands_in_the_legend_once():
    first = Panel("a", "x", "y", [line("one", [], []), line("two", [1, 2], [3, 4])])
    second = Panel("b", "x", "y", [line("two", [1], [1]), line("one", [2], [2])])
    figure = comparison([first, second])
    left, right = map(named, figure.axes)
    assert left["two"].get_color() == right["two"].get_color() != right["one"].get_color()
    assert legend(figure) == ["two", "one"]


@pytest.mark.parametrize("count", [1, 3])
def test_a_long_label_is_not_cut_off(count):
    label = "published, test: latent ODE (ODE-RNN encoder), interpolation, 10 % observed, 0.0036 (Rubanova et al. 2019)"
    figure = comparison([Panel("t", "x", "y", [line("one", [1, 2], [1, 2])], [Guide(label, 1.5)])] * count)
    figure.draw_without_rendering()
    box, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert " ".join(legend(figure)[1].split()) == label
    assert box.y1 < min(axes.get_tightbbox().y0 for axes in figure.axes)


def test_what_is_not_finite_is_left_out_with_its_spread_and_its_name():
    one = line("one", [1, np.nan, 3], [4, 5, np.inf], y_spread=np.array([0.5, 1, 1]), names=["a", "b", "c"])
    (axes,) = comparison([Panel("t", "x", "y", [one])]).axes
    assert [tuple(map(list, line.get_data())) for line in named(axes).values()] == [([1.0], [4.0])]
    assert [text.get_text() for text in axes.texts] == ["a"]
    (bar,) = [part for part in axes.collections if len(part.get_paths()) == 1]
    assert bar.get_paths()[0].vertices[:, 1].tolist() == [3.5, 4.5]


def test_every_line_that_can_be_drawn_looks_different():
    lines = [line(str(i), [0, 1], [i, i]) for i in range(MAX_LINES)]
    (axes,) = comparison([Panel("t", "x", "y", lines)]).axes
    assert len({(one.get_color(), one.get_linestyle()) for one in axes.lines}) == MAX_LINES


def test_an_axis_of_decades_names_no_more_than_these_though_the_lines_span_fewer():
    lines, guide = [line("one", [1e-4, 1e-1], [2e-3, 1e-1])], Guide("equal", x=[1e-5, 1e-1], y=[1e-5, 1e-1])
    for guides, least, most in (((), 5, 9), ((guide,), 4, 6)):
        figure = comparison([Panel("t", "x", "y", lines, guides, y_log=True)])
        figure.draw_without_rendering()
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        named = [text for text in axes.yaxis.get_majorticklabels() if text.get_text()]
        assert least <= sum(low <= text.get_position()[1] <= high for text in named) <= most


def test_numbers_stand_at_an_axis_as_they_are():
    """No offset to be added in the mind, and one way of writing."""
    panels = [Panel("t", "x", "y", [line("one", [1, 2], y)], y_log=log)
              for y, log in (([17.654, 17.655], False), ([2e-5, 2e-4], True))]  # fmt: skip
    figure = comparison(panels)
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
    (axes,) = comparison([Panel("t", "x", "y", [line("one", range(len(y)), y)])]).axes
    assert axes.get_yscale() == scale


def test_a_guide_is_a_level_or_a_line_and_a_bar_is_not_cut():
    one = line("one", [1, 2], [1, 10], y_spread=np.array([0, 5]))
    guides = [Guide("level", 3.0), Guide("slope", x=[0, 2], y=[0, 2])]
    (axes,) = comparison([Panel("t", "x", "y", [one], guides, x_falls=True)]).axes
    assert list(named(axes)["level"].get_ydata()) == [3.0, 3.0]
    assert list(named(axes)["slope"].get_ydata()) == [0, 2]
    assert axes.get_ylim()[1] > 15
    assert axes.xaxis_inverted()


def test_dots_stand_in_the_row_of_their_category_on_whole_decades():
    panels = {"work": {"odebench": {"adjoint": 3e-5, "backprop": 0.0}, "peer": {"backprop": 2e-3}}}
    (axes,) = dots(panels, "error").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["adjoint", "backprop"]
    assert [round(float(one.get_ydata()[0])) for one in axes.lines] == [0, 1]
    assert axes.get_xlim() == pytest.approx((1e-5, 1e-2))
    assert axes.get_xlabel() == "error"


def test_all_of_it_is_drawn_without_a_warning(tmp_path):
    many = line("many", np.arange(1, 3001), np.arange(1, 3001))
    figure = comparison([Panel("t", "x", "y", [many]), Panel("u", "x", "y", [line("", [1], [1])], joined=False)])
    figure.savefig(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size < 200_000
    dots({}, "error").savefig(tmp_path / "dots.png")

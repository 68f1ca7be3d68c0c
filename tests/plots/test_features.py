import numpy as np

from odebench.plots.features import features_through_depth


def test_each_time_has_a_panel_with_the_states_of_each_class():
    states = np.random.RandomState(0).randn(3, 40, 2) + np.arange(3)[:, None, None]
    labels = np.arange(40) % 4
    figure = features_through_depth(states, labels, [0.0, 0.5, 1.0], (0.5, 0.25))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["t = 0", "t = 0.5", "t = 1"]
    for axes, state in zip(figure.axes, states, strict=True):
        drawn = [np.stack(line.get_data(), axis=1) for line in axes.lines]
        assert all(np.array_equal(one, state[labels == label]) for label, one in enumerate(drawn))
    assert len({line.get_color() for line in figure.axes[0].lines}) == 4
    assert [text.get_text() for text in figure.axes[-1].texts] == ["0", "1", "2", "3"]
    assert "50 and 25 %" in figure.get_suptitle()

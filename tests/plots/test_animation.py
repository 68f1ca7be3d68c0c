import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from odebench.plots.animation import Frame, Steps, animation, frame_strip
from odebench.plots.density import grid_points

LIMITS = (-3.0, 3.0)


def frames(num, num_particles=20):
    """Particles that move to the right and together."""
    noise = np.random.RandomState(0).randn(num_particles, 2)
    return [Frame(f"t = {t:.3f}", [t, 0] + (1 - 0.7 * t) * noise) for t in np.linspace(0, 1, num)]


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_xlabel() or axes.get_title(loc="left")]


def read(gif):
    """Pictures of a GIF and their durations in ms."""
    image = Image.open(io.BytesIO(gif))
    pictures, durations = [], []
    for index in range(image.n_frames):
        image.seek(index)
        pictures.append(np.asarray(image.convert("RGB")))
        durations.append(image.info["duration"])
    return pictures, durations


def test_a_strip_shows_the_particles_of_each_frame_under_its_label():
    given = frames(3)
    panels = frame_strip(given, LIMITS, "title").axes
    assert [axes.get_title(loc="left") for axes in panels] == [frame.label for frame in given]
    for axes, frame in zip(panels, given, strict=True):
        assert np.array_equal(np.stack(axes.lines[0].get_data(), axis=1), frame.particles)


def test_a_strip_of_many_layers_keeps_the_first_and_the_last_and_no_more_than_six():
    layers = [Frame(f"layer {index}", np.zeros((1, 2))) for index in range(33)]
    shown = titles(frame_strip(layers, LIMITS))
    assert len(shown) == 6
    assert (shown[0], shown[-1]) == ("layer 0", "layer 32")


def test_an_animation_has_every_frame_and_pauses_at_the_last():
    pictures, durations = read(animation(frames(6), LIMITS))
    assert durations == [100] * 5 + [1500]
    assert all((one != other).any() for one, other in pairwise(pictures))
    colours = {tuple(colour) for colour in pictures[0].reshape(-1, 3)}
    assert (255, 255, 255) in colours


def test_axes_do_not_move_between_frames():
    pictures, _ = read(animation([Frame("a", np.zeros((1, 2))), Frame("b", np.full((1, 2), 100.0))], LIMITS))
    changed = np.argwhere((pictures[0] != pictures[1]).any(axis=2))
    assert len(changed) < 150  # a letter and a dot, not the axes


def test_the_same_frames_give_the_same_bytes():
    assert animation(frames(2), LIMITS, "title") == animation(frames(2), LIMITS, "title")


@pytest.mark.slow
def test_forty_crowded_frames_stay_under_two_mebibytes():
    assert len(animation(frames(40, num_particles=3000), LIMITS, "title")) < 2 * 2**20


@pytest.mark.parametrize(
    "given",
    [
        pytest.param([Frame("alone", np.zeros((1, 2)))], id="one particle"),
        pytest.param([Frame("none", np.empty((0, 2)))], id="no particles"),
        pytest.param([Frame("nan", np.full((3, 2), np.nan))], id="not a number"),
        pytest.param([Frame("far", np.array([[-1e6, 0.0], [800.0, np.inf]]))], id="huge range"),
    ],
)
def test_unusual_frames_are_drawn_without_a_warning(tmp_path, given):
    figure = frame_strip(given, LIMITS)
    figure.savefig(tmp_path / "figure.png", dpi=30)
    assert figure.axes[0].get_xlabel() == "x₁"
    assert len(read(animation(given, LIMITS))[0]) == len(given)


def test_without_frames_the_strip_is_empty_and_the_animation_raises_an_error(tmp_path):
    figure = frame_strip([], LIMITS)
    figure.savefig(tmp_path / "figure.png", dpi=30)
    assert titles(figure) == ["No frames"]
    with pytest.raises(ValueError, match="needs at least one frame"):
        animation([], LIMITS)


def test_frames_show_density_arrows_and_the_steps_below():
    grid = grid_points(LIMITS, 4)
    given = [
        Frame(f"t = {t}", np.zeros((1, 2)), -(grid**2).sum(axis=1), grid * (1 + t), time=t) for t in (0.0, 0.5, 1.0)
    ]
    (axes, *_) = frame_strip(given, LIMITS).axes
    assert len(axes.images) == 1
    steps = Steps(np.array([0.0, 0.25]), np.array([0.25, 0.75]))
    plain, (pictures, _) = read(animation(given, LIMITS))[0], read(animation(given, LIMITS, steps=steps))
    assert pictures[0].shape[0] > plain[0].shape[0]
    below = [picture[plain[0].shape[0] :] for picture in pictures]
    assert all((one != other).any() for one, other in pairwise(below))  # the line of the time moves

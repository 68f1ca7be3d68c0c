import numpy as np
import pytest
from matplotlib.colors import to_rgb

from odebench.plots import style
from odebench.plots.image_grid import image_grid, image_pairs


def sheet(figure):
    (image,) = figure.axes[0].images
    return image.get_array()


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_images_are_arranged_in_rows_of_ten_with_white_gaps():
    images = np.arange(12, dtype=float).reshape(12, 1, 1, 1) / 12 * np.ones((1, 1, 24, 24))
    drawn = sheet(image_grid(images))
    assert drawn.shape == (2 * 26, 10 * 26, 3)  # two of 24 pixels between them
    for index, image in enumerate(images):
        row, column = divmod(index, 10)
        corner = drawn[26 * row :, 26 * column :]
        assert (corner[:24, :24] == image[0, 0, 0]).all()
        assert (corner[24:26, :24] == 1).all()
    assert (drawn[26:, 52:] == 1).all()  # no more images


def test_colours_are_kept_and_values_out_of_range_clipped():
    pixel = np.array([0.2, 1.7, -0.3]).reshape(1, 3, 1, 1)
    assert sheet(image_grid(pixel))[0, 0].tolist() == [0.2, 1.0, 0.0]


def test_nan_is_visible():
    images = np.zeros((1, 1, 2, 2))
    images[0, 0, 0, 1] = np.nan
    drawn = sheet(image_grid(images))
    assert tuple(drawn[0, 1]) == pytest.approx(to_rgb(style.VERMILION))
    assert (drawn[1, :2] == 0).all()
    assert np.isnan(images).sum() == 1  # the caller's array is left alone


def test_reconstructions_are_drawn_below_their_originals():
    originals, reconstructions = np.zeros((12, 1, 4, 4)), np.full((12, 1, 4, 4), 0.5)
    figure = image_pairs(originals, reconstructions)
    assert sheet(figure)[::5, 0, 0].tolist() == [0.0, 0.5, 0.0, 0.5]
    assert ticks(figure.axes[0].yaxis) == ["original", "reconstruction"] * 2
    with pytest.raises(ValueError, match="originals have shape"):
        image_pairs(originals, reconstructions[:3])


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (4, 4)])
def test_images_of_an_unknown_shape_raise_an_error(shape):
    with pytest.raises(ValueError, match="images must be"):
        image_grid(np.zeros(shape))


@pytest.mark.parametrize("num", [0, 1, 25])
@pytest.mark.parametrize("draw", [image_grid, lambda images: image_pairs(images, images)])
def test_any_number_of_images_is_drawn_without_a_warning(tmp_path, num, draw):
    figure = draw(np.zeros((num, 1, 28, 20)))
    figure.savefig(tmp_path / "figure.png", dpi=30)
    assert figure.axes[0].get_xlabel() == "image (28 x 20 pixels)"
    assert figure.axes[0].get_title(loc="left").endswith(": none") == (num == 0)

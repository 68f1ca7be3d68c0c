"""Grids of images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from odebench.plots import style

COLUMNS = 10
CELL_IN = 0.62


def image_grid(images: np.ndarray, title: str = "Samples") -> Figure:
    """Draw images in rows of ten.

    images: [N, C, H, W] with C 1 or 3, floats in [0, 1]; values outside are clipped, pixels with NaN are vermilion.
    """
    rows = _rows(images)
    first_of_row = [f"{1 + COLUMNS * index}" for index in range(len(rows))]
    return _draw(rows, first_of_row, title, images.shape)


def image_pairs(originals: np.ndarray, reconstructions: np.ndarray, title: str = "Reconstructions") -> Figure:
    """Draw originals in rows of ten, each row above its reconstructions. Both have the same shape: see `image_grid`."""
    if originals.shape != reconstructions.shape:
        raise ValueError(f"originals have shape {originals.shape}, reconstructions {reconstructions.shape}")
    pairs = zip(_rows(originals), _rows(reconstructions), strict=True)
    rows = [row for pair in pairs for row in pair]
    return _draw(rows, ["original", "reconstruction"] * (len(rows) // 2), title, originals.shape)


def _rows(images: np.ndarray) -> list[np.ndarray]:
    """Arrange images in rows of up to ten; each row is [n, H, W, 3]."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [N, 1 or 3, H, W], got {images.shape}")
    pixels = np.moveaxis(images, 1, 3).repeat(3 // images.shape[1], axis=3).astype(float)
    bad = np.isnan(pixels).any(axis=3)
    pixels[bad] = to_rgb(style.VERMILION)
    return [pixels[start : start + COLUMNS].clip(0, 1) for start in range(0, len(pixels), COLUMNS)]


def _draw(rows: Sequence[np.ndarray], names: Sequence[str], title: str, shape: tuple[int, ...]) -> Figure:
    num, _, height, width = shape
    columns = max(min(num, COLUMNS), 1)
    # The gap between images is a twelfth of their width.
    down, across = height + -(-width // 12), width + -(-width // 12)
    sheet = np.ones((down * max(len(rows), 1), across * columns, 3))
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            sheet[row * down : row * down + height, column * across : column * across + width] = image
    sheet_in = CELL_IN * np.array([columns, len(sheet) / across])
    figure, (axes,) = style.new_figure(width_in=sheet_in[0] + 1.2, height_in=sheet_in[1] + 0.9)
    axes.imshow(sheet, interpolation="nearest")
    style.style_axes(axes, title if num else f"{title}: none", f"image ({height} x {width} pixels)", "")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_xticks(across * np.arange(columns) + width / 2, [f"{1 + column}" for column in range(columns)])
    axes.set_yticks(down * np.arange(len(rows)) + height / 2, names)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure

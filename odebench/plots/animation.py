"""A transformation in time, as a strip of frames and as an animation."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from odebench.plots import style
from odebench.plots.density import Limits, Scale, draw_density, scale_of

MAX_IN_STRIP = 8
STRIP_PANEL_IN = 2.1
GIF_PANEL_IN = 3.6
GIF_DPI = 100
FRAME_MS = 100
LAST_FRAME_MS = 1500


class Frame(NamedTuple):
    """States in the plane at one time, or after one layer: particles, a density or both.

    label: such as "t = 0.5" or "layer 3".
    particles: [N, 2].
    log_density: [num^2], at `density.grid_points(limits, num)`.
    """

    label: str
    particles: np.ndarray | None = None
    log_density: np.ndarray | None = None


def strip(frames: Sequence[Frame], limits: Limits, title: str | None = None) -> Figure:
    """The frames side by side, their densities in one scale of colours; limits are those of both axes.

    Of more than 8 frames 8 are drawn, evenly spaced, with the first and the last.
    """
    num = min(len(frames), MAX_IN_STRIP)
    chosen = [frames[index] for index in np.linspace(0, len(frames) - 1, num).round().astype(int)]
    scale = _scale(chosen)
    figure, panels = style.new_planes(max(num, 1), MAX_IN_STRIP, STRIP_PANEL_IN, scale is not None, title)
    image = None
    for axes, frame in zip(panels, chosen, strict=False):
        image = _draw(axes, frame, limits, scale) or image
    if not chosen:
        style.dress_plane(panels[0], "No frames", limits)
    if scale and image:
        style.colour_bar(figure, image, panels, scale.label, extend="max")
    return figure


def animation(frames: Sequence[Frame], limits: Limits, title: str | None = None) -> bytes:
    """All the frames as a GIF of ten frames a second that holds the last one and starts again.

    The same frames give the same bytes; forty of them stay under 2 MiB.

    Raises ValueError without a frame.
    """
    if not frames:
        raise ValueError("an animation needs a frame")
    scale = _scale(frames)
    figure, (axes,) = style.new_planes(1, 1, GIF_PANEL_IN, scale is not None, title)
    figure.set_dpi(GIF_DPI)
    drawn: list[np.ndarray] = []
    for frame in frames:
        axes.clear()
        image = _draw(axes, frame, limits, scale)
        if scale and image and not drawn:
            style.colour_bar(figure, image, [axes], scale.label, extend="max")
        drawn.append(_pixels(figure))
        figure.set_layout_engine("none")  # the first layout holds: nothing jumps
    return _gif(drawn)


def _scale(frames: Sequence[Frame]) -> Scale | None:
    log_densities = [frame.log_density for frame in frames if frame.log_density is not None]
    return scale_of(log_densities) if log_densities else None


def _draw(axes: Axes, frame: Frame, limits: Limits, scale: Scale | None) -> AxesImage | None:
    image = None
    if scale and frame.log_density is not None:
        image = draw_density(axes, frame.log_density, limits, scale)
    if frame.particles is not None:
        axes.plot(
            *frame.particles.T, linestyle="none", marker=".", markersize=2.5, markeredgewidth=0, color=style.VERMILION
        )
    style.dress_plane(axes, frame.label, limits)
    return image


def _pixels(figure: Figure) -> np.ndarray:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _gif(pixels: Sequence[np.ndarray]) -> bytes:
    palette = _palette()
    first, *rest = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in pixels]
    buffer = io.BytesIO()
    durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


def _palette() -> Image.Image:
    """The colours of a frame: those of a density, particles blending into them, and the greys of the text."""
    densities = style.DENSITY_MAP(np.linspace(0, 1, 120))[:, :3]
    greys = np.linspace(0, 1, 40)[:, None].repeat(3, axis=1)
    cover = np.linspace(0.25, 1.0, 4)[:, None, None]
    particles = cover * to_rgb(style.VERMILION) + (1 - cover) * densities[::5]
    colours = np.concatenate([densities, greys, particles.reshape(-1, 3)])
    image = Image.new("P", (1, 1))
    image.putpalette((255 * colours).round().astype(np.uint8).tobytes())
    return image

"""A transformation in time, as a strip of frames and as an animation."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from odebench.plots import style
from odebench.plots.density import Limits

MAX_IN_STRIP = 8
STRIP_PANEL_IN = 2.1
GIF_PANEL_IN = 3.6
GIF_DPI = 100
FRAME_MS = 100
LAST_FRAME_MS = 1500


class Frame(NamedTuple):
    """Particles [N, 2] in the plane at one time, or after one layer; label: such as "t = 0.5" or "layer 3"."""

    label: str
    particles: np.ndarray


def frame_strip(frames: Sequence[Frame], limits: Limits, title: str | None = None) -> Figure:
    """The frames side by side; limits are those of both axes.

    Of more than 8 frames 8 are drawn, evenly spaced, with the first and the last.
    """
    num = min(len(frames), MAX_IN_STRIP)
    chosen = [frames[index] for index in np.linspace(0, len(frames) - 1, num).round().astype(int)]
    figure, panels = style.new_square_figure(max(num, 1), MAX_IN_STRIP, STRIP_PANEL_IN, title=title)
    for axes, frame in zip(panels, chosen, strict=False):
        _draw(axes, frame, limits)
    if not chosen:
        style.style_plane(panels[0], "No frames", limits)
    return figure


def animation(frames: Sequence[Frame], limits: Limits, title: str | None = None) -> bytes:
    """All the frames as a GIF of ten frames a second that holds the last one and starts again.

    The same frames give the same bytes; forty of them stay under 2 MiB.

    Raises ValueError without a frame.
    """
    if not frames:
        raise ValueError("an animation needs a frame")
    figure, (axes,) = style.new_square_figure(1, 1, GIF_PANEL_IN, title=title)
    figure.set_dpi(GIF_DPI)
    drawn: list[np.ndarray] = []
    for frame in frames:
        axes.clear()
        _draw(axes, frame, limits)
        drawn.append(_pixels(figure))
        figure.set_layout_engine("none")  # the first layout holds: nothing jumps
    return _gif(drawn)


def _draw(axes: Axes, frame: Frame, limits: Limits) -> None:
    axes.plot(
        *frame.particles.T, linestyle="none", marker=".", markersize=2.5, markeredgewidth=0, color=style.VERMILION
    )
    style.style_plane(axes, frame.label, limits)


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
    """The colours of a frame: those of particles blending into white, and the greys of the text."""
    # Eight apart and more: Pillow finds colours to three bits less, and white shall stay white.
    share = np.linspace(0, 1, 32)[:, None]
    particles = share * to_rgb(style.VERMILION) + 1 - share
    colours = np.concatenate([share.repeat(3, axis=1), particles])
    image = Image.new("P", (1, 1))
    image.putpalette((255 * colours).round().astype(np.uint8).tobytes())
    return image

"""A transformation over time, as a strip of frames and as an animation."""

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
    """Draw at most 8 of the frames side by side: evenly spaced ones, with the first and the last.

    limits: the limits of both axes.
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
    """Draw all frames as a looping GIF with ten frames per second that pauses at the last frame.

    The same frames give the same bytes; forty frames take less than 2 MiB. Raises ValueError without frames.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    figure, (axes,) = style.new_square_figure(1, 1, GIF_PANEL_IN, title=title)
    figure.set_dpi(GIF_DPI)
    canvas, palette, images = figure.canvas, _palette(), []
    assert isinstance(canvas, FigureCanvasAgg)
    for frame in frames:
        axes.clear()
        _draw(axes, frame, limits)
        canvas.draw()
        pixels = np.array(canvas.buffer_rgba())[..., :3]
        images.append(Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.NONE))
        figure.set_layout_engine("none")  # keep the first layout, so that nothing jumps
    first, *rest = images
    buffer = io.BytesIO()
    durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


def _draw(axes: Axes, frame: Frame, limits: Limits) -> None:
    axes.plot(
        *frame.particles.T, linestyle="none", marker=".", markersize=2.5, markeredgewidth=0, color=style.VERMILION
    )
    style.style_plane(axes, frame.label, limits)


def _palette() -> Image.Image:
    """A palette of blends of the particles' colour with white, and of greys for text."""
    # Colours are at least 8 apart: Pillow ignores the lowest three bits, and white must stay white.
    share = np.linspace(0, 1, 32)[:, None]
    particles = share * to_rgb(style.VERMILION) + 1 - share
    colours = np.concatenate([share.repeat(3, axis=1), particles])
    image = Image.new("P", (1, 1))
    image.putpalette((255 * colours).round().astype(np.uint8).tobytes())
    return image

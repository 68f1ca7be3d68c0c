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

from odebench.plots import density, style
from odebench.plots.style import Limits

MAX_IN_STRIP = 6
STRIP_PANEL_IN = 2.1
GIF_PANEL_IN = 3.6
STEPS_IN = 1.2  # height of the panel of steps
ARROW = "#999999"
GIF_DPI = 100
FRAME_MS = 100
LAST_FRAME_MS = 1500


class Frame(NamedTuple):
    """A frame at one time, or after one layer.

    label: such as "t = 0.5" or "layer 3". particles: [N, 2]. log_density: [num^2] at `density.grid_points`.
    velocities: [num^2, 2] at such points. time: that of `Steps`.
    """

    label: str
    particles: np.ndarray
    log_density: np.ndarray | None = None
    velocities: np.ndarray | None = None
    time: float = 0.0


class Steps(NamedTuple):
    """The accepted steps of a solve: starts [n] and signed sizes [n], in the time of the ODE."""

    starts: np.ndarray
    sizes: np.ndarray


def frame_strip(frames: Sequence[Frame], limits: Limits, title: str | None = None) -> Figure:
    """Draw at most 6 of the frames side by side, without their velocities: evenly spaced, with the first and the last.

    limits: the limits of both axes.
    """
    num = min(len(frames), MAX_IN_STRIP)
    chosen = [frames[index] for index in np.linspace(0, len(frames) - 1, num).round().astype(int)]
    figure, panels = style.new_square_figure(max(num, 1), MAX_IN_STRIP, STRIP_PANEL_IN, title=title)
    for axes, frame in zip(panels, chosen, strict=False):
        _draw(axes, frame._replace(velocities=None), limits, _Scales.of(chosen))
    if not chosen:
        style.style_plane(panels[0], "No frames", limits)
    return figure


def animation(frames: Sequence[Frame], limits: Limits, title: str | None = None, steps: Steps | None = None) -> bytes:
    """Draw all frames as a looping GIF with ten frames per second that pauses at the last frame.

    The same frames give the same bytes; forty frames take less than 2 MiB. Raises ValueError without frames.

    steps: drawn below, with the time of each frame.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    figure, axes, below = _animated_figure(title, steps)
    scales = _Scales.of(frames)
    canvas, palette, images = figure.canvas, _palette(), []
    assert isinstance(canvas, FigureCanvasAgg)
    for frame in frames:
        axes.clear()
        _draw(axes, frame, limits, scales)
        axes.set_xlabel("x₁")
        axes.tick_params(labelbottom=True)
        now = below.axvline(frame.time, color=style.VERMILION, linewidth=style.LINE_PT) if below else None
        canvas.draw()
        pixels = np.array(canvas.buffer_rgba())[..., :3]
        images.append(Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.NONE))
        figure.set_layout_engine("none")  # keep the first layout, so that nothing jumps
        if now:
            now.remove()
    first, *rest = images
    buffer = io.BytesIO()
    durations = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


class _Scales(NamedTuple):
    """Scales that all frames of a figure share: the colours of their densities, and the speed of an arrow."""

    colours: density.ColourScale
    speed: float

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> "_Scales":
        log_densities = [frame.log_density for frame in frames if frame.log_density is not None]
        velocities = [frame.velocities for frame in frames if frame.velocities is not None]
        speed = density.typical_speed(np.stack(velocities)) if velocities else 1.0
        return cls(density.shared_colour_scale(log_densities), 1.5 * speed)  # shorter arrows leave the particles clear


def _animated_figure(title: str | None, steps: Steps | None) -> tuple[Figure, Axes, Axes | None]:
    """A figure with a square panel, and below it one with the steps, if there are any."""
    if steps is None:
        figure, (axes,) = style.new_square_figure(1, 1, GIF_PANEL_IN, title=title)
        figure.set_dpi(GIF_DPI)
        return figure, axes, None
    figure = Figure(figsize=(GIF_PANEL_IN + 0.2, GIF_PANEL_IN + STEPS_IN), dpi=GIF_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1, height_ratios=(GIF_PANEL_IN, STEPS_IN))
    axes, below = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    if title:
        figure.suptitle(title, fontsize=style.TITLE_PT + 1)
    sizes = np.abs(steps.sizes)
    below.hlines(sizes, steps.starts, steps.starts + steps.sizes, color=style.BLUE, linewidth=2.2)
    below.plot(steps.starts, sizes, "o", color=style.BLUE, markersize=4)
    below.set_ylim(0, 1.15 * sizes.max(initial=1e-12))
    style.style_axes(below, "", f"t ({len(sizes)} steps of the solver)", "step size")
    return figure, axes, below


def _draw(axes: Axes, frame: Frame, limits: Limits, scales: _Scales) -> None:
    if frame.log_density is not None:
        density.draw_density(axes, frame.log_density, limits, scales.colours).set_interpolation("bilinear")
    if frame.velocities is not None:
        density.draw_arrows(axes, frame.velocities, limits, scales.speed, ARROW)
    axes.plot(*frame.particles.T, linestyle="none", marker=".", markersize=4, markeredgewidth=0, color=style.VERMILION)
    style.style_plane(axes, frame.label, limits)


def _palette() -> Image.Image:
    """A palette of blends of the particles' colour with white and the densities' colours, and of greys for text."""
    # Colours are at least 8 apart: Pillow ignores the lowest three bits, and white must stay white.
    share = np.linspace(0, 1, 32)[:, None]
    white, blues = np.ones(3), style.DENSITY_MAP(np.linspace(0, 1, 64))[:, :3]
    blends = [share * to_rgb(style.VERMILION) + (1 - share) * under for under in (white, blues[24], blues[48])]
    colours = np.concatenate([share.repeat(3, axis=1), blues, *blends])
    image = Image.new("P", (1, 1))
    image.putpalette((255 * colours).round().astype(np.uint8).tobytes())
    return image

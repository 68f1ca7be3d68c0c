"""Heat maps of a number by two quantities."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from odebench.plots import style

MAX_ANNOTATED = 80  # cells of a panel; more have no numbers
MAX_TICKS = 12
COLUMNS = 2


class HeatMap(NamedTuple):
    """One panel. values: [rows, columns], NaN where unknown; the texts name its columns and rows."""

    title: str
    values: np.ndarray
    column_texts: Sequence[str]
    row_texts: Sequence[str]


def heat_maps(maps: Sequence[HeatMap], x: str, y: str, value: str) -> Figure:
    """Draw the maps with one colour scale, the first row of each at the bottom. x, y, value: labels with units."""
    height_in = max(3.0, 1.3 + 0.4 * max(len(one.row_texts) for one in maps))
    figure, panels = style.new_figure(len(maps), COLUMNS, 5.6, height_in)
    known = np.concatenate([one.values[np.isfinite(one.values)] for one in maps])
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    for axes, one in zip(panels, maps, strict=True):
        image = axes.imshow(one.values, cmap=style.DENSITY_MAP, vmin=low, vmax=high, origin="lower", aspect="auto")
        every = -(-len(one.column_texts) // MAX_TICKS)
        axes.set_xticks(range(0, len(one.column_texts), every), one.column_texts[::every])
        axes.set_yticks(range(len(one.row_texts)), one.row_texts)
        if one.values.size <= MAX_ANNOTATED:
            for row, column in np.argwhere(np.isfinite(one.values)):
                number = one.values[row, column]
                tint = "white" if number > (low + high) / 2 else style.BLACK
                axes.text(column, row, f"{number:.0f}", ha="center", va="center", fontsize=8, color=tint)
        style.style_axes(axes, one.title, x, y)
        axes.grid(False)
    style.colour_bar(figure, image, panels, value)
    return figure

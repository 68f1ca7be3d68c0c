"""Confusion matrix of a classifier."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from odebench.plots import style

MAX_ANNOTATED = 20


def confusion_matrix(counts: np.ndarray) -> Figure:
    """Draw the counts by true label (rows) and predicted label (columns).

    Colours are logarithmic, so that few errors are visible. For up to 20 classes the cells also show their counts.

    counts: [classes, classes], integers.
    """
    counts = np.asarray(counts)
    num = counts.shape[0]
    if counts.shape != (num, num):
        raise ValueError(f"counts must be square, got {counts.shape}")
    size_in = min(max(0.46 * num + 1.2, 3.4), 9.0)
    figure, (axes,) = style.new_figure(width_in=size_in + 0.9, height_in=size_in)
    top = max(float(counts.max(initial=0)), 2.0)
    shown = np.ma.masked_less_equal(counts, 0)  # no colour for zero
    image = axes.imshow(shown, cmap="Blues", norm=LogNorm(vmin=0.7, vmax=top))
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03)
    bar.set_label("images", fontsize=style.LABEL_PT)
    bar.ax.tick_params(labelsize=style.TICK_PT)
    if num <= MAX_ANNOTATED:
        dark_from = top**0.55  # slightly above the middle of the logarithmic scale
        for row, column in np.argwhere(counts):
            tint = "white" if counts[row, column] > dark_from else "black"
            axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=8, color=tint)
        axes.set_xticks(range(num))
        axes.set_yticks(range(num))
    total = counts.sum()
    errors = int(total - np.trace(counts))
    share = f": {errors:,} of {int(total):,} wrong ({100 * errors / total:.2f} %)" if total else ""
    style.style_axes(axes, f"Confusion{share}", "predicted label", "true label")
    axes.grid(False)
    return figure

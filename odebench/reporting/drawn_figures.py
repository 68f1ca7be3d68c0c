"""Figures that do not compare lines: NFE by epoch and tolerance, and errors of gradients."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from odebench.errors import UsageError
from odebench.plots.comparison import Line, Panel
from odebench.plots.dot_plot import dot_plot
from odebench.plots.heat_map import HeatMap, heat_maps
from odebench.reporting.evaluations import TOLERANCE
from odebench.reporting.lines import MAX_PANELS, MissingDataError, split_into_lines
from odebench.reporting.published import steps_per_epoch
from odebench.reporting.runs import RunCollection, RunGroup, read_rows

MAX_EPOCHS = 30  # columns; more epochs are joined


class DrawnFigure(NamedTuple):
    """A figure, and the numbers that it shows, as the lines of its panels.

    is_heat_map: whether each line is a row of cells, the first at the bottom.
    """

    figure: Figure
    panels: Sequence[Panel]
    is_heat_map: bool = False


def nfe_heat_map(collection: RunCollection) -> DrawnFigure:
    """Draw the mean forward NFE of a training step in each epoch at each tolerance, a panel for each other setting.

    Raises MissingDataError without two tolerances, UsageError with too many panels.
    """
    by_label, are_lines = split_into_lines(collection, ("tol",))
    panels = [_nfe_panel(label, groups) for label, groups in by_label.items()] if are_lines else []
    panels = [one for one in panels if len(one.lines) > 1 and any(np.isfinite(line.y).any() for line in one.lines)]
    if not panels:
        raise MissingDataError
    if len(panels) > MAX_PANELS:
        raise UsageError(f"it can show {MAX_PANELS} settings, but there are {len(panels):,}; name fewer runs")
    maps = [
        HeatMap(
            panel.title,
            np.stack([line.y for line in panel.lines]),
            [f"{epoch:g}" for epoch in panel.lines[0].x],
            [line.label.rpartition(" ")[2] for line in panel.lines],
        )
        for panel in panels
    ]
    return DrawnFigure(heat_maps(maps, panels[0].x, TOLERANCE, panels[0].y), panels, is_heat_map=True)


def _nfe_panel(label: str, groups: Iterable[RunGroup]) -> Panel:
    """The mean forward NFE by epoch, a line for each tolerance."""
    by_tol = {tol: group for group in groups if isinstance(tol := group.runs[0].settings["tol"], float)}
    rows = {tol: _nfe_by_epoch(group) for tol, group in by_tol.items()}
    tolerances = sorted(rows, reverse=True)
    last = max((max(its, default=0) for its in rows.values()), default=0)
    together = max(-(-last // MAX_EPOCHS), 1)
    starts = range(1, last + 1, together)
    values = np.full((len(tolerances), len(starts)), np.nan)
    for row, tol in enumerate(tolerances):
        for column, start in enumerate(starts):
            found = [nfe for epoch in range(start, start + together) for nfe in rows[tol].get(epoch, ())]
            values[row, column] = np.mean(found) if found else np.nan
    lines = [
        Line(f"tolerance {tol:g}", np.array(starts), its, runs=[str(by_tol[tol].runs[0].path)])
        for tol, its in zip(tolerances, values, strict=True)
    ]
    return Panel(label or "NFE over training", "epoch", "forward NFE per step", lines)


def _nfe_by_epoch(group: RunGroup) -> dict[int, list[float]]:
    """Epoch, from 1 -> the logged forward NFE of its steps in all runs of the group."""
    found: dict[int, list[float]] = {}
    for run in group.runs:
        steps = steps_per_epoch(run)
        for row in read_rows(run) if steps > 0 else ():
            if "nfe/forward" in row:
                found.setdefault(math.ceil(row["step"] / steps), []).append(row["nfe/forward"])
    return found


def gradient_errors(collection: RunCollection) -> DrawnFigure:
    """Draw the error of the gradient by gradient mode in benchmarks, a panel for each case and tolerance.

    Raises MissingDataError without such results, UsageError with too many panels.
    """
    rows = [
        row
        for row in collection.bench
        if isinstance(row.get("parameter_gradient_error"), float) and isinstance(row.get("tol"), float)
    ]
    several = len({row["method"] for row in rows}) > 1
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        words = filter(None, [row["library"], row["variant"], row["method"] if several else ""])
        marks = found.setdefault(f"{row['work']}, tolerance {row['tol']:g}", {})
        marks.setdefault(" ".join(words), {})[row["mode"]] = row["parameter_gradient_error"]
    if not found:
        raise MissingDataError
    if len(found) > MAX_PANELS:
        raise UsageError(
            f"it can show {MAX_PANELS} combinations of case and tolerance, but there are {len(found):,}; name fewer "
            "folders"
        )
    name, modes = "relative error of the parameters' gradient, against float64", [row["mode"] for row in rows]
    order = {mode: place for place, mode in enumerate(dict.fromkeys(modes))}
    panels = [
        Panel(
            title,
            "gradient mode",
            name,
            [
                Line(label, np.array([*map(order.get, errors)]), np.array([*errors.values()]), point_labels=[*errors])
                for label, errors in marks.items()
            ],
        )
        for title, marks in found.items()
    ]
    return DrawnFigure(dot_plot(found, name), panels)

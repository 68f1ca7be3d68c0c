"""NFE by epoch and tolerance, as a heat map."""

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure

from odebench.errors import UsageError
from odebench.plots.heat_map import HeatMap, heat_maps
from odebench.reporting.evaluations import TOLERANCE
from odebench.reporting.lines import MAX_PANELS, MissingDataError, split_into_lines
from odebench.reporting.runs import RunCollection, RunGroup, read_rows

MAX_EPOCHS = 30  # columns; more epochs are joined


def nfe_heat_map(collection: RunCollection) -> Figure:
    """Draw the mean forward NFE of a training step in each epoch at each tolerance, a panel for each other setting.

    Raises MissingDataError without two tolerances, UsageError with too many panels.
    """
    by_label, are_lines = split_into_lines(collection, ("tol",))
    maps = [_heat_map(label, groups) for label, groups in by_label.items()] if are_lines else []
    maps = [one for one in maps if one.values.shape[0] > 1 and np.isfinite(one.values).any()]
    if not maps:
        raise MissingDataError
    if len(maps) > MAX_PANELS:
        raise UsageError(f"it can show {MAX_PANELS} settings, but there are {len(maps):,}; name fewer runs")
    return heat_maps(maps, "epoch", TOLERANCE, "forward NFE of a step")


def _heat_map(label: str, groups: Iterable[RunGroup]) -> HeatMap:
    rows = {tol: _nfe_by_epoch(group) for group in groups if isinstance(tol := group.runs[0].settings["tol"], float)}
    tolerances = sorted(rows, reverse=True)
    last = max((max(its, default=0) for its in rows.values()), default=0)
    together = max(-(-last // MAX_EPOCHS), 1)
    starts = range(1, last + 1, together)
    values = np.full((len(tolerances), len(starts)), np.nan)
    for row, tol in enumerate(tolerances):
        for column, start in enumerate(starts):
            found = [nfe for epoch in range(start, start + together) for nfe in rows[tol].get(epoch, ())]
            values[row, column] = np.mean(found) if found else np.nan
    return HeatMap(
        label or "NFE over training", values, [f"{start}" for start in starts], [f"{t:g}" for t in tolerances]
    )


def _nfe_by_epoch(group: RunGroup) -> dict[int, list[float]]:
    """Epoch, from 1 -> the logged forward NFE of its steps in all runs of the group."""
    steps_per_epoch = group.mean("best/step") / group.mean("best/epoch")
    found: dict[int, list[float]] = {}
    for run in group.runs if steps_per_epoch > 0 else ():
        for row in read_rows(run):
            if "nfe/forward" in row:
                found.setdefault(int(np.ceil(row["step"] / steps_per_epoch)), []).append(row["nfe/forward"])
    return found

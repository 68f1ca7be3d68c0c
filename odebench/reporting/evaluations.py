"""Results of `odebench eval` as lines of a figure, and Figure 3 of Chen et al. 2018."""

from collections.abc import Callable, Set
from typing import Any

import numpy as np

from odebench.plots.comparison import Comparison, Line, Panel
from odebench.record import layout
from odebench.reporting.lines import (
    group_label,
    join_nonempty,
    label_keys,
    mean_curves,
    named_groups,
    nfe_ratio_lines,
    nonempty_panels,
    positive_only,
    require_points,
)
from odebench.reporting.runs import Row, Run, RunCollection, RunGroup, read_evaluations, read_rows

TOLERANCE, FORWARD_LABEL = "tolerance (rtol = atol)", "forward NFE of a training step"
# Key of the error of the output, relative to a solve at a much smaller tolerance.
OUTPUT_ERROR = "output_error"
# Key of an error of a training step's gradient -> the reference.
GRADIENT_ERRORS = {
    "gradient_error_discrete": "against the discrete solve",
    "gradient_error": "against float64 at 1e-9",
}


def evaluated_run(group: RunGroup) -> Run | None:
    """The first completed run of a group that was evaluated."""
    return next((run for run in group.done_runs if (run.path / layout.EVALUATIONS).exists()), None)


def evaluation_lines(collection: RunCollection, y: str, x: str = "tol") -> list[Line]:
    """Make the lines of a plot of `y` against `x`, from the evaluations of one run per group.

    There is one line per solver and, if a run was evaluated with several gradient modes, per gradient mode.
    """
    solvers, others = _evaluated(collection, "solver"), _evaluated(collection, "others")
    lines = []
    for label, run in named_groups(collection, evaluated_run):
        several = len({row["gradient"] for row in read_evaluations(run)}) > 1

        def name_of(row: Row, label: str = label, several: bool = several) -> str:
            name = _solver_label(label, row["solver"], solvers)
            return join_nonempty(name, row["gradient"] if several else "", row["others"] if len(others) > 1 else "")

        lines += _evaluation_curves(run, name_of, x, y)
    return lines


def _evaluated(collection: RunCollection, key: str) -> set[Any]:
    """The values of a key in all evaluations that are drawn."""
    runs = filter(None, map(evaluated_run, collection.groups))
    return {row[key] for run in runs for row in read_evaluations(run)}


def _solver_label(label: str, solver: str, solvers: Set[str]) -> str:
    """The label of a line: the model's label, if there is one, and the solver, if the evaluations have several."""
    if not label:
        return solver
    return f"{label}, solved by {solver}" if len(solvers) > 1 else label


def _evaluation_curves(run: Run, name_of: Callable[[Row], str], x: str, y: str) -> list[Line]:
    """Make the lines of a plot of `y` against `x`, from a run's evaluations, sorted by tolerance or steps.

    name_of: gives the label of an evaluation's line, which differs if any setting but the tolerance or steps does. If
    an evaluation was repeated, the last result is used.
    """
    last: dict[str, dict[str, Row]] = {}
    for row in read_evaluations(run):
        if all(isinstance(row.get(key), int | float) for key in (x, y)):
            last.setdefault(name_of(row), {})[str(row["resolution"])] = row
    lines = []
    for name, rows in last.items():
        points = np.array([(row[x], row[y]) for row in sorted(rows.values(), key=_resolution)], dtype=float)
        lines.append(Line(name, points[:, 0], points[:, 1], runs=[str(run.path)]))
    return lines


def _resolution(row: Row) -> tuple[float, float]:
    """A key that sorts evaluations by tolerance or steps; if rtol and atol differ, by NFE."""
    value = row["resolution"]
    return value if isinstance(value, int | float) else np.inf, row.get("nfe", 0)


def gradient_against_tolerance(collection: RunCollection) -> Comparison:
    """Draw both errors of a training step's gradient against tolerance.

    There is one row per model, one panel per error, and one line per gradient mode and solver. Raises MissingDataError
    if no evaluation measured these errors.
    """
    keys = label_keys(collection.groups, collection.varying_keys)
    keys = [key for key in keys if key not in ("gradient.name", "solver.name")]
    found: dict[tuple[str, str], list[Line]] = {}
    for group in collection.groups:
        if run := evaluated_run(group):
            for error in GRADIENT_ERRORS:
                lines = _evaluation_curves(run, _gradient_label, "step_tol", error)
                found.setdefault((group_label(group, keys), error), []).extend(positive_only(lines))
    options: dict[str, Any] = {"x_log": True, "y_log": True, "x_descending": True}
    panels = [
        Panel(
            f"{title or 'gradient'}: {GRADIENT_ERRORS[error]}",
            TOLERANCE,
            "relative error of the gradient",
            lines,
            **options,
        )
        for (title, error), lines in found.items()
    ]
    return nonempty_panels(panels, columns=len(GRADIENT_ERRORS))


def _gradient_label(row: Row) -> str:
    return join_nonempty(row["gradient"], row["step_solver"], row["others"])


def figure3(collection: RunCollection) -> Comparison:
    """Draw the four panels of the paper's Figure 3 for trained models.

    They show error against NFE, time against NFE, backward against forward NFE, and NFE over training. Omits empty
    panels; raises MissingDataError if the first panel is empty.
    """
    backward = positive_only(evaluation_lines(collection, "nfe_backward", "nfe_forward"))
    least = min((one.finite().x.min(initial=np.inf) for one in backward), default=1.0)
    ratios = nfe_ratio_lines(collection.runs, backward, least)
    error = require_points(evaluation_lines(collection, OUTPUT_ERROR, "nfe"))
    time = evaluation_lines(collection, "forward_ms", "nfe_forward")
    over, x = _over_training(collection)
    panels = [
        Panel("(a) Error against NFE", "NFE of a batch", "relative error of the output", error),
        Panel("(b) Time against NFE", FORWARD_LABEL, "time of the forward pass (ms)", time, x_log=False, y_log=False),
        Panel("(c) Backward against forward", FORWARD_LABEL, "backward NFE", backward, ratios, x_log=True, y_log=True),
        Panel("(d) NFE over training", x, FORWARD_LABEL, over, as_curves=True, x_log=False, y_log=False),
    ]
    return nonempty_panels(panels, columns=2)


def _over_training(collection: RunCollection) -> tuple[list[Line], str]:
    """The forward NFE over the training of each evaluated model, as labelled lines, and the label of the x axis."""
    rows, steps_per_epoch, solvers = {}, {}, _evaluated(collection, "solver")
    for label, group in named_groups(collection, lambda group: group if evaluated_run(group) else None):
        name = _solver_label(label, group.settings["solver.name"], solvers)
        rows[name] = [read_rows(run) for run in group.runs]
        steps_per_epoch[name] = group.mean("best/step") / group.mean("best/epoch")
    lines = mean_curves(rows, "nfe/forward")
    if not all(steps_per_epoch[one.label] > 0 for one in lines):
        return lines, "optimiser step"
    return [one._replace(x=one.x / steps_per_epoch[one.label]) for one in lines], "epoch"

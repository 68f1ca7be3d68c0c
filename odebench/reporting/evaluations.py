"""What `odebench eval` found of trained models, as the lines of a figure; and Figure 3 of Chen et al. 2018."""

from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure

from odebench.plots.comparison import Line, Panel, comparison_figure
from odebench.record import layout
from odebench.reporting.lines import (
    MissingDataError,
    finite_points,
    group_label,
    join_nonempty,
    label_keys,
    mean_curves,
    named_groups,
    nfe_ratio_lines,
    num_points,
    positive_only,
    require_points,
)
from odebench.reporting.runs import Row, Run, RunCollection, RunGroup, read_evaluations, read_rows

# Of an evaluation: the error of its output, against a solve at a far smaller tolerance.
OUTPUT_ERROR = "output_error"
# Those of a training step's gradient, and what each is against.
GRADIENT_ERRORS = {
    "gradient_error_discrete": "relative error against the discrete solve",
    "gradient_error": "relative error against float64 at 1e-9",
}


def evaluated_runs(collection: RunCollection) -> Iterator[tuple[str, Run]]:
    """Of each group the first run that was evaluated, with the group's label."""
    for label, group in named_groups(collection, _evaluated):
        for run in _evaluated(group):
            yield label, run


def _evaluated(group: RunGroup) -> list[Run]:
    """The first run that was evaluated, if any."""
    return [run for run in group.done_runs if (run.path / layout.EVALUATIONS).exists()][:1]


def lines_by_solver(label: str, run: Run, y: str, x: str = "tol") -> list[Line]:
    """A number of a run's evaluations against another one, a line a solver and, where they have several, a gradient
    mode."""
    several = len({row["gradient"] for row in read_evaluations(run)}) > 1
    return _evaluation_curves(
        run, lambda row: join_nonempty(_solver_label(label, row["solver"]), row["gradient"] if several else ""), x, y
    )


def _solver_label(label: str, solver: str) -> str:
    """The name of a trained model with the solver that solves it now; of the only one no more than that."""
    return f"{label}, solved by {solver}" if label else solver


def _evaluation_curves(run: Run, named: Callable[[Row], str], x: str, y: str) -> list[Line]:
    """A number of a run's evaluations against another one, in the order of the tolerances or the steps, by name; the
    last of those made alike. Those that were made with other settings are lines of their own."""
    last: dict[str, dict[str, Row]] = {}
    for row in read_evaluations(run):
        if all(isinstance(row.get(key), int | float) for key in (x, y)):
            last.setdefault(join_nonempty(named(row), row["others"]), {})[str(row["resolution"])] = row
    return [
        Line(name, *np.array([(row[x], row[y]) for row in sorted(rows.values(), key=_resolution)], dtype=float).T)
        for name, rows in last.items()
    ]


def _resolution(row: Row) -> tuple[float, float]:
    """Of two tolerances in words the evaluations tell the order."""
    value = row["resolution"]
    return value if isinstance(value, int | float) else np.inf, row.get("nfe", 0)


def gradient_against_tolerance(collection: RunCollection) -> Figure:
    """Both errors of a training step's gradient against the tolerance of its solve: a row a model, a panel an error, a
    line a gradient mode and solver. Lacking without any."""
    keys = label_keys(collection.groups, collection.varying_keys)
    keys = [key for key in keys if key not in ("gradient.name", "solver.name")]
    found: dict[tuple[str, str], list[Line]] = {}
    for group in collection.groups:
        for run in _evaluated(group):
            for error in GRADIENT_ERRORS:
                lines = _evaluation_curves(run, _mode_and_solver, "step_tol", error)
                found.setdefault((group_label(group, keys), error), []).extend(positive_only(lines))
    panels = [
        Panel(f"Gradient, {title}".removesuffix(", "), "tolerance (rtol = atol)", GRADIENT_ERRORS[error], lines)
        for (title, error), lines in found.items()
        if sum(map(num_points, lines)) > 1
    ]
    if not panels:
        raise MissingDataError
    panels = [panel._replace(x_log=True, y_log=True, x_descending=True) for panel in panels]
    return comparison_figure(panels, columns=len(GRADIENT_ERRORS))


def _mode_and_solver(row: Row) -> str:
    """Of the training step of an evaluation."""
    return f"{row['gradient']}, {row['step_solver']}"


def figure3(collection: RunCollection) -> Figure:
    """Four panels of trained models, as in the paper: error against NFE, time against NFE, backward against forward
    NFE, NFE over training. Those that have no points are left out, but for the first: Lacking."""
    runs = list(evaluated_runs(collection))

    def lines(y: str, x: str) -> list[Line]:
        return [one for label, run in runs for one in lines_by_solver(label, run, y, x)]

    forward, backward = "forward NFE of a training step", positive_only(lines("nfe_backward", "nfe_forward"))
    least = min((finite_points(one)[0].min(initial=np.inf) for one in backward), default=1.0)
    over, x = _over_training(collection)
    panels = [
        Panel(
            "(a) Error against NFE",
            "NFE of a batch",
            "relative error of the output",
            require_points(lines(OUTPUT_ERROR, "nfe")),
        ),
        Panel(
            "(b) Time against NFE",
            forward,
            "time of its forward pass (ms)",
            lines("forward_ms", "nfe_forward"),
            x_log=False,
            y_log=False,
        ),
        Panel(
            "(c) Backward against forward",
            forward,
            "backward NFE",
            backward,
            nfe_ratio_lines(collection.runs, backward, least),
            x_log=True,
            y_log=True,
        ),
        Panel("(d) NFE over training", x, forward, over, as_curves=True, x_log=False, y_log=False),
    ]
    return comparison_figure([panel for panel in panels if sum(map(num_points, panel.lines)) > 1], columns=2)


def _over_training(collection: RunCollection) -> tuple[list[Line], str]:
    """Forward NFE of the trainings whose models were evaluated, labelled as their solvers' studies are; and the label
    of the x axis."""
    rows, of_epoch = {}, {}
    for label, group in named_groups(collection, _evaluated):
        named = _solver_label(label, group.settings["solver.name"])
        rows[named] = [read_rows(run) for run in group.runs]
        of_epoch[named] = group.mean("best/step") / group.mean("best/epoch")
    lines = mean_curves(rows, "nfe/forward")
    if not all(of_epoch[one.label] > 0 for one in lines):
        return lines, "optimiser step"
    return [one._replace(x=one.x / of_epoch[one.label]) for one in lines], "epoch"

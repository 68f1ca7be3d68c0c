"""What `odebench eval` found of trained models, as the lines of a figure; and Figure 3 of Chen et al. 2018."""

from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure

from odebench.plots.comparison import Line, Panel, comparison
from odebench.record import layout
from odebench.reporting.lines import (
    Lacking,
    count,
    enough,
    finite,
    joined,
    lines_of_rows,
    named_groups,
    slopes,
    solved,
    telling_keys,
)
from odebench.reporting.lines import label as label_of
from odebench.reporting.runs import Evidence, Group, Row, Run, evaluations, rows_of

# Of an evaluation: the error of its output, against a solve at a far smaller tolerance.
OUTPUT_ERROR = "output_error"
# Those of a training step's gradient, and what each is against.
GRADIENT_ERRORS = {
    "gradient_error_discrete": "relative error against the discrete solve",
    "gradient_error": "relative error against float64 at 1e-9",
}


def evaluated_runs(evidence: Evidence) -> Iterator[tuple[str, Run]]:
    """Of each group the first run that was evaluated, with the group's label."""
    for label, group in named_groups(evidence, _evaluated):
        for run in _evaluated(group):
            yield label, run


def _evaluated(group: Group) -> list[Run]:
    """The first run that was evaluated, if any."""
    return [run for run in group.done if (run.path / layout.EVALUATIONS).exists()][:1]


def by_solver(label: str, run: Run, y: str, x: str = "tol") -> list[Line]:
    """A number of a run's evaluations against another one, a line a solver and, where they have several, a gradient
    mode."""
    several = len({row["gradient"] for row in evaluations(run)}) > 1
    return _lines(run, lambda row: joined(_solved_by(label, row["solver"]), row["gradient"] if several else ""), x, y)


def _solved_by(label: str, solver: str) -> str:
    """The name of a trained model with the solver that solves it now; of the only one no more than that."""
    return f"{label}, solved by {solver}" if label else solver


def _lines(run: Run, named: Callable[[Row], str], x: str, y: str) -> list[Line]:
    """A number of a run's evaluations against another one, in the order of the tolerances or the steps, by name; the
    last of those made alike. Those that were made with other settings are lines of their own."""
    last: dict[str, dict[str, Row]] = {}
    for row in evaluations(run):
        if all(isinstance(row.get(key), int | float) for key in (x, y)):
            last.setdefault(joined(named(row), row["others"]), {})[str(row["fineness"])] = row
    return [
        Line(name, *np.array([(row[x], row[y]) for row in sorted(rows.values(), key=_fineness)], dtype=float).T)
        for name, rows in last.items()
    ]


def _fineness(row: Row) -> tuple[float, float]:
    """Of two tolerances in words the evaluations tell the order."""
    value = row["fineness"]
    return value if isinstance(value, int | float) else np.inf, row.get("nfe", 0)


def gradient_against_tolerance(evidence: Evidence) -> Figure:
    """Both errors of a training step's gradient against the tolerance of its solve: a row a model, a panel an error, a
    line a gradient mode and solver. Lacking without any."""
    keys = telling_keys(evidence.groups, evidence.varying)
    keys = [key for key in keys if key not in ("gradient.name", "solver.name")]
    found: dict[tuple[str, str], list[Line]] = {}
    for group in evidence.groups:
        for run in _evaluated(group):
            for error in GRADIENT_ERRORS:
                lines = _lines(run, _mode_and_solver, "step_tol", error)
                found.setdefault((label_of(group, keys), error), []).extend(solved(lines))
    panels = [
        Panel(f"Gradient, {title}".removesuffix(", "), "tolerance (rtol = atol)", GRADIENT_ERRORS[error], lines)
        for (title, error), lines in found.items()
        if sum(map(count, lines)) > 1
    ]
    if not panels:
        raise Lacking
    panels = [panel._replace(x_log=True, y_log=True, x_falls=True) for panel in panels]
    return comparison(panels, columns=len(GRADIENT_ERRORS))


def _mode_and_solver(row: Row) -> str:
    """Of the training step of an evaluation."""
    return f"{row['gradient']}, {row['step_solver']}"


def figure3(evidence: Evidence) -> Figure:
    """Four panels of trained models, as in the paper: error against NFE, time against NFE, backward against forward
    NFE, NFE over training. Those that have no points are left out, but for the first: Lacking."""
    runs = list(evaluated_runs(evidence))

    def lines(y: str, x: str) -> list[Line]:
        return [one for label, run in runs for one in by_solver(label, run, y, x)]

    forward, backward = "forward NFE of a training step", solved(lines("nfe_backward", "nfe_forward"))
    least = min((finite(one)[0].min(initial=np.inf) for one in backward), default=1.0)
    over, x = _over_training(evidence)
    panels = [
        Panel(
            "(a) Error against NFE",
            "NFE of a batch",
            "relative error of the output",
            enough(lines(OUTPUT_ERROR, "nfe")),
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
            slopes(evidence.runs, backward, least),
            x_log=True,
            y_log=True,
        ),
        Panel("(d) NFE over training", x, forward, over, curves=True, x_log=False, y_log=False),
    ]
    return comparison([panel for panel in panels if sum(map(count, panel.lines)) > 1], columns=2)


def _over_training(evidence: Evidence) -> tuple[list[Line], str]:
    """Forward NFE of the trainings whose models were evaluated, labelled as their solvers' studies are; and the label
    of the x axis."""
    rows, of_epoch = {}, {}
    for label, group in named_groups(evidence, _evaluated):
        named = _solved_by(label, group.settings["solver.name"])
        rows[named] = [rows_of(run) for run in group.runs]
        of_epoch[named] = group.mean("best/step") / group.mean("best/epoch")
    lines = lines_of_rows(rows, "nfe/forward")
    if not all(of_epoch[one.label] > 0 for one in lines):
        return lines, "optimiser step"
    return [one._replace(x=one.x / of_epoch[one.label]) for one in lines], "epoch"

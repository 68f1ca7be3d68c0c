"""What `odebench eval` found of trained models, as the lines of a figure; and Figure 3 of Chen et al. 2018."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from odebench.plots.comparison import Line, Panel, comparison
from odebench.record import schema
from odebench.reporting.lines import count, enough, finite, lines_of_rows, named_groups, slopes, solved
from odebench.reporting.runs import Evidence, Run, evaluations, rows_of

# Of an evaluation: the error of its output, against a solve at a far smaller tolerance.
OUTPUT_ERROR = "output_error"


def evaluated_runs(evidence: Evidence) -> Iterator[tuple[str, Run]]:
    """Of each group the first run that was evaluated, with the group's label."""
    for label, group in named_groups(evidence):
        run = next((run for run in group.done if (run.path / schema.EVALUATIONS).exists()), None)
        if run:
            yield label, run


def by_solver(label: str, run: Run, y: str, x: str = "tol") -> list[Line]:
    """A number of a run's evaluations against another one, in the order of their tolerances, a line a solver; the last
    of those made alike."""
    last: dict[str, dict[float, tuple[float, float]]] = {}
    for row in evaluations(run):
        if all(isinstance(row.get(key), int | float) for key in (x, y)) and isinstance(row["tol"], float):
            last.setdefault(row["solver"], {})[row["tol"]] = row[x], row[y]
    lines = []
    for solver, of_tolerance in last.items():
        points = np.array([point for _, point in sorted(of_tolerance.items())], dtype=float)
        lines.append(Line(_joined(label, solver), *points.T))
    return lines


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
            slopes(evidence, backward, least),
            x_log=True,
            y_log=True,
        ),
        Panel("(d) NFE over training", x, forward, over, curves=True, x_log=False, y_log=False),
    ]
    return comparison([panel for panel in panels if sum(map(count, panel.lines)) > 1], columns=2)


def _over_training(evidence: Evidence) -> tuple[list[Line], str]:
    """Forward NFE of each group's training, labelled as its solver's studies are; and the label of the x axis."""
    rows, of_epoch = {}, {}
    for label, group in named_groups(evidence):
        named = _joined(label, group.runs[0].settings["solver.name"])
        rows[named] = [rows_of(run) for run in group.runs]
        of_epoch[named] = group.mean("best/step") / group.mean("best/epoch")
    lines = lines_of_rows(rows, "nfe/forward")
    if not all(of_epoch[one.label] > 0 for one in lines):
        return lines, "optimiser step"
    return [one._replace(x=one.x / of_epoch[one.label]) for one in lines], "epoch"


def _joined(label: str, solver: str) -> str:
    return ", ".join(filter(None, [label, solver]))

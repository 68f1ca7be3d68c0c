"""The figures of a report, by name. Each is drawn from files alone, or says what would make it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from odebench.config.schema.quantities import higher_is_better
from odebench.errors import UsageError, unknown_name
from odebench.plots.comparison import MAX_LINES, Guide, Line, Panel, comparison
from odebench.plots.dots import dots
from odebench.record import layout
from odebench.record.files import content_of
from odebench.reporting.lines import (
    ALONG,
    Lacking,
    count,
    enough,
    finite,
    front,
    guides,
    joined,
    line,
    lines_of_rows,
    named_groups,
    result_label,
    slopes,
    solved,
    split_into_lines,
)
from odebench.reporting.panels import MAX_PANELS, Subject, by_subject, data_of, draw_panels, points_of, subjects
from odebench.reporting.runs import Evidence, Group, Row, Run, rows_of
from odebench.reporting.studies import OUTPUT_ERROR, by_solver, evaluated_runs, figure3, gradient_against_tolerance

FORWARD, BACKWARD, STEP_MS = "final/nfe_forward", "final/nfe_backward", "final/step_ms"
# Cost -> its tag and the label of its axis.
COSTS = {
    "NFE": (FORWARD, "forward NFE of a training step"),
    "time": ("final/minutes", "training time (min)"),
    "memory": ("final/peak_mib", "peak memory of a training step (MiB)"),
}
TOLERANCE = "tolerance (rtol = atol)"
# Model -> the setting that Figure 4 of Chen et al. 2018 calls its size, and what a line of it is called.
SIZES = {"cnf": ("model.width", "CNF"), "planar_nf": ("model.layers", "planar flow")}


class FigureKind(NamedTuple):
    """A figure: what it shows, what it needs and what would make that, and how it is drawn."""

    shows: str
    needs: str
    draw: Callable[[Evidence], Figure]


def draw(name: str, evidence: Evidence) -> Figure:
    """The figure of a name. UsageError for a name that is none, Lacking where the files cannot give it."""
    if name not in FIGURES:
        raise unknown_name("figure", name, FIGURES, "figures")
    try:
        return FIGURES[name].draw(evidence)
    except Lacking:
        raise Lacking(f"figure {name} needs {FIGURES[name].needs}") from None
    except UsageError as error:
        raise UsageError(f"figure {name}: {error}") from None


def _mean(tag: str) -> Callable[[Group], float]:
    return lambda group: group.mean(tag)


def _both_ways(group: Group) -> float:
    """NFE of a training step, forward and backward."""
    return group.mean(FORWARD) + np.nan_to_num(group.mean(BACKWARD))


def _result_against(cost: str) -> Callable[[Evidence], Figure]:
    def draw(evidence: Evidence) -> Figure:
        found, are_lines = by_subject(evidence, subjects(evidence))
        panels = [_result_panel(evidence, *item, cost, are_lines) for item in found.items()]
        # One point says something beside those of other panels, or beside what was published.
        return draw_panels(panels, least=1 if sum(map(points_of, panels)) > 1 else 2)

    return draw


def _runs(by_label: Mapping[str, Sequence[Group]]) -> list[Run]:
    return [run for groups in by_label.values() for group in groups for run in group.runs]


def _result_panel(
    evidence: Evidence, subject: Subject, by_label: Mapping[str, Sequence[Group]], cost: str, are_lines: bool
) -> Panel:
    """Means over seeds, a line along tolerances or steps."""
    tag, (cost_tag, x) = evidence.result_tag(subject.quantity), COSTS[cost]
    lines = [line(label, groups, _mean(cost_tag), tag) for label, groups in by_label.items()]
    found = guides(_runs(by_label), tag)
    return Panel(f"{subject.data}: result against {cost}", x, _y(subject, evidence.split), lines, found, are_lines)


def _y(subject: Subject, split: str) -> str:
    return result_label(subject.quantity, split, subject.loss)


def _pareto(evidence: Evidence) -> Figure:
    found, are_lines = by_subject(evidence, subjects(evidence), panels_each=len(COSTS))
    return draw_panels([_front_panel(evidence, *item, cost, are_lines) for item in found.items() for cost in COSTS])


def _front_panel(
    evidence: Evidence, subject: Subject, by_label: Mapping[str, Sequence[Group]], cost: str, are_lines: bool
) -> Panel:
    """All groups by result and cost, and the front of those that no other beats."""
    tag, (cost_tag, x) = evidence.result_tag(subject.quantity), COSTS[cost]
    own = [group for groups in by_label.values() for group in groups]
    best = front(own, _mean(cost_tag), _mean(tag), higher_is_better(subject.quantity))
    told = {id(group) for group in best} if are_lines else set()
    lines = []
    for label, groups in by_label.items():
        drawn = line(label, groups, _mean(cost_tag), tag)._replace(y_spread=None)
        names = [name if id(group) in told else "" for group, name in zip(groups, drawn.names, strict=False)]
        lines.append(drawn._replace(label=label or "settings", names=names))
    edge = line("", best, _mean(cost_tag), tag)
    guide = Guide("Pareto front", x=edge.x, y=edge.y, is_front=True)
    return Panel(f"{subject.data}: against {cost}", x, _y(subject, evidence.split), lines, [guide], False)


def _figure4(evidence: Evidence) -> Figure:
    """Divergence against the size of the model, a panel a target, a line a model."""
    tag = evidence.result_tag("kl_nats")
    found: dict[str, dict[str, list[Group]]] = {}
    for group in evidence.groups:
        settings = group.runs[0].settings
        if settings.get("model.name") in SIZES and np.isfinite(group.mean(tag)):
            found.setdefault(settings["data.name"], {}).setdefault(settings["model.name"], []).append(group)
    x, y = "width M of the CNF, depth K of the planar flow", f"{evidence.split} KL(q || p) (nats)"
    lines = {
        target: [_by_size(model, groups, tag) for model, groups in of_target.items()]
        for target, of_target in found.items()
    }
    return draw_panels([Panel(target, x, y, its, x_log=True, y_log=True) for target, its in lines.items()])


def _by_size(model: str, groups: Sequence[Group], tag: str) -> Line:
    key, named = SIZES[model]
    return line(named, groups, lambda group: float(group.runs[0].settings[key]), tag)._replace(names=())


def _result_over_training(evidence: Evidence) -> Figure:
    """Of each validation, against the optimiser's steps and against time, a curve a setting."""
    subject_of, found = subjects(evidence), dict[Subject, dict[str, list[list[Row]]]]()
    for label, group in named_groups(evidence):
        found.setdefault(subject_of(group.runs[0]), {})[label] = [rows_of(run) for run in group.runs]
    panels = []
    for subject, rows in found.items():
        tag, y = f"val/{subject.quantity}", _y(subject, "validation")
        by_step, by_time = (lines_of_rows(rows, tag, along, smooth=False) for along in ("step", "elapsed_s"))
        by_time = [one._replace(x=one.x / 60) for one in by_time]
        for title, x, lines in (("steps", "optimiser step", by_step), ("time", "training time (min)", by_time)):
            panels.append(Panel(f"{subject.data}: result over {title}", x, y, lines, curves=True, x_log=False))
    return draw_panels(panels, columns=2)


def _nfe_against_tolerance(evidence: Evidence) -> Figure:
    by_label, are_lines = split_into_lines(evidence, ("tol",), "solver.name")
    panels = []
    for tag, way in ((FORWARD, "Forward"), (BACKWARD, "Backward")):
        lines = [line(label, groups, _tolerance, tag)._replace(names=()) for label, groups in by_label.items()]
        panels.append(
            Panel(f"{way} NFE in training", TOLERANCE, "NFE of a training step", solved(lines), (), are_lines)
        )
    if len(evidence.groups) <= MAX_LINES:
        after = [one for label, run in evaluated_runs(evidence) for one in by_solver(label, run, "nfe")]
        panels.append(Panel("NFE after training", TOLERANCE, "NFE of a batch", after))
    panels = [panel for panel in panels if len({x for one in panel.lines for x in finite(one)[0]}) > 1]
    if not panels:
        raise Lacking
    return comparison([panel._replace(x_log=True, x_falls=True) for panel in panels])


def _tolerance(group: Group) -> float:
    value = group.runs[0].settings["tol"]
    return value if isinstance(value, float) else np.nan


def _error_against_tolerance(evidence: Evidence) -> Figure:
    lines = enough([one for label, run in evaluated_runs(evidence) for one in by_solver(label, run, OUTPUT_ERROR)])
    tolerances = np.concatenate([one.x for one in lines])
    equal = [tolerances.min(), tolerances.max()]
    guide = Guide("error = tolerance", x=equal, y=equal)
    panel = Panel("Error of the output", TOLERANCE, "relative error against float64 at 1e-9", lines, [guide])
    return comparison([panel._replace(x_log=True, y_log=True, x_falls=True)])


def _time_against_nfe(evidence: Evidence) -> Figure:
    by_data, are_lines = by_subject(evidence, data_of)
    x, y = "NFE of a training step, forward + backward", "time of a training step (ms)"
    panels = []
    for data, by_label in by_data.items():
        lines = [line(label, groups, _both_ways, STEP_MS) for label, groups in by_label.items()]
        panels.append(Panel(f"{data}: time against NFE", x, y, lines, (), are_lines, x_log=False, y_log=False))
    return draw_panels(panels)


def _backward_against_forward(evidence: Evidence) -> Figure:
    by_data, are_lines = by_subject(evidence, data_of, first="gradient.name")
    x, y = "forward NFE of a training step", "backward NFE of a training step"
    panels = []
    for data, by_label in by_data.items():
        lines = solved([line(label, groups, _mean(FORWARD), BACKWARD) for label, groups in by_label.items()])
        title, found = f"{data}: backward against forward", slopes(_runs(by_label), lines)
        panels.append(Panel(title, x, y, lines, found, are_lines, x_log=False, y_log=False))
    return draw_panels(panels, least=1)


def _nfe_over_training(evidence: Evidence) -> Figure:
    rows = {label: [rows_of(run) for run in group.runs] for label, group in named_groups(evidence)}
    panels = []
    for tag, way in (("nfe/forward", "Forward"), ("nfe/backward", "Backward")):
        lines = solved(lines_of_rows(rows, tag))
        if any(map(count, lines)):
            panels.append(Panel(f"{way} NFE over training", "optimiser step", "NFE of a training step", lines))
    if not panels:
        raise Lacking
    return comparison([panel._replace(curves=True, x_log=False, y_log=False) for panel in panels])


def _memory_against_depth(evidence: Evidence) -> Figure:
    by_data, are_lines = by_subject(evidence, data_of, along=(*ALONG, "model.blocks"), first="gradient.name")
    x, y = "depth: forward NFE, or blocks of a residual network", COSTS["memory"][1]
    mode = (
        "" if "gradient.name" in evidence.varying or not evidence.runs else evidence.runs[0].settings["gradient.name"]
    )
    panels = []
    for data, by_label in by_data.items():
        lines = [line(joined(label, mode), groups, _depth, "final/peak_mib") for label, groups in by_label.items()]
        panels.append(Panel(f"{data}: memory against depth", x, y, lines, (), are_lines, x_log=False, y_log=False))
    return draw_panels(panels)


def _depth(group: Group) -> float:
    nfe, blocks = group.mean(FORWARD), group.runs[0].settings.get("model.blocks")
    return nfe if np.isfinite(nfe) or blocks is None else blocks


def _gradient_error(evidence: Evidence) -> Figure:
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for row in evidence.bench:
        if isinstance(row.get("parameter_gradient_error"), float) and isinstance(row.get("tol"), float):
            words = filter(None, [row["library"], row["variant"], row["method"]])
            marks = panels.setdefault(f"{row['work']}, tolerance {row['tol']:g}", {})
            marks.setdefault(" ".join(words), {})[row["mode"]] = row["parameter_gradient_error"]
    if not panels:
        raise Lacking
    if len(panels) > MAX_PANELS:
        raise UsageError(f"it shows up to {MAX_PANELS} works and tolerances, not {len(panels):,}; name fewer folders")
    return dots(panels, "relative error of the parameters' gradient, against float64")


def _step_sizes(evidence: Evidence) -> Figure:
    """Of each setting the solve of a training step that takes the most steps; of the decoder, say, not of a gap."""
    found: dict[tuple[str, str], list[Line]] = {}  # each model has a time of its own
    for label, group in named_groups(evidence, _longest_solve):
        solve = _longest_solve(group)
        assert solve is not None
        start, sizes, place = solve
        ends = np.cumsum([0.0 if start is None else start, *sizes])
        title = f"{group.settings['model.name']}: step sizes of {place or 'one solve'}"
        x = "t where a step starts" if start is not None else "t since the start of the solve"
        found.setdefault((title, x), []).append(Line(label, ends[:-1], np.abs(sizes)))
    unit = "(time of the ODE)"
    panels = [
        Panel(title, f"{x} {unit}", f"step size {unit}", lines, x_log=False) for (title, x), lines in found.items()
    ]
    return draw_panels(panels, least=1)


def _longest_solve(group: Group) -> tuple[float | None, list[float], str] | None:
    """Where it starts, if that is known, the sizes of its accepted steps, and which of several it is; of the first run
    that has one."""
    for run in group.runs:
        path = run.path / layout.STEPS
        if (held := content_of(path)) is None:
            continue
        try:
            content = json.loads(held)
            solves = [[float(size) for size in sizes] for sizes in content["solves"]]
            starts = [*content.get("starts", ()), *[None] * len(solves)]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UsageError(f"{path} is damaged") from None
        number = max(range(len(solves)), key=lambda one: len(solves[one]), default=0)
        if solves and solves[number]:
            return starts[number], solves[number], f"solve {number + 1} of {len(solves)}" if len(solves) > 1 else ""
    return None


_SWEEP = "two settings that ran to their end; make them: odebench sweep tol=1e-2,1e-3,1e-4"

FIGURES = {
    "result-nfe": FigureKind("the objective against forward NFE", _SWEEP, _result_against("NFE")),
    "result-time": FigureKind("the objective against training time", _SWEEP, _result_against("time")),
    "result-memory": FigureKind("the objective against peak memory", _SWEEP, _result_against("memory")),
    "result-training": FigureKind(
        "the objective of each validation over a training, by steps and by time",
        "a run with two validations; make it: odebench train",
        _result_over_training,
    ),
    "pareto": FigureKind("the objective against each cost, with the settings that no other beats", _SWEEP, _pareto),
    "nfe-tolerance": FigureKind(
        "NFE against tolerance, in training and after it",
        "two tolerances; make them: odebench sweep tol=1e-2,1e-4, or odebench eval RUN tol=1e-2 and again tol=1e-4",
        _nfe_against_tolerance,
    ),
    "error-tolerance": FigureKind(
        "error of the output against tolerance, after training",
        f"evaluations at tolerances, with an {OUTPUT_ERROR}; make them: odebench eval RUN tol=1e-2,1e-3,1e-4",
        _error_against_tolerance,
    ),
    "gradient-tolerance": FigureKind(
        "errors of the gradient against tolerance, after training, a line a gradient mode",
        "evaluations with gradients; make them: odebench eval RUN gradient=adjoint,checkpoint tol=1e-2,1e-3,1e-4",
        gradient_against_tolerance,
    ),
    "figure3": FigureKind(
        "of a trained model error, time and backward NFE against forward NFE; its NFE over training (Chen et al. 2018)",
        "two evaluations of a trained model; make them: odebench eval RUN solver=dopri5,adams tol=1e-2,1e-3,1e-4",
        figure3,
    ),
    "figure4": FigureKind(
        "divergence from a target against the size of CNF and planar flow (Chen et al. 2018)",
        "density matching by models of two sizes; make them: odebench sweep experiment=paper/cnf_density_matching"
        " model.width=2,8",
        _figure4,
    ),
    "time-nfe": FigureKind("time of a training step against its NFE", _SWEEP, _time_against_nfe),
    "backward-forward": FigureKind(
        "backward against forward NFE",
        "runs that solve backward; make one: odebench train gradient=adjoint",
        _backward_against_forward,
    ),
    "nfe-training": FigureKind(
        "NFE over a training", "a run of a model with an ODE; make one: odebench train model=odenet", _nfe_over_training
    ),
    "memory-depth": FigureKind(
        "peak memory against depth, a line a gradient mode",
        "two settings that ran to their end; make them: odebench sweep gradient=adjoint,backprop tol=1e-2,1e-4",
        _memory_against_depth,
    ),
    "gradient-error": FigureKind(
        "error of the gradient by gradient mode",
        "the results.csv of a bench in the folders; make it: odebench bench --modes backprop,adjoint --output DIR",
        _gradient_error,
    ),
    "step-sizes": FigureKind(
        "sizes of the steps of one solve along t, the longest of a training step",
        f"runs with {layout.STEPS}, which a training of a model with an ODE writes: odebench train model=odenet",
        _step_sizes,
    ),
}

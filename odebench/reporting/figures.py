"""The figures of a report by name: what each shows, which data it needs, and the function that draws it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from odebench.config.schema.quantities import higher_is_better
from odebench.errors import UsageError, unknown_name
from odebench.plots.comparison import MAX_LINES, Comparison, Line, Panel, ReferenceLine, comparison_figure, num_points
from odebench.plots.step_sizes import step_size_panel
from odebench.record import layout
from odebench.record.steps import SolveSteps, read_longest_solve
from odebench.reporting.drawn_figures import DrawnFigure, gradient_errors, nfe_heat_map
from odebench.reporting.evaluations import (
    FORWARD_LABEL,
    OUTPUT_ERROR,
    TOLERANCE,
    evaluation_lines,
    figure3,
    gradient_against_tolerance,
)
from odebench.reporting.formatting import BACKWARD, FORWARD, MINUTES, PEAK_MIB, SAVED_MIB, STEP_MS
from odebench.reporting.lines import (
    RESOLUTION_KEYS,
    LinesByLabel,
    MissingDataError,
    PanelKey,
    data_name,
    group_label,
    label_keys,
    lines_by_panel,
    make_line,
    mean_curves,
    named_groups,
    nfe_ratio_lines,
    nonempty_panels,
    panel_by_data,
    panel_key_function,
    pareto_front,
    positive_only,
    published_lines,
    require_points,
    split_into_lines,
)
from odebench.reporting.runs import Row, Run, RunCollection, RunGroup, read_rows

# Cost -> tag and axis label.
COSTS = {
    "NFE": (FORWARD, FORWARD_LABEL),
    "time": (MINUTES, "training time (min)"),
    "memory": (PEAK_MIB, "peak memory of a training step (MiB)"),
}
# Tag -> title and axis label.
MEMORY = {
    PEAK_MIB: ("memory", COSTS["memory"][1]),
    SAVED_MIB: ("saved memory", "memory saved for the backward pass (MiB)"),
}
# Model -> the setting of its size in Figure 4 of Chen et al. 2018, and its label.
SIZES = {"cnf": ("model.width", "CNF"), "planar_nf": ("model.layers", "planar flow")}


class FigureKind(NamedTuple):
    """A figure: what it shows, the data that it needs and a command that makes them, and a function that makes it.

    make: returns the panels of a comparison, or a drawn figure.
    """

    description: str
    requirement: str
    make: Callable[[RunCollection], Comparison | DrawnFigure]


def find(name: str) -> FigureKind:
    """Find a figure by name. Raises UsageError if the name is unknown."""
    if name not in FIGURES:
        raise unknown_name("figure", name, FIGURES, "figures")
    return FIGURES[name]


def content(name: str, collection: RunCollection) -> Comparison | DrawnFigure:
    """Return the panels of a figure, or the drawn figure.

    Raises UsageError for an unknown name, MissingDataError if the runs lack the data.
    """
    kind = find(name)
    try:
        made = kind.make(collection)
    except MissingDataError:
        raise MissingDataError(f"figure {name} needs {kind.requirement}") from None
    except UsageError as error:
        raise UsageError(f"figure {name}: {error}") from None
    if isinstance(made, DrawnFigure) or all(line.runs for panel in made.panels for line in panel.lines):
        return made
    keys = label_keys(collection.groups, collection.varying_keys)
    folders = {group_label(group, keys): [str(group.runs[0].path)] for group in collection.groups}
    panels = []
    for panel in made.panels:
        lines = [line._replace(runs=line.runs or folders.get(line.label, ())) for line in panel.lines]
        panels.append(panel._replace(lines=lines))
    return made._replace(panels=panels)


def draw(name: str, collection: RunCollection) -> Figure:
    """Draw a figure by name; raises what `content` raises."""
    made = content(name, collection)
    return made.figure if isinstance(made, DrawnFigure) else comparison_figure(*made)


def _mean(tag: str) -> Callable[[RunGroup], float]:
    return lambda group: group.mean(tag)


def _lines(by_label: LinesByLabel, x: Callable[[RunGroup], float], tag: str) -> list[Line]:
    return [make_line(label, groups, x, tag) for label, groups in by_label.items()]


def _total_nfe(group: RunGroup) -> float:
    """Forward plus backward NFE of a training step."""
    return group.mean(FORWARD) + np.nan_to_num(group.mean(BACKWARD))


def _result_against(cost: str) -> Callable[[RunCollection], Comparison]:
    def draw(collection: RunCollection) -> Comparison:
        found, are_lines = lines_by_panel(collection, panel_key_function(collection))
        panels = [_result_panel(collection, *item, cost, are_lines) for item in found.items()]
        # A single point is useful beside other panels or a published value.
        return nonempty_panels(panels, min_points=1 if sum(num_points(panel.lines) for panel in panels) > 1 else 2)

    return draw


def _runs(by_label: LinesByLabel) -> list[Run]:
    return [run for groups in by_label.values() for group in groups for run in group.runs]


def _result_panel(
    collection: RunCollection, key: PanelKey, by_label: LinesByLabel, cost: str, are_lines: bool
) -> Panel:
    """A panel of result against cost: points are means over seeds, lines connect tolerances or numbers of steps."""
    tag, (cost_tag, x) = collection.result_tag(key.quantity), COSTS[cost]
    lines = _lines(by_label, _mean(cost_tag), tag)
    found = published_lines(_runs(by_label), tag)
    y = key.axis_label(collection.split)
    return Panel(f"{key.data}: result against {cost}", x, y, lines, found, are_lines)


def _pareto(collection: RunCollection) -> Comparison:
    found, are_lines = lines_by_panel(collection, panel_key_function(collection), panels_per_key=len(COSTS))
    panels = [_front_panel(collection, *item, cost, are_lines) for item in found.items() for cost in COSTS]
    return nonempty_panels(panels)


def _front_panel(collection: RunCollection, key: PanelKey, by_label: LinesByLabel, cost: str, are_lines: bool) -> Panel:
    """A panel with the result and the cost of all groups, and their Pareto front."""
    tag, (cost_tag, x) = collection.result_tag(key.quantity), COSTS[cost]
    all_groups = [group for groups in by_label.values() for group in groups]
    best = pareto_front(all_groups, _mean(cost_tag), _mean(tag), higher_is_better(key.quantity))
    labelled = {id(group) for group in best} if are_lines else set()
    lines = []
    for label, groups in by_label.items():
        drawn = make_line(label, groups, _mean(cost_tag), tag)._replace(y_error=None)
        names = [name if id(group) in labelled else "" for group, name in zip(groups, drawn.point_labels, strict=False)]
        lines.append(drawn._replace(label=label or "settings", point_labels=names))
    edge = make_line("", best, _mean(cost_tag), tag)
    reference = ReferenceLine("Pareto front", x=edge.x, y=edge.y, is_front=True)
    return Panel(f"{key.data}: against {cost}", x, key.axis_label(collection.split), lines, [reference], False)


def _figure4(collection: RunCollection) -> Comparison:
    """Draw the divergence from the target against model size, one panel per target, one line per model."""
    tag = collection.result_tag("kl_nats")
    found: dict[str, dict[str, list[RunGroup]]] = {}
    for group in collection.groups:
        settings = group.runs[0].settings
        if settings.get("model.name") in SIZES and np.isfinite(group.mean(tag)):
            found.setdefault(settings["data.name"], {}).setdefault(settings["model.name"], []).append(group)
    x, y = "width M of the CNF, depth K of the planar flow", f"{collection.split} KL(q || p) (nats)"
    panels = []
    for target, by_model in found.items():
        lines = [_by_size(model, groups, tag) for model, groups in by_model.items()]
        panels.append(Panel(target, x, y, lines, x_log=True, y_log=True))
    return nonempty_panels(panels)


def _by_size(model: str, groups: Sequence[RunGroup], tag: str) -> Line:
    key, label = SIZES[model]
    # Not the CNF that has a smaller hypernetwork to have as few parameters as the planar flow.
    hidden = max(group.settings.get("model.hidden") or 0 for group in groups)
    groups = [group for group in groups if (group.settings.get("model.hidden") or 0) == hidden]
    return make_line(label, groups, lambda group: float(group.runs[0].settings[key]), tag)._replace(point_labels=())


def _result_over_training(collection: RunCollection) -> Comparison:
    """Draw validation results against optimiser steps and against time, one curve per setting."""
    panel_key, found = panel_key_function(collection), dict[PanelKey, dict[str, list[list[Row]]]]()
    for label, runs in named_groups(collection, lambda group: group.runs):
        found.setdefault(panel_key(runs[0]), {})[label] = list(map(read_rows, runs))
    panels = []
    for key, rows in found.items():
        tag, y = f"val/{key.quantity}", key.axis_label("validation")
        by_step, by_time = (mean_curves(rows, tag, along, smooth=False) for along in ("step", "elapsed_s"))
        by_time = [one._replace(x=one.x / 60) for one in by_time]
        for title, x, lines in (("steps", "optimiser step", by_step), ("time", "training time (min)", by_time)):
            panels.append(Panel(f"{key.data}: result over {title}", x, y, lines, as_curves=True, x_log=False))
    return nonempty_panels(panels, columns=2)


def _nfe_against_tolerance(collection: RunCollection) -> Comparison:
    by_label, are_lines = split_into_lines(collection, ("tol",), "solver.name")
    panels = []
    for tag, way in ((FORWARD, "Forward"), (BACKWARD, "Backward")):
        lines = [one._replace(point_labels=()) for one in _lines(by_label, _tolerance, tag)]
        panels.append(
            Panel(f"{way} NFE in training", TOLERANCE, "NFE of a training step", positive_only(lines), (), are_lines)
        )
    if len(collection.groups) <= MAX_LINES:
        after = evaluation_lines(collection, "nfe")
        panels.append(Panel("NFE after training", TOLERANCE, "NFE of a batch", after))
    panels = [panel for panel in panels if len({x for one in panel.lines for x in one.finite().x}) > 1]
    if not panels:
        raise MissingDataError
    return Comparison([panel._replace(x_log=True, x_descending=True) for panel in panels])


def _tolerance(group: RunGroup) -> float:
    value = group.runs[0].settings["tol"]
    return value if isinstance(value, float) else np.nan


def _error_against_tolerance(collection: RunCollection) -> Comparison:
    lines = require_points(evaluation_lines(collection, OUTPUT_ERROR))
    tolerances = np.concatenate([one.x for one in lines])
    equal = [tolerances.min(), tolerances.max()]
    reference = ReferenceLine("error = tolerance", x=equal, y=equal)
    panel = Panel("Error of the output", TOLERANCE, "relative error against float64 at 1e-9", lines, [reference])
    return Comparison([panel._replace(x_log=True, y_log=True, x_descending=True)])


def _time_against_nfe(collection: RunCollection) -> Comparison:
    x, y = "NFE of a training step, forward + backward", "time of a training step (ms)"

    def panel(data: str, by_label: LinesByLabel) -> Panel:
        return Panel(f"{data}: time against NFE", x, y, _lines(by_label, _total_nfe, STEP_MS))

    return panel_by_data(collection, panel, min_points=2)


def _backward_against_forward(collection: RunCollection) -> Comparison:
    x, y = FORWARD_LABEL, "backward NFE of a training step"

    def panel(data: str, by_label: LinesByLabel) -> Panel:
        lines = positive_only(_lines(by_label, _mean(FORWARD), BACKWARD))
        return Panel(f"{data}: backward against forward", x, y, lines, nfe_ratio_lines(_runs(by_label), lines))

    return panel_by_data(collection, panel, min_points=1, first="gradient.name")


def _nfe_over_training(collection: RunCollection) -> Comparison:
    rows = dict(named_groups(collection, lambda group: list(map(read_rows, group.runs))))
    panels = []
    for tag, way in (("nfe/forward", "Forward"), ("nfe/backward", "Backward")):
        title, lines = f"{way} NFE over training", positive_only(mean_curves(rows, tag))
        panels.append(
            Panel(title, "optimiser step", "NFE of a training step", lines, as_curves=True, x_log=False, y_log=False)
        )
    return nonempty_panels(panels, min_points=1)


def _memory_against_depth(collection: RunCollection) -> Comparison:
    """Draw peak and saved memory against depth, two panels for each data set."""
    x, along = "depth: forward NFE, or blocks of a residual network", (*RESOLUTION_KEYS, "model.blocks")
    found, are_lines = lines_by_panel(
        collection, data_name, panels_per_key=len(MEMORY), along=along, first="gradient.name"
    )
    panels = [
        Panel(
            f"{data}: {title} against depth",
            x,
            y,
            _lines(by_label, _depth, tag),
            (),
            are_lines,
            x_log=False,
            y_log=False,
        )
        for data, by_label in found.items()
        for tag, (title, y) in MEMORY.items()
    ]
    return nonempty_panels(panels)


def _depth(group: RunGroup) -> float:
    nfe, blocks = group.mean(FORWARD), group.runs[0].settings.get("model.blocks")
    return nfe if np.isfinite(nfe) or blocks is None else blocks


def _step_sizes(collection: RunCollection) -> Comparison:
    """The longest solve of a training step for each setting; one panel per model, whose times can be compared."""

    def longest_solve(group: RunGroup) -> tuple[Run, SolveSteps] | None:
        return next(((run, steps) for run in group.runs if (steps := read_longest_solve(run.path))), None)

    found: dict[tuple[str, str, bool], dict[str, tuple[float | None, list[float], list[tuple[float, float]]]]] = {}
    for label, (run, steps) in named_groups(collection, longest_solve):
        key = str(run.settings["model.name"]), steps.place, steps.start is None
        found.setdefault(key, {})[label] = steps.start, steps.sizes, steps.rejected
    panels = [step_size_panel(model, place, steps) for (model, place, _), steps in found.items()]
    return nonempty_panels(panels, min_points=1)


_NEEDS_SWEEP = "two settings with completed runs; make them: odebench sweep tol=1e-2,1e-3,1e-4"

FIGURES = {
    "result-nfe": FigureKind("the objective against forward NFE", _NEEDS_SWEEP, _result_against("NFE")),
    "result-time": FigureKind("the objective against training time", _NEEDS_SWEEP, _result_against("time")),
    "result-memory": FigureKind("the objective against peak memory", _NEEDS_SWEEP, _result_against("memory")),
    "result-training": FigureKind(
        "the objective at each validation over a training, by steps and by time",
        "a run with two validations; make it: odebench train",
        _result_over_training,
    ),
    "pareto": FigureKind("the objective against each cost, with the Pareto front", _NEEDS_SWEEP, _pareto),
    "nfe-tolerance": FigureKind(
        "NFE against tolerance, in training and after it",
        "two tolerances; make them: odebench sweep tol=1e-2,1e-4, or odebench eval RUN tol=1e-2 and again tol=1e-4",
        _nfe_against_tolerance,
    ),
    "error-tolerance": FigureKind(
        "error of the output against tolerance, after training",
        f"evaluations with {OUTPUT_ERROR} at two tolerances; make them: odebench eval RUN tol=1e-2,1e-3,1e-4",
        _error_against_tolerance,
    ),
    "gradient-tolerance": FigureKind(
        "errors of the gradient against tolerance, after training, one line per gradient mode",
        "evaluations with gradients; make them: odebench eval RUN gradient=adjoint,checkpoint tol=1e-2,1e-3,1e-4",
        gradient_against_tolerance,
    ),
    "figure3": FigureKind(
        "error, time and backward NFE of a trained model against forward NFE; NFE over training (Chen et al. 2018)",
        "two evaluations of a trained model; make them: odebench eval RUN solver=dopri5,adams tol=1e-2,1e-3,1e-4",
        figure3,
    ),
    "figure4": FigureKind(
        "divergence from a target against the sizes of CNF and planar flow (Chen et al. 2018)",
        "density matching by models of two sizes; make them: odebench sweep experiment=paper/cnf_density_matching"
        " model.width=2,8",
        _figure4,
    ),
    "time-nfe": FigureKind("time of a training step against its NFE", _NEEDS_SWEEP, _time_against_nfe),
    "backward-forward": FigureKind(
        "backward against forward NFE",
        "runs that solve backward; make one: odebench train gradient=adjoint",
        _backward_against_forward,
    ),
    "nfe-training": FigureKind(
        "NFE over a training", "a run of a model with an ODE; make one: odebench train model=odenet", _nfe_over_training
    ),
    "nfe-heatmap": FigureKind(
        "NFE by epoch and tolerance",
        "trainings at two tolerances; make them: odebench sweep tol=1e-2,1e-3,1e-4",
        nfe_heat_map,
    ),
    "memory-depth": FigureKind(
        "peak and saved memory against depth, one line per gradient mode",
        "two settings with completed runs; make them: odebench sweep gradient=adjoint,backprop tol=1e-2,1e-4",
        _memory_against_depth,
    ),
    "gradient-error": FigureKind(
        "error of the gradient by gradient mode",
        "results.csv of a benchmark in the folders; make it: odebench bench --modes backprop,adjoint --output DIR",
        gradient_errors,
    ),
    "step-sizes": FigureKind(
        "step sizes over t in the longest solve of a training step, rejected steps too",
        f"runs with {layout.STEP_SIZES}, which a training of a model with an ODE writes: odebench train model=odenet",
        _step_sizes,
    ),
}

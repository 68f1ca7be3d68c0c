"""Groups of runs as the lines and panels of a figure; only runs in the same panel can be compared."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from odebench.errors import UsageError
from odebench.plots.comparison import MAX_LINES, Comparison, Line, Panel, ReferenceLine, num_points
from odebench.plots.curves import SMOOTH_FROM, running_mean
from odebench.record.differences import differing_columns, distinguishing_keys, row_classes
from odebench.reporting.formatting import display_scale, display_unit, format_setting, words_of
from odebench.reporting.published import NFE_RATIO, published_for
from odebench.reporting.runs import FIXED_STEP_KEYS, Row, Run, RunCollection, RunGroup

# Settings that vary along a line: how finely the ODE is solved.
RESOLUTION_KEYS = ("tol", *FIXED_STEP_KEYS)
# Groups of settings that a panel already shows: those in its title and labels, and those that follow from them.
PANEL_KEYS = [["experiment"], ["trainer.objective"], ["task"], ["loss.name"], ["data.name"]]
MAX_PANELS = 24
# Settings of the data that do not change the test data.
TRAINING_DATA_KEYS = {f"data.{name}" for name in ("train_limit", "validation", "augment", "samples", "fresh")}
# Losses that are evaluated in nats; flow matching is evaluated by its negative log-likelihood.
LOSSES_IN_NATS = ("cross_entropy", "maximum_likelihood", "density_matching", "flow_matching", "autoregressive", "elbo")
Key = TypeVar("Key", bound=Hashable)  # identifies a panel
LinesByLabel = Mapping[str, Sequence[RunGroup]]
Content = TypeVar("Content")  # what a figure draws of a group


class MissingDataError(UsageError):
    """The runs lack the data for a figure; `figures.content` says in its message what the figure needs."""

    def __init__(self, line: str = "") -> None:
        super().__init__(line)


def split_into_lines(
    collection: RunCollection,
    along: Sequence[str] = RESOLUTION_KEYS,
    first: str = "model.name",
    panel: Callable[[Run], Hashable] = lambda run: None,
) -> tuple[dict[str, list[RunGroup]], bool]:
    """Split the groups into lines: one for each combination of the settings that differ, except those in `along`.

    Returns label -> groups, and whether they are lines. Fixed steps and tolerances make separate lines. Labels omit
    what the panel shows, so that a line has the same label in every panel.

    If there are too many lines, the groups are not lines but the points of scatter plots. There is one set of points
    for each value of the setting `first` if it has few values, otherwise of another setting.
    """
    groups = [group for group in collection.groups if group.done_runs]
    others = [key for key in collection.differing_columns if key not in along]
    columns = differing_columns([{key: group.settings.get(key) for key in others} for group in groups])
    keys = distinguishing_keys(columns, collection.overridden_keys)
    keys = drop_redundant([*PANEL_KEYS, *([key] for key in keys if key.startswith("data."))], groups, keys, panel)
    keys = label_keys(groups, keys)
    lines = _split_by_stepping(_group_by_label(groups, keys))
    if len(lines) <= MAX_LINES:
        return lines, True
    few = [key for key in keys if len(_group_by_label(groups, [key])) <= MAX_LINES // 2]
    few.sort(key=lambda key: key != first)
    return _group_by_label(groups, few[:1]), False


def named_groups(
    collection: RunCollection, content: Callable[[RunGroup], Content | None]
) -> Iterator[tuple[str, Content]]:
    """Yield a unique label and the content of each group, for a figure with one line per group.

    content: what to draw of a group; None omits it. Raises UsageError if there are too many lines to distinguish.
    """
    found = [(group, drawn) for group in collection.groups if (drawn := content(group)) is not None]
    if len(found) > MAX_LINES:
        raise UsageError(f"it can show {MAX_LINES} settings, but the runs have {len(found):,}; name fewer runs")
    keys = label_keys(collection.groups, collection.varying_keys)
    for group, drawn in found:
        yield group_label(group, keys), drawn


def label_keys(groups: Sequence[RunGroup], keys: Sequence[str]) -> list[str]:
    """A small subset of the keys that distinguishes the groups as well as all do; drops the least important first."""
    return drop_redundant([RESOLUTION_KEYS, ["experiment"], ["solver.name"], ["data.name"]], groups, keys)


def drop_redundant(
    unwanted: Sequence[Sequence[str]],
    groups: Sequence[RunGroup],
    keys: Sequence[str],
    panel: Callable[[Run], Hashable] = lambda run: None,
) -> list[str]:
    """Drop unwanted keys if the other keys and the panel still distinguish all groups.

    unwanted: sets of keys to try to drop, one set after the other.
    """
    kept, panels = list(keys), row_classes([[panel(group.runs[0]) for group in groups]])
    columns = {key: row_classes([[repr(group.settings.get(key)) for group in groups]]) for key in keys}

    def highest_code(by: Sequence[str]) -> int:
        return max(row_classes([panels, *(columns[key] for key in by)]), default=0)

    finest = highest_code(kept)
    for some in unwanted:
        fewer = [one for one in kept if one not in some]
        if highest_code(fewer) == finest:
            kept = fewer
    return kept


def _split_by_stepping(lines: Mapping[str, list[RunGroup]]) -> dict[str, list[RunGroup]]:
    """Split each line that mixes tolerances, numbers of steps and step sizes into lines that do not."""
    found: dict[str, list[RunGroup]] = {}
    for label, groups in lines.items():
        kinds = {_stepping(group) for group in groups}
        for group in groups:
            found.setdefault(join_nonempty(label, _stepping(group)) if len(kinds) > 1 else label, []).append(group)
    return found


def _stepping(group: RunGroup) -> str:
    """How the steps of a group are chosen."""
    names = {"solver.steps": "fixed steps", "solver.step_size": "fixed step size"}
    return next((name for key, name in names.items() if group.settings.get(key) is not None), "adaptive")


def join_nonempty(*words: str) -> str:
    """Join the nonempty words with commas."""
    return ", ".join(filter(None, words))


def _group_by_label(groups: Sequence[RunGroup], keys: Sequence[str]) -> dict[str, list[RunGroup]]:
    found: dict[str, list[RunGroup]] = {}
    for group in groups:
        found.setdefault(group_label(group, keys), []).append(group)
    return found


def group_label(group: RunGroup, keys: Sequence[str]) -> str:
    """A short label of a group: names of options, and other settings with their key. Omits settings that it lacks."""
    words = []
    for key in [key for key in keys if group.settings.get(key) is not None] or keys:
        text = format_setting(group.settings.get(key))
        is_choice = key.endswith(".name") or key == "experiment"
        words.append(text if is_choice else f"{key.rpartition('.')[2]} {text}")
    return ", ".join(words)


def make_line(label: str, groups: Sequence[RunGroup], x: Callable[[RunGroup], float], tag: str) -> Line:
    """A line of the groups' means of `tag` against `x`, in display units; points are labelled by tolerance or step."""
    names = [_resolution(group) for group in groups]
    return Line(
        label,
        np.array([x(group) for group in groups]),
        display_scale(tag) * np.array([group.mean(tag) for group in groups]),
        display_scale(tag) * np.array([group.std(tag) for group in groups]),
        names if len(set(names)) > 1 else (),
        [str(group.runs[0].path) for group in groups],
    )


def _resolution(group: RunGroup) -> str:
    """A point's label: the tolerance, number of steps or step size, whichever varies: ``1e-3``, ``20 steps``."""
    values = group.varying_settings
    key, value = next(((key, values[key]) for key in RESOLUTION_KEYS if values.get(key) is not None), ("", None))
    if not isinstance(value, float):
        return value or ""
    text = f"{value:.0e}".replace("e-0", "e-")
    text = text if abs(value) < 0.5 and float(text) == value else f"{value:g}"
    return {"solver.steps": f"{text} steps", "solver.step_size": f"step {text}"}.get(key, text)


def mean_curves(
    runs: Mapping[str, Sequence[Sequence[Row]]], tag: str, along: str = "step", smooth: bool = True
) -> list[Line]:
    """One curve per label: mean and standard deviation of `tag` over its runs, in display units.

    runs: label -> the logged rows of each run. A curve has one point for each step that all runs of its label logged;
    x is the mean of `along` over the runs. smooth: use the running mean of long curves.
    """
    lines = []
    for label, of_runs in runs.items():
        logged = [
            {row["step"]: (row[along], row[tag]) for row in rows if {tag, along} <= row.keys()} for rows in of_runs
        ]
        logged = [one for one in logged if one]
        if not logged:
            continue
        steps = sorted(set.intersection(*map(set, logged)))
        points = np.array([[one[step] for step in steps] for one in logged], dtype=float)  # [runs, steps, 2]
        x, values = points[..., 0].mean(axis=0), display_scale(tag) * points[..., 1]
        if smooth and len(steps) > SMOOTH_FROM:
            values = np.array([running_mean(one, len(steps) // 30) for one in values])
        std = values.std(axis=0, ddof=1) if len(logged) > 1 else None
        lines.append(Line(label, x, values.mean(axis=0), std))
    return lines


def pareto_front(
    groups: Sequence[RunGroup], cost: Callable[[RunGroup], float], result: Callable[[RunGroup], float], maximise: bool
) -> list[RunGroup]:
    """The Pareto front, cheapest first: groups whose result is better than that of all with the same or lower cost."""
    sign = -1.0 if maximise else 1.0
    points = [(cost(group), sign * result(group), group) for group in groups]
    points = sorted((point for point in points if np.isfinite(point[:2]).all()), key=lambda point: point[:2])
    best: list[RunGroup] = []
    least = np.inf
    for _, value, group in points:
        if value < least:
            best.append(group)
            least = value
    return best


def published_lines(runs: Sequence[Run], tag: str) -> list[ReferenceLine]:
    """Horizontal lines at the values published for the runs' experiments; these are values on the test split."""
    quantity = tag.removeprefix("best/").removeprefix("final/test_")
    return [
        ReferenceLine(
            f"published, test: {one.row}, {one.printed} ({one.citation})",
            display_scale(one.tag) * one.value,
            note=f"{one.row}: {one.printed}",
            source=f"published, test: {one.citation}",
        )
        for one in published_for(runs, f"final/test_{quantity}")
    ]


def nfe_ratio_lines(runs: Sequence[Run], lines: Sequence[Line], start: float = 0.0) -> list[ReferenceLine]:
    """Lines to draw in a plot of backward NFE against forward NFE, from x = `start` on.

    One line is where both are equal. There is one more for each ratio published for the runs' experiments.
    """
    ends = np.array([start, max((one.finite().x.max(initial=0.0) for one in lines), default=0.0)])
    found = [ReferenceLine("backward = forward", x=ends, y=ends)]
    for one in published_for(runs, NFE_RATIO):
        found.append(ReferenceLine(f"published: {one.printed} ({one.citation})", x=ends, y=one.value * ends))
    return found


def require_points(lines: Sequence[Line]) -> Sequence[Line]:
    """Return the lines. Raises MissingDataError if they have fewer than two points in total."""
    if num_points(lines) < 2:
        raise MissingDataError
    return lines


def positive_only(lines: Sequence[Line]) -> list[Line]:
    """Remove points that are not positive, such as the backward NFE of gradient modes that do not solve backward."""
    return [one._replace(y=np.where(one.y > 0, one.y, np.nan)) for one in lines]


class PanelKey(NamedTuple):
    """Identifies a panel: results in one panel can be compared, since the data and the quantity are the same.

    data: name of the data set, with the settings that change it. loss: name of the loss, if the quantity is the loss.
    """

    data: str
    quantity: str
    loss: str

    def axis_label(self, split: str) -> str:
        """The axis label: ``validation accuracy (%)``, ``test loss (maximum likelihood, nats)``."""
        unit = display_unit(f"best/{self.quantity}")
        name = words_of(self.quantity.removesuffix(f"_{unit}"))
        detail = join_nonempty(words_of(self.loss), "nats" if self.loss in LOSSES_IN_NATS else unit)
        return f"{split} {name} ({detail})" if detail else f"{split} {name}"


def panel_key_function(collection: RunCollection) -> Callable[[Run], PanelKey]:
    """Make a function that returns the panel key of a run."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in collection.runs:
        by_name.setdefault(data_name(run), []).append(run.settings)
    differing_keys = {
        name: [key for key in differing_columns(settings) if key.startswith("data.") and key not in TRAINING_DATA_KEYS]
        for name, settings in by_name.items()
    }

    def panel_key(run: Run) -> PanelKey:
        words = [
            f"{key.removeprefix('data.')} {format_setting(run.settings.get(key))}"
            for key in differing_keys[data_name(run)]
        ]
        loss = run.settings.get("loss.name") if run.objective == "loss" else ""
        return PanelKey(join_nonempty(data_name(run), *words), run.objective, str(loss))

    return panel_key


def nonempty_panels(panels: Sequence[Panel], min_points: int = 2, columns: int = 3) -> Comparison:
    """Choose the panels that have enough points. Raises MissingDataError if there are none."""
    panels = [panel for panel in panels if num_points(panel.lines) >= min_points]
    if not panels:
        raise MissingDataError
    return Comparison(panels, columns)


def lines_by_panel(
    collection: RunCollection,
    panel_key: Callable[[Run], Key],
    *,
    panels_per_key: int = 1,
    along: Sequence[str] = RESOLUTION_KEYS,
    first: str = "model.name",
) -> tuple[dict[Key, dict[str, list[RunGroup]]], bool]:
    """Split the groups by panel, and in each panel into lines; a line has the same label in all panels.

    Returns panel key -> label -> groups, and whether these are lines or scatter plots: see `split_into_lines`.
    panels_per_key: number of panels for each key; raises UsageError if the figure would have too many panels.
    """
    by_label, are_lines = split_into_lines(collection, along, first, panel_key)
    found: dict[Key, dict[str, list[RunGroup]]] = {
        panel_key(run): {} for run in collection.runs if run.status == "done"
    }
    for label, groups in by_label.items():
        for group in groups:
            found[panel_key(group.runs[0])].setdefault(label, []).append(group)
    if panels_per_key * len(found) > MAX_PANELS:
        raise UsageError(
            f"it can show {MAX_PANELS // panels_per_key} combinations of data set and objective, but the runs have "
            f"{len(found):,}; name fewer runs"
        )
    return found, are_lines


def panel_by_data(
    collection: RunCollection, make_panel: Callable[[str, LinesByLabel], Panel], min_points: int, **how: Any
) -> Comparison:
    """Make one panel per data set.

    make_panel: makes a panel from the name of a data set and its lines (label -> groups). how: arguments of
    `lines_by_panel`.
    """
    found, are_lines = lines_by_panel(collection, data_name, **how)
    panels = [make_panel(*item)._replace(connect_points=are_lines, x_log=False, y_log=False) for item in found.items()]
    return nonempty_panels(panels, min_points)


def data_name(run: Run) -> str:
    """The name of a run's data set, which is the panel key for costs."""
    return str(run.settings.get("data.name"))

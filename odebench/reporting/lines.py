"""Groups of runs as the lines of a figure."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from odebench.errors import UsageError
from odebench.plots.comparison import MAX_LINES, Line, ReferenceLine, num_points
from odebench.plots.curves import SMOOTH_FROM, running_mean
from odebench.reporting.published import NFE_RATIO, published_for
from odebench.reporting.runs import (
    FIXED_STEP_KEYS,
    Row,
    Run,
    RunCollection,
    RunGroup,
    differing_columns,
    distinguishing_keys,
    factorize,
    row_classes,
)
from odebench.reporting.table import display_scale, format_setting

# Settings that vary along a line: how finely the ODE is solved.
RESOLUTION_KEYS = ("tol", *FIXED_STEP_KEYS)
# Settings that the panel shows, and settings that follow from these.
PANEL_KEYS = [["experiment"], ["trainer.objective"], ["task"], ["loss.name"], ["data.name"]]

Content = TypeVar("Content")  # of a group, for one line of a figure


class MissingDataError(UsageError):
    """The runs lack the data of a figure; `figures.draw` adds how to make it."""

    def __init__(self, line: str = "") -> None:
        super().__init__(line)


def split_into_lines(
    collection: RunCollection,
    along: Sequence[str] = RESOLUTION_KEYS,
    first: str = "model.name",
    panel: Callable[[Run], Hashable] = lambda run: None,
) -> tuple[dict[str, list[RunGroup]], bool]:
    """Split the groups into lines by all settings that differ, except those `along`.

    Returns label -> groups, and whether they are lines. Fixed steps and tolerances make separate lines. Labels omit
    what the panel shows, so that a line has the same label in every panel.

    Too many lines become scatter plots: one for each value of the setting `first` if it has few values, or of another.
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
    """What a figure with one line per group draws: a unique label and the content of each group that has any.

    UsageError if there are too many to distinguish.
    """
    found = [(group, drawn) for group in collection.groups if (drawn := content(group)) is not None]
    if len(found) > MAX_LINES:
        raise UsageError(f"it shows up to {MAX_LINES} settings, not {len(found):,}; name fewer runs")
    keys = label_keys(collection.groups, collection.varying_keys)
    for group, drawn in found:
        yield group_label(group, keys), drawn


def label_keys(groups: Sequence[RunGroup], keys: Sequence[str]) -> list[str]:
    """A small set of keys that distinguishes the groups as well as all keys; the least important are dropped first."""
    return drop_redundant([RESOLUTION_KEYS, ["experiment"], ["solver.name"], ["data.name"]], groups, keys)


def drop_redundant(
    unwanted: Sequence[Sequence[str]],
    groups: Sequence[RunGroup],
    keys: Sequence[str],
    panel: Callable[[Run], Hashable] = lambda run: None,
) -> list[str]:
    """Drop unwanted keys if the others, with the panel, still distinguish all groups."""
    kept, panels = list(keys), factorize([panel(group.runs[0]) for group in groups])
    columns = {key: factorize([repr(group.settings.get(key)) for group in groups]) for key in keys}

    def highest_code(by: Sequence[str]) -> int:
        return max(row_classes([panels, *(columns[key] for key in by)]), default=0)

    finest = highest_code(kept)
    for some in unwanted:
        fewer = [one for one in kept if one not in some]
        if highest_code(fewer) == finest:
            kept = fewer
    return kept


def _split_by_stepping(lines: Mapping[str, list[RunGroup]]) -> dict[str, list[RunGroup]]:
    """Split lines that mix tolerances, numbers of steps and step sizes."""
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
    """A short label of a group: options by name, other settings with their key; omits settings that it lacks."""
    words = []
    for key in [key for key in keys if group.settings.get(key) is not None] or keys:
        text = format_setting(group.settings.get(key))
        is_choice = key.endswith(".name") or key == "experiment"
        words.append(text if is_choice else f"{key.rpartition('.')[2]} {text}")
    return ", ".join(words)


def make_line(label: str, groups: Sequence[RunGroup], x: Callable[[RunGroup], float], tag: str) -> Line:
    """A line of the groups' means of `tag`, in display units, against `x`; points are labelled by tolerance or step."""
    names = [_resolution(group) for group in groups]
    return Line(
        label,
        np.array([x(group) for group in groups]),
        display_scale(tag) * np.array([group.mean(tag) for group in groups]),
        display_scale(tag) * np.array([group.std(tag) for group in groups]),
        names if len(set(names)) > 1 else (),
    )


def _resolution(group: RunGroup) -> str:
    """The tolerance or the steps if they vary: ``1e-3``, ``20 steps``."""
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

    At the steps that all of them logged, against the mean of `along`. smooth: draw the running mean of long curves.
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
    """The Pareto front: groups with a better result than all others of the same or lower cost, cheapest first."""
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
    """Published values of a result for the runs' experiments, as horizontal lines; they refer to the test split."""
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
    """Lines of backward NFE = forward NFE, and of the published ratios for the runs' experiments, from `start` on."""
    ends = np.array([start, max((one.finite().x.max(initial=0.0) for one in lines), default=0.0)])
    found = [ReferenceLine("backward = forward", x=ends, y=ends)]
    for one in published_for(runs, NFE_RATIO):
        found.append(ReferenceLine(f"published: {one.printed} ({one.citation})", x=ends, y=one.value * ends))
    return found


def require_points(lines: Sequence[Line]) -> Sequence[Line]:
    """The lines; MissingDataError if they have fewer than two points in total."""
    if num_points(lines) < 2:
        raise MissingDataError
    return lines


def positive_only(lines: Sequence[Line]) -> list[Line]:
    """The lines without points at zero, such as the backward NFE of gradient modes that do not solve backward."""
    return [one._replace(y=np.where(one.y > 0, one.y, np.nan)) for one in lines]

"""Groups of runs as the lines of a figure."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np

from odebench.errors import UsageError
from odebench.plots.comparison import MAX_LINES, Line, ReferenceLine
from odebench.plots.curves import SMOOTH_FROM, running_mean
from odebench.record import layout
from odebench.reporting.published import NFE_RATIO, published_for
from odebench.reporting.runs import (
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

# Settings that a line runs along: how finely is solved.
RESOLUTION_KEYS = ("tol", "solver.steps", "solver.step_size")
# Settings that a panel of its own tells, or that say no more than these.
PANEL_KEYS = [["experiment"], ["trainer.objective"], ["task"], ["loss.name"], ["data.name"]]
# Losses that a split is judged by in nats: all of ours, for that of flow matching is the negative log-likelihood there.
LOSSES_IN_NATS = ("cross_entropy", "maximum_likelihood", "density_matching", "flow_matching", "autoregressive", "elbo")


class MissingDataError(UsageError):
    """The runs have not what a figure shows; line: what would make it, which `figures.draw` knows."""

    def __init__(self, line: str = "") -> None:
        super().__init__(line)


def split_into_lines(
    collection: RunCollection,
    along: Sequence[str] = RESOLUTION_KEYS,
    first: str = "model.name",
    panel: Callable[[Run], Hashable] = lambda run: None,
) -> tuple[dict[str, list[RunGroup]], bool]:
    """The groups by all settings that differ besides those `along`; and whether they are lines. Fixed steps and
    tolerances are two lines. What the panel of its runs tells is no word of its label: lines go on in other panels.

    More lines than can be told apart become clouds of points: one for each value of the setting `first`, where it has
    few, or else of another one.
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
    collection: RunCollection, drawable: Callable[[RunGroup], object] = lambda group: True
) -> Iterator[tuple[str, RunGroup]]:
    """Every group that can be drawn, with the label that tells it from all, for figures of a line a group; UsageError
    for more than can be told apart."""
    groups = [group for group in collection.groups if drawable(group)]
    if len(groups) > MAX_LINES:
        raise UsageError(f"it shows up to {MAX_LINES} settings, not {len(groups):,}; name fewer runs")
    keys = label_keys(collection.groups, collection.varying_keys)
    for group in groups:
        yield group_label(group, keys), group


def label_keys(groups: Sequence[RunGroup], keys: Sequence[str]) -> list[str]:
    """Keys that tell the groups apart as well as all do; those that a reader misses least are left out first."""
    return drop_redundant([RESOLUTION_KEYS, ["experiment"], ["solver.name"], ["data.name"]], groups, keys)


def drop_redundant(
    unwanted: Sequence[Sequence[str]],
    groups: Sequence[RunGroup],
    keys: Sequence[str],
    panel: Callable[[Run], Hashable] = lambda run: None,
) -> list[str]:
    """The keys without the unwanted ones, as far as the rest still tells all apart, with their runs' panel."""
    kept, panels = list(keys), factorize([panel(group.runs[0]) for group in groups])
    columns = {key: factorize([repr(group.settings.get(key)) for group in groups]) for key in keys}

    def told(by: Sequence[str]) -> int:
        return max(row_classes([panels, *(columns[key] for key in by)]), default=0)

    finest = told(kept)
    for some in unwanted:
        fewer = [one for one in kept if one not in some]
        if told(fewer) == finest:
            kept = fewer
    return kept


def _split_by_stepping(lines: Mapping[str, list[RunGroup]]) -> dict[str, list[RunGroup]]:
    """The lines, those apart that run along tolerances, numbers of steps and sizes of steps."""
    found: dict[str, list[RunGroup]] = {}
    for label, groups in lines.items():
        kinds = {_stepping(group) for group in groups}
        for group in groups:
            found.setdefault(join_nonempty(label, _stepping(group)) if len(kinds) > 1 else label, []).append(group)
    return found


def _stepping(group: RunGroup) -> str:
    """What its steps are chosen by."""
    told = {"solver.steps": "fixed steps", "solver.step_size": "fixed step size"}
    return next((words for key, words in told.items() if group.settings.get(key) is not None), "adaptive")


def join_nonempty(*words: str) -> str:
    """The words that are there, with commas between."""
    return ", ".join(filter(None, words))


def _group_by_label(groups: Sequence[RunGroup], keys: Sequence[str]) -> dict[str, list[RunGroup]]:
    found: dict[str, list[RunGroup]] = {}
    for group in groups:
        found.setdefault(group_label(group, keys), []).append(group)
    return found


def group_label(group: RunGroup, keys: Sequence[str]) -> str:
    """The group's settings in a few words: choices by name, others with their key; those it lacks are left out."""
    words = []
    for key in [key for key in keys if group.settings.get(key) is not None] or keys:
        text = format_setting(group.settings.get(key))
        is_choice = key.endswith(".name") or key == "experiment"
        words.append(text if is_choice else f"{key.rpartition('.')[2]} {text}")
    return ", ".join(words)


def make_line(label: str, groups: Sequence[RunGroup], x: Callable[[RunGroup], float], tag: str) -> Line:
    """The groups' means of `tag`, scaled to be read, against `x`; tolerance or steps are names, where these differ."""
    names = [_resolution(group) for group in groups]
    return Line(
        label,
        np.array([x(group) for group in groups]),
        display_scale(tag) * np.array([group.mean(tag) for group in groups]),
        display_scale(tag) * np.array([group.std(tag) for group in groups]),
        names if len(set(names)) > 1 else (),
    )


def _resolution(group: RunGroup) -> str:
    """The tolerance or the steps, where they vary: ``1e-3``, but ``20 steps``."""
    key, value = next(
        ((key, group.varying_settings[key]) for key in RESOLUTION_KEYS if group.varying_settings.get(key) is not None),
        ("", None),
    )
    if not isinstance(value, float):
        return value or ""
    text = f"{value:.0e}".replace("e-0", "e-")
    text = text if abs(value) < 0.5 and float(text) == value else f"{value:g}"
    return {"solver.steps": f"{text} steps", "solver.step_size": f"step {text}"}.get(key, text)


def mean_curves(
    runs: Mapping[str, Sequence[Sequence[Row]]], tag: str, along: str = "step", smooth: bool = True
) -> list[Line]:
    """A curve a label: mean and standard deviation of `tag`, scaled to be read, over its runs, at the steps that all of
    them logged; against the mean of `along`. smooth: of many points the running mean is drawn.
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
    groups: Sequence[RunGroup], cost: Callable[[RunGroup], float], result: Callable[[RunGroup], float], rises: bool
) -> list[RunGroup]:
    """The Pareto front: groups that no other beats in result at the same cost or less, the cheapest first."""
    sign = -1.0 if rises else 1.0
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
    """The published values of a result for the runs' experiments; they are of the test split."""
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


def result_label(quantity: str, split: str, loss: str = "") -> str:
    """The label of a result's axis, such as ``validation accuracy (%)`` or ``test loss (maximum likelihood, nats)``.
    loss: which one, where the quantity is the loss."""
    tag = f"best/{quantity}"
    unit = "%" if display_scale(tag) == 100 else layout.TAGS[tag].unit if tag in layout.TAGS else ""
    name = quantity.removesuffix(f"_{unit}").replace("_", " ")
    told = join_nonempty(loss.replace("_", " "), "nats" if loss in LOSSES_IN_NATS else unit)
    return f"{split} {name} ({told})" if told else f"{split} {name}"


def nfe_ratio_lines(runs: Sequence[Run], lines: Sequence[Line], start: float = 0.0) -> list[ReferenceLine]:
    """Backward NFE as many as the lines' forward, and as published for the runs' experiments; from `least` on."""
    ends = np.array([start, max((finite_points(one)[0].max(initial=0.0) for one in lines), default=0.0)])
    found = [ReferenceLine("backward = forward", x=ends, y=ends)]
    for one in published_for(runs, NFE_RATIO):
        found.append(ReferenceLine(f"published: {one.printed} ({one.citation})", x=ends, y=one.value * ends))
    return found


def require_points(lines: Sequence[Line], min_points: int = 2) -> Sequence[Line]:
    """The lines; Lacking where they have fewer points than `least` in all."""
    if sum(map(num_points, lines)) < min_points:
        raise MissingDataError
    return lines


def positive_only(lines: Sequence[Line]) -> list[Line]:
    """The lines without what took no evaluation, as the backward pass of many gradient modes."""
    return [one._replace(y=np.where(one.y > 0, one.y, np.nan)) for one in lines]


def finite_points(one: Line) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line that can be drawn."""
    kept = np.isfinite(one.x) & np.isfinite(one.y)
    return one.x[kept], one.y[kept]


def num_points(one: Line) -> int:
    """How many points of a line can be drawn."""
    return len(finite_points(one)[0])

"""Groups of runs as the lines of a figure."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np

from odebench.errors import UsageError
from odebench.plots.comparison import MAX_LINES, Guide, Line
from odebench.plots.curves import SMOOTH_FROM, running_mean
from odebench.record import layout
from odebench.reporting.published import NFE_RATIO, published_of
from odebench.reporting.runs import Evidence, Group, Row, Run, classes, differing, numbered, telling
from odebench.reporting.table import scale, shown_setting

# Settings that a line runs along: how finely is solved.
ALONG = ("tol", "solver.steps", "solver.step_size")
# Settings that a panel of its own tells, or that say no more than these.
OF_PANELS = [["experiment"], ["trainer.objective"], ["task"], ["loss.name"], ["data.name"]]
# Losses that a split is judged by in nats: all of ours, for that of flow matching is the negative log-likelihood there.
LOSSES_IN_NATS = ("cross_entropy", "maximum_likelihood", "density_matching", "flow_matching", "autoregressive", "elbo")


class Lacking(UsageError):
    """The runs have not what a figure shows; line: what would make it, which `figures.draw` knows."""

    def __init__(self, line: str = "") -> None:
        super().__init__(line)


def split_into_lines(
    evidence: Evidence,
    along: Sequence[str] = ALONG,
    first: str = "model.name",
    panel: Callable[[Run], Hashable] = lambda run: None,
) -> tuple[dict[str, list[Group]], bool]:
    """The groups by all settings that differ besides those `along`; and whether they are lines. Fixed steps and
    tolerances are two lines. What the panel of its runs tells is no word of its label: lines go on in other panels.

    More lines than can be told apart become clouds of points: one for each value of the setting `first`, where it has
    few, or else of another one.
    """
    groups = [group for group in evidence.groups if group.done]
    others = [key for key in evidence.differing if key not in along]
    columns = differing([{key: group.settings.get(key) for key in others} for group in groups])
    keys = telling(columns, evidence.asked)
    keys = without([*OF_PANELS, *([key] for key in keys if key.startswith("data."))], groups, keys, panel)
    keys = telling_keys(groups, keys)
    lines = _by_stepping(_by(groups, keys))
    if len(lines) <= MAX_LINES:
        return lines, True
    few = [key for key in keys if len(_by(groups, [key])) <= MAX_LINES // 2]
    few.sort(key=lambda key: key != first)
    return _by(groups, few[:1]), False


def named_groups(
    evidence: Evidence, drawable: Callable[[Group], object] = lambda group: True
) -> Iterator[tuple[str, Group]]:
    """Every group that can be drawn, with the label that tells it from all, for figures of a line a group; UsageError
    for more than can be told apart."""
    groups = [group for group in evidence.groups if drawable(group)]
    if len(groups) > MAX_LINES:
        raise UsageError(f"it shows up to {MAX_LINES} settings, not {len(groups):,}; name fewer runs")
    keys = telling_keys(evidence.groups, evidence.varying)
    for group in groups:
        yield label(group, keys), group


def telling_keys(groups: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """Keys that tell the groups apart as well as all do; those that a reader misses least are left out first."""
    return without([ALONG, ["experiment"], ["solver.name"], ["data.name"]], groups, keys)


def without(
    unwanted: Sequence[Sequence[str]],
    groups: Sequence[Group],
    keys: Sequence[str],
    panel: Callable[[Run], Hashable] = lambda run: None,
) -> list[str]:
    """The keys without the unwanted ones, as far as the rest still tells all apart, with their runs' panel."""
    kept, panels = list(keys), numbered([panel(group.runs[0]) for group in groups])
    columns = {key: numbered([repr(group.settings.get(key)) for group in groups]) for key in keys}

    def told(by: Sequence[str]) -> int:
        return max(classes([panels, *(columns[key] for key in by)]), default=0)

    finest = told(kept)
    for some in unwanted:
        fewer = [one for one in kept if one not in some]
        if told(fewer) == finest:
            kept = fewer
    return kept


def _by_stepping(lines: Mapping[str, list[Group]]) -> dict[str, list[Group]]:
    """The lines, those apart that run along tolerances, numbers of steps and sizes of steps."""
    found: dict[str, list[Group]] = {}
    for label, groups in lines.items():
        kinds = {_stepping(group) for group in groups}
        for group in groups:
            found.setdefault(joined(label, _stepping(group)) if len(kinds) > 1 else label, []).append(group)
    return found


def _stepping(group: Group) -> str:
    """What its steps are chosen by."""
    told = {"solver.steps": "fixed steps", "solver.step_size": "fixed step size"}
    return next((words for key, words in told.items() if group.settings.get(key) is not None), "adaptive")


def joined(*words: str) -> str:
    """The words that are there, with commas between."""
    return ", ".join(filter(None, words))


def _by(groups: Sequence[Group], keys: Sequence[str]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(label(group, keys), []).append(group)
    return found


def label(group: Group, keys: Sequence[str]) -> str:
    """The group's settings in a few words: choices by name, others with their key; those it lacks are left out."""
    words = []
    for key in [key for key in keys if group.settings.get(key) is not None] or keys:
        text = shown_setting(group.settings.get(key))
        is_choice = key.endswith(".name") or key == "experiment"
        words.append(text if is_choice else f"{key.rpartition('.')[2]} {text}")
    return ", ".join(words)


def line(label: str, groups: Sequence[Group], x: Callable[[Group], float], tag: str) -> Line:
    """The groups' means of `tag`, scaled to be read, against `x`; tolerance or steps are names, where these differ."""
    names = [_fineness(group) for group in groups]
    return Line(
        label,
        np.array([x(group) for group in groups]),
        scale(tag) * np.array([group.mean(tag) for group in groups]),
        scale(tag) * np.array([group.spread(tag) for group in groups]),
        names if len(set(names)) > 1 else (),
    )


def _fineness(group: Group) -> str:
    """The tolerance or the steps, where they vary: ``1e-3``, but ``20 steps``."""
    key, value = next(((key, group.values[key]) for key in ALONG if group.values.get(key) is not None), ("", None))
    if not isinstance(value, float):
        return value or ""
    text = f"{value:.0e}".replace("e-0", "e-")
    text = text if abs(value) < 0.5 and float(text) == value else f"{value:g}"
    return {"solver.steps": f"{text} steps", "solver.step_size": f"step {text}"}.get(key, text)


def lines_of_rows(
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
        x, values = points[..., 0].mean(axis=0), scale(tag) * points[..., 1]
        if smooth and len(steps) > SMOOTH_FROM:
            values = np.array([running_mean(one, len(steps) // 30) for one in values])
        spread = values.std(axis=0, ddof=1) if len(logged) > 1 else None
        lines.append(Line(label, x, values.mean(axis=0), spread))
    return lines


def front(
    groups: Sequence[Group], cost: Callable[[Group], float], result: Callable[[Group], float], rises: bool
) -> list[Group]:
    """The Pareto front: groups that no other beats in result at the same cost or less, the cheapest first."""
    sign = -1.0 if rises else 1.0
    points = [(cost(group), sign * result(group), group) for group in groups]
    points = sorted((point for point in points if np.isfinite(point[:2]).all()), key=lambda point: point[:2])
    best: list[Group] = []
    least = np.inf
    for _, value, group in points:
        if value < least:
            best.append(group)
            least = value
    return best


def guides(runs: Sequence[Run], tag: str) -> list[Guide]:
    """The published values of a result for the runs' experiments; they are of the test split."""
    quantity = tag.removeprefix("best/").removeprefix("final/test_")
    return [
        Guide(
            f"published, test: {one.row}, {one.printed} ({one.cited})",
            scale(one.tag) * one.value,
            note=f"{one.row}: {one.printed}",
            source=f"published, test: {one.cited}",
        )
        for one in published_of(runs, f"final/test_{quantity}")
    ]


def result_label(quantity: str, split: str, loss: str = "") -> str:
    """The label of a result's axis, such as ``validation accuracy (%)`` or ``test loss (maximum likelihood, nats)``.
    loss: which one, where the quantity is the loss."""
    tag = f"best/{quantity}"
    unit = "%" if scale(tag) == 100 else layout.TAGS[tag].unit if tag in layout.TAGS else ""
    name = quantity.removesuffix(f"_{unit}").replace("_", " ")
    told = joined(loss.replace("_", " "), "nats" if loss in LOSSES_IN_NATS else unit)
    return f"{split} {name} ({told})" if told else f"{split} {name}"


def slopes(runs: Sequence[Run], lines: Sequence[Line], least: float = 0.0) -> list[Guide]:
    """Backward NFE as many as the lines' forward, and as published for the runs' experiments; from `least` on."""
    ends = np.array([least, max((finite(one)[0].max(initial=0.0) for one in lines), default=0.0)])
    found = [Guide("backward = forward", x=ends, y=ends)]
    for one in published_of(runs, NFE_RATIO):
        found.append(Guide(f"published: {one.printed} ({one.cited})", x=ends, y=one.value * ends))
    return found


def enough(lines: Sequence[Line], least: int = 2) -> Sequence[Line]:
    """The lines; Lacking where they have fewer points than `least` in all."""
    if sum(map(count, lines)) < least:
        raise Lacking
    return lines


def solved(lines: Sequence[Line]) -> list[Line]:
    """The lines without what took no evaluation, as the backward pass of many gradient modes."""
    return [one._replace(y=np.where(one.y > 0, one.y, np.nan)) for one in lines]


def finite(one: Line) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line that can be drawn."""
    kept = np.isfinite(one.x) & np.isfinite(one.y)
    return one.x[kept], one.y[kept]


def count(one: Line) -> int:
    """How many points of a line can be drawn."""
    return len(finite(one)[0])

"""What is said beside the table: how many runs, which were not done and why, what they ran on, what was published."""

import math
import re
from collections import Counter
from collections.abc import Sequence

from odebench.record import layout
from odebench.record.reader import RunOverview
from odebench.reporting.published import beside_published, percent, share_of_published
from odebench.reporting.runs import Evidence
from odebench.reporting.table import (
    NOTHING,
    Cell,
    Column,
    Table,
    headline_tags,
    scale,
    seeds,
    shown,
    shown_setting,
    title,
)

MAX_REASONS = 10
_NUMBER = re.compile(r"\d[\d.,e+-]*")


def counted(evidence: Evidence) -> str:
    """How many runs and groups, and how many runs are in which status."""
    counts = Counter(one.status for one in _overviews(evidence))
    statuses = [f"{counts[status]:,} {status}" for status in layout.STATUSES if counts[status]]
    statuses += [f"{len(evidence.damaged):,} damaged"] if evidence.damaged else []
    total = counts.total() + len(evidence.damaged)
    groups = f" in {number(len(evidence.groups), 'group')}" if evidence.groups else ""
    return f"{number(total, 'run')}{groups}: {', '.join(statuses)}"


def _overviews(evidence: Evidence) -> list[RunOverview]:
    return [*(run.overview for run in evidence.runs), *evidence.queued]


def number(count: int, word: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {word}" + "s" * (count != 1)


def cautions(evidence: Evidence) -> list[str]:
    """What a reader of the numbers has to know: seeds, data, machines."""
    done = [group for group in evidence.groups if group.done]
    lines = []
    most = max((seeds(group) for group in done), default=0)
    if most > 1:
        least = min(seeds(group) for group in done)
        lines.append(
            f"mean ± standard deviation over seeds; {least if least == most else f'{least} to {most}'} seeds a group"
        )
    repeated = sum(len(group.done) - seeds(group) for group in done)
    if repeated:
        lines.append(f"{number(repeated, 'run')} more of a seed that its group has already: its spread is understated")
    unfinished = [tag for tag in headline_tags(evidence) if any(_has_gap(group.numbers(tag)) for group in done)]
    if unfinished:
        lines.append(f"left out where a run of the group has no finite number: {', '.join(unfinished)}")
    mixed = sum(len({run.test_data for run in group.done} - {""}) > 1 for group in done)
    if mixed:
        lines.append(f"tested on different data within {number(mixed, 'group')} (manifest.json: data.splits)")
    machines = list(dict.fromkeys(run.machine for group in done for run in group.done))
    if len(machines) == 1:
        lines.append(f"ran on {machines[0]}")
    elif machines:
        lines.append(f"times of {len(machines)} machines stand side by side: {'; '.join(machines)}")
    return lines


def _has_gap(numbers: Sequence[float]) -> bool:
    return not all(map(math.isfinite, numbers))


def reasons(evidence: Evidence) -> list[tuple[str, list[str]]]:
    """Why runs did not come to their end, with the folders of those: the commonest reason first.

    Reasons that differ in their numbers alone are told once. Runs that are queued or running are only counted.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for one in _overviews(evidence):
        if one.status not in ("done", "queued", "running"):
            reason = f"{one.status}: {one.message or 'no reason told'}"
            found.setdefault(_NUMBER.sub("#", reason), (reason, []))[1].append(str(one.path))
    ordered = sorted(found.values(), key=lambda item: -len(item[1]))
    return ordered + [(f"damaged: {reason}", []) for reason in evidence.damaged]


def reason_lines(evidence: Evidence) -> list[str]:
    """The reasons in a few lines, each with a folder to look into."""
    lines = []
    for reason, paths in reasons(evidence)[:MAX_REASONS]:
        more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
        lines.append(f"{reason}  ({paths[0]}{more})" if paths else reason)
    left = len(reasons(evidence)) - MAX_REASONS
    return lines + ([f"and {number(left, 'other reason')}; --output DIR writes all"] if left > 0 else [])


def published_table(evidence: Evidence) -> Table | None:
    """Published values beside ours, a row for each group of an experiment; None where there are none."""
    rows = []
    for published, group, mean, spread in beside_published(evidence):
        times = scale(published.tag)
        settings = ", ".join(
            f"{title(key)} {shown_setting(value)}"
            for key, value in group.values.items()
            if key != "experiment" and value is not None
        )
        unit = " %" if times == 100 else ""
        shares = [share for run in group.done if (share := share_of_published(run)) is not None]
        own = shown(times * mean, times * spread)
        cells = [
            Cell(published.row, published.row),
            Cell(published.printed, published.printed),
            Cell(shown(times * published.value) + unit if published.tag else NOTHING, times * published.value),
            Cell(own + unit * (own != NOTHING), times * mean) if published.tag else Cell(NOTHING, math.nan),
            Cell(str(seeds(group)), float(seeds(group))),
            Cell(percent(min(shares)) if shares else NOTHING, min(shares, default=math.nan)),
        ]
        cells += [Cell(text, text) for text in (published.tag or NOTHING, settings or NOTHING, published.cited)]
        rows.append(cells)
    words = {"of": False, "printed": False, "published": True, "ours": True, "seeds": True}
    words |= {"share of the published training": True, "number": False, "our settings": False, "source": False}
    return Table([Column(name, numbers=numbers) for name, numbers in words.items()], rows) if rows else None


def spoken(lines: Sequence[str]) -> str:
    """Lines as text; nothing for none."""
    return "".join(f"{line}\n" for line in lines)

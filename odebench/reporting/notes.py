"""Notes on a table: numbers of runs, why runs failed, machines, published values."""

import math
import re
from collections import Counter

from odebench.record import layout
from odebench.record.reader import RunOverview
from odebench.reporting.formatting import EMPTY, column_title, display_scale, display_unit, format_setting, format_value
from odebench.reporting.published import compare_with_published, format_percent, training_fraction
from odebench.reporting.runs import RunCollection
from odebench.reporting.table import Table, TableCell, TableRow, headline_tags, num_seeds

MAX_REASONS = 10
_NUMBER = re.compile(r"\d[\d.,e+-]*")


def status_counts(collection: RunCollection) -> str:
    """A sentence with the number of runs, of groups, and of runs with each status."""
    counts = Counter(one.status for one in _overviews(collection))
    statuses = [f"{counts[status]:,} {status}" for status in layout.STATUSES if counts[status]]
    statuses += [f"{len(collection.damaged):,} damaged"] if collection.damaged else []
    total = counts.total() + len(collection.damaged)
    groups = f" in {plural(len(collection.groups), 'group')}" if collection.groups else ""
    return f"{plural(total, 'run')}{groups}: {', '.join(statuses)}"


def _overviews(collection: RunCollection) -> list[RunOverview]:
    return [*(run.overview for run in collection.runs), *collection.queued]


def plural(count: int, word: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {word}" + "s" * (count != 1)


def caveats(collection: RunCollection) -> list[str]:
    """List what limits a comparison of the numbers: seeds, missing values, data, machines."""
    done = [group for group in collection.groups if group.done_runs]
    lines = []
    most = max((num_seeds(group) for group in done), default=0)
    if most > 1:
        least = min(num_seeds(group) for group in done)
        lines.append(
            f"mean ± standard deviation over seeds; {least if least == most else f'{least} to {most}'} seeds per group"
        )
    repeated = sum(len(group.done_runs) - num_seeds(group) for group in done)
    if repeated:
        lines.append(
            f"{plural(repeated, 'run')} with a repeated seed in its group: the standard deviation is underestimated"
        )
    if prolonged := sum(run.was_prolonged for group in done for run in group.done_runs):
        lines.append(
            f"{plural(prolonged, 'run')} made longer on the way: the learning rate is not that of one training of this "
            "length"
        )
    unfinished = [
        tag
        for tag in headline_tags(collection)
        if not all(math.isfinite(value) for group in done for value in group.values(tag))
    ]
    if unfinished:
        lines.append(f"omitted for groups with a value that is not finite: {', '.join(unfinished)}")
    mixed = sum(len({run.test_data_hash for run in group.done_runs} - {""}) > 1 for group in done)
    if mixed:
        lines.append(f"tested on different data within {plural(mixed, 'group')} (manifest.json: data.splits)")
    machines = list(dict.fromkeys(run.machine for group in done for run in group.done_runs))
    if len(machines) == 1:
        lines.append(f"ran on {machines[0]}")
    elif machines:
        lines.append(f"times were measured on {len(machines)} machines: {'; '.join(machines)}")
    return lines


def failure_reasons(collection: RunCollection) -> list[tuple[str, list[str]]]:
    """The reasons why runs were not completed, each with the folders of its runs; the most common reason first.

    Reasons that differ only in numbers are merged. Queued and running runs are not listed.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for one in _overviews(collection):
        if one.status not in ("done", "queued", "running"):
            reason = f"{one.status}: {one.message or 'no reason recorded'}"
            found.setdefault(_NUMBER.sub("#", reason), (reason, []))[1].append(str(one.path))
    ordered = sorted(found.values(), key=lambda item: -len(item[1]))
    return ordered + [(f"damaged: {reason}", []) for reason in collection.damaged]


def failure_lines(collection: RunCollection) -> list[str]:
    """The failure reasons as a few lines, each with an example folder."""
    lines = []
    for reason, paths in failure_reasons(collection)[:MAX_REASONS]:
        more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
        lines.append(f"{reason}  ({paths[0]}{more})" if paths else reason)
    left = len(failure_reasons(collection)) - MAX_REASONS
    return lines + ([f"and {plural(left, 'other reason')}; --output DIR writes all"] if left > 0 else [])


def published_table(collection: RunCollection) -> Table | None:
    """A table of published values and our results, with a row for each group of runs; None without such values."""
    rows = []
    for published, group, mean, std in compare_with_published(collection):
        tag, num = published.tag, num_seeds(group)
        settings = ", ".join(
            f"{column_title(key)} {format_setting(value)}"
            for key, value in group.varying_settings.items()
            if key != "experiment" and value is not None
        )
        fractions = [one for run in group.done_runs if (one := training_fraction(run)) is not None]
        share = TableCell(format_percent(min(fractions)), min(fractions)) if fractions else TableCell(EMPTY, math.nan)
        row: TableRow = {
            "row": published.row,
            "printed": published.printed,
            "published": _cell_with_unit(tag, published.value),
            "ours": _cell_with_unit(tag, mean, std),
            "seeds": TableCell(str(num), float(num)),
            "share of the published training": share,
            "tag": tag or EMPTY,
            "our settings": settings or EMPTY,
            "source": published.citation,
        }
        rows.append(row)
    return Table.of(rows, words=("row", "printed", "tag", "our settings", "source")) if rows else None


def _cell_with_unit(tag: str, mean: float, std: float = math.nan) -> TableCell:
    text, unit = format_value(tag, mean, std), " %" if display_unit(tag) == "%" else ""
    return TableCell(text + unit * (text != EMPTY), display_scale(tag) * mean)

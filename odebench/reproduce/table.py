"""Ours beside the published, with a verdict for each number; and all numbers of each row."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from odebench.reporting.published import Published, is_partial, percent, read_published
from odebench.reporting.table import NOTHING, Cell, Column, Table, scale, seeds, shown
from odebench.reproduce.catalogue import WITHIN, Reproduction
from odebench.reproduce.results import Reached
from odebench.reproduce.verdict import compared, verdict

MINUTES = "final/minutes"
_CSV_COLUMNS = (
    "row",
    "number",
    "published",
    "ours",
    "spread",
    "seeds",
    "share",
    "minutes",
    "machine",
    "date",
    "verdict",
    "command",
)


@dataclass(frozen=True)
class Judgement:
    """A number of a row, published or to be compared with another row's."""

    reached: Reached
    tag: str
    published: Published | None
    verdict: str


def compare(reproduction: Reproduction, found: Sequence[Reached]) -> list[Judgement]:
    """Each number that was published, or that is to beat another row's."""
    values = {(one.row, one.tag): one for one in read_published() if one.of == reproduction.name and one.tag}
    by_name = {reached.row.name: reached for reached in found}
    lines = []
    for reached in found:
        row = reached.row
        for tag in row.tags:
            if (published := values.get((row.of, tag))) is not None:
                judged = _judged(reached, tag, published.value, reproduction.within.get(tag, WITHIN))
                lines.append(Judgement(reached, tag, published, judged))
        for other in map(by_name.__getitem__, row.beside):
            tag = other.row.tags[0]
            one, two = (values.get((of, tag)) for of in (row.of, other.row.of))
            ratio = one.value / two.value if one and two else math.nan
            lines.append(Judgement(reached, tag, None, _compared(reached, other, tag, ratio)))
    return lines


def _judged(reached: Reached, tag: str, published: float, within: float) -> str:
    if reached.reason or not math.isfinite(reached.mean(tag)):
        return reached.reason or "not measured"
    text = verdict(tag, reached.mean(tag), published, within, reached.share)
    return "; ".join(filter(None, [text, reached.lost]))


def _compared(reached: Reached, other: Reached, tag: str, published_ratio: float) -> str:
    for one in (reached, other):
        if one.reason or not math.isfinite(one.mean(tag)):
            return f"{one.row.name} {one.reason or 'not measured'}"
    text = compared(tag, reached.mean(tag), other.mean(tag), other.row.name, published_ratio)
    if any(is_partial(one.share) for one in (reached, other)):
        told = " and ".join("?" if one.share is None else percent(one.share) for one in (reached, other))
        text += f"; partial budget, {told} of the published trainings"
    if other.row.within_time_of == reached.row.name and other.mean(MINUTES) < 0.99 * reached.mean(MINUTES):
        text += f"; that one ended after {other.mean(MINUTES):.3g} of {reached.mean(MINUTES):.3g} minutes"
    return "; ".join([text, *(f"{one.lost} of {one.row.name}" for one in (reached, other) if one.lost)])


def verdicts(lines: Sequence[Judgement]) -> Table:
    """Ours beside the published; comparisons alone have no published numbers."""
    has_published = any(line.published for line in lines)
    words = {"row": False, "number": False, "printed": False, "published": True, "ours": True, "seeds": True}
    columns = [*(Column(word, numbers=numbers) for word, numbers in words.items()), Column("verdict", numbers=False)]
    rows = []
    for line in lines:
        published = shown(scale(line.tag) * line.published.value) if line.published else NOTHING
        printed = line.published.printed if line.published else NOTHING
        texts = [line.reached.row.name, _title(line.tag), printed, published, _shown(line.reached, line.tag)]
        rows.append([_cell(text) for text in [*texts, str(seeds(line.reached.group)), line.verdict]])
    if not has_published:
        columns, rows = columns[:2] + columns[4:], [row[:2] + row[4:] for row in rows]
    return Table(columns, rows)


def numbers(found: Sequence[Reached]) -> Table:
    """All numbers, a line a row. What is measured in training and in a study alike stands in one column: a row has
    either."""
    titles: dict[str, list[str]] = {}
    for tag in sorted(dict.fromkeys(tag for one in found for tag in one.numbers), key="final/minutes".__eq__):
        titles.setdefault(_title(tag), []).append(tag)
    rows = []
    for reached in found:
        runs = reached.reason or reached.lost.removesuffix(" runs") or str(reached.planned)
        own = [next((tag for tag in tags if tag in reached.numbers), "") for tags in titles.values()]
        rows.append([_cell(text) for text in [reached.row.name, runs, *(_shown(reached, tag) for tag in own)]])
    return Table([Column("row", numbers=False), Column("runs"), *map(Column, titles)], rows)


def _shown(reached: Reached, tag: str) -> str:
    mean, spread = reached.numbers.get(tag, (math.nan, math.nan))
    return shown(scale(tag) * mean, scale(tag) * spread)


def _title(tag: str) -> str:
    return tag.removeprefix("final/") + " (%)" * (scale(tag) == 100.0)


def _cell(text: str) -> Cell:
    return Cell(text, text)


def as_csv(lines: Sequence[Judgement], found: Sequence[Reached], command: str) -> str:
    """Every number in its unit, with what it was judged by and the command that gave it."""
    judged = {(line.reached.row.name, line.tag): line for line in lines if line.published}
    against: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if not line.published:
            against.setdefault((line.reached.row.name, line.tag), []).append(line.verdict)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for reached in found:
        machines = "; ".join(dict.fromkeys(run.machine for run in reached.group.done))
        date = max((run.overview.time[:10] for run in reached.group.done), default="")
        for tag, (mean, spread) in reached.numbers.items():
            place = reached.row.name, tag
            known = judged.get(place)
            published = known.published.value if known and known.published else math.nan
            said = "; ".join(filter(None, [known.verdict if known else reached.reason, *against.get(place, ())]))
            share = math.nan if reached.share is None else reached.share
            values = [published, mean, spread, seeds(reached.group), share, reached.mean("final/minutes")]
            plain = ["" if isinstance(value, float) and math.isnan(value) else value for value in values]
            writer.writerow([*place, *plain, machines, date, said, command])
    return text.getvalue()

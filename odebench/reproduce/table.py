"""Tables of a reproduction: our results with the published values and verdicts, and all results of each row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from odebench.config.schema.quantities import higher_is_better
from odebench.reporting.published import PublishedValue, format_percent, is_partial_budget, read_published
from odebench.reporting.table import EMPTY, MINUTES, Table, csv_text, format_value, num_seeds, tag_title
from odebench.reproduce.catalogue import DEFAULT_TOLERANCE, Reproduction
from odebench.reproduce.results import RowResult


@dataclass(frozen=True)
class RowVerdict:
    """The verdict on one result of a row, compared with a published value or with another row."""

    result: RowResult
    tag: str
    published: PublishedValue | None
    verdict: str


def judge_rows(reproduction: Reproduction, found: Sequence[RowResult]) -> list[RowVerdict]:
    """Judge all results that have a published value, or that should be better than those of another row."""
    values = {(one.row, one.tag): one for one in read_published() if one.of == reproduction.name and one.tag}
    by_name = {result.row.name: result for result in found}
    lines = []
    for result in found:
        row = result.row
        for tag in row.tags:
            if (published := values.get((row.published_row, tag))) is not None:
                tolerance = reproduction.tolerance.get(tag, DEFAULT_TOLERANCE)
                judged = _judge_published(result, tag, published.value, tolerance)
                lines.append(RowVerdict(result, tag, published, judged))
        for other in map(by_name.__getitem__, row.better_than):
            tag = other.row.tags[0]
            one, two = (values.get((of, tag)) for of in (row.published_row, other.row.published_row))
            ratio = one.value / two.value if one and two else math.nan
            lines.append(RowVerdict(result, tag, None, _judge_comparison(result, other, tag, ratio)))
    return lines


def _judge_published(result: RowResult, tag: str, published: float, tolerance: float) -> str:
    if result.reason or not math.isfinite(result.mean(tag)):
        return result.reason or "not measured"
    text = published_verdict(tag, result.mean(tag), published, tolerance, result.training_fraction)
    return "; ".join(filter(None, [text, result.missing_runs]))


def _judge_comparison(result: RowResult, other: RowResult, tag: str, published_ratio: float) -> str:
    for one in (result, other):
        if one.reason or not math.isfinite(one.mean(tag)):
            return f"{one.row.name} {one.reason or 'not measured'}"
    text = comparison_verdict(tag, result.mean(tag), other.mean(tag), other.row.name, published_ratio)
    if any(is_partial_budget(one.training_fraction) for one in (result, other)):
        fractions = [one.training_fraction for one in (result, other)]
        shares = " and ".join("?" if one is None else format_percent(one) for one in fractions)
        text += f"; partial budget, {shares} of the published trainings"
    if other.row.within_time_of == result.row.name and other.mean(MINUTES) < 0.99 * result.mean(MINUTES):
        text += f"; that one ended after {other.mean(MINUTES):.3g} of {result.mean(MINUTES):.3g} minutes"
    return "; ".join([text, *(f"{one.missing_runs} of {one.row.name}" for one in (result, other) if one.missing_runs)])


def verdict_table(lines: Sequence[RowVerdict]) -> Table:
    """A table of our results, published values and verdicts.

    The column of published values is omitted if rows are only compared with each other.
    """
    has_published = any(line.published for line in lines)
    rows = []
    for line in lines:
        row = {"row": line.result.row.name, "number": _column_title(line.tag)}
        if has_published:
            one = line.published
            row |= {
                "printed": one.printed if one else EMPTY,
                "published": format_value(line.tag, one.value) if one else EMPTY,
            }
        row |= {"ours": _format_result(line.result, line.tag), "seeds": str(num_seeds(line.result.group))}
        rows.append(row | {"verdict": line.verdict})
    return Table.of(rows, words=("row", "number", "printed", "verdict"))


def results_table(found: Sequence[RowResult]) -> Table:
    """A table of all results.

    A quantity from trainings and the same quantity from evaluations share a column, since a row has only one of them.
    """
    titles: dict[str, list[str]] = {}
    for tag in sorted(dict.fromkeys(tag for one in found for tag in one.statistics), key=MINUTES.__eq__):
        titles.setdefault(_column_title(tag), []).append(tag)
    rows = []
    for result in found:
        runs = result.reason or result.missing_runs.removesuffix(" runs") or str(result.num_planned)
        row_tags = {
            title: next((tag for tag in tags if tag in result.statistics), "") for title, tags in titles.items()
        }
        numbers = {title: _format_result(result, tag) for title, tag in row_tags.items()}
        rows.append({"row": result.row.name, "runs": runs} | numbers)
    return Table.of(rows, words=("row",))


def _format_result(result: RowResult, tag: str) -> str:
    return format_value(tag, *result.statistics.get(tag, (math.nan, math.nan)))


def _column_title(tag: str) -> str:
    return tag_title(tag).removeprefix("final/")


def as_csv(lines: Sequence[RowVerdict], found: Sequence[RowResult], command: str) -> str:
    """Format all results as CSV, in the units of their tags, with published value, verdict and command."""
    rows = []
    for result in found:
        done = result.group.done_runs
        for tag, (mean, std) in result.statistics.items():
            judged = [line for line in lines if line.result is result and line.tag == tag]
            published = next((line.published.value for line in judged if line.published), None)
            reasons = [result.reason] if published is None else []
            row = {
                "row": result.row.name,
                "number": tag,
                "published": published,
                "ours": mean,
                "spread": std,
                "seeds": num_seeds(result.group),
                "share": result.training_fraction,
                "minutes": result.mean(MINUTES),
                "machine": "; ".join(dict.fromkeys(run.machine for run in done)),
                "date": max((run.overview.time[:10] for run in done), default=""),
                "verdict": "; ".join(filter(None, [*reasons, *(line.verdict for line in judged)])),
                "command": command,
            }
            rows.append(row)
    return csv_text(rows)


def published_verdict(tag: str, ours: float, published: float, tolerance: float, fraction: float | None) -> str:
    """Say whether a published value was reproduced; a better result always counts as reproduced.

    tolerance: the accepted relative deviation from the published value; for an accuracy, from the published error.
    fraction: the fraction of the published training that our training completed; None if unknown.
    """
    if tag == MINUTES:  # times of another machine cannot be compared
        return "another machine"
    worse = how_much_worse(tag, ours, published)
    more, less = ("worse", "better") if tag.startswith("final/test_") else ("more", "less")
    if abs(worse) <= tolerance:
        how = f"within {100 * abs(worse):.1f} %"
    else:
        how = f"{more if worse > 0 else less} by {100 * abs(worse):.0f} %"
    if fraction is not None and is_partial_budget(fraction) and tag != "parameters":
        return f"partial budget, {format_percent(fraction)} of the published training: {how}"
    is_reached = abs(worse) <= tolerance or how.startswith("better")
    return f"{'reproduced' if is_reached else 'not reached'}: {how}"


def how_much_worse(tag: str, ours: float, published: float) -> float:
    """The relative difference, positive if ours is worse (or larger, if neither direction is better).

    For an accuracy it is the relative difference of the errors. If the published value is 0, it is 0 or infinite.
    """
    if tag.endswith("accuracy"):
        ours, published = 1 - ours, 1 - published
    elif _larger_is_better(tag):
        ours, published = -ours, -published
    gap = ours - published
    return gap / abs(published) if published else math.copysign(math.inf, gap) if gap else 0.0


def _larger_is_better(tag: str) -> bool:
    """Whether a larger value is better."""
    return higher_is_better(tag.removeprefix("final/test_").removeprefix("best/"))


def comparison_verdict(tag: str, ours: float, others: float, name: str, published_ratio: float = math.nan) -> str:
    """Say whether a row is better than another, as published: by at least half the published margin, if it is known."""
    sign = -1.0 if _larger_is_better(tag) else 1.0
    is_better, has_ratio = sign * ours < sign * others, math.isfinite(published_ratio)
    word = "as published" if is_better else "not as published"
    if is_better and has_ratio and abs(1 - ours / others) < 0.5 * abs(1 - published_ratio):
        word = "better, but by less than half as much as published"
    values = [format_value(tag, value) for value in (ours, others)]
    text = f"{word}: {' against '.join(values)} of {name}"
    if has_ratio:
        text += f", ratio {ours / others:.2f} (published {published_ratio:.2f})"
    return text

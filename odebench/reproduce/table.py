"""Tables of a reproduction: our results with the published values and verdicts, and all results of each row."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from odebench.reporting.formatting import EMPTY, MINUTES, display_scale, format_value, tag_title
from odebench.reporting.published import PublishedValue, read_published
from odebench.reporting.table import Table, csv_text
from odebench.reproduce.catalogue import DEFAULT_MARGIN, Reproduction
from odebench.reproduce.results import RowResult
from odebench.reproduce.verdicts import Measurement, Verdict, judge_pair, judge_published

# The columns of the CSV file that say where a number comes from.
ORIGIN = ("minutes", "machine", "commit", "date", "command")


@dataclass(frozen=True)
class RowVerdict:
    """The verdict on a number of a row: against a published value, or against the row named `other`."""

    ours: Measurement
    published: PublishedValue | None
    other: str
    verdict: Verdict


def judge_rows(reproduction: Reproduction, measured: Iterable[Measurement]) -> list[RowVerdict]:
    """Judge all numbers that have a published value, or that should be better than those of another row."""
    values = {(one.row, one.tag): one for one in read_published() if one.of == reproduction.name and one.tag}
    by_name = {row.name: row for row in reproduction.rows}
    found = {(one.row, one.tag): one for one in measured}

    def measurement(row: str, tag: str) -> Measurement:
        return found.get((row, tag)) or Measurement(row, tag, math.nan)

    lines = []
    for row in reproduction.rows:
        for tag in row.tags:
            if (published := values.get((row.published_row, tag))) is not None:
                ours, margin = measurement(row.name, tag), reproduction.margin.get(tag, DEFAULT_MARGIN)
                lines.append(RowVerdict(ours, published, "", judge_published(ours, published, margin)))
        for other in map(by_name.__getitem__, row.compared_with):
            tag = other.tags[0]
            one, two = (values.get((of, tag)) for of in (row.published_row, other.published_row))
            ratio = one.value / two.value if one and two else math.nan
            ours, margin = measurement(row.name, tag), reproduction.margin.get(tag, DEFAULT_MARGIN)
            lines.append(
                RowVerdict(ours, None, other.name, judge_pair(ours, measurement(other.name, tag), margin, ratio))
            )
    return lines


def verdict_table(lines: Sequence[RowVerdict]) -> Table:
    """A table of our results, published values and verdicts.

    The column of published values is omitted if rows are only compared with each other.
    """
    has_published = any(line.published for line in lines)
    rows = []
    for line in lines:
        ours = line.ours
        row = {"row": ours.row, "number": _column_title(ours.tag)}
        if has_published:
            one = line.published
            row |= {
                "printed": one.printed if one else EMPTY,
                "published": format_value(ours.tag, one.value) if one else EMPTY,
            }
        row |= {"ours": format_value(ours.tag, ours.mean, ours.std), "95 % interval": format_interval(ours)}
        rows.append(row | {"seeds": str(ours.num_seeds), "verdict": str(line.verdict)})
    return Table.of(rows, words=("row", "number", "printed", "verdict"))


def format_interval(ours: Measurement) -> str:
    """Format the 95 % interval in displayed units, with two digits of its half-width, one of an error's lower end."""
    low, high = (display_scale(ours.tag) * end for end in ours.interval)
    if not high > low:
        return EMPTY
    decimals = max(1 - math.floor(math.log10((high - low) / 2)), 0)
    if ours.is_error and low > 0:  # an interval of logarithms never reaches 0
        decimals = max(decimals, -math.floor(math.log10(low)))
    return f"{low:,.{decimals}f} to {high:,.{decimals}f}"


def results_table(found: Sequence[RowResult]) -> Table:
    """A table of all results.

    A quantity from trainings and the same quantity from evaluations share a column, since a row has only one of them.
    """
    titles: dict[str, list[str]] = {}
    for tag in sorted(dict.fromkeys(tag for one in found for tag in one.values), key=MINUTES.__eq__):
        titles.setdefault(_column_title(tag), []).append(tag)
    rows = []
    for result in found:
        runs = result.reason or result.missing_runs.removesuffix(" runs") or str(result.num_planned)
        row_tags = {title: next((tag for tag in tags if tag in result.values), "") for title, tags in titles.items()}
        numbers = {title: _format_result(result, tag) if tag else EMPTY for title, tag in row_tags.items()}
        rows.append({"row": result.row.name, "runs": runs} | numbers)
    return Table.of(rows, words=("row",))


def _format_result(result: RowResult, tag: str) -> str:
    ours = result.measurement(tag)
    return format_value(tag, ours.mean, ours.std)


def _column_title(tag: str) -> str:
    return tag_title(tag).removeprefix("final/")


def measurements(found: Iterable[RowResult]) -> list[Measurement]:
    """The numbers of all rows."""
    return [one.measurement(tag) for one in found for tag in one.values]


def as_csv(lines: Sequence[RowVerdict], found: Sequence[RowResult], command: str) -> str:
    """Format all results as CSV, in the units of their tags, with published value, interval, verdict and command."""
    rows = []
    for result in found:
        done = result.group.done_runs
        origin = {
            "minutes": result.mean(MINUTES),
            "machine": "; ".join(dict.fromkeys(run.machine for run in done)),
            "commit": "; ".join(dict.fromkeys(run.commit for run in done)),
            "date": max((run.overview.time[:10] for run in done), default=""),
            "command": command,
        }
        rows += [measurement_columns(result.measurement(tag), lines) | origin for tag in result.values]
    return csv_text(rows)


def judge_again(reproduction: Reproduction, rows: Sequence[Mapping[str, str]]) -> str:
    """Judge the rows of a CSV file anew, and format them as CSV."""
    measured = list(map(read_measurement, rows))
    lines = judge_rows(reproduction, measured)
    origins = [{name: row.get(name, "") for name in ORIGIN} for row in rows]
    return csv_text([measurement_columns(one, lines) | origin for one, origin in zip(measured, origins, strict=True)])


def measurement_columns(ours: Measurement, lines: Iterable[RowVerdict]) -> dict[str, Any]:
    """The columns of the CSV file that hold a number with its interval and verdicts."""
    judged = [line for line in lines if (line.ours.row, line.ours.tag) == (ours.row, ours.tag)]
    low, high = ours.interval
    return {
        "row": ours.row,
        "number": ours.tag,
        "published": next((line.published.value for line in judged if line.published), None),
        "ours": ours.mean,
        "spread": ours.std,
        "seeds": ours.num_seeds,
        "values": " ".join(f"{seed}={value!r}" for seed, value in ours.values.items()),
        "samples": ours.samples,
        "std_error": ours.std_error,
        "low": low,
        "high": high,
        "share": ours.share,
        "missing": ours.missing,
        "verdict": "; ".join(str(line.verdict) for line in judged),
    }


def read_measurement(columns: Mapping[str, str]) -> Measurement:
    """Read a number from a row of the CSV file."""

    def number(name: str) -> float:
        return float(columns.get(name) or "nan")

    pairs = (word.split("=") for word in columns.get("values", "").split())
    return Measurement(
        columns["row"],
        columns["number"],
        number("ours"),
        number("spread"),
        int(columns["seeds"]),
        {seed: float(value) for seed, value in pairs},
        int(columns["samples"]) if columns.get("samples") else None,
        number("std_error"),
        float(columns["share"]) if columns["share"] else None,
        columns.get("missing", ""),
    )

"""What the rows of a reproduction came to, from the records of its runs and their evaluations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from odebench.config.schema.quantities import higher_is_better
from odebench.reporting.figures import OUTPUT_ERROR
from odebench.reporting.published import NFE_RATIO, group_mean_and_std, training_fraction
from odebench.reporting.runs import Row, Run, RunCollection, RunGroup, mean_and_std, read_evaluations, read_rows
from odebench.reproduce import catalogue
from odebench.sweep.attempts import read_status
from odebench.sweep.expand import expand
from odebench.sweep.folder import Sweep
from odebench.sweep.validate import Job

# How an evaluation was made: its overrides, and of how many samples.
EvaluationKey = tuple[tuple[str, ...], int | None]
RATIO_PARTS = ("nfe_backward", "nfe_forward")


@dataclass(frozen=True)
class RowResult:
    """A row and its runs. numbers: mean and spread by tag, NaN where there is none; share: of the published training,
    the least of the runs, None where that is not known; reason: why there is nothing, where no run is done; planned:
    how many runs it was to have."""

    row: catalogue.TableRow
    group: RunGroup
    statistics: dict[str, tuple[float, float]]
    training_fraction: float | None
    reason: str
    num_planned: int

    def mean(self, tag: str) -> float:
        """NaN where there is none."""
        return self.statistics[tag][0]

    @property
    def missing_runs(self) -> str:
        """How many of its runs the numbers are of, where these are not all."""
        done = len(self.group.done_runs)
        return "" if self.reason or done == self.num_planned else f"{done} of {self.num_planned} runs"


def collect_results(
    reproduction: catalogue.Reproduction,
    jobs: Mapping[str, Sequence[tuple[str, ...]]],
    sweep: Sweep,
    collection: RunCollection,
) -> list[RowResult]:
    """Each row. jobs: of each row, the overrides of its runs; evidence: all runs of the sweep."""
    runs = {run.path.name: run for run in collection.runs}
    by_settings = {job_identity(job.overrides): job for job in sweep.jobs}
    jobs_by_row = {
        row.name: [by_settings[job_identity(words)] for words in jobs[row.name]] for row in reproduction.rows
    }
    groups = {
        name: RunGroup({}, [runs[job.name] for job in of_row if job.name in runs])
        for name, of_row in jobs_by_row.items()
    }
    expected = {key for study in reproduction.evaluations for key in expected_evaluations(study)}
    found = []
    for row in reproduction.rows:
        group, minutes = groups[row.name], math.inf
        if row.within_time_of is not None:
            minutes = groups[row.within_time_of].mean("final/minutes")
        tags = dict.fromkeys([*row.tags, "final/minutes"])
        fractions = [
            fraction for run in group.done_runs if (fraction := _fraction_after_minutes(run, minutes)) is not None
        ]
        found.append(
            RowResult(
                row,
                group,
                {tag: _number(row, tag, group, minutes, expected) for tag in tags},
                min(fractions, default=None),
                _reason(sweep, jobs_by_row[row.name], group),
                len(jobs_by_row[row.name]),
            )
        )
    return found


def _reason(sweep: Sweep, jobs: Sequence[Job], group: RunGroup) -> str:
    """Why a row has no numbers, by the first of its jobs; "" where it has."""
    if group.done_runs:
        return ""
    overview = read_status(sweep, jobs[0])
    return ", ".join(filter(None, [f"not done: {overview.status}", overview.message]))


def _number(
    row: catalogue.TableRow, tag: str, group: RunGroup, minutes: float, expected: set[EvaluationKey]
) -> tuple[float, float]:
    """Mean and spread of a row's number over its runs: at the end of the training, after so many minutes of it, or of
    an evaluation of the study."""
    if row.within_time_of is not None:
        return mean_and_std([_value_after_minutes(run, tag, minutes) for run in group.done_runs])
    if row.evaluation and not tag.startswith("final/"):
        lines = [line for run in group.done_runs if (line := _evaluation(run, row.evaluation, expected))]
        return mean_and_std([_evaluation_value(line, tag) for line in lines])
    return group_mean_and_std(group, tag)


def _fraction_after_minutes(run: Run, minutes: float) -> float | None:
    """Of the published training, what a run had had after so many minutes."""
    fraction = training_fraction(run)
    if fraction is None or not minutes < run.value("final/minutes"):
        return fraction
    steps = [row["step"] for row in read_rows(run) if row["elapsed_s"] <= 60 * minutes]
    return fraction * max(steps, default=0) / run.overview.step


def job_identity(overrides: Sequence[str]) -> frozenset[str]:
    """What makes a run of a reproduction that one: its overrides in any order, with the seed where none is named, and
    without the place of its files."""
    named = {word.partition("=")[0] for word in overrides}
    words = (word for word in overrides if not word.startswith("outputs="))
    return frozenset([*words, *([] if "seed" in named else ["seed=0"])])


def expected_evaluations(study: Sequence[str]) -> set[EvaluationKey]:
    """The evaluations that the words of a study make."""
    limits = [int(word.partition("=")[2]) for word in study if word.startswith("--limit=")]
    jobs = expand([[word for word in study if not word.startswith("--")]])
    return {(tuple(job), limits[0] if limits else None) for job in jobs}


def evaluations_by_key(run: Run) -> dict[EvaluationKey, Row]:
    """A run's evaluations as studies make them, the last of each kind."""
    return {
        (tuple(line["overrides"]), line.get("limit")): line
        for line in read_evaluations(run)
        if {OUTPUT_ERROR, "failed"} & line.keys() and line.get("split") == "validation"
    }


def _value_after_minutes(run: Run, tag: str, minutes: float) -> float:
    """What a run had come to after so many minutes of its training: of ``best/...`` the best validation so far, which
    its checkpoint would have been chosen by; of its minutes, those that it took of them."""
    if tag == "final/minutes":
        return min(minutes, run.value(tag))
    name = tag.removeprefix("best/")
    told = [row[f"val/{name}"] for row in read_rows(run) if f"val/{name}" in row and row["elapsed_s"] <= 60 * minutes]
    best = max if higher_is_better(name) else min
    return best((value for value in told if math.isfinite(value)), default=math.nan)


def _evaluation_value(line: Row, tag: str) -> float:
    if tag == NFE_RATIO:
        backward, forward = (line.get(name) for name in RATIO_PARTS)
        return backward / forward if backward and forward else math.nan
    value = line.get(tag)
    return float(value) if isinstance(value, int | float) else math.nan


def _evaluation(run: Run, wanted: Mapping[str, str], expected: set[EvaluationKey]) -> Row | None:
    """The evaluation of the study, none that a user made by other words, that was made under these settings."""
    jobs_by_row = [line for key, line in evaluations_by_key(run).items() if key in expected]
    return next((line for line in reversed(jobs_by_row) if _has_settings(line["overrides"], wanted)), None)


def _has_settings(overrides: Sequence[str], wanted: Mapping[str, str]) -> bool:
    given = dict(word.partition("=")[::2] for word in overrides)
    return all(key in given and _value(given[key]) == _value(text) for key, text in wanted.items())


def _value(text: str) -> float | str:
    """1e-2 and 0.01 are the same."""
    try:
        return float(text)
    except ValueError:
        return text

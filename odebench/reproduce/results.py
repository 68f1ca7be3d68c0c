"""Results of the rows of a reproduced table, from the records of the runs and of their evaluations."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from odebench.config.schema.quantities import higher_is_better
from odebench.reporting.figures import OUTPUT_ERROR
from odebench.reporting.formatting import FORWARD, MINUTES
from odebench.reporting.published import NFE_GROWTH, NFE_RATIO, nfe_ratio, steps_per_epoch, training_fraction
from odebench.reporting.runs import Row, Run, RunCollection, RunGroup, mean_and_std, number, read_evaluations, read_rows
from odebench.reporting.table import num_seeds
from odebench.reproduce import catalogue
from odebench.reproduce.verdicts import Measurement
from odebench.sweep.attempts import read_status
from odebench.sweep.expand import expand
from odebench.sweep.folder import Sweep
from odebench.sweep.validate import Job

# Identifies an evaluation: its overrides, and its number of samples (None: all).
EvaluationKey = tuple[tuple[str, ...], int | None]
RATIO_PARTS = ("nfe_backward", "nfe_forward")


@dataclass(frozen=True)
class RowResult:
    """A row of the table, its runs, and their results.

    values: tag -> seed -> value, NaN if missing. training_fraction: the fraction of the published training that the
    runs completed, the smallest of them; None if unknown. reason: why no run was completed, or "". num_planned: the
    number of planned runs.
    """

    row: catalogue.ReproductionRow
    group: RunGroup
    values: dict[str, dict[str, float]]
    training_fraction: float | None
    reason: str
    num_planned: int

    def mean(self, tag: str) -> float:
        """The mean of a tag over the runs; NaN if it is missing."""
        return mean_and_std(list(self.values[tag].values()))[0]

    def measurement(self, tag: str) -> Measurement:
        """The mean of a tag, with everything that is known about its error."""
        values = self.values[tag]
        tests = [run.overview.summary.get("test", {}) for run in self.group.done_runs if tag.startswith("final/test_")]
        name = tag.removeprefix("final/test_")
        errors = [test.get(f"{name.removesuffix('_nats')}_std_error", math.nan) for test in tests]
        samples = {test.get("images") for test in tests} if name == "accuracy" else {None}
        lacking = f"{len(values)} of {self.num_planned} values" if 0 < len(values) < self.num_planned else ""
        return Measurement(
            self.row.name,
            tag,
            *mean_and_std(list(values.values())),
            len(values) or num_seeds(self.group),
            values,
            samples.pop() if len(samples) == 1 else None,
            mean_and_std(errors)[0],
            self.training_fraction,
            self.reason or self.missing_runs or lacking,
        )

    @property
    def missing_runs(self) -> str:
        """``2 of 3 runs`` if not all runs were completed, else ""."""
        done = len(self.group.done_runs)
        return "" if self.reason or done == self.num_planned else f"{done} of {self.num_planned} runs"


def collect_results(
    reproduction: catalogue.Reproduction,
    jobs: Mapping[str, Sequence[tuple[str, ...]]],
    sweep: Sweep,
    collection: RunCollection,
) -> list[RowResult]:
    """Collect the results of each row of the table that has jobs in the sweep.

    jobs: name of a row -> overrides of each of its runs. collection: all runs of the sweep.
    """
    runs = {run.path.name: run for run in collection.runs}
    by_settings = {job_identity(job.overrides): job for job in sweep.jobs}
    identities = {row.name: map(job_identity, jobs[row.name]) for row in reproduction.rows}
    row_jobs = {name: [by_settings[one] for one in ids if one in by_settings] for name, ids in identities.items()}
    groups = {
        name: RunGroup({}, [runs[job.name] for job in jobs_of if job.name in runs])
        for name, jobs_of in row_jobs.items()
    }
    expected = {key for arguments in reproduction.evaluations for key in expected_evaluations(arguments)}
    found = []
    for row in (row for row in reproduction.rows if row_jobs[row.name]):
        group, minutes = groups[row.name], math.inf
        if row.within_time_of is not None:
            minutes = groups[row.within_time_of].mean(MINUTES)
        tags = dict.fromkeys([*row.tags, MINUTES])
        fractions = [one for run in group.done_runs if (one := _fraction_after_minutes(run, minutes)) is not None]
        found.append(
            RowResult(
                row,
                group,
                {tag: _values_by_seed(row, tag, group, minutes, expected) for tag in tags},
                min(fractions, default=None),
                _reason(sweep, row_jobs[row.name], group),
                len(row_jobs[row.name]),
            )
        )
    return found


def _reason(sweep: Sweep, jobs: Sequence[Job], group: RunGroup) -> str:
    """The reason why a row has no results, taken from its first job; "" if it has results."""
    if group.done_runs:
        return ""
    overview = read_status(sweep, jobs[0])
    return ", ".join(filter(None, [f"not done: {overview.status}", overview.message]))


def _values_by_seed(
    row: catalogue.ReproductionRow, tag: str, group: RunGroup, minutes: float, expected: set[EvaluationKey]
) -> dict[str, float]:
    """The values of a tag of a row's runs, by seed; runs that did not measure it are left out.

    If the row has ``within_time_of``, the values are those after `minutes` of training. If it has ``evaluation``, they
    are those of an evaluation, except for tags final/NAME. Otherwise they are those at the end of the training.
    """
    found = {}
    for run in group.done_runs:
        seed = str(int(run.settings.get("seed") or 0))
        if row.within_time_of is not None:
            found[seed] = _value_after_minutes(run, tag, minutes)
        elif row.evaluation and not tag.startswith("final/"):
            if line := _evaluation(run, row.evaluation, expected):
                found[seed] = _evaluation_value(line, tag)
        elif tag == NFE_RATIO:
            found[seed] = nfe_ratio(run)
        elif tag == NFE_GROWTH:
            found[seed] = _nfe_growth(run)
        elif tag in run.overview.summary:
            found[seed] = run.value(tag)
    return found


def _nfe_growth(run: Run) -> float:
    """Forward NFE in the last epoch divided by that in the first; NaN if nothing was solved."""
    end = steps_per_epoch(run)
    numbers = [row["nfe/forward"] for row in read_rows(run) if row["step"] <= end and "nfe/forward" in row]
    return run.value(FORWARD) / statistics.fmean(numbers) if any(numbers) else math.nan


def _fraction_after_minutes(run: Run, minutes: float) -> float | None:
    """The fraction of the published training that the run had completed after `minutes`; None if unknown."""
    fraction = training_fraction(run)
    if fraction is None or not minutes < run.value(MINUTES):
        return fraction
    steps = [row["step"] for row in read_rows(run) if row["elapsed_s"] <= 60 * minutes]
    return fraction * max(steps, default=0) / run.overview.step


def job_identity(overrides: Sequence[str]) -> frozenset[str]:
    """A key that identifies a run of a reproduction: its overrides in any order.

    It includes the seed, also the default one, but not the output folder.
    """
    keys = {override.partition("=")[0] for override in overrides}
    kept = (override for override in overrides if not override.startswith("outputs="))
    return frozenset([*kept, *([] if "seed" in keys else ["seed=0"])])


def expected_evaluations(arguments: Sequence[str]) -> set[EvaluationKey]:
    """The evaluations that `odebench eval RUN` makes with these arguments."""
    limits = [int(one.partition("=")[2]) for one in arguments if one.startswith("--limit=")]
    jobs = expand([[one for one in arguments if not one.startswith("--")]])
    return {(tuple(job), limits[0] if limits else None) for job in jobs}


def evaluations_by_key(run: Run) -> dict[EvaluationKey, Row]:
    """The run's evaluations on the validation split, by key; repeated ones are replaced by the last."""
    return {
        (tuple(line["overrides"]), line.get("limit")): line
        for line in read_evaluations(run)
        if {OUTPUT_ERROR, "failed"} & line.keys() and line.get("split") == "validation"
    }


def _value_after_minutes(run: Run, tag: str, minutes: float) -> float:
    """The value of a tag after `minutes` of training.

    For ``best/NAME`` it is the best validation result until then; for ``final/minutes`` it is at most `minutes`.
    """
    if tag == MINUTES:
        return min(minutes, run.value(tag))
    name = tag.removeprefix("best/")
    values = [row[f"val/{name}"] for row in read_rows(run) if f"val/{name}" in row and row["elapsed_s"] <= 60 * minutes]
    best = max if higher_is_better(name) else min
    return best((value for value in values if math.isfinite(value)), default=math.nan)


def _evaluation_value(line: Row, tag: str) -> float:
    if tag == NFE_RATIO:
        backward, forward = (line.get(name) for name in RATIO_PARTS)
        return backward / forward if backward and forward else math.nan
    value = line.get(tag)
    return float(value) if isinstance(value, int | float) else math.nan


def _evaluation(run: Run, wanted: Mapping[str, str], expected: set[EvaluationKey]) -> Row | None:
    """The last evaluation with the wanted settings; ignores evaluations that a user made with other arguments."""
    lines = [line for key, line in evaluations_by_key(run).items() if key in expected]
    return next((line for line in reversed(lines) if _has_settings(line["overrides"], wanted)), None)


def _has_settings(overrides: Sequence[str], wanted: Mapping[str, str]) -> bool:
    """Whether these are the settings of an evaluation; others than those that select one do not matter."""
    given = (override.partition("=")[::2] for override in overrides)
    selecting = {key: number(text) for key, text in given if key in catalogue.EVALUATION_KEYS}
    return selecting == {key: number(text) for key, text in wanted.items()}

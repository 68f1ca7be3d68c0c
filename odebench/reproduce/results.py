"""What the rows of a reproduction came to, from the records of its runs and their evaluations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from odebench.config.schema.quantities import higher_is_better
from odebench.reporting.figures import OUTPUT_ERROR
from odebench.reporting.published import NFE_RATIO, ours, share_of_published
from odebench.reporting.runs import Evidence, Group, Row, Run, evaluations, mean_and_spread, rows_of
from odebench.reproduce import catalogue
from odebench.sweep.attempts import look
from odebench.sweep.expand import expand
from odebench.sweep.folder import Sweep
from odebench.sweep.validate import Job

# How an evaluation was made: its overrides, and of how many samples.
Made = tuple[tuple[str, ...], int | None]
STUDY_RATIO = ("nfe_backward", "nfe_forward")


@dataclass(frozen=True)
class Reached:
    """A row and its runs. numbers: mean and spread by tag, NaN where there is none; share: of the published training,
    the least of the runs, None where that is not known; reason: why there is nothing, where no run is done; planned:
    how many runs it was to have."""

    row: catalogue.Row
    group: Group
    numbers: dict[str, tuple[float, float]]
    share: float | None
    reason: str
    planned: int

    def mean(self, tag: str) -> float:
        """NaN where there is none."""
        return self.numbers[tag][0]

    @property
    def lost(self) -> str:
        """How many of its runs the numbers are of, where these are not all."""
        done = len(self.group.done)
        return "" if self.reason or done == self.planned else f"{done} of {self.planned} runs"


def reach(
    reproduction: catalogue.Reproduction,
    jobs: Mapping[str, Sequence[tuple[str, ...]]],
    sweep: Sweep,
    evidence: Evidence,
) -> list[Reached]:
    """Each row. jobs: of each row, the overrides of its runs; evidence: all runs of the sweep."""
    runs = {run.path.name: run for run in evidence.runs}
    by_settings = {settings_of(job.overrides): job for job in sweep.jobs}
    own = {row.name: [by_settings[settings_of(words)] for words in jobs[row.name]] for row in reproduction.rows}
    groups = {name: Group({}, [runs[job.name] for job in of_row if job.name in runs]) for name, of_row in own.items()}
    made = {how for study in reproduction.studies for how in evaluations_of(study)}
    found = []
    for row in reproduction.rows:
        group, minutes = groups[row.name], math.inf
        if row.within_time_of is not None:
            minutes = groups[row.within_time_of].mean("final/minutes")
        tags = dict.fromkeys([*row.tags, "final/minutes"])
        shares = [share for run in group.done if (share := _share(run, minutes)) is not None]
        found.append(
            Reached(
                row,
                group,
                {tag: _number(row, tag, group, minutes, made) for tag in tags},
                min(shares, default=None),
                _reason(sweep, own[row.name], group),
                len(own[row.name]),
            )
        )
    return found


def _reason(sweep: Sweep, jobs: Sequence[Job], group: Group) -> str:
    """Why a row has no numbers, by the first of its jobs; "" where it has."""
    if group.done:
        return ""
    overview = look(sweep, jobs[0])
    return ", ".join(filter(None, [f"not done: {overview.status}", overview.message]))


def _number(row: catalogue.Row, tag: str, group: Group, minutes: float, made: set[Made]) -> tuple[float, float]:
    """Mean and spread of a row's number over its runs: at the end of the training, after so many minutes of it, or of
    an evaluation of the study."""
    if row.within_time_of is not None:
        return mean_and_spread([_by_then(run, tag, minutes) for run in group.done])
    if row.evaluation and not tag.startswith("final/"):
        lines = [line for run in group.done if (line := _evaluation(run, row.evaluation, made))]
        return mean_and_spread([_of_evaluation(line, tag) for line in lines])
    return ours(group, tag)


def _share(run: Run, minutes: float) -> float | None:
    """Of the published training, what a run had had after so many minutes."""
    share = share_of_published(run)
    if share is None or not minutes < run.number("final/minutes"):
        return share
    steps = [row["step"] for row in rows_of(run) if row["elapsed_s"] <= 60 * minutes]
    return share * max(steps, default=0) / run.overview.step


def settings_of(overrides: Sequence[str]) -> frozenset[str]:
    """What makes a run of a reproduction that one: its overrides in any order, with the seed where none is named, and
    without the place of its files."""
    named = {word.partition("=")[0] for word in overrides}
    words = (word for word in overrides if not word.startswith("outputs="))
    return frozenset([*words, *([] if "seed" in named else ["seed=0"])])


def evaluations_of(study: Sequence[str]) -> set[Made]:
    """The evaluations that the words of a study make."""
    limits = [int(word.partition("=")[2]) for word in study if word.startswith("--limit=")]
    jobs = expand([[word for word in study if not word.startswith("--")]])
    return {(tuple(job), limits[0] if limits else None) for job in jobs}


def studied(run: Run) -> dict[Made, Row]:
    """A run's evaluations as studies make them, the last of each kind."""
    return {
        (tuple(line["overrides"]), line.get("limit")): line
        for line in evaluations(run)
        if {OUTPUT_ERROR, "failed"} & line.keys() and line.get("split") == "validation"
    }


def _by_then(run: Run, tag: str, minutes: float) -> float:
    """What a run had come to after so many minutes of its training: of ``best/...`` the best validation so far, which
    its checkpoint would have been chosen by; of its minutes, those that it took of them."""
    if tag == "final/minutes":
        return min(minutes, run.number(tag))
    name = tag.removeprefix("best/")
    told = [row[f"val/{name}"] for row in rows_of(run) if f"val/{name}" in row and row["elapsed_s"] <= 60 * minutes]
    best = max if higher_is_better(name) else min
    return best((value for value in told if math.isfinite(value)), default=math.nan)


def _of_evaluation(line: Row, tag: str) -> float:
    if tag == NFE_RATIO:
        backward, forward = (line.get(name) for name in STUDY_RATIO)
        return backward / forward if backward and forward else math.nan
    value = line.get(tag)
    return float(value) if isinstance(value, int | float) else math.nan


def _evaluation(run: Run, wanted: Mapping[str, str], made: set[Made]) -> Row | None:
    """The evaluation of the study, none that a user made by other words, that was made under these settings."""
    own = [line for how, line in studied(run).items() if how in made]
    return next((line for line in reversed(own) if _is_of(line["overrides"], wanted)), None)


def _is_of(overrides: Sequence[str], wanted: Mapping[str, str]) -> bool:
    given = dict(word.partition("=")[::2] for word in overrides)
    return all(key in given and _value(given[key]) == _value(text) for key, text in wanted.items())


def _value(text: str) -> float | str:
    """1e-2 and 0.01 are the same."""
    try:
        return float(text)
    except ValueError:
        return text

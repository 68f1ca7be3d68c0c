"""What the rows of a reproduction came to, from the records of its runs and their evaluations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from odebench.reporting.published import NFE_RATIO, ours
from odebench.reporting.runs import Evidence, Group, Row, Run, evaluations
from odebench.reproduce import catalogue
from odebench.reproduce.verdict import share_of_published
from odebench.sweep.attempts import look
from odebench.sweep.folder import Sweep

STUDY_RATIO = ("nfe_backward", "nfe_forward")


@dataclass(frozen=True)
class Reached:
    """A row and its runs. numbers: mean and spread by tag, NaN where there is none; share: of the published training,
    the least of the runs, None where that is not known; reason: why there is nothing, where no run is done."""

    row: catalogue.Row
    group: Group
    numbers: dict[str, tuple[float, float]]
    share: float | None
    reason: str

    def mean(self, tag: str) -> float:
        """NaN where there is none."""
        return self.numbers[tag][0]


def reach(
    reproduction: catalogue.Reproduction,
    jobs: Mapping[str, Sequence[tuple[str, ...]]],
    sweep: Sweep,
    evidence: Evidence,
) -> list[Reached]:
    """Each row. jobs: of each row, the overrides of its runs; evidence: all runs of the sweep."""
    runs = {run.path.name: run for run in evidence.runs}
    by_overrides = {job.overrides: job for job in sweep.jobs}
    found = []
    for row in reproduction.rows:
        own = [by_overrides[overrides] for overrides in jobs[row.name]]
        group = Group({}, [runs[job.name] for job in own if job.name in runs])
        overview = look(sweep, own[0])
        reason = "" if group.done else ", ".join(filter(None, [f"not done: {overview.status}", overview.message]))
        tags = dict.fromkeys([*row.tags, "final/minutes"])
        shares = [share for run in group.done if (share := share_of_published(run)) is not None]
        found.append(
            Reached(row, group, {tag: _number(group, row, tag) for tag in tags}, min(shares, default=None), reason)
        )
    return found


def _number(group: Group, row: catalogue.Row, tag: str) -> tuple[float, float]:
    """Mean and spread over a row's runs; of a study's numbers, the mean over the evaluations that the row is of."""
    if not row.evaluation or tag.startswith("final/"):
        return ours(group, tag)
    lines = [line for run in group.done if (line := _evaluation(run, row.evaluation))]
    values = [_of_evaluation(line, tag) for line in lines]
    return (math.fsum(values) / len(values) if values else math.nan), math.nan


def _of_evaluation(line: Row, tag: str) -> float:
    if tag == NFE_RATIO:
        backward, forward = (line.get(name) for name in STUDY_RATIO)
        return backward / forward if backward and forward else math.nan
    value = line.get(tag)
    return float(value) if isinstance(value, int | float) else math.nan


def _evaluation(run: Run, wanted: Mapping[str, str]) -> Row | None:
    """The last evaluation that was made under these settings."""
    found = [line for line in evaluations(run) if _is_of(line["overrides"], wanted)]
    return found[-1] if found else None


def _is_of(overrides: Sequence[str], wanted: Mapping[str, str]) -> bool:
    given = dict(word.partition("=")[::2] for word in overrides)
    return all(key in given and _value(given[key]) == _value(text) for key, text in wanted.items())


def _value(text: str) -> float | str:
    """1e-2 and 0.01 are the same."""
    try:
        return float(text)
    except ValueError:
        return text

"""Published values (published.csv), each with its source, and ours beside them.

Columns of the file: of, the table or figure that a value stands in; row, what it is of; experiment, ours that is
compared with it and the settings that tell its rows apart, empty where there is none; tag, what it measures as a run's
summary has it, empty where runs do not; value, in the tag's unit; printed, as the source prints it; source; recalled,
whether it is from memory and was not read again there.
"""

import csv
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from odebench.reporting.runs import Run, RunCollection, RunGroup

# Of a training step, backward over forward evaluations: a tag of this file alone.
NFE_RATIO = "nfe_ratio"


class PublishedValue(NamedTuple):
    """One value. experiment: its name and settings KEY=VALUE, with spaces between; it and tag are empty where there is
    none. value: NaN where no number was printed."""

    of: str
    row: str
    experiment: str
    tag: str
    value: float
    printed: str
    source: str
    recalled: bool

    @property
    def citation(self) -> str:
        """The source, and whether it was read again."""
        return f"{self.source}, recalled" if self.recalled else self.source

    def applies_to(self, run: Run) -> bool:
        """Whether the value is to be compared with the run's."""
        name, *words = self.experiment.split() or [""]
        return run.settings.get("experiment") == name and all(_has(run, *word.split("=")) for word in words)


def _has(run: Run, key: str, text: str) -> bool:
    value = run.settings.get(key, run.settings.get(f"{key}.name"))
    return value == float(text) if isinstance(value, float) else str(value) == text


class PublishedComparison(NamedTuple):
    """A published value and ours: mean and standard deviation over a group's runs; NaN where there is none."""

    published: PublishedValue
    group: RunGroup
    mean: float
    std: float


def read_published() -> list[PublishedValue]:
    """All published values."""
    text = (files("odebench.reporting") / "published.csv").read_text(encoding="utf-8")
    return [
        PublishedValue(
            **{**row, "value": float(row["value"] or "nan"), "recalled": row["recalled"] == "yes"}  # type: ignore[arg-type]
        )
        for row in csv.DictReader(text.splitlines())
    ]


def published_for(runs: Sequence[Run], tag: str) -> list[PublishedValue]:
    """The published values of a tag that some of the runs are to be compared with."""
    return [one for one in read_published() if one.tag == tag and any(map(one.applies_to, runs))]


def compare_with_published(collection: RunCollection) -> list[PublishedComparison]:
    """Each published value for the runs' experiments, beside each group of these runs; what is no number once."""
    found = []
    for one in read_published():
        of_it = [group for group in collection.groups if all(map(one.applies_to, group.runs))]
        found += [
            PublishedComparison(one, group, *group_mean_and_std(group, one.tag))
            for group in (of_it if one.tag else of_it[:1])
        ]
    return found


def group_mean_and_std(group: RunGroup, tag: str) -> tuple[float, float]:
    """Mean and spread of a group's runs in a tag of the file."""
    if tag == NFE_RATIO:
        forward = group.mean("final/nfe_forward")
        return (group.mean("final/nfe_backward") / forward if forward else math.nan), math.nan
    return group.mean(tag), group.std(tag)


def training_fraction(run: Run) -> float | None:
    """How much of the published training a run had, by its experiment's full budget; None where it names none."""
    step, settings = run.overview.step, run.settings
    if full := settings.get("budgets.full.iterations"):
        return step / full
    full, best_step, best_epoch = settings.get("budgets.full.epochs"), run.value("best/step"), run.value("best/epoch")
    if not full or not best_epoch > 0:
        return None
    return step * best_epoch / best_step / full


def is_partial_budget(share: float | None) -> bool:
    """Whether a training was shorter than the published one; the last batch of an epoch makes no difference."""
    return share is not None and share < 0.99


def format_percent(share: float) -> str:
    """Two digits: 0.13 %, 20 %, 100 %."""
    return f"{float(f'{100 * share:.2g}'):g} %"

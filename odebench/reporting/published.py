"""Published values (published.csv) with their sources, and a comparison with the results of runs.

The file has these columns.

of: the published table or figure. row: the row in it. experiment: our experiment to compare with, and the settings that
select the row; empty if there is none. tag: the quantity, as named in a run's summary; empty if runs do not measure it.
value: the number, in the unit of the tag. printed: the text in the source. source: the publication. recalled: "yes" if
the value is quoted from memory and was not checked against the source.
"""

import csv
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

from odebench.reporting.formatting import BACKWARD, FORWARD
from odebench.reporting.runs import Run, RunCollection, RunGroup, mean_and_std

# Tags that run summaries do not have: backward NFE divided by forward NFE of a training step, and forward NFE in the
# last epoch divided by that in the first.
NFE_RATIO, NFE_GROWTH = "nfe_ratio", "nfe_growth"


class PublishedValue(NamedTuple):
    """One published value.

    experiment: name and settings KEY=VALUE, separated by spaces, or empty. value: NaN if no number was printed.
    """

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
        """The source; marks values quoted from memory."""
        return f"{self.source} (from memory)" if self.recalled else self.source

    def applies_to(self, run: Run) -> bool:
        """Whether the value can be compared with the run."""
        name, *words = self.experiment.split() or [""]
        return run.settings.get("experiment") == name and all(_has_setting(run, *word.split("=")) for word in words)


def _has_setting(run: Run, key: str, text: str) -> bool:
    value = run.settings.get(key, run.settings.get(f"{key}.name"))
    return value == float(text) if isinstance(value, float) else str(value) == text


class PublishedComparison(NamedTuple):
    """A published value, and the mean and standard deviation over a group's runs, NaN if not measured."""

    published: PublishedValue
    group: RunGroup
    mean: float
    std: float


def read_published() -> list[PublishedValue]:
    """Read all published values."""
    text = (files("odebench.reporting") / "published.csv").read_text(encoding="utf-8")
    return [
        PublishedValue(
            **{**row, "value": float(row["value"] or "nan"), "recalled": row["recalled"] == "yes"}  # type: ignore[arg-type]
        )
        for row in csv.DictReader(text.splitlines())
    ]


def published_for(runs: Sequence[Run], tag: str) -> list[PublishedValue]:
    """The values published for a quantity, given by its tag, that can be compared with at least one of the runs."""
    return [one for one in read_published() if one.tag == tag and any(map(one.applies_to, runs))]


def compare_with_published(collection: RunCollection) -> list[PublishedComparison]:
    """Each published value with each group of runs that it can be compared with; values without a tag only once."""
    found = []
    for one in read_published():
        of_it = [group for group in collection.groups if all(map(one.applies_to, group.runs))]
        found += [
            PublishedComparison(one, group, *group_mean_and_std(group, one.tag))
            for group in (of_it if one.tag else of_it[:1])
        ]
    return found


def group_mean_and_std(group: RunGroup, tag: str) -> tuple[float, float]:
    """The mean and standard deviation of a group's runs for a tag of published.csv."""
    if tag == NFE_RATIO:
        return mean_and_std([nfe_ratio(run) for run in group.done_runs])
    return group.mean(tag), group.std(tag)


def nfe_ratio(run: Run) -> float:
    """Backward by forward NFE of a training; NaN if nothing was solved."""
    forward = run.value(FORWARD)
    return run.value(BACKWARD) / forward if forward else math.nan


def training_fraction(run: Run) -> float | None:
    """The steps of a run as a fraction of its experiment's full budget; None if the experiment has no full budget."""
    step, settings = run.overview.step, run.settings
    if full := settings.get("budgets.full.iterations"):
        return step / full
    if (full := settings.get("budgets.full.epochs")) and (steps := steps_per_epoch(run)) > 0:
        return step / steps / full
    return None


def steps_per_epoch(run: Run) -> float:
    """Training steps in an epoch, a whole number; NaN if unknown."""
    step, epoch = run.value("best/step"), run.value("best/epoch")
    return float(round(step / epoch)) if epoch > 0 and math.isfinite(step) else math.nan


def is_partial_budget(fraction: float | None) -> bool:
    """Whether a training was shorter than the published one by more than an incomplete last batch."""
    return fraction is not None and fraction < 0.99


def format_percent(fraction: float) -> str:
    """Format a fraction as percent with two digits: 0.13 %, 20 %, 100 %."""
    return f"{float(f'{100 * fraction:.2g}'):g} %"

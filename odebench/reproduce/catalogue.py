"""The known reproductions, read from reproductions.yaml."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from odebench.errors import UsageError, unknown_name

FULL_BUDGET = "full"
DEFAULT_MARGIN = 0.1
CONSTANTS = "baseline/series"  # the experiment of constant predictions, which pictures leave out
# Settings that select an evaluation of a run.
EVALUATION_KEYS = ("solver", "tol", "gradient", "gradient.error", "trainer.eval_batch_size")


@dataclass(frozen=True)
class ReproductionRow:
    """A row of a table.

    job: the overrides of its training. tags: the tags of its numbers. published_row: the name of its row in
    published.csv. compared_with: names of other rows. within_time_of: the name of another row; the results are those
    that the runs had reached in that row's training time. evaluation: if the numbers come from `odebench eval`, the
    settings that select the evaluation.
    """

    name: str
    published_row: str
    job: tuple[str, ...]
    tags: tuple[str, ...]
    compared_with: tuple[str, ...]
    within_time_of: str | None
    evaluation: dict[str, str]


@dataclass(frozen=True)
class Reproduction:
    """A published table or figure. The comment at the top of reproductions.yaml explains each field.

    budgets: name -> overrides that replace budget=NAME; if empty, the experiments define their budgets.
    """

    name: str
    title: str
    source: str
    rows: Sequence[ReproductionRow]
    budgets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    evaluations: Sequence[Sequence[str]] = ()
    margin: Mapping[str, float] = field(default_factory=dict)
    own_settings: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[str] = ()
    run_figures: Sequence[str] = ()
    comparison: bool = False


def reproductions() -> dict[str, Reproduction]:
    """Read all reproductions, by name."""
    import yaml

    text = (files("odebench.reproduce") / "reproductions.yaml").read_text(encoding="utf-8")
    return {name: _read(name, node) for name, node in yaml.safe_load(text).items()}


def find_reproduction(name: str | None) -> Reproduction:
    """Find a reproduction by name. Raises UsageError if the name is missing or unknown."""
    known = reproductions()
    if name is None:
        raise UsageError(f"no reproduction given: name one of {', '.join(known)} (--list describes them)")
    if name not in known:
        raise unknown_name("reproduction", name, known, "reproductions")
    return known[name]


def committed_results(name: str) -> list[dict[str, str]]:
    """The committed results of a reproduction that have a published number, as texts.

    They are those of docs/reproduced.md; scripts/render_tables.py writes both.
    """
    text = (files("odebench.reproduce") / "committed.csv").read_text(encoding="utf-8")
    return [row for row in csv.DictReader(text.splitlines()) if row["reproduction"] == name]


def _read(name: str, node: dict[str, Any]) -> Reproduction:
    values = node.pop("values", {})
    combinations = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    rows = [_row(raw, chosen_values) for raw in node.pop("rows") for chosen_values in combinations]
    # A row without {} in its name appears once.
    return Reproduction(name=name, rows=[*{row.name: row for row in rows}.values()], **node)


def _row(raw: dict[str, Any], chosen_values: dict[str, Any]) -> ReproductionRow:
    def fill(text: str) -> str:
        return text.format(**chosen_values)

    return ReproductionRow(
        name=fill(raw["row"]),
        published_row=fill(raw.get("published_row", raw["row"])),
        job=tuple(map(fill, raw["job"])),
        tags=tuple(raw["tags"]),
        compared_with=tuple(map(fill, raw.get("compared_with", ()))),
        within_time_of=fill(raw["within_time_of"]) if "within_time_of" in raw else None,
        evaluation={key: fill(raw[key]) for key in EVALUATION_KEYS if key in raw},
    )

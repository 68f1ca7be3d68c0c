"""The known reproductions, read from reproductions.yaml."""

import itertools
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from odebench.errors import UsageError, unknown_name

FULL_BUDGET = "full"
DEFAULT_TOLERANCE = 0.1


@dataclass(frozen=True)
class TableRow:
    """A row of a table: the overrides of its job, and the tags of its numbers. published_row: its row in published.csv.

    better_than: rows with worse published results. within_time_of: evaluate the runs at the training time of this row.
    evaluation: if the numbers come from `odebench eval`, the settings that select the evaluation.
    """

    name: str
    published_row: str
    job: tuple[str, ...]
    tags: tuple[str, ...]
    better_than: tuple[str, ...]
    within_time_of: str | None
    evaluation: dict[str, str]


@dataclass(frozen=True)
class Reproduction:
    """A published table or figure. See the head of reproductions.yaml for what each part means.

    budgets: overrides that replace budget=NAME; if empty, its experiments define their budgets.
    """

    name: str
    title: str
    source: str
    rows: tuple[TableRow, ...]
    budgets: dict[str, tuple[str, ...]]
    evaluations: tuple[tuple[str, ...], ...]
    tolerance: dict[str, float]
    figures: tuple[str, ...]
    run_figures: tuple[str, ...]
    comparison: bool


def reproductions() -> dict[str, Reproduction]:
    """Read all reproductions, by name."""
    import yaml

    text = (files("odebench.reproduce") / "reproductions.yaml").read_text(encoding="utf-8")
    return {name: _read(name, node) for name, node in yaml.safe_load(text).items()}


def find_reproduction(name: str | None) -> Reproduction:
    """Find a reproduction by name; UsageError if it is unknown."""
    known = reproductions()
    if name is None:
        raise UsageError(f"no reproduction given: name one of {', '.join(known)} (--list describes them)")
    if name not in known:
        raise unknown_name("reproduction", name, known, "reproductions")
    return known[name]


def _read(name: str, node: dict[str, Any]) -> Reproduction:
    values = node.get("values", {})
    combinations = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    rows = [_row(raw, chosen_values) for raw in node["rows"] for chosen_values in combinations]
    return Reproduction(
        name=name,
        title=node["title"],
        source=node["source"],
        rows=tuple({row.name: row for row in rows}.values()),  # rows without {} appear once
        budgets={budget: tuple(overrides) for budget, overrides in node.get("budgets", {}).items()},
        evaluations=tuple(map(tuple, node.get("evaluations", ()))),
        tolerance=node.get("tolerance", {}),
        figures=tuple(node.get("figures", ())),
        run_figures=tuple(node.get("run_figures", ())),
        comparison=node.get("comparison", False),
    )


def _row(raw: dict[str, Any], chosen_values: dict[str, Any]) -> TableRow:
    def fill(text: str) -> str:
        return text.format(**chosen_values)

    return TableRow(
        name=fill(raw["row"]),
        published_row=fill(raw.get("published_row", raw["row"])),
        job=tuple(map(fill, raw["job"])),
        tags=tuple(raw["tags"]),
        better_than=tuple(map(fill, raw.get("better_than", ()))),
        within_time_of=fill(raw["within_time_of"]) if "within_time_of" in raw else None,
        evaluation={key: fill(raw[key]) for key in ("solver", "tol", "gradient") if key in raw},
    )

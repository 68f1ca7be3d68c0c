"""The reproductions that are known, as reproductions.yaml tells them."""

import itertools
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from odebench.errors import UsageError, unknown_name

FULL = "full"
WITHIN = 0.1


@dataclass(frozen=True)
class Row:
    """A row of a table: the overrides of its job, and the tags of its numbers. of: its name among the published values.

    beside: the rows that it beats as published. within_time_of: the row whose training time its runs are judged at.
    evaluation: where the numbers are of a study, the settings that find the evaluation.
    """

    name: str
    of: str
    job: tuple[str, ...]
    tags: tuple[str, ...]
    beside: tuple[str, ...]
    within_time_of: str | None
    evaluation: dict[str, str]


@dataclass(frozen=True)
class Reproduction:
    """A published table or figure. See the head of reproductions.yaml for what each part means.

    budgets: words of its own in place of budget=NAME; where there are none, its experiments know their budgets.
    """

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    budgets: dict[str, tuple[str, ...]]
    studies: tuple[tuple[str, ...], ...]
    within: dict[str, float]
    figures: tuple[str, ...]
    pictures: tuple[str, ...]
    comparison: bool


def reproductions() -> dict[str, Reproduction]:
    """All, by name."""
    import yaml

    text = (files("odebench.reproduce") / "reproductions.yaml").read_text(encoding="utf-8")
    return {name: _read(name, node) for name, node in yaml.safe_load(text).items()}


def find(name: str | None) -> Reproduction:
    """The one of a name. UsageError where there is none."""
    known = reproductions()
    if name is None:
        raise UsageError(f"which? name one of {', '.join(known)} (--list says what they are)")
    if name not in known:
        raise unknown_name("reproduction", name, known, "reproductions")
    return known[name]


def _read(name: str, node: dict[str, Any]) -> Reproduction:
    values = node.get("each", {})
    filled = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    rows = [_row(raw, each) for raw in node["rows"] for each in filled]
    return Reproduction(
        name=name,
        title=node["title"],
        source=node["source"],
        rows=tuple({row.name: row for row in rows}.values()),  # a row without {} once
        budgets={budget: tuple(words) for budget, words in node.get("budgets", {}).items()},
        studies=tuple(map(tuple, node.get("studies", ()))),
        within=node.get("within", {}),
        figures=tuple(node.get("figures", ())),
        pictures=tuple(node.get("pictures", ())),
        comparison=node.get("comparison", False),
    )


def _row(raw: dict[str, Any], each: dict[str, Any]) -> Row:
    def filled(text: str) -> str:
        return text.format(**each)

    return Row(
        name=filled(raw["row"]),
        of=filled(raw.get("of", raw["row"])),
        job=tuple(map(filled, raw["job"])),
        tags=tuple(raw["tags"]),
        beside=tuple(map(filled, raw.get("beside", ()))),
        within_time_of=filled(raw["within_time_of"]) if "within_time_of" in raw else None,
        evaluation={key: filled(raw[key]) for key in ("solver", "tol", "gradient") if key in raw},
    )

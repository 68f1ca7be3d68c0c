"""Select and sort runs by their settings and results: ``tol<1e-3``, ``status=done``, ``tag=baseline``. No torch."""

import contextlib
import difflib
import fnmatch
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odebench.config.files import known_keys
from odebench.config.groups import PLURALS
from odebench.config.parsing import as_written
from odebench.errors import UsageError, nearest_setting, unknown_name
from odebench.record.layout import STATUSES, TAGS
from odebench.record.reader import RunOverview, read_overrides

_FILTER = re.compile(r"(?P<key>[^=<>!]+)(?P<sign><=|>=|!=|==|=|<|>)(?P<value>.+)", re.DOTALL)
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# Columns of the list of runs that are neither settings nor results -> their values.
_COLUMNS: dict[str, Callable[[RunOverview], Any]] = {
    "run": lambda run: str(run.path),
    "status": lambda run: run.status,
    "step": lambda run: run.step,
    "eta": lambda run: run.eta_s,
    "tol": lambda run: run.tol,
    "experiment": lambda run: read_overrides(run.path).get("experiment"),
    "disk": lambda run: disk_bytes(run.path),
}
# Other names of settings and results.
_ALIASES = {
    **{group: f"{group}.name" for group in PLURALS if group not in ("trainer", "experiment")},
    "tag": "tags",
    "best": "objective",
    "nfe": "final/nfe_forward",
    "minutes": "final/minutes",
}

# Beginning of a tag -> that of the tag in the summary.
_SPLITS = {"test/": "final/test_", "val/": "best/", "train/": "final/train_"}


def run_value(run: RunOverview, key: str) -> Any:
    """Return a setting, a result or a column of the list of runs; None if the run has no such value.

    ``test/accuracy`` is that of the finished run's test, ``val/accuracy`` that of its best checkpoint.
    """
    if key in _COLUMNS:
        return _COLUMNS[key](run)
    key = _ALIASES.get(key, key)
    for split, place in _SPLITS.items():
        if key.startswith(split):
            key = place + key.removeprefix(split)
    value = run.setting(key)
    return run.summary.get(key) if value is None else value


def check_key(key: str, runs: Iterable[RunOverview], word: str = "") -> None:
    """Raise UsageError if no run can have a value of this name.

    runs: those found, which may be of plugins. word: the filter with this key, which may be meant to be a folder.
    """
    results = [tag for tag in TAGS if tag.startswith(("best/", "final/", *_SPLITS))]
    known = list(dict.fromkeys([*_COLUMNS, *_ALIASES, "parameters", "objective", *results, *known_keys()]))
    if key in known or any(run_value(run, key) is not None for run in runs):
        return
    close = difflib.get_close_matches(key, known, n=2, cutoff=0.65)
    hint = f"; did you mean {' or '.join(close)}?" if close else nearest_setting(key, known)
    if os.path.isdir(word):
        hint = f"; a folder with a sign = < > ! in its name is written ./{word}"
    raise UsageError(f"unknown key {key}{hint or '; odebench train --cfg prints the settings'}")


@dataclass(frozen=True)
class RunFilter:
    """A condition on runs, such as ``test/accuracy>0.9``."""

    key: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "RunFilter":
        """Read a filter. Raises UsageError if it is malformed, or compares with what is no number or no status."""
        found = _FILTER.fullmatch(text)
        if found is None:
            line = 'write KEY, a sign = != < <= > >=, and a value, as in status=done or "tol<1e-3"'
            raise UsageError(f"{text}: is not a filter; {line}")
        key, sign, value = found["key"].strip(), found["sign"], found["value"].strip()
        if sign in _ORDERS and isinstance(_parse(value), str):
            raise UsageError(f'{text}: a number is needed after {sign}, as in "tol{sign}1e-3"')
        if key == "status" and not fnmatch.filter(STATUSES, value):
            raise unknown_name("status", value, STATUSES, "statuses")
        return cls(key, sign, value)

    def matches(self, run: RunOverview) -> bool:
        """Whether the run has a value that fulfils the condition. A missing value is equal to null only."""
        found, wanted = run_value(run, self.key), _parse(self.value)
        if self.sign in _ORDERS:
            is_number = isinstance(found, int | float) and not isinstance(found, bool)
            return is_number and isinstance(wanted, float) and _ORDERS[self.sign](found, wanted)
        values = [*found, as_written(found)] if isinstance(found, list) else [found]
        equal = any(_equals(value, wanted, self.value) for value in values)
        return equal != (self.sign == "!=")


def _parse(text: str) -> float | str:
    """Return a number as such."""
    try:
        return float(text)
    except ValueError:
        return text


def _equals(value: Any, wanted: float | str, pattern: str) -> bool:
    """Whether a value is the wanted one. pattern: the wanted text, in which * stands for any text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value == wanted
    text = as_written(value)
    return text == pattern or fnmatch.fnmatchcase(text, pattern)


def sorted_runs(runs: Sequence[RunOverview], key: str, reverse: bool) -> list[RunOverview]:
    """Sort by a value: numbers, then text; runs without one come last."""
    pairs = [(run_value(run, key), run) for run in runs]
    present = [(value, run) for value, run in pairs if value is not None]
    present.sort(key=lambda pair: _order(pair[0]), reverse=reverse)
    return [run for _, run in present] + [run for value, run in pairs if value is None]


def _order(value: Any) -> tuple[int, float, str]:
    is_number = isinstance(value, int | float)
    return (0, value, "") if is_number else (1, 0.0, as_written(value))


def disk_bytes(folder: Path | str) -> int:
    """Return the size of all files in a folder and below. Files that vanish meanwhile are left out."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                is_folder = entry.is_dir(follow_symlinks=False)
                total += disk_bytes(entry.path) if is_folder else entry.stat(follow_symlinks=False).st_size
    return total


def run_json(run: RunOverview) -> Mapping[str, Any]:
    """Return what is known of a run: its state, settings and results."""
    columns = {name: run_value(run, name) for name in ("run", "status", "step", "disk")}
    return {**columns, "eta_s": run.eta_s, "message": run.message, "settings": run.settings, "summary": run.summary}

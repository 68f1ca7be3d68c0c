"""Find the settings that differ between runs, and name the runs by them. Imports no torch."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from odebench.config.parsing import as_written
from odebench.record import layout
from odebench.record.reader import RunOverview, read_overrides

# Settings that are always shown if they vary, even if other settings vary in the same way.
ALWAYS_SHOWN = ("data.name", "model.name", "solver.name", "tol", "solver.steps", "solver.step_size", "gradient.name")
# If several other settings vary in the same way, only the first in this order is shown.
PREFERRED_PREFIXES = ("experiment", "budget", "model.", "gradient.", "dynamics.", "optim.")
# Settings that do not distinguish experiments; tol replaces the solver's rtol and atol.
IGNORED_KEYS = {
    *("solver.rtol", "solver.atol"),
    *(*layout.LABELS, "seed", "outputs", "run_dir", "config_dir", "data.root", "data.download"),
    *("trainer.log_every", "trainer.measure_every", "trainer.checkpoint_minutes", "trainer.eval_batch_size"),
    *("trainer.keep_every", "trainer.figures", "trainer.profile"),
}
MAX_NAME = 100
_LETTERS = re.compile(r"[^\w.=+-]+", re.ASCII)  # those that a name cannot have


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted key -> value, with numbers as floats."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            found[f"{prefix}{name}"] = float(value) if is_number else value  # 1 and 1.0 are the same setting
    return found


def differences(runs: Sequence[RunOverview]) -> dict[str, list[Any]]:
    """Return as few settings as distinguish the runs, the seed included: key -> the value of each run, or None."""
    settings = [flatten({**run.settings, "tol": run.tol}) for run in runs]
    overridden = {key for run in runs for word in read_overrides(run.path) for key in (word, f"{word}.name")}
    known = [one for one, run in zip(settings, runs, strict=True) if run.settings]
    columns = differing_columns(known, (IGNORED_KEYS - {"seed"}) | {"device"})
    chosen = [key for key in columns if key in overridden and not follows_from_choice(key, columns)]
    keys = distinguishing_keys(columns, chosen)
    return {key: [one.get(key) for one in settings] for key in keys}


def differing_columns(
    settings: Sequence[Mapping[str, Any]], ignored_keys: Collection[str] = IGNORED_KEYS
) -> dict[str, list[int]]:
    """Return the keys whose values differ, the most important first, each with an integer code for every run.

    Equal values of a key have equal codes, so that runs can be compared quickly.
    """
    keys = dict.fromkeys(
        key for one in settings for key in one if key not in ignored_keys and not key.startswith("budgets.")
    )
    texts = {key: [repr(one.get(key)) for one in settings] for key in sorted(keys, key=_column_order)}
    return {key: row_classes([column]) for key, column in texts.items() if len(set(column)) > 1}


def distinguishing_keys(columns: Mapping[str, Sequence[int]], overridden_keys: Collection[str] = ()) -> list[str]:
    """The keys to show: those always shown, those overridden, and as few of the rest as distinguish all rows.

    columns: see `differing_columns`; row i is the settings of run i. A key whose value follows from the keys before it
    is omitted, as the width may follow from the model.
    """
    finest = row_classes([*columns.values()])
    chosen = [key for key in columns if key in ALWAYS_SHOWN or key in overridden_keys]
    current = row_classes([columns[key] for key in chosen])
    for key in columns:
        if max(current, default=0) == max(finest, default=0):
            break
        finer = row_classes([current, columns[key]])
        if max(finer) > max(current, default=0):
            chosen.append(key)
            current = finer
    return chosen


def follows_from_choice(key: str, columns: Mapping[str, Sequence[int]]) -> bool:
    """Whether the option chosen for the key's group determines its value, as model.name may determine model.width."""
    name = f"{key.partition('.')[0]}.name"
    return key != name and name in columns and max(row_classes([columns[name], columns[key]])) == max(columns[name])


def row_classes(columns: Sequence[Sequence[Any]]) -> list[int]:
    """Integer codes of the rows, from 0 in order of first appearance; rows equal in all columns have the same code."""
    codes: dict[tuple[Any, ...], int] = {}
    return [codes.setdefault(row, len(codes)) for row in zip(*filter(None, columns), strict=True)]


def _column_order(key: str) -> tuple[int, int]:
    starts = [key.startswith(start) for start in (*PREFERRED_PREFIXES, "")]
    return (*ALWAYS_SHOWN, key).index(key), starts.index(True)


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return a short name of each key: ``rtol`` for solver.rtol, ``gradient`` for gradient.name, if it stays unique."""
    full = {key: key.lstrip("+~").removesuffix(".name") for key in keys}
    last = {key: name.rpartition(".")[2] for key, name in full.items()}
    counts = Counter(last.values())
    return {key: last[key] if counts[last[key]] == 1 else full[key] for key in full}


def name_by(values: Mapping[str, Any]) -> str:
    """Name a run by the values of settings, by key: ``tol=0.01_gradient=adjoint``. The name can be that of a folder."""
    name = ""
    for key, short in short_keys(key for key, value in values.items() if value is not None).items():
        text = _LETTERS.sub("-", f"{short}={short_value(values[key])}").strip("-")
        longer = f"{name}_{text}" if name else text[:MAX_NAME]
        if len(longer) > MAX_NAME:
            break
        name = longer
    return name


def short_value(value: Any) -> str:
    """Format a setting; a number of more than eight characters with four digits. "-" if there is none."""
    if value in (None, "none"):
        return "-"
    text = format(value, "g") if isinstance(value, float) else as_written(value)
    try:
        return f"{float(text):.4g}" if len(text) > 8 else text
    except ValueError:
        return text

"""``odebench list``: print the options of a group, each with the first comment of its YAML file, or a folder's runs."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odebench.cli.options import add_config_dir
from odebench.config.groups import PLURALS
from odebench.console import print_table
from odebench.errors import NothingFoundError, UsageError, did_you_mean

if TYPE_CHECKING:
    from odebench.record.filters import RunFilter
    from odebench.record.reader import RunOverview

SUMMARY = "what there is to choose from, and the runs made so far"
HELP = """\
List what there is to choose from, or the runs in a folder.

A filter of runs is a setting, a result, or a column in small letters, then = != < <= > or >=, then a value, in which *
stands for any text. Quote it because of the shell. A run must fulfil all filters.

examples:
  odebench list models                                    also losses, dynamics, solvers, gradients, data, optim,
                                                          schedules, trainers, experiments, clusters
  odebench list runs                                      the runs under outputs/
  odebench list runs outputs/sweeps/2026-11-24
  odebench list runs "tol<1e-3" status=done tag=baseline "test/accuracy>0.9"
  odebench list runs model=odenet --sort test/accuracy --reverse
  odebench list runs --sort disk --json"""

# Group -> its name in `odebench list`. PLURALS lacks `cluster`, because a training has no such setting.
_GROUPS = {**PLURALS, "cluster": "clusters"}
MAX_LABEL = 40
KINDS = (*_GROUPS.values(), "runs")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    what = parser.add_argument("what", metavar="WHAT", help="models, solvers, ..., or runs")
    what.completer = lambda **_: list(KINDS)  # type: ignore[attr-defined]
    parser.add_argument(
        "words", metavar="DIR, FILTER", nargs="*", default=[], help="the folder of runs, by default outputs; filters"
    )
    parser.add_argument("--sort", metavar="KEY", help="sort runs by a setting, a result or a column, such as minutes")
    parser.add_argument("--reverse", action="store_true", help="sort from the largest to the smallest")
    parser.add_argument("--json", action="store_true", help="print runs as JSON, with all settings and results")
    add_config_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if arguments.what not in KINDS:
        hint = did_you_mean(arguments.what, KINDS)
        raise UsageError(f"nothing to list called {arguments.what}{hint} ({', '.join(KINDS)})")
    if arguments.what == "runs":
        list_runs(arguments.words, arguments.sort, arguments.reverse, arguments.json)
    elif arguments.words:
        raise UsageError(f"{arguments.words[0]}: a folder goes with `list runs` only")
    elif arguments.sort is not None or arguments.reverse or arguments.json:
        raise UsageError("--sort, --reverse and --json go with `list runs` only")
    else:
        list_options(arguments.what, arguments.config_dir)
    return 0


def list_options(kind: str, config_dir: Path | None) -> None:
    """Print the name and first comment of every option of a kind, such as ``models``.

    Solvers are listed with the properties of their methods; models, data and losses with their tasks.
    """
    from odebench.config.files import first_comment, options

    group = next(group for group, plural in _GROUPS.items() if plural == kind)
    found = options(group, config_dir)
    if group == "solver":
        header = ("SOLVER", "ORDER", "STAGES", "ADAPTIVE", "STIFF", "REVERSIBLE", "FOR", "SOURCE")
        rows = [header, *(_solver_row(name, first_comment(path)) for name, path in found.items())]
    elif group in ("model", "data", "loss"):
        rows = [(name, _tasks(group, name, path), first_comment(path)) for name, path in found.items()]
    else:
        rows = [(name, first_comment(path)) for name, path in found.items()]
    print_table(rows, ("SOURCE", "STAGES", "REVERSIBLE") if group == "solver" else None)


def _tasks(group: str, name: str, path: Path) -> str:
    """Return the names of the tasks that an option is for.

    A plugin's option has no settings class that lists its tasks. A model's YAML file names the task. For data, the task
    is unknown: ``-``.
    """
    from odebench.config.files import read_yaml
    from odebench.config.schema import CHOICES

    settings = CHOICES[group].get(name)
    if settings is None:
        return str(read_yaml(path).get("task", "-"))
    return ", ".join(settings.tasks)


def _solver_row(name: str, comment: str) -> tuple[str, ...]:
    """Return the row of a solver: the properties of its method, and the comment. A plugin's has only the comment."""
    from odebench.ode.methods import METHODS

    method = METHODS.get(name)
    if method is None:
        return (name, "-", "-", "-", "-", "-", comment, "-")
    words = ["yes" if word else "-" for word in (method.adaptive, method.stiff, method.reversible)]
    return (name, str(method.order), str(method.stages), *words, comment, method.source)


def list_runs(words: Sequence[str], sort: str | None, reverse: bool, as_json: bool) -> None:
    """Print one row per run: folder, options, status and results. Damaged runs are reported on stderr.

    words: a folder and filters. sort: see `run_value`. Raises NothingFoundError if there are no such runs.
    """
    from odebench.record.files import to_json
    from odebench.record.filters import check_key, run_json, sorted_runs
    from odebench.record.layout import LABELS
    from odebench.sweep.display import LESS_IMPORTANT, STATE_COLUMNS, state_columns

    if reverse and sort is None:
        raise UsageError("--reverse: sort the runs by something, as in --sort minutes --reverse")
    folder, filters = _read_words(words)
    runs = _read_runs(folder)
    for one in filters:
        check_key(one.key, runs, f"{one.key}{one.sign}{one.value}")
    if sort is not None:
        check_key(sort, runs)
    chosen = [run for run in runs if all(one.matches(run) for one in filters)]
    if sort is not None:
        chosen = sorted_runs(chosen, sort, reverse)
    if as_json:
        print(json.dumps(to_json([run_json(run) for run in chosen]), indent=2))
    if not chosen:
        found = f"no run in {folder} matches, of {len(runs)}" if runs else f"no runs in {folder}"
        raise NothingFoundError(found)
    if not as_json:
        labels = [key for key in LABELS if any(run.setting(key) for run in chosen)]
        settings = _setting_columns(chosen)
        header = ("RUN", *map(str.upper, [*labels, *settings]), *STATE_COLUMNS, "DISK")
        rows = [
            (str(run.path), *(_label(run, key) for key in labels), *texts, *state_columns(run), _size(run.path))
            for run, *texts in zip(chosen, *settings.values(), strict=True)
        ]
        print_table([header, *rows], LESS_IMPORTANT)


def _setting_columns(runs: Sequence["RunOverview"]) -> dict[str, list[str]]:
    """Return model, solver, tolerance, gradient mode and what else differs: short name -> a text for each run."""
    from odebench.record.differences import differences, short_keys, short_value

    columns: dict[str, list[Any]] = {key: [run.setting(key) for run in runs] for key in ("model.name", "solver.name")}
    columns["tol"] = [run.tol for run in runs]
    columns["gradient.name"] = [run.setting("gradient.name") if _has_solver(run) else None for run in runs]
    columns |= {key: values for key, values in differences(runs).items() if key not in columns}
    names = short_keys(columns)
    return {names[key]: [short_value(value) for value in values] for key, values in columns.items()}


def _read_words(words: Sequence[str]) -> tuple[Path, list["RunFilter"]]:
    """Separate the folder from the filters. A path that begins with . or / or ~ is never a filter.

    Neither is the folder of a sweep's job, such as ``outputs/sweeps/.../0000_tol=0.1``.
    """
    from odebench.config.files import known_keys
    from odebench.record.filters import RunFilter

    folders = [
        word
        for word in words
        if word.startswith((".", "/", "~")) or not set(word) & set("=<>!") or ("/" in word and os.path.isdir(word))
    ]
    filters = [RunFilter.parse(word) for word in words if word not in folders]
    if len(folders) > 1:
        raise UsageError(f'{folders[1]}: name one folder; a filter has a sign, as in status=done or "tol<1e-3"')
    if not folders:
        if not Path("outputs").exists():
            raise NothingFoundError("no runs yet: they go to outputs/")
        return Path("outputs"), filters
    if not os.path.exists(folders[0]) and folders[0] in known_keys():  # the shell took the rest: tol<1e-3 reads a file
        raise UsageError(f'{folders[0]} is not a folder; quote filters because of the shell, as in "tol<1e-3"')
    return Path(folders[0]), filters


def _read_runs(folder: Path) -> list["RunOverview"]:
    from odebench.record.reader import find_runs, read_overview

    runs = []
    damaged: list[str] = []
    for path in find_runs(folder, queued=True, problems=damaged):
        try:
            runs.append(read_overview(path))
        except UsageError as error:
            damaged.append(str(error))
    for line in damaged:
        print(f"odebench list: {line}", file=sys.stderr)
    return runs


def _size(folder: Path) -> str:
    """Format the disk space of a folder in MiB."""
    from odebench.record.filters import disk_bytes

    return f"{disk_bytes(folder) / 2**20:.1f} MiB"


def _label(run: "RunOverview", key: str) -> str:
    """Return the name, tags or notes of a run on one line that does not fill the terminal."""
    value = run.setting(key) or "-"
    text = " ".join(value.split()) if isinstance(value, str) else ", ".join(map(str, value))
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"


def _has_solver(run: "RunOverview") -> bool:
    return run.setting("solver.name") not in (None, "none")

"""``odebench list``: print the options of a group, each with the first comment of its YAML file, or a folder's runs."""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from odebench.cli.options import add_config_dir
from odebench.config.groups import PLURALS
from odebench.console import print_table
from odebench.errors import NothingFoundError, UsageError, did_you_mean

if TYPE_CHECKING:
    from odebench.record.reader import RunOverview

SUMMARY = "what there is to choose from, and the runs made so far"
HELP = """\
List what there is to choose from, or the runs in a folder.

examples:
  odebench list models                                    also losses, dynamics, solvers, gradients, data, optim,
                                                          schedules, trainers, experiments, clusters
  odebench list runs                                      the runs under outputs/
  odebench list runs outputs/sweeps/2026-11-24"""

# Group -> its name in `odebench list`. PLURALS lacks `cluster`, because a training has no such setting.
_GROUPS = {**PLURALS, "cluster": "clusters"}
KINDS = (*_GROUPS.values(), "runs")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    what = parser.add_argument("what", metavar="WHAT", help="models, solvers, ..., or runs")
    what.completer = lambda **_: list(KINDS)  # type: ignore[attr-defined]
    parser.add_argument("folder", metavar="DIR", nargs="?", help="where to look for runs; by default outputs")
    add_config_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if arguments.what not in KINDS:
        hint = did_you_mean(arguments.what, KINDS)
        raise UsageError(f"nothing to list called {arguments.what}{hint} ({', '.join(KINDS)})")
    if arguments.what == "runs":
        if arguments.folder is None and not Path("outputs").exists():
            raise NothingFoundError("no runs yet: they go to outputs/")
        list_runs(Path(arguments.folder or "outputs"))
    elif arguments.folder is not None:
        raise UsageError(f"{arguments.folder}: a folder goes with `list runs` only")
    else:
        list_options(arguments.what, arguments.config_dir)
    return 0


def list_options(kind: str, config_dir: Path | None) -> None:
    """Print the name and first comment of every option of a kind, such as ``models``.

    Solvers are listed with the properties of their methods; models, data and losses with their tasks. Rows are cut at
    the width of the terminal.
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
    print_table(rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


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


def list_runs(folder: Path) -> None:
    """Print one row per run: folder, options, status and results. Damaged runs are reported on stderr.

    Raises NothingFoundError if there are no runs.
    """
    from odebench.record.reader import find_runs, read_overview
    from odebench.sweep.display import STATE_COLUMNS, state_columns

    rows = []
    damaged: list[str] = []
    for path in find_runs(folder, queued=True, problems=damaged):
        try:
            run = read_overview(path)
            rows.append((*_row(run), *state_columns(run)))
        except UsageError as error:
            damaged.append(str(error))
    for line in damaged:
        print(f"odebench list: {line}", file=sys.stderr)
    if not rows:
        raise NothingFoundError(f"no runs in {folder}")
    print_table([("RUN", "MODEL", "SOLVER", "TOL", *STATE_COLUMNS), *rows])


def _row(run: "RunOverview") -> tuple[str, ...]:
    solver, tol = run.setting("solver.name"), run.tol
    return (
        str(run.path),
        str(run.setting("model.name") or "-"),
        "-" if solver in (None, "none") else str(solver),
        tol if isinstance(tol, str) else format(tol, "g") if isinstance(tol, float) else "-",
    )

"""What `odebench list` prints: the options of a group with their first comment, and the runs in a folder."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odebench.compose import PLURALS, options
from odebench.errors import UsageError
from odebench.ode.methods import METHODS
from odebench.rules import DATA, LOSSES, MODELS

if TYPE_CHECKING:
    from odebench.record.reader import Overview

# Group -> what `odebench list` calls its options; where a sweep runs is no setting of a training.
_GROUPS = {**PLURALS, "cluster": "clusters"}
_BY_TASK = {"model": MODELS, "data": DATA, "loss": LOSSES}
KINDS = (*_GROUPS.values(), "runs")


def list_options(kind: str, config_dir: Path | None) -> None:
    """Name and first comment line of every option, e.g. of ``models``; of solvers what their methods are, too, of
    models, data and losses for which tasks they are. On a terminal a row ends where that does."""
    group = next(group for group, plural in _GROUPS.items() if plural == kind)
    found = options(group, config_dir)
    if group == "solver":
        header = ("SOLVER", "ORDER", "STAGES", "ADAPTIVE", "STIFF", "REVERSIBLE", "FOR", "SOURCE")
        rows = [header, *(_solver_row(name, path) for name, path in found.items())]
    elif group in _BY_TASK:
        rows = [(name, _tasks(group, name), first_comment(path)) for name, path in found.items()]
    else:
        rows = [(name, first_comment(path)) for name, path in found.items()]
    print_table(rows, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def _tasks(group: str, name: str) -> str:
    """The tasks that an option is for; those of an extension's are not known."""
    its_rules = _BY_TASK[group].get(name)
    return ", ".join(getattr(its_rules, "tasks", None) or [getattr(its_rules, "task", "-")])


def _solver_row(name: str, path: Path) -> tuple[str, ...]:
    """What a method is; of an extension's, which the YAML file alone does not tell, only the comment."""
    method = METHODS.get(name)
    if method is None:
        return (name, "-", "-", "-", "-", "-", first_comment(path), "-")
    words = ["yes" if word else "-" for word in (method.adaptive, method.stiff, method.reversible)]
    return (name, str(method.order), str(method.stages), *words, first_comment(path), method.source)


def first_comment(path: Path) -> str:
    """The first comment of a YAML file that is not Hydra's ``# @package``."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ")
        if line and not line.startswith("#"):
            break
    return ""


def list_runs(folder: Path) -> None:
    """One row a run: its folder, state, choices and last numbers. A damaged run is named on stderr."""
    from odebench.record.reader import find_runs, read_overview

    rows = []
    damaged: list[str] = []
    for path in find_runs(folder, queued=True, lost=damaged):
        try:
            rows.append(_row(read_overview(path)))
        except UsageError as error:
            damaged.append(str(error))
    for line in damaged:
        print(f"odebench list: {line}", file=sys.stderr)
    if not rows:
        print(f"odebench list: no runs in {folder}", file=sys.stderr)
        return
    print_table([("RUN", "MODEL", "SOLVER", "TOL", *STATE_COLUMNS), *rows])


def _row(run: "Overview") -> tuple[str, ...]:
    solver, tol = run.setting("solver.name"), run.tol
    return (
        str(run.path),
        str(run.setting("model.name") or "-"),
        "-" if solver in (None, "none") else str(solver),
        tol if isinstance(tol, str) else _number(tol, "g"),
        *state_columns(run),
    )


STATE_COLUMNS = ("STATUS", "STEP", "ETA", "BEST", "NFE", "MINUTES")


def state_columns(run: "Overview") -> tuple[str, ...]:
    """How far a run is and what it came to: the objective's best value on validation, the last epoch's forward NFE."""
    objective, best = run.setting("trainer.objective"), run.summary.get("objective")
    return (
        run.status,
        str(run.step),
        eta(run.eta_s),
        "-" if best is None else f"{objective or 'objective'} {best:.4f}",
        _number(run.summary.get("final/nfe_forward"), ".1f"),
        _number(run.summary.get("final/minutes"), ".1f"),
    )


def eta(seconds: float | None) -> str:
    """Seconds to go as ``H:MM:SS``, without the hours where there are none."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


def print_table(rows: Sequence[Sequence[str]], most: int | None = None) -> None:
    """Rows of text on stdout, in columns as wide as their widest entry; most: characters of a row, None for all."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        text = "  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip()
        print(text if most is None or len(text) <= most else f"{text[: most - 1]}…")

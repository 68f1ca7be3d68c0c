"""What `odebench list` prints: the options of a group with their first comment, and the runs in a folder."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odebench.compose import PLURALS, options
from odebench.errors import UsageError
from odebench.ode.methods import METHODS

KINDS = (*PLURALS.values(), "runs")


def list_options(kind: str, config_dir: Path | None) -> None:
    """Name and first comment line of every option, e.g. of ``models``; of solvers what their methods are, too."""
    group = next(group for group, plural in PLURALS.items() if plural == kind)
    found = options(group, config_dir)
    if group == "solver":
        header = ("SOLVER", "ORDER", "STAGES", "ADAPTIVE", "STIFF", "REVERSIBLE", "FOR", "SOURCE")
        print_table([header, *(_solver_row(name, path) for name, path in found.items())])
    else:
        print_table([(name, first_comment(path)) for name, path in found.items()])


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
    from odebench.record.reader import find_runs, read_run

    rows = []
    for path in find_runs(folder):
        try:
            rows.append(_row(path, read_run(path, metrics=False)))
        except UsageError as error:
            print(f"odebench list: {error}", file=sys.stderr)
    if not rows:
        print(f"odebench list: no runs in {folder}", file=sys.stderr)
        return
    print_table([("RUN", "STATUS", "MODEL", "SOLVER", "TOL", "ACCURACY", "NFE", "MINUTES"), *rows])


def _row(path: Path, run: Any) -> tuple[str, ...]:
    """Accuracy is that of the best checkpoint on validation, NFE the forward one of the last epoch."""
    settings, summary = run.settings, run.summary
    solver = settings.solver.name
    return (
        str(path),
        str(run.status.get("status", "?")),
        str(settings.model.name),
        "-" if solver == "none" else str(solver),
        "-" if solver == "none" or settings.solver.rtol is None else f"{settings.solver.rtol:g}",
        _number(summary.get("best/accuracy"), ".4f"),
        _number(summary.get("final/nfe_forward"), ".1f"),
        _number(summary.get("final/minutes"), ".1f"),
    )


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of text on stdout, in columns as wide as their widest entry."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        print("  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip())

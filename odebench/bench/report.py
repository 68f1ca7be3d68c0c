"""Write benchmark results: results.json, results.csv, figures, and tables for the terminal."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from odebench.bench.cases import CASES
from odebench.bench.libraries import installed_version
from odebench.console import broken, fitted
from odebench.errors import UsageError
from odebench.plots.comparison import MAX_POINT_LABELS, Line, Panel, comparison_figure, num_points
from odebench.record import manifest
from odebench.record.files import write_json

Row = Mapping[str, Any]

JSON, CSV = "results.json", "results.csv"
# Column -> its heading and its number format in the terminal.
COLUMNS = {
    "library": ("LIBRARY", ""),
    "mode": ("MODE", ""),
    "method": ("METHOD", ""),
    "time_min_ms": ("MIN MS", ".3g"),
    "time_median_ms": ("MEDIAN MS", ".3g"),
    "alone_min_ms": ("ALONE MIN MS", ".3g"),
    "alone_median_ms": ("ALONE MEDIAN MS", ".3g"),
    "ratio_min": ("RATIO MIN", ".2f"),
    "ratio_median": ("RATIO MEDIAN", ".2f"),
    "bare_ms": ("F ALONE MS", ".3g"),
    "compile_cold_s": ("COMPILE COLD S", ".1f"),
    "compile_warm_s": ("COMPILE WARM S", ".1f"),
    "nfe": ("NFE", ""),
    "rows_forward": ("ROWS", "d"),
    "steps": ("STEPS", ""),
    "state_error": ("ERROR", ".1e"),
    "parameter_gradient_error": ("GRAD ERROR", ".1e"),
    "state_gradient_error": ("GRAD Y0 ERROR", ".1e"),
    "peak_mib": ("PEAK MIB", ".3g"),
    "operations_per_step": ("OPS/STEP", ".0f"),
    "synchronisations_per_step": ("SYNCS/STEP", ".1f"),
}
NUM_WORDS = 3  # columns before the first number
# Axis labels of the work-precision figures -> columns to sum; column -> axis label.
FIGURE_COSTS = {
    "time (ms): median and quartiles": ("time_median_ms",),
    "NFE, forward + backward": ("nfe_forward", "nfe_backward"),
}
FIGURE_ERRORS = {
    "state_error": "relative error of the states",
    "parameter_gradient_error": "relative error of the parameters' gradient",
}
# Columns that only some cases have: with per-sample steps an evaluation may be of only some rows.
ONLY_FOR = {"rows_forward": ("mixed",)}

# Headings of columns that a narrow terminal leaves out, the first one first.
LESS_IMPORTANT = ("SYNCS/STEP", "OPS/STEP", "F ALONE MS", "GRAD Y0 ERROR", "ALONE MIN MS", "MIN MS", "STEPS")

LEGEND = """\
RATIO: time of the first other library (or first row) divided by this row's time; above 1 is faster.
ALONE: runs in a row instead of in turns. F ALONE: time of the evaluations without the solver.
COMPILE COLD, WARM: seconds to compile, with an empty and with a filled cache on disk.
NFE: evaluations, forward + backward. STEPS: accepted + rejected.
ERROR, GRAD ERROR (parameters), GRAD Y0 ERROR (initial state): relative to a float64 reference solution.
OPS, SYNCS: tensor operations and host synchronisations per step, outside f."""


def describe_machine(command: Sequence[str], libraries: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the conditions of the measurement: command, date, processor, threads, versions, commit."""
    import torch

    return {
        "command": list(command),
        "date": f"{datetime.now():%Y-%m-%d}",
        "machine": manifest.machine_info(torch.device("cpu")),
        "versions": manifest.package_versions()
        | {name: installed_version(name) for name in libraries if name != "odebench"},
        "git": manifest.git_state(),
        "settings": dict(settings),
    }


def make_folder(output: Path | None) -> Path:
    """Make the folder for results; by default outputs/bench/<date>/<time>.

    Raises UsageError if it is not empty.
    """
    folder = output or Path("outputs", "bench", *f"{datetime.now():%Y-%m-%d %H-%M-%S}".split())
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; choose a new or empty folder for the results")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Add ``ratio_min`` and ``ratio_median`` to each row: its speed relative to another library.

    The ratio is a base time divided by the row's time. The base is the first row of another library in the group, or
    the group's first row if there is no other library.
    """
    for group in groups(rows).values():
        base = next((row for row in group if row["library"] != "odebench"), group[0])
        for row in group:
            for kind in ("min", "median"):
                name = f"time_{kind}_ms"
                row[f"ratio_{kind}"] = base[name] / row[name]


def groups(rows: Sequence[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Group rows whose times can be compared, by case, family, tolerance and batch; rows keep their order."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["work"], row["family"], row["tol"], row.get("batch")), []).append(row)
    return found


def write(folder: Path, machine_info: Mapping[str, Any], rows: Sequence[Row], left_out: Sequence[str]) -> None:
    """Write results.json with everything, and results.csv with one line per row; each line has the machine, too."""
    write_json(folder / JSON, {**machine_info, "rows": list(rows), "left_out": list(left_out)})
    if not rows:
        return
    machine, versions = machine_info["machine"], machine_info["versions"]
    where = {
        "cpu": machine["cpu"],
        "threads": machine["threads"],
        "python": versions["python"],
        "torch": versions["torch"],
        "date": machine_info["date"],
    }
    with open(folder / CSV, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *where], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a results.csv, with numbers as numbers and empty entries as None."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def tables(rows: Sequence[dict[str, Any]], descriptions: Mapping[str, str], width: int | None = None) -> Iterator[str]:
    """Yield one table for each group; the first one of a case is below the description of this case.

    descriptions: case -> description. width: of the terminal, which the table then fits; results.csv has all columns.
    """
    described = set()
    for (case, family, tol, batch), group in groups(rows).items():
        names = [name for name in COLUMNS if case in ONLY_FOR.get(name, (case,))]
        columns = [[COLUMNS[name][0], *(_cell(row, name) for row in group)] for name in names]
        columns = [column for column in columns if any(text != "-" for text in column[1:])]  # has numbers
        table, numeric = [*zip(*columns, strict=True)], [column[0] for column in columns[NUM_WORDS:]]
        lines = fitted(table, width, LESS_IMPORTANT, numeric)
        head = [f"{family}, tol {tol:g}{_size(case, batch)}"]
        if case not in described:
            title = f"{case}: {descriptions[case]}"
            head = [*([title] if width is None else broken(title, width)), *head]
        described.add(case)
        yield "\n".join([*head, *lines])


def _size(case: str, batch: int) -> str:
    return "" if batch == CASES[case].batch else f", batch {batch}"


def _cell(row: Row, name: str) -> str:
    if name == "library":
        return f"{row['library']} {row['variant'] or ''}".rstrip()
    if name in ("nfe", "steps"):
        first, second = ("nfe_forward", "nfe_backward") if name == "nfe" else ("accepted", "rejected")
        if row[first] is None:
            return "-"
        return f"{row[first]} + {row[second]}" if row[second] or name == "steps" else f"{row[first]}"
    value, form = row.get(name), COLUMNS[name][1]
    if value is None:
        return "-"
    text = format(value, form)
    return f"{value:,.0f}" if form == ".3g" and abs(value) >= 1000 else text


def save_figures(folder: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """Save a work-precision figure for each case and family that was measured at two tolerances or more.

    The figure shows the error against time and against NFE, with one line per library that connects its tolerances.
    The tolerances are written at the points, if these are too many, only at the first line.
    """
    figures: dict[tuple[str, str, int], dict[str, list[Row]]] = {}
    for row in rows:
        several = len({other["method"] for other in rows if other["work"] == row["work"]}) > 1
        words = [row["library"], row["variant"], "" if row["mode"] == "forward" else row["mode"]]
        label = " ".join(filter(None, [*words, row["method"] if several else ""]))
        figures.setdefault((row["work"], row["family"], row["batch"]), {}).setdefault(label, []).append(row)
    written = []
    for (case, family, batch), by_label in figures.items():
        if max(map(len, by_label.values())) < 2:
            continue
        error = "state_error" if family == "forward" else "parameter_gradient_error"
        title = f"{case}{_size(case, batch)}, {family}"
        panels = []
        for x, costs in FIGURE_COSTS.items():
            lines = [work_precision_line(label, of_label, costs, error) for label, of_label in by_label.items()]
            if num_points(lines) > MAX_POINT_LABELS:
                lines[1:] = [line._replace(point_labels=()) for line in lines[1:]]
            panels.append(Panel(title, x, FIGURE_ERRORS[error], lines, x_log=True, y_log=True))
        written.append(folder / f"{title.replace(', ', '_').replace(' ', '_')}.png")
        comparison_figure(panels).savefig(written[-1], dpi=150)
    return written


def work_precision_line(label: str, rows: Sequence[Row], costs: Sequence[str], error: str) -> Line:
    """A line of `error` against the sum of the columns `costs`, in the order of the rows, without values <= 0.

    Its points are labelled by tolerance. Times have bars from the lower to the upper quartile, if these are known.
    """
    points = np.array([(sum(row[cost] or 0 for cost in costs), row[error] or 0) for row in rows], dtype=float)
    quartiles = None
    if costs == ("time_median_ms",) and all(row.get("time_low_ms") for row in rows):
        quartiles = np.array([(row["time_low_ms"], row["time_high_ms"]) for row in rows], dtype=float)
    tolerances = [f"{row['tol']:.0e}".replace("e-0", "e-") for row in rows]
    x, y = np.where(points > 0, points, np.nan).T
    return Line(label, x, y, point_labels=tolerances, x_range=quartiles)

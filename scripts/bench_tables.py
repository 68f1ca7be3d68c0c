"""The tables of the bench, for ``render_tables.py``."""

from pathlib import Path
from typing import Any

import results
from formatting import markdown, milliseconds, scientific

from odebench.bench import report
from odebench.bench.cases import DEFAULT, WORKS

Row = dict[str, Any]

NOT_YET = "*Not measured yet.*"
FAMILY_HEADER = ["library", "mode", "method", "ms: min, median", "ratio: min, median", "bare f, ms", "NFE", "steps"]
MODES = {"forward": "forward", "backprop": "exact gradient", "adjoint": "continuous adjoint"}
ERRORS = {"state_error": "error", "parameter_gradient_error": "gradient error"}


def bench_files(folder: Path | None = None) -> list[list[Row]]:
    """The rows of each bench_*.csv in docs/results, or in another folder, those of bench_default first."""
    paths = sorted(
        (folder or results.RESULTS).glob("bench_*.csv"),
        key=lambda path: (not path.name.startswith("bench_default."), path.name),
    )
    return [report.read_csv(path) for path in paths]


def bench_tables(rows: list[Row]) -> str:
    """Everybody in one file: a table for each work, tolerance and family of modes."""
    parts = []
    for (work, family, tol), group in report.groups(rows).items():
        errors = {name: title for name, title in ERRORS.items() if any(row[name] is not None for row in group)}
        by_rows = any(row["variant"] == "per_sample" for row in group)  # an evaluation is then of some of the rows
        lines = [
            [
                *(f"{row['library']} {row['variant'] or ''}".rstrip(), row["mode"], f"`{row['method']}`"),
                f"{milliseconds(row['time_min_ms'])}, {milliseconds(row['time_median_ms'])}",
                f"{row['ratio_min']:.2f}, {row['ratio_median']:.2f}" if row["ratio_min"] is not None else "–",
                *(milliseconds(row["bare_ms"]), evaluations(row)),
                *([f"{row['rows_forward']:,}" if row["rows_forward"] else "–"] if by_rows else []),
                f"{row['accepted']} + {row['rejected']}" if row["accepted"] is not None else "–",
                *(scientific(row[name]) for name in errors),
                f"{row['peak_mib']:.3g}" if row["peak_mib"] is not None else "–",
            ]
            for row in group
        ]
        title = f"`{work}`, {family}, tol {tol:g}. {WORKS[work].about[0].upper()}{WORKS[work].about[1:]}."
        header = [*FAMILY_HEADER, *errors.values(), "peak MiB"]
        if by_rows:
            header.insert(header.index("steps"), "rows evaluated")
        parts.append(f"{title}\n\n{markdown(header, lines)}")
    return "\n\n".join([*parts, bench_measured_on(rows)])


def bench_summary(rows: list[Row]) -> str:
    """odebench beside torchdiffeq: a line for each of the usual works, a column for each of the usual modes."""
    lines, used = [], []
    for work in DEFAULT:
        cells = []
        for mode in MODES:
            mine = [row for row in rows if (row["work"], row["mode"], row["method"]) == (work, mode, "dopri5")]
            mine = [row for row in mine if row["tol"] == WORKS[work].tol]
            ours = next((row for row in mine if row["library"] == "odebench" and not row["variant"]), None)
            # Of its variants the fastest.
            theirs = min(
                (r for r in mine if r["library"] == "torchdiffeq"), key=lambda r: r["time_min_ms"], default=None
            )
            if ours is None or theirs is None:
                cells.append("–")
                continue
            used += [ours, theirs]
            ratio, *times = theirs["time_min_ms"] / ours["time_min_ms"], ours["time_min_ms"], theirs["time_min_ms"]
            cells.append(f"**{ratio:.1f}** ({' / '.join(map(milliseconds, times))} ms)")
        if set(cells) != {"–"}:
            lines.append([f"`{work}`", *cells])
    return f"{markdown(['work', *MODES.values()], lines)}\n\n{bench_measured_on(used)}" if lines else NOT_YET


def machine_table() -> str:
    """How many times as fast as torchdiffeq on each machine, by the least times of both: eager steps, compiled ones."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    machines: dict[str, None] = {}
    for rows in (*bench_files(), *bench_files(results.RESULTS / results.OTHERS)):
        for group in report.groups(rows).values():
            theirs = min((r["time_min_ms"] for r in group if r["library"] == "torchdiffeq"), default=None)
            for row in group if theirs else ():
                if row["library"] != "odebench" or row["mode"] not in MODES or row["variant"] not in (None, "compiled"):
                    continue
                told = found.setdefault((row["work"], row["mode"]), {}).setdefault(row["cpu"], [])
                machines[row["cpu"]] = None
                ratio = f"{theirs / row['time_min_ms']:.1f}"
                if row["variant"]:
                    told.append(f"compiled {ratio}")
                elif not told:  # the other file with eager steps has them beside compiled ones
                    told.append(ratio)
    lines = [
        [f"`{work}`", MODES[mode], *(", ".join(its.get(cpu, "–")) for cpu in machines)]
        for work in WORKS
        for mode in MODES
        if (its := found.get((work, mode)))
    ]
    return markdown(["work", "gradient", *machines], lines) if lines else NOT_YET


def bench_measured_on(rows: list[Row]) -> str:
    """When, where and with which versions."""
    versions = dict.fromkeys(f"{row['library']} {row['version']}" for row in rows)
    row = rows[0]
    where = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''} of {row['cpu']}"
    return f"Measured {row['date']} on {where}, Python {row['python']}, torch {row['torch']}; {', '.join(versions)}."


def mode_table(rows: list[Row]) -> str:
    """What each gradient mode costs on the works of the bench, and how far its gradient is from float64's."""
    lines, used = [], []
    for row in rows:
        if row["library"] != "odebench" or row["variant"] or row["mode"] == "forward":
            continue
        used.append(row)
        memory = f"{row['peak_mib']:.3g} MiB" if row["peak_mib"] is not None else "–"
        what = [f"`{row['work']}`", f"{row['tol']:g}", f"`{row['mode']}`"]
        costs = [evaluations(row), milliseconds(row["time_min_ms"]), memory]
        lines.append([*what, *costs, scientific(row["parameter_gradient_error"])])
    header = ["work", "tol", "mode", "NFE", "least ms", "peak memory", "error of the gradient"]
    return f"{markdown(header, lines)}\n\n{bench_measured_on(used)}"


def evaluations(row: Row) -> str:
    """Forward, and backward where there are any."""
    return f"{row['nfe_forward']} + {row['nfe_backward']}" if row["nfe_backward"] else f"{row['nfe_forward']}"

"""The benchmark tables, for ``render_tables.py``."""

from pathlib import Path
from typing import Any

import results
from formatting import markdown, milliseconds, scientific

from odebench.bench import report
from odebench.bench.cases import CASES, DEFAULT_CASES

Row = dict[str, Any]

NOT_YET = "*Not measured yet.*"
FAMILY_HEADER = ["library", "mode", "method", "ms: min, median", "ratio: min, median", "f alone, ms", "NFE", "steps"]
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
    """All libraries of one file: a table for each case, tolerance and family of modes."""
    parts = []
    for (case, family, tol), group in report.groups(rows).items():
        errors = {name: title for name, title in ERRORS.items() if any(row[name] is not None for row in group)}
        has_rows = any(row["variant"] == "per_sample" for row in group)  # an evaluation may be of some of the rows
        lines = [
            [
                *(f"{row['library']} {row['variant'] or ''}".rstrip(), row["mode"], f"`{row['method']}`"),
                f"{milliseconds(row['time_min_ms'])}, {milliseconds(row['time_median_ms'])}",
                f"{row['ratio_min']:.2f}, {row['ratio_median']:.2f}" if row["ratio_min"] is not None else "–",
                *(milliseconds(row["bare_ms"]), evaluations(row)),
                *([f"{row['rows_forward']:,}" if row["rows_forward"] else "–"] if has_rows else []),
                f"{row['accepted']} + {row['rejected']}" if row["accepted"] is not None else "–",
                *(scientific(row[name]) for name in errors),
                f"{row['peak_mib']:.3g}" if row["peak_mib"] is not None else "–",
            ]
            for row in group
        ]
        description = CASES[case].description
        title = f"`{case}`, {family}, tol {tol:g}. {description[0].upper()}{description[1:]}."
        header = [*FAMILY_HEADER, *errors.values(), "peak MiB"]
        if has_rows:
            header.insert(header.index("steps"), "rows evaluated")
        parts.append(f"{title}\n\n{markdown(header, lines)}")
    return "\n\n".join([*parts, bench_measured_on(rows)])


def bench_summary(rows: list[Row]) -> str:
    """odebench against torchdiffeq: a line for each default case, a column for each mode."""
    lines, used = [], []
    for case in DEFAULT_CASES:
        cells = []
        for mode in MODES:
            mine = [row for row in rows if (row["work"], row["mode"], row["method"]) == (case, mode, "dopri5")]
            mine = [row for row in mine if row["tol"] == CASES[case].tol]
            ours = next((row for row in mine if row["library"] == "odebench" and not row["variant"]), None)
            # The fastest of its variants.
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
            lines.append([f"`{case}`", *cells])
    return f"{markdown(['case', *MODES.values()], lines)}\n\n{bench_measured_on(used)}" if lines else NOT_YET


def machine_table() -> str:
    """Speed relative to torchdiffeq on each machine, by the shortest times of both: eager steps, compiled steps."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    machines: dict[str, None] = {}
    for rows in (*bench_files(), *bench_files(results.RESULTS / results.OTHERS)):
        for group in report.groups(rows).values():
            theirs = min((r["time_min_ms"] for r in group if r["library"] == "torchdiffeq"), default=None)
            for row in group if theirs else ():
                if row["library"] != "odebench" or row["mode"] not in MODES or row["variant"] not in (None, "compiled"):
                    continue
                ratios = found.setdefault((row["work"], row["mode"]), {}).setdefault(row["cpu"], [])
                machines[row["cpu"]] = None
                ratio = f"{theirs / row['time_min_ms']:.1f}"
                if row["variant"]:
                    ratios.append(f"compiled {ratio}")
                elif not ratios:  # another file may have eager steps too, measured beside compiled ones
                    ratios.append(ratio)
    lines = [
        [f"`{case}`", MODES[mode], *(", ".join(by_cpu.get(cpu, "–")) for cpu in machines)]
        for case in CASES
        for mode in MODES
        if (by_cpu := found.get((case, mode)))
    ]
    return markdown(["case", "gradient", *machines], lines) if lines else NOT_YET


def bench_measured_on(rows: list[Row]) -> str:
    """When and where the rows were measured, and with which versions."""
    versions = dict.fromkeys(f"{row['library']} {row['version']}" for row in rows)
    row = rows[0]
    where = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''} of {row['cpu']}"
    return f"Measured {row['date']} on {where}, Python {row['python']}, torch {row['torch']}; {', '.join(versions)}."


def mode_table(rows: list[Row]) -> str:
    """What each gradient mode costs on the benchmark cases, and the error of its gradient."""
    lines, used = [], []
    for row in rows:
        if row["library"] != "odebench" or row["variant"] or row["mode"] == "forward":
            continue
        used.append(row)
        memory = f"{row['peak_mib']:.3g} MiB" if row["peak_mib"] is not None else "–"
        cells = [f"`{row['work']}`", f"{row['tol']:g}", f"`{row['mode']}`"]
        costs = [evaluations(row), milliseconds(row["time_min_ms"]), memory]
        lines.append([*cells, *costs, scientific(row["parameter_gradient_error"])])
    header = ["case", "tol", "mode", "NFE", "shortest ms", "peak memory", "error of the gradient"]
    return f"{markdown(header, lines)}\n\n{bench_measured_on(used)}"


def evaluations(row: Row) -> str:
    """Forward evaluations, and backward ones if there are any."""
    return f"{row['nfe_forward']} + {row['nfe_backward']}" if row["nfe_backward"] else f"{row['nfe_forward']}"

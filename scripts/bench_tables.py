"""The benchmark tables for ``render_tables.py``, and their picture."""

from pathlib import Path
from typing import Any

import results
from formatting import markdown, milliseconds, scientific, value_range
from matplotlib.figure import Figure

from odebench.bench import report
from odebench.bench.cases import CASES, DEFAULT_CASES
from odebench.plots.dot_plot import dot_plot

Row = dict[str, Any]

NOT_YET = "*Not measured yet.*"
BASE = "torchdiffeq"
MODES = {"forward": "forward", "backprop": "exact gradient", "adjoint": "continuous adjoint"}
FAMILIES = list(MODES.values())


def read(name: str) -> list[Row]:
    """Read the rows of a committed benchmark, with numbers as numbers."""
    return report.read_csv(results.path_of(name))


def bench_files(folder: Path | None = None) -> list[list[Row]]:
    """Read the rows of each bench_*.csv in docs/results, or in another folder; those of bench_default come first."""
    paths = sorted(
        (folder or results.RESULTS).glob("bench_*.csv"),
        key=lambda path: (not path.name.startswith("bench_default."), path.name),
    )
    return [report.read_csv(path) for path in paths]


def bench_summary(rows: list[Row]) -> str:
    """A table of torchdiffeq's shortest time divided by ours: a line for each default case, a column for each mode."""
    lines, used = [], []
    for case in DEFAULT_CASES:
        cells = []
        for mode in MODES:
            mine = [row for row in rows if (row["work"], row["mode"], row["method"]) == (case, mode, "dopri5")]
            mine = [row for row in mine if row["tol"] == CASES[case].tol]
            ours = next((row for row in mine if row["library"] == "odebench" and not row["variant"]), None)
            # Each library's fastest variant.
            theirs = min(
                (r for r in mine if r["library"] == "torchdiffeq"), key=lambda r: r["time_min_ms"], default=None
            )
            if ours is None or theirs is None:
                cells.append("–")
                continue
            used += [ours, theirs]
            cells.append(f"{theirs['time_min_ms'] / ours['time_min_ms']:.1f}")
        if set(cells) != {"–"}:
            lines.append([f"`{case}`", *cells])
    return f"{markdown(['case', *MODES.values()], lines)}\n\n{bench_measured_on(used)}" if lines else NOT_YET


def best_speeds(folder: Path | None = None) -> dict[tuple[str, str], dict[str, float]]:
    """(family, library) -> default case -> the library's best speed relative to torchdiffeq, on one machine.

    Speeds are ratios of the shortest times. Eager times are taken from the first file; files of compiled steps have
    them again, for comparison.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for index, rows in enumerate(bench_files(folder)):
        for (case, family, *_), group in report.groups(rows).items():
            times: dict[str, list[float]] = {}
            for row in group:
                times.setdefault(library_of(row), []).append(row["time_min_ms"])
            for library, ms in times.items() if case in DEFAULT_CASES and BASE in times else ():
                if index == 0 or library.endswith(" compiled"):
                    found.setdefault((family, library), {})[case] = min(times[BASE]) / min(ms)
    return found


def library_of(row: Row) -> str:
    """The name of the library and its variant, such as "odebench compiled"; for torchdiffeq without the variant."""
    has_variant = row["variant"] and row["library"] != BASE
    return f"{row['library']} {row['variant']}" if has_variant else row["library"]


def library_table() -> str:
    """A table of each library's speed relative to torchdiffeq: one column per mode, ranges over cases and machines."""
    machines = [best_speeds(), best_speeds(results.RESULTS / results.OTHERS)]
    libraries = {library: None for found in machines for _, library in found if library != BASE}
    lines = []
    for name in sorted(libraries, key=lambda name: not name.startswith("odebench")):
        ranges = [
            [ratio for found in machines for ratio in found.get((family, name), {}).values()] for family in FAMILIES
        ]
        lines.append([name, *(value_range(ratios) or "–" for ratios in ranges)])
    return markdown(["library", *FAMILIES], lines) if lines else NOT_YET


def stiff_table() -> str:
    """A table of the stiff cases: shortest time and error by library and method."""
    rows = read("bench_stiff")
    cases = list(dict.fromkeys(row["work"] for row in rows))
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        cell = f"{milliseconds(row['time_min_ms'])} ms, {scientific(row['state_error'])}"
        found.setdefault(f"{row['library']} `{row['method']}`", {})[row["work"]] = cell
    lines = [[name, *(its.get(case, "–") for case in cases)] for name, its in found.items()]
    return markdown(["", *(f"`{case}`: time, error" for case in cases)], lines)


def speed_answer() -> str:
    """The first sentences of the page: odebench and diffrax on the default cases of all machines."""
    ratios: dict[str, list[float]] = {"odebench": [], "odebench compiled": [], "diffrax": []}
    for found in (best_speeds(), best_speeds(results.RESULTS / results.OTHERS)):
        for (family, library), its in found.items():
            if library in ratios:
                ours = found[family, "odebench"] if library == "diffrax" else {}
                ratios[library] += [ratio / ours.get(case, 1.0) for case, ratio in its.items()]
    eager, compiled, faster = map(value_range, ratios.values())
    cases = " and ".join(f"`{case}`" for case in best_speeds()["forward", "odebench compiled"])
    return (
        f"On one CPU thread a solve is **{eager} times as fast as torchdiffeq's** with the same method and tolerance,\n"
        f"with compiled steps on {cases} {compiled} times. diffrax, which compiles the whole solve by JAX, is\n"
        f"{faster} times as fast as our eager steps on small fields."
    )


def limits() -> str:
    """A list of the cases in which odebench or one of its options is slow."""
    mixed = {library_of(row): row for row in read("bench_mixed")}
    shared, separate = mixed["odebench"], mixed["odebench per_sample"]
    rows = f"{100 * separate['rows_forward'] / shared['rows_forward']:.0f} %"
    slower, faster = (
        f"{one['time_min_ms'] / other['time_min_ms']:.2g}"
        for one, other in ((separate, shared), (shared, mixed["diffrax"]))
    )
    conv = {(row["mode"], row["variant"]): row["time_min_ms"] for row in read("bench_conv")}
    compiled = value_range(conv[mode, "compiled"] / conv[mode, None] for mode in MODES)
    ahead = {
        f"{library} ({family}, `{case}`)": None
        for speeds in (best_speeds(), best_speeds(results.RESULTS / results.OTHERS))
        for (family, library), its in speeds.items()
        if library not in ("odebench", "odebench compiled", "diffrax")
        for case, ratio in its.items()
        if ratio > speeds[family, "odebench"][case]
    }
    return (
        f"- **Other PyTorch libraries that are faster** than our eager steps: {', '.join(ahead) or 'none'}.\n"
        f"- **Per-sample steps** (`mixed`) evaluate {rows} of the rows, but take {slower} times as long as shared\n"
        f"  steps: the bookkeeping costs more than a cheap field. diffrax is {faster} times as fast as shared steps.\n"
        f"- **Compiled steps** take {compiled} times as long on `conv`: the compiler's normalisation is slower than\n"
        "  PyTorch's on this CPU."
    )


def bench_measured_on(rows: list[Row]) -> str:
    """A sentence that says when and where the rows were measured, and with which versions."""
    versions = dict.fromkeys(f"{row['library']} {row['version']}" for row in rows)
    row = rows[0]
    where = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''} of {row['cpu']}"
    return f"Measured {row['date']} on {where}, Python {row['python']}, torch {row['torch']}; {', '.join(versions)}."


def mode_table(rows: list[Row]) -> str:
    """A table of shortest time, peak memory and error of the gradient for each gradient mode on the benchmark cases."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["library"] == "odebench" and not row["variant"] and row["mode"] != "forward":
            memory = f"{row['peak_mib']:.3g} MiB" if row["peak_mib"] is not None else "–"
            cells = [f"{milliseconds(row['time_min_ms'])} ms", memory, scientific(row["parameter_gradient_error"])]
            found.setdefault(row["mode"], {})[row["work"]] = ", ".join(cells)
    cases = list(dict.fromkeys(case for its in found.values() for case in its))
    lines = [[f"`{mode}`", *(its.get(case, "–") for case in cases)] for mode, its in found.items()]
    return markdown(["mode", *(f"`{case}`" for case in cases)], lines)


def picture() -> Figure:
    """The speed of all libraries relative to torchdiffeq, with a panel for each mode."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for (family, library), its in best_speeds().items():
        panels.setdefault(family, {})[library] = its
    return dot_plot(panels, "speed relative to torchdiffeq")

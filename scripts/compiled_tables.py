"""The tables of compiled solves and trainings, and the picture of the former, from docs/results."""

from collections.abc import Iterable, Sequence

import bench_tables
import results
from bench_tables import BASE, FAMILIES, Row
from formatting import markdown, value_range
from matplotlib.figure import Figure

from odebench.bench.cases import CASES
from odebench.plots.dot_plot import dot_plot

EXACT, FAST = "compiled_solve", "compiled_fast"
# Label of the picture -> library, variant; the variant None stands for the fastest.
DRAWN: dict[str, tuple[str, str | None]] = {
    "torchdiffeq": (BASE, None),
    "torchode": ("torchode", None),
    "odebench": ("odebench", ""),
    "odebench, compiled steps": ("odebench", "compiled"),
    "odebench, compiled solve": ("odebench", EXACT),
    "odebench, compiled solve, fast math": ("odebench", FAST),
    "diffrax (JAX)": ("diffrax", None),
}
# Column -> its heading.
COMPILE_TIMES = {"compile_cold_s": "seconds to compile", "compile_warm_s": "again, from the cache"}


def goals(rows: list[Row]) -> str:
    """A table of speeds relative to torchdiffeq and diffrax, and of compile times, by case and batch size.

    Each cell has the forward solve, the exact gradient and the adjoint. Speeds are ratios of the shortest times.
    """
    columns: dict[str, tuple[str, str, str | None]] = {
        "times eager": ("odebench", EXACT, ""),
        "times eager, fast math": ("odebench", FAST, ""),
        "times torchdiffeq, fast math": (BASE, FAST, None),
        "times diffrax": ("diffrax", EXACT, None),
        "times diffrax, fast math": ("diffrax", FAST, None),
    }
    lines = []
    for case, batch in dict.fromkeys((row["work"], row["batch"]) for row in rows):
        mine = [row for row in rows if (row["work"], row["batch"]) == (case, batch)]
        ours = [fastest_row(mine, family, "odebench", EXACT) or {} for family in FAMILIES]
        cells = [
            _slashed(ratio(mine, family, library, variant, base=base) for family in FAMILIES)
            for library, variant, base in columns.values()
        ]
        cells += [_slashed(row.get(name) for row in ours) for name in COMPILE_TIMES]
        lines.append([_case_name(case, batch), *cells])
    header = ["forward / exact gradient / adjoint", *columns, *COMPILE_TIMES.values()]
    about = f"{_timed_alone(rows)} {bench_tables.bench_measured_on(rows)}"
    return f"{markdown(header, lines)}\n\n{about} All: {results.link('compiled_solves')}."


def training(rows: list[Row]) -> str:
    """A table of the time of a training step, eager and compiled, and after how many steps compiling has paid.

    rows: those of measure_compiled_training.py, five for each training.
    """
    header = ["training (gradient), steps", "eager, ms per step", "`step`, ms", "`solve`, ms"]
    header += [f"`{how}` pays after, {cache}" for how in ("step", "solve") for cache in ("cold", "warm")]
    lines = []
    for name in dict.fromkeys(row["training"] for row in rows):
        eager, *others = (row for row in rows if row["training"] == name)
        warm = [row for row in others if row["cache"] == "warm"]
        lines.append(
            [
                f"`{name}` ({eager['gradient']}), {int(eager['steps_of_the_training']):,}",
                *(_step_time(row) for row in (eager, *warm)),
                *(_steps_until_it_pays(eager, row) for row in others),
            ]
        )
    about = (
        "Medians, and quartiles in brackets. The last four columns: the number of training steps after which compiling "
        "has paid for itself; cold: without torch's cache."
    )
    return f"{markdown(header, lines)}\n\n{about}"


def profile(rows: Sequence[Row]) -> str:
    """A table of what the time of compiled solves goes to. rows: those of profile_compiled_solves.py."""
    parts = {"products": "matrix products", "arithmetic": "other arithmetic", "loop": "the loop", "outside": "Python"}
    lines = []
    for case, batch in dict.fromkeys((row["case"], int(row["batch"])) for row in rows):
        mine = {row["mode"]: row for row in rows if (row["case"], int(row["batch"])) == (case, batch)}
        cells = [" / ".join(f"{100 * float(mine[mode][part]):.0f}" for mode in bench_tables.MODES) for part in parts]
        lines.append([_case_name(case, batch), *cells])
    return markdown(["% of forward / exact gradient / adjoint", *parts.values()], lines)


def _case_name(case: str, batch: int) -> str:
    return f"`{case}`" if batch == CASES[case].batch else f"`{case}`, batch {batch:,}"


def _step_time(row: Row) -> str:
    if not row["step_ms"]:
        return "–"
    return "{:.3g} ({:.3g} – {:.3g})".format(*(float(row[f"step_ms{end}"]) for end in ("", "_low", "_high")))


def _steps_until_it_pays(eager: Row, row: Row) -> str:
    saved_ms = float(eager["step_ms"]) - float(row["step_ms"] or "inf")
    if saved_ms <= 0:
        return "never"
    extra_ms = 1e3 * (float(row["first_steps_s"]) - float(eager["first_steps_s"]))
    return f"{float(f'{max(extra_ms, 0) / saved_ms:.2g}'):,.0f}"


def _slashed(numbers: Iterable[float | None]) -> str:
    cells = ["–" if one is None else f"{one:.2g}" if one < 10 else f"{one:.0f}" for one in numbers]
    return " / ".join(cells) if set(cells) != {"–"} else "–"


def _timed_alone(rows: Iterable[Row]) -> str:
    """Sentences: the times of libraries timed alone, relative to those timed alternately."""
    diffrax, ours = (
        value_range(
            row["alone_min_ms"] / row["time_min_ms"] for row in rows if part in (row["library"], row["variant"])
        )
        for part in ("diffrax", EXACT)
    )
    return (
        f"The libraries were timed alternately. Timed alone, diffrax takes {diffrax} times as long, our compiled "
        f"solves {ours} times."
    )


def headline(rows: list[Row]) -> str:
    """A table of the speed of compiled solves relative to torchdiffeq and diffrax: ranges over cases and gradients."""
    own = [row for row in rows if row["batch"] == CASES[row["work"]].batch]
    other_batches = sorted({row["batch"] for row in rows} - {row["batch"] for row in own})
    kinds = {f'`compile_math="{name}"`': (own, variant) for name, variant in (("fast", FAST), ("exact", EXACT))}
    kinds |= {f"fast, batches of {n:,}": ([row for row in rows if row["batch"] == n], FAST) for n in other_batches}
    lines = [
        [
            name,
            _speeds(chosen, BASE, variant, "time_min_ms"),
            _speeds(chosen, "diffrax", variant, "time_min_ms"),
            _speeds(chosen, "diffrax", variant, "alone_min_ms"),
        ]
        for name, (chosen, variant) in kinds.items()
    ]
    cases = ", ".join(f"`{case}`" for case in dict.fromkeys(row["work"] for row in own))
    header = [
        "compiled solves",
        "times torchdiffeq",
        "times diffrax (JAX), timed alternately",
        "times diffrax, each timed alone",
    ]
    return (
        f"[Compiled solves](docs/compiling.md) on {cases}, forward and gradients:\n\n{markdown(header, lines)}\n\n"
        f"{bench_tables.bench_measured_on(rows)}\n\nEager solves, times torchdiffeq:"
    )


def _speeds(rows: Sequence[Row], library: str, variant: str, time: str) -> str:
    """The range, over cases and gradients, of a library's time divided by that of a variant of odebench."""
    speeds = [
        ratio([row for row in rows if row["work"] == case], family, library, variant, time)
        for case in dict.fromkeys(row["work"] for row in rows)
        for family in FAMILIES
    ]
    return value_range(one for one in speeds if one is not None)


def ratio(
    rows: Sequence[Row], family: str, library: str, variant: str, time: str = "time_min_ms", base: str | None = None
) -> float | None:
    """The shortest time of a library divided by that of a variant of odebench; None if one was not measured.

    time: the column. base: the library's variant; None: the fastest.
    """
    theirs = fastest_row(rows, family, library, base, time)
    ours = fastest_row(rows, family, "odebench", variant, time)
    return theirs[time] / ours[time] if theirs and ours else None


def fastest_row(
    rows: Sequence[Row], family: str, library: str, variant: str | None, time: str = "time_min_ms"
) -> Row | None:
    """The row of a library with the shortest time, or of one of its variants. time: the column."""
    found = [row for row in rows if (row["family"], row["library"]) == (family, library)]
    # diffrax's exact gradient is by checkpoints, the others' by backpropagation.
    found = [row for row in found if row["mode"] != "checkpoint" or library == "diffrax"]
    found = [row for row in found if variant is None or (row["variant"] or "") == variant]
    return min(found, key=lambda row: row[time], default=None)


def picture(rows: Sequence[Row]) -> Figure:
    """The shortest time of each library, with a line to its median, on the cases with their own batch size."""
    shortest: dict[str, dict[str, dict[str, float]]] = {family: {} for family in FAMILIES}
    median: dict[str, dict[str, dict[str, float]]] = {family: {} for family in FAMILIES}
    for family in FAMILIES:
        for label, (library, variant) in DRAWN.items():
            for case in dict.fromkeys(row["work"] for row in rows):
                mine = [row for row in rows if (row["work"], row["batch"]) == (case, CASES[case].batch)]
                row = fastest_row(mine, family, library, variant)
                if row:
                    shortest[family].setdefault(label, {})[case] = row["time_min_ms"]
                    median[family].setdefault(label, {})[case] = row["time_median_ms"]
    return dot_plot(shortest, "time (ms): shortest, and a line to the median", median)

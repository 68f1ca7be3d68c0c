"""Render the tables of the pages from the CSV files in docs/results.

    python scripts/render_tables.py        rewrite the verdicts in these files, and the tables in README.md and docs/

Tables are between <!-- NAME --> and <!-- end -->. The trainings are measured by ``measure_results.py``, DETEST by
``measure_detest.py``, the speed by `odebench bench` (files bench_NAME), and most of the rest by `odebench reproduce`
(files with the name of the reproduction). ``results.py`` stores these files, which have all results; the pages show the
most important ones.
"""

import re
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import bench_tables
import compiled_tables
import results
from formatting import markdown
from reproduction_tables import (
    cost_table,
    difference_table,
    error_line,
    growth_table,
    missed_by_chance,
    origins,
    overview_rows,
    overview_table,
    own_settings,
    pivot_table,
    published_numbers,
    result_table,
    rewrite_verdicts,
    solver_table,
    trained_in_full,
    training_table,
    width_table,
)

from odebench.reporting.table import csv_text

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
COMMITTED = ROOT / "odebench" / "reproduce" / "committed.csv"

NLL = "final/test_nll_nats"
ABSOLUTE = ", absolute error"  # ends the names of figure3's rows with an absolute error of the adjoint
# The files that `odebench reproduce` wrote, in the order of the page, and how the page shows each as a table.
REPRODUCED = {
    "table1": partial(
        result_table,
        numbers=("final/test_accuracy", "final/nfe_forward", "nfe_growth", "final/peak_mib", "final/step_ms"),
    ),
    "table1-tiny": None,
    "figure3": None,
    "figure3-tiny": None,
    "figure4": width_table,
    "figure5": partial(pivot_table, numbers=[NLL], separator=": "),
    "figure5-small": None,
    "ffjord-toy": partial(pivot_table, numbers=[NLL, "final/test_nfe"], separator=": "),
    "ffjord-toy-full": None,
    "ffjord-mnist": partial(result_table, numbers=("final/test_bits_per_dim", "final/test_nfe")),
    "regularisers": partial(
        result_table, numbers=(NLL, "final/test_nfe", "final/nfe_forward", "final/test_sampling_nfe", "final/minutes")
    ),
    "spirals": None,
    "table2": partial(pivot_table, numbers=["final/test_rmse_extrapolation"], separator=", "),
    "poisson": partial(result_table, numbers=("final/test_rate_rmse", "final/test_constant_rate_rmse")),
    "hopper": partial(pivot_table, numbers=["final/test_mse"], separator=", ", swapped=True),
    "physionet": partial(result_table, numbers=["final/test_mse_per_feature", "final/test_mse", "final/test_auc"]),
    "memory-growth": growth_table,
    "scope": partial(result_table, numbers=("nfe", "nfe_forward", "nfe_backward", "reversal_error", "gradient_error")),
    "cnf-cost": None,
}
# The page in docs/reproduced of a file that has none of its own name.
PAGES = {
    "table1-tiny": "table1",
    "figure3-tiny": "figure3",
    "figure5-small": "figure5",
    "ffjord-toy-full": "ffjord-toy",
    "spirals": "table2",
    "cnf-cost": "scope",
}
TRAINING_STEPS = {f"training_step{suffix}": f"`{suffix[1:] or 'odenet'}`" for suffix in ("", "_cnf", "_latent_ode")}


def tables_by_page() -> dict[Path, dict[str, str]]:
    """Page -> marker -> table, from the files in docs/results."""
    read = results.read
    benches = [f"bench_{name}" for name in ("default", "compiled", "conv", "mixed", "stiff")]
    chosen = ["figure3", "detest", "memory", "bench_default", "gradients", "memory-modes", "memory-cnf"]
    bench, compiled = bench_tables.read("bench_default"), bench_tables.read("compiled_solves")
    return {
        ROOT / "README.md": {
            "mnist5k": accuracy_table(read("mnist5k")),
            "reproduced": trained_in_full(REPRODUCED),
            "table1": error_line(read("table1")),
            # All from one measurement, since ratios of times are meaningless unless the runs alternated.
            "bench": f"{compiled_tables.headline(compiled)}\n\n{bench_tables.bench_summary(bench)}",
        },
        DOCS / "reproduced.md": {
            "answer": published_numbers(REPRODUCED),
            "chance": missed_by_chance(REPRODUCED),
            "overview": overview_table(REPRODUCED, PAGES),
            "files": f"{results.measured(REPRODUCED)}; the files have the machine and date of each row.",
        },
        **reproduction_pages(),
        DOCS / "measuring.md": {"files": results.sources(["mnist5k", "mnist_epoch"])},
        DOCS / "speed.md": {
            "answer": bench_tables.speed_answer(),
            "libraries": bench_tables.library_table(),
            "limits": bench_tables.limits(),
            "stiff": bench_tables.stiff_table(),
            "training_steps": step_table(),
            "detest": detest_table(read("detest")),
            "files": results.sources([*benches, *TRAINING_STEPS, "detest"]),
        },
        DOCS / "compiling.md": {
            "compiled": compiled_tables.goals(compiled),
            "training": compiled_training(),
            "profile": compiled_tables.profile(read("compiled_profile")),
        },
        DOCS / "models.md": {"stepping": stepping_table(read("stepping"))},
        DOCS / "sweeps.md": {"sweeps": costs_table(read("sweeps")), "ranks": ranks_table(read("ranks"))},
        DOCS / "choosing.md": {
            "tolerances": tolerance_table(read("memory")),
            "modes": bench_tables.mode_table(bench),
            "solvers": solver_table(read("figure3")),
            "files": results.sources(chosen),
        },
    }


def reproduction_pages() -> dict[Path, dict[str, str]]:
    """The tables of the pages in docs/reproduced: results, origin, our own settings."""
    pages: dict[str, list[str]] = {}
    for name in REPRODUCED:
        pages.setdefault(PAGES.get(name, name), []).append(name)
    found = {}
    for page, names in pages.items():
        tables = {"origin": origins(names), "own": own_settings(names)}
        if table := REPRODUCED[page]:
            tables["results"] = table(results.read(page))
        found[DOCS / "reproduced" / f"{page}.md"] = tables
    found[DOCS / "reproduced" / "regularisers.md"]["differences"] = difference_table(
        results.read("regularisers"), (NLL, "final/test_nfe", "final/nfe_forward", "final/minutes"), "dynamics=plain"
    )
    full_toys = results.read("ffjord-toy-full")
    found[DOCS / "reproduced" / "ffjord-toy.md"]["full"] = pivot_table(full_toys, numbers=[NLL], separator=": ")
    found[DOCS / "reproduced" / "table1.md"]["seeds"] = result_table(
        results.read("table1-tiny"), ("final/test_accuracy", "final/nfe_forward", "nfe_growth", "final/step_ms")
    )
    long, short = results.read("figure3"), results.read("figure3-tiny")
    found[DOCS / "reproduced" / "figure3.md"] |= {
        "backward": backward_table(long),
        "training": training_table([short, long]),
    }
    found[DOCS / "reproduced" / "scope.md"] |= {
        "cost": cost_table(results.read("cnf-cost")),
        "paths": with_file("paths", paths_table),
    }
    found[DOCS / "reproduced" / "table2.md"] |= {
        "spiral_errors": with_file("spiral-errors", spiral_errors_table),
        "predictions": with_file("spiral-predictions", predictions_table),
    }
    return found


def with_file(name: str, table: Callable[[list[dict[str, str]]], str]) -> str:
    """The table of the file with this NAME, and a link to it for a page in docs/reproduced."""
    return f"{table(results.read(name))}\n\n[All values](../results/{results.path_of(name).name})."


def listed_results() -> str:
    """The overview that `odebench reproduce --list` prints, as CSV."""
    return csv_text([row for name in REPRODUCED for row in overview_rows(name)])


def compiled_training() -> str:
    """The table of trainings with compiled solves."""
    table = compiled_tables.training(results.read("compiled_training"))
    intro = "On one core, with other programs on the other (`python scripts/measure_compiled_training.py FOLDER`):"
    return f"{intro}\n\n{table}\n\n{results.sources(['compiled_training'])}"


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """Replace the text between each <!-- MARKER --> and <!-- end --> of a page by its table."""
    for marker, table in tables.items():
        pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert pattern.search(text), f"the page lacks the marker {marker}"
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


def accuracy_table(rows: list[dict[str, str]]) -> str:
    """A table with one line per training: accuracy, costs, time."""
    header = ["model", "gradient", "parameters", "test accuracy (95 % interval)", "NFE forward + backward"]
    header += ["peak memory per step", "total time"]
    lines = []
    for row in rows:
        has_ode = float(row["nfe_forward"]) > 0
        interval = f"{100 * float(row['test_low']):.2f} – {100 * float(row['test_high']):.2f}"
        lines.append(
            [
                f"`{row['model']}`",
                row["gradient"],
                f"{int(row['parameters']):,}",
                f"{100 * float(row['test_accuracy']):.2f} % ({interval})",
                f"{row['nfe_forward']} + {row['nfe_backward']}" if has_ode else "–",
                f"{row['peak_mib']} MiB",
                f"{float(row['seconds']):.0f} s",
            ]
        )
    return f"{markdown(header, lines)}\n\n{measured_on(rows)}"


def spiral_errors_table(rows: list[dict[str, str]]) -> str:
    """A table of the RMSE within and beyond the window: training series, test series, test series with best states."""
    kinds = {"training": "training series", "test": "test series", "test_best": "test series, best initial states"}
    lines = [
        [row["points"], *(", ".join(row[f"{kind}_{where}"] for where in ("within", "beyond")) for kind in kinds)]
        for row in rows
    ]
    header = ["points", *(f"{title}: within, beyond" for title in kinds.values())]
    return markdown(header, lines)


def predictions_table(rows: list[dict[str, str]]) -> str:
    """A table of the RMSE beyond the window by other ways to predict: means and ranges over seeds."""
    ways = {"all_times": "100 times", "spaced_times": "every n-th time", "mean_state": "100 times, from the mean state"}
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault((row["row"], row["points"]), []).append(row)
    lines = []
    for (name, points), its in found.items():
        cells = [_mean_and_range([float(row[way]) for row in its if row[way]]) for way in ways]
        lines.append([f"{name}, {points} points", f"{len(its)}", its[0]["spacing"], *cells])
    return markdown(["RMSE (range over seeds)", "seeds", "n", *ways.values()], lines)


def paths_table(rows: list[dict[str, str]]) -> str:
    """A table of the samples at which paths have crossed, by solver: means and ranges over seeds."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row["row"], []).append(row)
    header = ["solver", "NFE", f"crossed, of {rows[0]['samples']} samples", "smallest determinant"]
    lines = []
    for name, its in found.items():
        nfe, crossed, smallest = ([float(row[key]) for row in its] for key in ("nfe", "crossed", "smallest"))
        lines.append([name, f"{statistics.mean(nfe):.4g}", _mean_and_range(crossed, 0), f"{min(smallest):.2g}"])
    most = 100 * (1 - 0.05 ** (1 / int(rows[0]["samples"])))
    return (
        f"{markdown(header, lines)}\n\nNone of {rows[0]['samples']}: at 95 %, fewer than {most:.1f} % of all samples."
    )


def _mean_and_range(values: list[float], digits: int = 3) -> str:
    if not values or min(values) == max(values):
        return f"{values[0]:.{digits}f}" if values else "–"
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} – {max(values):.{digits}f})"


def tolerance_table(rows: list[dict[str, str]]) -> str:
    """A table of the costs of a training step at each tolerance, by the adjoint and by backpropagation."""
    header = ["tol", "NFE forward", "adjoint: NFE backward", "adjoint: peak memory", "backprop: peak memory"]
    by = {(row["tol"], row["gradient"]): row for row in rows}
    lines = []
    for tol in dict.fromkeys(row["tol"] for row in rows):
        adjoint, backprop = by[tol, "adjoint"], by[tol, "backprop"]
        cells = [f"{float(adjoint[f'nfe_{way}']):.0f}" for way in ("forward", "backward")]
        lines.append([f"{float(tol):g}", *cells, *(f"{row['peak_mib']} MiB" for row in (adjoint, backprop))])
    return markdown(header, lines)


def backward_table(rows: list[dict[str, str]]) -> str:
    """A table of backward NFE divided by forward NFE at every second tolerance, by both errors of the adjoint."""
    ratios = {row["row"]: f"{float(row['ours']):.2f}" for row in rows if row["number"] == "nfe_ratio" and row["ours"]}
    evaluated = [row.split(" at ") for row in ratios if " at " in row and "," not in row]
    solvers, tolerances = (list(dict.fromkeys(names)) for names in zip(*evaluated, strict=True))
    lines = [
        [
            tol,
            *(", ".join(ratios.get(f"{solver} at {tol}{kind}", "–") for kind in ("", ABSOLUTE)) for solver in solvers),
        ]
        for tol in tolerances[::2]
    ]
    return markdown(["tol", *(f"`{solver}`: relative, absolute" for solver in solvers)], lines)


def step_table() -> str:
    """A table of the speed of training steps relative to torchdiffeq's, for both choices of a solve's first step."""
    header = ["model", "gradient", "first step searched", "warm"]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name, model in TRAINING_STEPS.items():
        rows = results.read(name)
        for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
            (column,) = (column for column in ours if column.endswith("_per_s_median"))
            gradient = ours["gradient"]
            if theirs["gradient"] != gradient:
                gradient = f"{gradient} (torchdiffeq: {theirs['gradient']})"
            ratio = f"{float(ours[column]) / float(theirs[column]):.1f}"
            found.setdefault((model, gradient), {})[ours["first_step"]] = ratio
    return markdown(header, [[*names, its["search"], its["warm"]] for names, its in found.items()])


def stepping_table(rows: list[dict[str, str]]) -> str:
    """A table that compares shared steps with separate steps for each series."""
    header = ["`solver.stepping`", "NFE forward", "a step", "peak memory"]
    lines = [
        [f"`{row['stepping']}`", row["nfe_forward"], f"{row['step_ms']} ms", f"{row['peak_mib']} MiB"] for row in rows
    ]
    return f"{markdown(header, lines)}\n\n{measured_on(rows)}"


def costs_table(rows: list[dict[str, str]]) -> str:
    """A table of the overhead of sweeps."""
    lines = [[row["what"], f"{row['taken']} {row['unit']}"] for row in rows]
    return f"{markdown(['what', 'time'], lines)}\n\n{measured_on(rows)[:-1]}, hydra-core {rows[0]['hydra_core']}."


def ranks_table(rows: list[dict[str, str]]) -> str:
    """A table that compares a training in two processes with one in one process."""
    header = ["training", "difference of the gradients", "a step, one process", "two processes"]
    times = ("one_process_ms", "two_processes_ms")
    lines = [[row["training"], row["difference"], *(f"{row[time]} ms" for time in times)] for row in rows]
    return f"{markdown(header, lines)}\n\n{measured_on(rows)}"


def measured_on(rows: list[dict[str, str]]) -> str:
    """A sentence that says when, where and with which versions the rows were measured.

    Machine and versions are those of the first row.
    """
    row, days = rows[0], " and ".join(sorted({row["date"] for row in rows}))
    where = f"on {row['cores']} cores ({row['machine']})"
    return f"Measured {days} {where}, Python {row['python']}, torch {row['torch']}."


def detest_table(rows: list[dict[str, str]]) -> str:
    """A table of evaluations and errors of DETEST, over all problems together."""
    header = ["method", "control", "evaluations", "error"]
    lines = []
    for row in rows:
        method = f"`{row['method']}`"
        if row["library"] != "odebench":
            method = f"{row['library']} {row['version']}, {method}"
        lines.append([method, row["controller"], f"{int(row['evaluations']):,}", f"{float(row['error']):.1e}"])
    return markdown(header, lines)


def render_pages() -> None:
    """Rewrite all verdicts and the tables of all pages."""
    rewrite_verdicts()
    COMMITTED.write_text(listed_results(), encoding="utf-8")
    for page, tables in tables_by_page().items():
        page.write_text(with_tables(page.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    render_pages()

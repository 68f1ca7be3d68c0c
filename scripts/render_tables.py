"""Render the tables of the pages from the CSV files in docs/results.

    python scripts/render_tables.py        README.md and the pages in docs/

Tables are between <!-- NAME --> and <!-- end -->. The measurements come from: ``measure_results.py`` the trainings,
``measure_detest.py`` DETEST, `odebench bench` the speed (bench_NAME) and `odebench reproduce` the rest (by its name);
``results.py`` keeps their files.
"""

import math
import re
from pathlib import Path

import results
from bench_tables import NOT_YET, bench_files, bench_summary, bench_tables, machine_table, mode_table
from formatting import markdown
from reproduction_tables import (
    error_line,
    gradient_table,
    overview_table,
    reproduction_table,
    solver_table,
    width_table,
)

from odebench.bench import report
from odebench.reporting.figures import FIGURES

ROOT = Path(__file__).resolve().parent.parent


def replace_between(text: str, marker: str, content: str) -> str:
    """Replace the text between <!-- marker --> and <!-- end --> on a page."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert pattern.search(text), f"the page lacks the marker {marker}"
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def readme_with_tables(text: str) -> str:
    """README.md with its tables."""
    text = replace_between(text, "mnist5k", accuracy_table(results.read("mnist5k")))
    text = replace_between(text, "table1", error_line(results.read("table1")))
    # From one measurement: ratios of times that were not measured alternately are meaningless.
    return replace_between(text, "bench", bench_summary(report.read_csv(results.path_of("bench_default"))))


# In the order of the page: the files that `odebench reproduce` wrote.
REPRODUCED = (
    *("table1", "figure3", "figure4", "figure5", "figure5-small", "ffjord-toy", "ffjord-toy-full", "ffjord-mnist"),
    *("regularisers", "spirals", "table2", "poisson", "hopper", "physionet"),
)


def reproduced_with_tables(text: str) -> str:
    """docs/reproduced.md with its tables."""
    text = replace_between(text, "overview", overview_table(REPRODUCED))
    for name in REPRODUCED:
        table = width_table if name == "figure4" else reproduction_table
        text = replace_between(text, name.replace("-", "_"), table(results.read(name)))
    text = replace_between(text, "backward", backward_table(results.read("backward"), results.read("figure3")))
    return replace_between(text, "spiral_errors", spiral_errors_table(results.read("spiral-errors")))


def measured_with_tables(text: str) -> str:
    """docs/measured.md with its tables."""
    text = replace_between(text, "mnist_epoch", accuracy_table(results.read("mnist_epoch")))
    for name in ("training_step", "training_step_cnf", "training_step_latent_ode"):
        text = replace_between(text, name, step_table(results.read(name)))
    for name in ("memory-modes", "memory-cnf"):
        text = replace_between(text, name.replace("-", "_"), reproduction_table(results.read(name)))
    return replace_between(text, "gradients", gradient_table(results.read("gradients")))


def speed_with_tables(text: str) -> str:
    """docs/speed.md with its tables."""
    text = replace_between(text, "detest", detest_table(results.read("detest")))
    text = replace_between(text, "machines", machine_table())
    return replace_between(text, "bench", "\n\n".join(map(bench_tables, bench_files())) or NOT_YET)


def models_with_tables(text: str) -> str:
    """docs/models.md with its table."""
    return replace_between(text, "stepping", stepping_table(results.read("stepping")))


def sweeps_with_tables(text: str) -> str:
    """docs/sweeps.md with its tables."""
    text = replace_between(text, "sweeps", costs_table(results.read("sweeps")))
    return replace_between(text, "ranks", ranks_table(results.read("ranks")))


def choosing_with_tables(text: str) -> str:
    """docs/choosing.md with its tables."""
    text = replace_between(text, "tolerances", tolerance_table(results.read("memory")))
    text = replace_between(text, "modes", mode_table(report.read_csv(results.path_of("bench_default"))))
    return replace_between(text, "solvers", solver_table(results.read("figure3")))


def dashboards_with_tables(text: str) -> str:
    """docs/dashboards.md with the list of figures."""
    rows = [[f"`{name}`", figure.description] for name, figure in FIGURES.items()]
    return replace_between(text, "figures", markdown(["figure", "what it shows"], rows))


PAGES = {
    ROOT / "README.md": readme_with_tables,
    ROOT / "docs" / "reproduced.md": reproduced_with_tables,
    ROOT / "docs" / "measured.md": measured_with_tables,
    ROOT / "docs" / "speed.md": speed_with_tables,
    ROOT / "docs" / "models.md": models_with_tables,
    ROOT / "docs" / "sweeps.md": sweeps_with_tables,
    ROOT / "docs" / "choosing.md": choosing_with_tables,
    ROOT / "docs" / "dashboards.md": dashboards_with_tables,
}


def accuracy_table(rows: list[dict[str, str]]) -> str:
    """One line per training: accuracy, costs, time."""
    header = ["model", "gradient", "parameters", "test accuracy (95 % interval)", "NFE forward + backward"]
    header += ["peak memory a step", "images/s", "total time"]
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
                f"{float(row['images_per_s']):.0f}",
                f"{float(row['seconds']):.0f} s",
            ]
        )
    return f"{markdown(header, lines)}\n\n{measured_on(rows)}"


def spiral_errors_table(rows: list[dict[str, str]]) -> str:
    """RMSE within and beyond the window: of training series, test series, and test series with the best states."""
    kinds = {"training": "training series", "test": "test series", "test_best": "test series, best initial states"}
    lines = [
        [row["points"], *(", ".join(row[f"{kind}_{where}"] for where in ("within", "beyond")) for kind in kinds)]
        for row in rows
    ]
    header = ["points", *(f"{title}: within, beyond" for title in kinds.values())]
    one = rows[0]
    runs = f"The means of {one['seeds']} runs each" if int(one["seeds"]) > 1 else "One run each"
    where = f"on {one['machine']}, torch {one['torch']}"
    return f"{markdown(header, lines)}\n\n{runs}, by `python scripts/spiral_errors.py`, measured {one['date']} {where}."


def tolerance_table(rows: list[dict[str, str]]) -> str:
    """What a training step costs at each tolerance, by the adjoint and backpropagated through the solver."""
    header = ["tol", "NFE forward", "adjoint: NFE backward", "adjoint: peak memory", "backprop: peak memory"]
    by = {(row["tol"], row["gradient"]): row for row in rows}
    lines = []
    for tol in dict.fromkeys(row["tol"] for row in rows):
        adjoint, backprop = by[tol, "adjoint"], by[tol, "backprop"]
        cells = [f"{float(adjoint[f'nfe_{way}']):.0f}" for way in ("forward", "backward")]
        lines.append([f"{float(tol):g}", *cells, *(f"{row['peak_mib']} MiB" for row in (adjoint, backprop))])
    return f"{markdown(header, lines)}\n\n{measured_on(rows)}"


def backward_table(rows: list[dict[str, str]], relative: list[dict[str, str]]) -> str:
    """Backward NFE with an absolute error norm of the adjoint, compared with a relative one (of figure3)."""
    by = {(row["row"], row["number"]): float(row["ours"]) for row in relative if row["ours"]}
    lines = []
    for row in rows:
        name = f"{row['solver']} at {row['tol']}"
        theirs = [int(row[f"nfe_{way}"]) for way in ("forward", "backward")]
        ours = [by.get((name, f"nfe_{way}"), math.nan) for way in ("forward", "backward")]
        cells = [f"{there:.0f} + {back:.0f}, {back / there:.2f}" for there, back in (ours, theirs)]
        lines.append([f"`{row['solver']}`", row["tol"], *cells])
    header = ["solver", "tol", "relative error: NFE, ratio", "absolute error: NFE, ratio"]
    one = rows[0]
    return f"{markdown(header, lines)}\n\nMeasured {one['date']}, Python {one['python']}, torch {one['torch']}."


def step_table(rows: list[dict[str, str]]) -> str:
    """Training steps of odebench and torchdiffeq, and the limit set by the evaluations alone if measured."""
    unit = next(name.removesuffix("_per_s_best") for name in rows[0] if name.endswith("_per_s_best"))
    has_field = f"{unit}_per_s_bare" in rows[0]
    header = ["gradient", "first step", *(f"{library}, {unit}/s (NFE)" for library in ("odebench", "torchdiffeq"))]
    header += ["ratio: best, median"] + [f"f + vjp alone, {unit}/s: odebench, torchdiffeq"] * has_field
    lines = []
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        ratios = [float(ours[f"{unit}_per_s_{k}"]) / float(theirs[f"{unit}_per_s_{k}"]) for k in ("best", "median")]
        cells = [
            f"{row[f'{unit}_per_s_median']} ({row['nfe_forward']} + {row['nfe_backward']})" for row in (ours, theirs)
        ]
        gradient = ours["gradient"]
        if theirs["gradient"] != gradient:
            gradient = f"{gradient} (torchdiffeq: {theirs['gradient']})"
        lines.append([gradient, ours["first_step"], *cells, f"{ratios[0]:.2f}, {ratios[1]:.2f}"])
        if has_field:
            lines[-1].append(", ".join(row[f"{unit}_per_s_bare"] for row in (ours, theirs)))
    return f"{markdown(header, lines)}\n\n{measured_on(rows)}"


def stepping_table(rows: list[dict[str, str]]) -> str:
    """Shared steps compared with separate steps for each series."""
    header = ["`solver.stepping`", "NFE forward", "a step", "peak memory"]
    lines = [
        [f"`{row['stepping']}`", row["nfe_forward"], f"{row['step_ms']} ms", f"{row['peak_mib']} MiB"] for row in rows
    ]
    return f"{markdown(header, lines)}\n\n`{rows[0]['command']}` and the same with `per_sample`. {measured_on(rows)}"


def costs_table(rows: list[dict[str, str]]) -> str:
    """The overhead of sweeps."""
    lines = [[row["what"], f"{row['taken']} {row['unit']}"] for row in rows]
    return f"{markdown(['what', 'time'], lines)}\n\n{measured_on(rows)[:-1]}, hydra-core {rows[0]['hydra_core']}."


def ranks_table(rows: list[dict[str, str]]) -> str:
    """Two processes of one training compared with one."""
    header = ["training", "difference of the gradients", "a step, one process", "two processes"]
    times = ("one_process_ms", "two_processes_ms")
    lines = [[row["training"], row["difference"], *(f"{row[time]} ms" for time in times)] for row in rows]
    return f"{markdown(header, lines)}\n\n{measured_on(rows)}"


def measured_on(rows: list[dict[str, str]]) -> str:
    """When, where and with which versions: those of the first row, and the days of all."""
    row, days = rows[0], " and ".join(sorted({row["date"] for row in rows}))
    where = f"on {row['cores']} cores ({row['machine']})"
    return f"Measured {days} {where}, Python {row['python']}, torch {row['torch']}."


def detest_table(rows: list[dict[str, str]]) -> str:
    """Evaluations and errors of all problems together."""
    header = ["method", "control", "evaluations", "error"]
    lines = []
    for row in rows:
        method = f"`{row['method']}`"
        if row["library"] != "odebench":
            method = f"{row['library']} {row['version']}, {method}"
        lines.append([method, row["controller"], f"{int(row['evaluations']):,}", f"{float(row['error']):.1e}"])
    last = rows[0]
    return (
        f"{markdown(header, lines)}\n\n`rtol` = `atol` = {float(last['tol']):.0e}, float64. "
        f"Measured {last['date']} with Python {last['python']}, torch {last['torch']}."
    )


def main() -> None:
    """Rewrite the pages."""
    for path, with_tables in PAGES.items():
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

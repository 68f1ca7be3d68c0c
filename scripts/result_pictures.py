"""The pictures that are drawn from the files in docs/results, for ``pictures.py``."""

import re

import bench_tables
import compiled_tables
import forest_plot
import numpy as np
import results
from matplotlib.figure import Figure
from render_tables import ABSOLUTE, REPRODUCED

from odebench.plots.comparison import Line, Panel, ReferenceLine, comparison_figure
from odebench.reporting.evaluations import FORWARD_LABEL, GRADIENT_ERRORS, TOLERANCE


def tolerance_label(tol: str | float) -> str:
    """A tolerance as short text: 1e-3."""
    return f"{float(tol):.0e}".replace("e-0", "e-")


def memory() -> Figure:
    """The peak memory of a training step against its forward NFE, one line per gradient mode, with tolerances."""
    points: dict[str, list[tuple[float, float, str]]] = {}
    for row in results.read("memory"):
        point = float(row["nfe_forward"]), float(row["peak_mib"]), tolerance_label(row["tol"])
        points.setdefault(row["gradient"], []).append(point)
    lines = []
    for mode, of_mode in points.items():
        nfe, peak_mib, tolerances = zip(*sorted(of_mode), strict=True)
        lines.append(Line(mode, np.array(nfe), np.array(peak_mib), point_labels=tolerances))
    panel = Panel("Memory of one training step, by tolerance", "forward NFE per step", "peak memory (MiB)", lines)
    return comparison_figure([panel._replace(x_log=False, y_log=False)])


def numbers_of(name: str) -> dict[str, dict[str, float]]:
    """Row -> number -> our value, of the file that `odebench reproduce` wrote with this NAME."""
    found: dict[str, dict[str, float]] = {}
    for row in results.read(name):
        if row["ours"]:
            found.setdefault(row["row"], {})[row["number"]] = float(row["ours"])
    return found


def figure3() -> Figure:
    """Error and backward NFE against forward NFE of one trained model, one line per solver, with tolerances."""
    found: dict[str, dict[str, list[tuple[dict[str, float], str]]]] = {"": {}, ABSOLUTE: {}}
    for row, numbers in numbers_of("figure3").items():
        solver, at, tol = row.removesuffix(ABSOLUTE).partition(" at ")
        if at and "," not in solver and "nfe_forward" in numbers:
            kind = ABSOLUTE if row.endswith(ABSOLUTE) else ""
            found[kind].setdefault(solver, []).append((numbers, tolerance_label(tol)))

    def lines(kind: str, x: str, y: str, names: bool = False) -> list[Line]:
        return [
            Line(solver, *np.array([(its[x], its[y]) for its, _ in rows]).T, None, [tol for _, tol in rows] * names)
            for solver, rows in found[kind].items()
        ]

    error = lines("", "nfe", "output_error", names=True)
    backward = [lines(kind, "nfe_forward", "nfe_backward") for kind in found]
    ends = np.array([f(f(line.x) for line in backward[0]) for f in (min, max)])
    references = [
        ReferenceLine("backward = forward", x=ends, y=ends),
        ReferenceLine("published: about half (Chen et al. 2018, Figure 3c)", x=ends, y=ends / 2),
    ]
    panels = [
        Panel("Error against NFE, by tolerance", "NFE of a batch", "relative error of the output", error),
        Panel("Adjoint's error relative to gradient", FORWARD_LABEL, "backward NFE", backward[0], references),
        Panel("Adjoint's error absolute", FORWARD_LABEL, "backward NFE", backward[1], references),
    ]
    return comparison_figure([panel._replace(x_log=True, y_log=True) for panel in panels])


def figure4() -> Figure:
    """The test KL against the sizes of CNF and planar flow, one panel per target."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row, numbers in numbers_of("figure4").items():
        target, _, words = row.partition(": ")
        model, _, size = words.partition(", ")
        if re.fullmatch(r"[MK] = \d+", size) and "final/test_kl_nats" in numbers:
            point = int(size.rpartition(" ")[2]), numbers["final/test_kl_nats"]
            found.setdefault(target, {}).setdefault(model, []).append(point)
    x, y = "width M of the CNF, depth K of the planar flow", "test KL(q || p) (nats)"
    panels = [
        Panel(target, x, y, [Line(model, *np.array(its).T) for model, its in by_model.items()], x_log=True, y_log=True)
        for target, by_model in found.items()
    ]
    return comparison_figure(panels, columns=2)


def memory_growth() -> Figure:
    """Peak and saved memory against the number of layers, one line per network and gradient mode."""
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for row, numbers in numbers_of("memory-growth").items():
        name, _, layers = row.rpartition(", L = ")
        found.setdefault(name, []).append((int(layers), numbers))
    panels = []
    for title, tag in (("Peak memory", "final/peak_mib"), ("Memory saved for backward", "final/saved_mib")):
        lines = [Line(name, *np.array([(layers, its[tag]) for layers, its in rows]).T) for name, rows in found.items()]
        panels.append(Panel(title, "blocks, or steps of the solver", "one training step (MiB)", lines))
    return comparison_figure([panel._replace(x_log=False, y_log=False) for panel in panels])


def gradients() -> Figure:
    """Both errors of a training step's gradient against tolerance, a row per model, one line per gradient mode."""
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for row, numbers in numbers_of("gradients").items():
        words, steps, tol = row.partition(", steps of 16 at ")
        model, _, mode = words.partition(": ")
        for error in GRADIENT_ERRORS if steps else ():
            if numbers.get(error, 0) > 0:
                found.setdefault((model, error), {}).setdefault(mode, []).append((float(tol), numbers[error]))
    panels = [
        Panel(
            f"{model}: {GRADIENT_ERRORS[error]}",
            TOLERANCE,
            "relative error of the gradient",
            [Line(mode, *np.array(points).T) for mode, points in by_mode.items()],
            x_log=True,
            y_log=True,
            x_descending=True,
        )
        for (model, error), by_mode in found.items()
    ]
    return comparison_figure(panels, columns=2)


def compiled_solves() -> Figure:
    """The time of each library on each case."""
    return compiled_tables.picture(bench_tables.read("compiled_solves"))


def published() -> Figure:
    """Every published value against our interval."""
    return forest_plot.draw(forest_plot.forest_rows([*REPRODUCED]))

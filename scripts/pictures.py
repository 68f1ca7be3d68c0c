"""Draw every picture in docs/pictures from its record.

    python scripts/pictures.py                  all whose records are here
    python scripts/pictures.py --train NAME...  these, after the trainings that they need

The record of a picture is a file in docs/results, or runs in outputs/pictures, which `--train` makes by ordinary
`odebench train`; finished runs are kept. A picture whose runs are missing is left as it is, and a line says so.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bench_tables
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from render_tables import ROOT
from result_pictures import compiled_solves, figure3, figure4, gradients, memory, memory_growth, published

from odebench.config.choices import options_of
from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.data import build_data
from odebench.ode import solve
from odebench.plots import density, style
from odebench.plots.comparison import Line, Panel, comparison_figure
from odebench.plots.curves import training_curves
from odebench.plots.step_sizes import step_size_panel
from odebench.record.reader import is_run, read_run
from odebench.reporting import figures
from odebench.reporting.runs import collect_runs
from odebench.training.comparison import compare_runs
from odebench.training.trained_run import load_run

PICTURES = ROOT / "docs" / "pictures"
RUNS = ROOT / "outputs" / "pictures"
DPI = 150
FINGERPRINT = "fingerprint"
PLANE, NUM_GRID, NUM_SAMPLES = (-4.0, 4.0), 120, 200_000

TOYS = (
    "swissroll", "eight_gaussians", "pinwheel", "two_circles", "two_moons", "two_spirals", "checkerboard", "rings"
)  # fmt: skip
POTENTIALS = tuple(f"potential_{number}" for number in (1, 2, 3, 4))
TABLE1 = {
    "table1_mlp": ["experiment=paper/mnist_mlp"],
    "table1_odenet": ["experiment=paper/mnist_odenet"],
    "table1_rknet": ["experiment=paper/mnist_rknet"],
    **{f"table1_resnet_{n}": ["experiment=paper/mnist_resnet", f"model.blocks={n}"] for n in (0, 1, 6)},
}
LATENT_ODE = ["experiment=paper/latent_ode_spirals", "loss.consistency=3"]
# Each run of NFE needs one minute, the latent ODE of a short training four, each run of table2 five, of moons 40,
# ffjord_mnist 60.
TABLE2 = {
    f"{name}, {points} points": [*words, f"data.observed={points}", "budget=full"]
    for name, words in (("latent ODE", LATENT_ODE), ("RNN", ["experiment=paper/rnn_spirals"]))
    for points in (30, 50, 100)
}
NFE = {
    f"nfe_{tol}": ["model=cnf", "data=two_moons", f"tol={tol}", "trainer.iterations=970"]
    for tol in ("1e-2", "1e-3", "1e-4")
}
# Name of a run -> the words after `odebench train`.
TRAININGS: dict[str, list[str]] = {
    **{name: [f"model={name}"] for name in ("odenet", "rknet", "resnet", "mlp")},
    **{
        f"toy_{data}_maximum_likelihood": [
            "experiment=ffjord/toy", f"data={data}", "trainer.iterations=600", "optim.lr=5e-3", "tol=1e-3"
        ]
        for data in TOYS
    },
    **{f"toy_{data}_flow_matching": ["experiment=flow_matching/toy", f"data={data}", "budget=small"] for data in TOYS},
    "spirals_latent_ode": [*LATENT_ODE, "data.observed=100", "budget=small"],
    "poisson": ["experiment=paper/poisson", "budget=full"],
    "moons_cnf": ["experiment=paper/cnf_maximum_likelihood", "data=two_moons", "budget=full"],
    "moons_planar_nf": ["experiment=paper/nf_maximum_likelihood", "data=two_moons", "budget=full"],
    "ffjord_mnist": ["experiment=ffjord/mnist", "budget=small"],
    **{name: [*words, "budget=small"] for name, words in TABLE1.items()},
    **TABLE2,
    **NFE,
}  # fmt: skip


class Picture(NamedTuple):
    """A picture: its drawing function, and the runs whose folders this function gets."""

    draw: Callable[..., Figure | bytes]
    runs: tuple[str, ...] = ()


def accuracy(*folders: Path) -> Figure:
    """The accuracy against training time, one line per run."""
    lines = []
    for folder in folders:
        rows = [row for row in read_run(folder).metrics if row.get("val/accuracy") is not None]
        minutes, percent = np.array([(row["elapsed_s"] / 60, 100 * row["val/accuracy"]) for row in rows]).T
        lines.append(Line(folder.name, minutes, percent))
    panel = Panel("Accuracy against training time", "time (min)", "validation accuracy (%)", lines)
    return comparison_figure([panel._replace(x_log=False, y_log=False)])


def cnf(folder: Path) -> bytes:
    """A density that a flow carries from the base to the data, with its field and the solver's steps."""
    return figure_of("transformation_gif", folder, "eval_tol=1e-6")


def figure_of(name: str, folder: Path, *overrides: str) -> Any:
    """The figure of a run's task with this name."""
    return load_run(folder, ["device=cpu", *overrides]).task.figures()[name]


def report_figure(name: str, *folders: Path) -> Figure:
    """The figure that `odebench report --figure NAME` draws of these runs."""
    return figures.draw(name, collect_runs([*folders]))


def table2(*folders: Path) -> Figure:
    """The same test series by each run."""
    return compare_runs({folder.name: folder for folder in folders})


def training(folder: Path) -> Figure:
    """The curves of a training."""
    return training_curves(read_run(folder).metrics)


def densities() -> Figure:
    """Histograms of the toy data sets, and the densities that are known up to a factor."""
    figure, panels = style.new_square_figure(len(TOYS) + len(POTENTIALS), 6, 1.9)
    for axes, name in zip(panels, (*TOYS, *POTENTIALS), strict=True):
        draw_target(axes, name)
    return figure


def draw_target(axes: Axes, name: str) -> None:
    """Draw the density of a data set in the plane, its colours from 0 to nearly its largest value."""
    settings = read_settings(compose(["model=ffjord", f"data={name}"]))
    data = build_data(name, options_of(settings.data), seed=0)
    if data.log_density is None:
        log_density = density.smoothed_histogram(
            data.draw(NUM_SAMPLES, np.random.RandomState(0)).numpy(), PLANE, NUM_GRID
        )
    else:
        log_density = data.log_density(torch.from_numpy(density.grid_points(PLANE, NUM_GRID))).numpy()
    draw_log_density(axes, name, log_density)


def draw_log_density(axes: Axes, title: str, log_density: np.ndarray) -> None:
    """Draw a log density at the points of the grid."""
    density.draw_density(axes, log_density, PLANE, density.shared_colour_scale([log_density]))
    style.style_plane(axes, title, PLANE)


def steps() -> Figure:
    """A solve of van der Pol's oscillator: the first component at the ends of the steps, and the sizes of the steps."""

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])

    y0, times = torch.tensor([2.0, 0.0], dtype=torch.float64), np.linspace(0, 20, 2001)
    solution = solve(field, y0, times.tolist(), method="dopri5", rtol=1e-4, atol=1e-4)
    stats = solution.stats
    ends = np.cumsum([0.0, *stats.step_sizes])
    label = f"{stats.accepted} accepted steps"
    line = Line(label, ends, np.interp(ends, times, solution.y[:, 0].numpy()))
    states = Panel("y₁ of van der Pol's oscillator", "t", "y₁", [line])
    sizes = step_size_panel("", "", {label: (0.0, stats.step_sizes, stats.rejected_steps)})
    sizes = sizes._replace(title="Step sizes, rejected steps too", x="t", y="step size")
    return comparison_figure([states._replace(x_log=False, y_log=False), sizes])


def gallery(*folders: Path) -> Figure:
    """A row for each toy density: the density, and models trained by maximum likelihood and by flow matching."""
    figure, panels = style.new_square_figure(len(folders) // 2 * 3, 6, 1.9)
    for index in range(len(folders) // 2):
        target, *models = panels[3 * index : 3 * index + 3]
        pair = [load_run(folder, ["device=cpu"]) for folder in folders[2 * index : 2 * index + 2]]
        draw_target(target, pair[0].settings.data.name)
        for axes, run, loss in zip(models, pair, ("likelihood", "flow matching"), strict=True):
            grid = torch.from_numpy(density.grid_points(PLANE, NUM_GRID)).to(next(run.model.parameters()))
            with torch.no_grad():
                log_density = run.model.log_prob(grid, run.solve, "exact")[0].numpy()
            draw_log_density(axes, loss, log_density)
    return figure


ALL = {
    "accuracy.png": Picture(accuracy, ("odenet", "rknet", "resnet", "mlp")),
    "cnf.gif": Picture(cnf, ("toy_pinwheel_maximum_likelihood",)),
    "compiled_solves.png": Picture(compiled_solves),
    "densities.png": Picture(densities),
    "features.png": Picture(partial(figure_of, "features"), ("odenet",)),
    "ffjord_mnist_curves.png": Picture(training, ("ffjord_mnist",)),
    "figure3.png": Picture(figure3),
    "figure4.png": Picture(figure4),
    "gradients.png": Picture(gradients),
    "memory.png": Picture(memory),
    "memory_growth.png": Picture(memory_growth),
    "moons_cnf.png": Picture(partial(figure_of, "density"), ("moons_cnf",)),
    "moons_planar_nf.png": Picture(partial(figure_of, "density"), ("moons_planar_nf",)),
    "nfe_heatmap.png": Picture(partial(report_figure, "nfe-heatmap"), tuple(NFE)),
    "poisson_rates.png": Picture(partial(figure_of, "rates"), ("poisson",)),
    "published.png": Picture(published),
    "speed.png": Picture(bench_tables.picture),
    "spirals_error.png": Picture(partial(figure_of, "error"), ("latent ODE, 100 points",)),
    "spirals_latent_ode.png": Picture(partial(figure_of, "series"), ("spirals_latent_ode",)),
    "spirals_phase.png": Picture(partial(figure_of, "phase"), ("spirals_latent_ode",)),
    "spirals_variations.png": Picture(partial(figure_of, "variations"), ("spirals_latent_ode",)),
    "steps.png": Picture(steps),
    "table1.png": Picture(partial(report_figure, "result-training"), tuple(TABLE1)),
    "table2.png": Picture(table2, tuple(TABLE2)),
    "toy_gallery.png": Picture(
        gallery, tuple(f"toy_{data}_{loss}" for data in TOYS for loss in ("maximum_likelihood", "flow_matching"))
    ),
}


def is_done(folder: Path) -> bool:
    """Whether the folder has a finished run."""
    return is_run(folder) and read_run(folder).status["status"] == "done"


def train(name: str) -> None:
    """Train a run by the command line, or resume it, unless it is finished."""
    folder = RUNS / name
    if is_done(folder):
        return
    words = ["resume", str(folder)] if is_run(folder) else ["train", *TRAININGS[name], f"run_dir={folder}"]
    print("odebench", *words, flush=True)
    subprocess.run([sys.executable, "-m", "odebench", *words], check=True, env={**os.environ})


def fingerprint(figure: Figure) -> str:
    """A text that changes with the lines of a figure. Its file has it, so a test knows whether it is current."""
    lines = [line for axes in figure.axes for line in axes.lines]
    points = "".join(f"{line.get_label()}: {' '.join(f'{x:.4g}' for x in line.get_xydata().flat)}\n" for line in lines)
    return hashlib.sha256(points.encode()).hexdigest()


def save(name: str) -> None:
    """Draw one picture, unless its runs are missing."""
    draw, runs = ALL[name]
    missing = [run for run in runs if not is_done(RUNS / run)]
    if missing:
        print(f"{name}: left as it is, since {', '.join(missing)} are not in {RUNS}; with --train they are made")
        return
    drawn = draw(*(RUNS / run for run in runs))
    PICTURES.mkdir(exist_ok=True)
    if isinstance(drawn, bytes):
        (PICTURES / name).write_bytes(drawn)
    else:
        drawn.savefig(PICTURES / name, dpi=DPI, bbox_inches="tight", pad_inches=0.08)
        notes = PngInfo()
        notes.add_text(FINGERPRINT, fingerprint(drawn))
        with Image.open(PICTURES / name) as image:  # 256 colours take half of the space
            image.convert("RGB").quantize(256).save(PICTURES / name, optimize=True, pnginfo=notes)


def main() -> None:
    """Draw the named pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"by default all: {', '.join(ALL)}")
    parser.add_argument("--train", action="store_true", help="make the runs that are missing")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(ALL):
        parser.error(f"no such picture: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    for name in arguments.names or ALL:
        for run in ALL[name].runs if arguments.train else ():
            train(run)
        save(name)


if __name__ == "__main__":
    main()

"""RMSE of runs on spirals beyond the window, for other ways to predict than that of the table.

    python scripts/spiral_predictions.py RUN...     runs of experiment=paper/latent_ode_spirals or paper/rnn_spirals

The table asks at all times of the window and beyond it, and a latent ODE answers with the mean over 10 initial states.
Here, each run is also asked only at times beyond the window that are about as far apart as its observed points are on
average: an RNN takes its own answers as input, so that these depend on the times at which it is asked. A latent ODE
also answers by the mean initial state of its posterior. All rows are added to docs/results/spiral-predictions.*.csv,
and means to docs/reproduced/table2.md.
"""

import sys
from pathlib import Path
from typing import Any

import results
import torch
from render_tables import render_pages
from torch import Tensor

from odebench.config.choices import options_of
from odebench.config.settings import Settings
from odebench.data import build_data
from odebench.data.spirals import WINDOW
from odebench.training.trained_run import load_run

NUM_STATES = 10
NAME, KEYS = "spiral-predictions", ("row", "points", "seed")


def row_of(settings: Settings) -> str:
    """The name of the run's row in the table, without its number of points."""
    model = options_of(settings.model)
    if settings.model.name == "rnn":
        return "RNN" if model["time_gap"] else "RNN without time gaps"
    two_layers = " of a two-layer field" if model["field_layers"] == 2 else ""
    return f"latent ODE{two_layers}{' with consistency' if options_of(settings.loss)['consistency'] else ''}"


@torch.no_grad()
def measure(path: Path) -> dict[str, Any]:
    """Measure a run: its RMSE at all times beyond the window, and by the other ways."""
    run = load_run(path)
    points = options_of(run.settings.data)["observed"]
    series = build_data("spirals", options_of(run.settings.data), run.settings.seed).test
    everyone = torch.arange(len(series))
    inputs, truth = series.inputs(everyone), series.noiseless(everyone)
    latent_dim = run.model.latent_dim

    def rmse(columns: Tensor, noise: Tensor | None) -> str:
        """The error beyond the window, if the run is asked at the times of these columns."""
        asked = torch.ones(len(series), len(columns), dtype=torch.bool)
        values = run.model(inputs, truth.times[columns], run.solve, asked, noise).values
        errors = (values.mean(0) - truth.values[:, columns])[:, columns >= WINDOW]
        return f"{errors.square().mean().sqrt().item():.4g}"

    noise = None
    if latent_dim:
        noise = torch.randn(NUM_STATES, len(series), latent_dim, generator=torch.Generator().manual_seed(0))
    everywhere, spacing = torch.arange(len(truth.times)), round(WINDOW / points)
    spaced = torch.arange(WINDOW + spacing - 1, len(truth.times), spacing)
    row = {"row": row_of(run.settings), "points": points, "seed": run.settings.seed}
    row |= {"all_times": rmse(everywhere, noise), "spacing": spacing, "spaced_times": rmse(spaced, noise)}
    row["mean_state"] = rmse(everywhere, torch.zeros_like(noise[:1])) if noise is not None else ""
    print(path, row, flush=True)
    return row


def main() -> None:
    """Measure, extend the CSV file, and render the page."""
    about = results.machine_here() | results.versions_here()
    measured = [measure(Path(path)) | about for path in sys.argv[1:]]
    new = {tuple(f"{row[key]}" for key in KEYS): row for row in measured}
    known = results.read(NAME) if any(results.RESULTS.glob(f"{NAME}.*")) else []
    others = (row for row in known if tuple(row[key] for key in KEYS) not in new)
    results.keep(NAME, sorted([*others, *measured], key=lambda row: (row["row"], *(int(row[key]) for key in KEYS[1:]))))
    render_pages()


if __name__ == "__main__":
    main()

"""Find out whether the errors of a latent ODE on spirals come from its encoder, or from its field and decoder.

    python scripts/spiral_errors.py RUN...     finished runs of experiment=paper/latent_ode_spirals, two minutes each

Measures the RMSE against the curve without noise, within the window and beyond it, three times: for training series
whose curve is long enough; for the test series; and for the test series solved from the initial states that explain
their observed points best, found by gradient descent from the encoder's mean. The third error is that of field and
decoder; the rest of the second comes from the encoder. Means over the runs with the same number of points are written
to docs/results/spiral-errors.*.csv and docs/reproduced/table2.md.
"""

import statistics
import sys
from collections.abc import Iterable
from functools import partial

import results
import torch
from render_tables import render_pages
from torch import Tensor

from odebench import ode
from odebench.config.choices import options_of
from odebench.data import build_data
from odebench.data.series import SeriesSplit
from odebench.training.trained_run import TrainedRun, load_run

NUM_STEPS, LR = 300, 0.02
solve = partial(ode.solve, rtol=1e-5, atol=1e-5)


def whole(series: SeriesSplit) -> Tensor:
    """The indices of the series whose curve reaches the last time of all series."""
    lengths = series.offsets.diff()
    return (lengths == lengths.max()).nonzero().squeeze(1)


def errors(run: TrainedRun, series: SeriesSplit, best: bool) -> tuple[float, float]:
    """The RMSE within the window and beyond it. best: whether to start from the initial states of ``best_states``."""
    model, chosen = run.model, whole(series)
    inputs, truth = series.inputs(chosen), series.noiseless(chosen)
    with torch.no_grad():
        z0 = model.encoder(inputs, solve)[0].mean
    if best:
        z0 = best_states(model, z0, inputs.times, inputs.values, inputs.mask)
    with torch.no_grad():
        squares = (decoded(model, z0, truth.times) - truth.values).square()
    beyond = truth.times > inputs.times.max()
    within, after = (float(squares[:, columns].mean().sqrt()) for columns in (~beyond, beyond))
    return within, after


def decoded(model: torch.nn.Module, z0: Tensor, times: Tensor) -> Tensor:
    """Solve from z0 [B, L] and decode the states to values [B, T, D]."""
    latents, _ = model.solve(z0.unsqueeze(0), times, solve)
    return model.decoder(latents)[0]


def best_states(model: torch.nn.Module, z0: Tensor, times: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The modes of p(z0 | observed points), found by gradient descent from z0."""
    z = z0.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        misfits = ((decoded(model, z, times) - values) / model.noise_std).square() * mask
        (0.5 * (misfits.sum() + z.square().sum())).backward()
        optimizer.step()
        schedule.step()
    return z.detach()


def measure(runs: Iterable[TrainedRun]) -> list[dict[str, object]]:
    """Make a row for each number of observed points, with means over the runs with this number."""
    found: dict[int, list[dict[str, float]]] = {}
    for run in runs:
        data = build_data("spirals", options_of(run.settings.data), run.settings.seed)
        cases = {"training": (data.train, False), "test": (data.test, False), "test_best": (data.test, True)}
        numbers = {}
        for name, (series, best) in cases.items():
            numbers[f"{name}_within"], numbers[f"{name}_beyond"] = errors(run, series, best)
        points = options_of(run.settings.data)["observed"]
        found.setdefault(points, []).append(numbers)
        print(run.path, points, {name: round(value, 4) for name, value in numbers.items()}, flush=True)
    return [
        {
            "points": points,
            "seeds": len(of_runs),
            **{name: f"{statistics.mean(one[name] for one in of_runs):.4g}" for name in of_runs[0]},
            **results.machine_here(),
            **results.versions_here(),
        }
        for points, of_runs in sorted(found.items())
    ]


def main() -> None:
    """Measure, write the CSV file, and render the page."""
    results.keep("spiral-errors", measure(map(load_run, sys.argv[1:])))
    render_pages()


if __name__ == "__main__":
    main()

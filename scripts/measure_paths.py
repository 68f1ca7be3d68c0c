"""Whether the paths of trained CNFs in the plane cross, by solver.

    odebench reproduce scope budget=small seed=0,1,2
    python scripts/measure_paths.py outputs/reproduce/scope-small/0*

Paths of an ODE do not cross, so that its flow keeps the orientation of the plane: the determinant of the flow's
Jacobian is positive. Here the first NUM validation samples are carried from the data to the base, each with two
neighbours at the distance STEP, whose differences give the Jacobian of the solver's steps. Where its determinant is not
positive, steps were so long that neighbouring paths have crossed. Writes docs/results/paths.*.csv, which does not
depend on the machine, and its table in docs/reproduced/scope.md.
"""

import sys
from pathlib import Path
from typing import Any

import results
import torch
from render_tables import render_pages

from odebench import ode
from odebench.config.choices import options_of
from odebench.data import build_data
from odebench.training.trained_run import load_run

NUM, STEP = 512, 1e-6
SOLVERS: dict[str, dict[str, Any]] = {
    **{f"euler, steps: {steps}": {"method": "euler", "steps": steps} for steps in (1, 2, 4, 8)},
    **{f"dopri5, tol {tol}": {"rtol": float(tol), "atol": float(tol)} for tol in ("1e-1", "1e-3", "1e-5")},
}


@torch.no_grad()
def measure(path: Path) -> list[dict[str, Any]]:
    """Measure a run: NFE, at how many samples paths have crossed, and the smallest determinant."""
    run = load_run(path)
    (block,) = run.model.transforms
    data = build_data(run.settings.data.name, options_of(run.settings.data), run.settings.seed)
    z, rows = data.validation[:NUM].double(), []
    start = torch.cat((z, *(z + STEP * direction for direction in torch.eye(2, dtype=z.dtype))))
    for name, how in SOLVERS.items():
        solution = ode.solve(block.field.double(), start, [float(block.duration), 0.0], **how)
        end, *neighbours = solution.y[-1].chunk(3)
        determinants = torch.linalg.det(torch.stack([(neighbour - end) / STEP for neighbour in neighbours], -1))
        row = {"row": name, "seed": run.settings.seed, "nfe": solution.stats.nfe, "samples": len(z)}
        row |= {"crossed": int((determinants <= 0).sum()), "smallest": f"{determinants.min().item():.3g}"}
        rows.append(row)
        print(path, rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, write the CSV file, and render the page."""
    about = results.versions_here()
    results.keep("paths", [row | about for path in sys.argv[1:] for row in measure(Path(path))])
    render_pages()


if __name__ == "__main__":
    main()

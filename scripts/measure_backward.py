"""Measure backward evaluations with an absolute error of the adjoint, as in Chen et al. 2018 and in torchdiffeq.

    odebench reproduce figure3 budget=small
    python scripts/measure_backward.py outputs/reproduce/figure3-small/0000_odenet_dopri5

`gradient=adjoint` measures the adjoint's error relative to the gradient; the code behind the published "about half" did
not. Here the same trained network takes the same training step with the drop-in ``odeint_adjoint``, whose errors are
absolute. The loss divides the gradient by the batch size; so it is small relative to an absolute tolerance, and few
evaluations are enough. Writes docs/results/backward.*.csv in a few minutes on one core. The numbers of evaluations do
not depend on the machine.
"""

import sys

import results
import torch
from torch.nn import functional as F

from odebench import load_run, odeint_adjoint
from odebench.bench.measure import CountingField
from odebench.data import to_float

BATCH = 32  # as in the evaluations of figure3
TOLERANCES = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5")


def main() -> None:
    """Measure and write the CSV file."""
    run = load_run(sys.argv[1], [f"trainer.batch_size={BATCH}"])
    images, labels = run.task.batch(0)
    model, field = run.model.train(), CountingField(run.model.field)
    versions = results.versions_here()
    rows = []
    for solver in ("dopri5", "adams", "vode_adams"):
        for tol in TOLERANCES:
            field.reset()
            span = torch.tensor([0.0, model.end_time])
            y = odeint_adjoint(
                field, model.stem(to_float(images)), span, rtol=float(tol), atol=float(tol), method=solver
            )
            forward = field.calls
            F.cross_entropy(model.head(y[-1]), labels).backward()
            counts = {"nfe_forward": forward, "nfe_backward": field.calls - forward}
            rows.append({"solver": solver, "tol": tol, **counts, **versions})
            print(rows[-1], flush=True)
    results.keep("backward", rows)


if __name__ == "__main__":
    main()

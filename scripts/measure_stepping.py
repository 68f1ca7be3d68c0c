"""Measure the cost of per-sample steps for time series.

    python scripts/measure_stepping.py

Runs two trainings of a few steps: 50 sinusoids with 100 times each, no two series with a time in common, are solved in
shared steps, and with `solver.stepping=per_sample`. Writes docs/results/stepping.*.csv in a minute on one core; run
nothing else in that time.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import results

from odebench.record.reader import read_run

SERIES = ["model=latent_ode", "data=periodic", "data.shared_times=false", "data.observed=1.0", "data.train_limit=200"]
TRAINING = ["gradient=backprop", "trainer.batch_size=50", "trainer.eval_batch_size=50", "trainer.iterations=8"]


def measure(stepping: str, folder: Path) -> dict[str, object]:
    """Train, and return a row of the CSV file: time, memory and evaluations of a step."""
    words = ["train", *SERIES, *TRAINING, f"solver.stepping={stepping}", "trainer.threads=1"]
    subprocess.run([sys.executable, "-m", "odebench", *words, f"run_dir='{folder}'"], check=True)
    summary = read_run(folder).summary
    return {
        "command": " ".join(["odebench", *words]),
        "stepping": stepping,
        "nfe_forward": f"{summary['final/nfe_forward']:.1f}",
        "peak_mib": f"{summary['final/peak_mib']:.3g}",
        "step_ms": f"{summary['final/step_ms']:.3g}",
        **results.machine_here(),
        **results.versions_here(),
    }


def main() -> None:
    """Measure and write the CSV file."""
    with tempfile.TemporaryDirectory() as name:
        rows = [measure(stepping, Path(name) / stepping) for stepping in ("shared", "per_sample")]
    print(results.keep("stepping", rows))


if __name__ == "__main__":
    main()

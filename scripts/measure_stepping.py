"""Measure the cost of per-sample steps for time series.

    python scripts/measure_stepping.py

Two trainings of a few steps, for docs/results/stepping.*.csv: 50 sinusoids of 100 times each, no two at the same time,
solved in shared steps, and with `solver.stepping=per_sample`. Run nothing else meanwhile; a minute on one core.
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
    """Train, and return a row: time, memory and evaluations of a step."""
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

"""Measure and write the numbers of the README.

    pip install -e ".[dev,peers]"
    ODEBENCH_DATA=DIR python scripts/measure_results.py      do everything, about 40 minutes on two cores
    python scripts/measure_results.py --write                only write CSV and README, from existing runs

Each run is an ordinary `odebench train` with its own folder under outputs/results. Completed runs are kept, and stopped
runs are resumed. Writes one CSV file per table to docs/results/, with machine and versions; ``render_tables.py`` writes
the tables in README.md and docs/, ``pictures.py`` draws the pictures.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import results
from render_tables import ROOT, render_pages, with_tables

from odebench.record.reader import is_run, read_run
from odebench.training.summary import training_table

RUNS = ROOT / "outputs" / "results"

SMALL = {name: [f"model={name}"] for name in ("odenet", "rknet", "resnet", "mlp")}
MNIST = {
    f"mnist_{name}": [f"model={name}", "data=mnist", "trainer.epochs=1", "trainer.batch_size=128"]
    for name in ("odenet", "rknet", "resnet")
}
TOLERANCES = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5")
MEMORY = {
    f"memory_{model}_{tol}": [
        f"model={model}",
        f"tol={tol}",
        "data.train_limit=256",
        "data.validation=100",
        "trainer.batch_size=128",
        "trainer.epochs=1",
        "trainer.eval_batch_size=1000",
    ]
    for model in ("odenet", "rknet")
    for tol in TOLERANCES
}


def run(name: str, overrides: list[str]) -> None:
    """Run one training by the command line, unless it is completed."""
    folder = RUNS / name
    if is_run(folder) and read_run(folder).status["status"] == "done":
        return
    words = ["resume", str(folder)] if is_run(folder) else ["train", *overrides, f"run_dir={folder}"]
    print("odebench", *words, flush=True)
    subprocess.run([sys.executable, "-m", "odebench", *words], check=True, env={**os.environ})


def row_of(name: str) -> dict[str, object]:
    """Make a row of a CSV file: the results of one run, with machine and versions."""
    record = read_run(RUNS / name)
    summary, manifest = record.summary, record.manifest
    command = [word for word in (RUNS / name / "overrides.txt").read_text().split() if not word.startswith("run_dir=")]
    return {
        "command": " ".join(["odebench train", *command]),
        "model": record.settings.model.name,
        "gradient": record.settings.gradient.name,
        "tol": record.settings.tol,
        "parameters": summary["parameters"],
        "epochs": record.settings.trainer.epochs,
        "test_accuracy": summary["test"]["accuracy"],
        "test_low": round(summary["test"]["low"], 4),
        "test_high": round(summary["test"]["high"], 4),
        "test_images": summary["test"]["images"],
        "nfe_forward": round(summary.get("final/nfe_forward", 0), 1),
        "nfe_backward": round(summary.get("final/nfe_backward", 0), 1),
        "peak_mib": round(summary["final/peak_mib"], 1),
        "saved_mib": round(summary["final/saved_mib"], 1),
        "step_ms": round(summary["final/step_ms"], 1),
        "images_per_s": round(summary["final/samples_per_s"], 1),
        "seconds": round(60 * summary["final/minutes"], 1),
        "machine": manifest["machine"]["cpu"],
        "cores": manifest["machine"]["cores_usable"],
        "python": manifest["versions"]["python"],
        "torch": manifest["versions"]["torch"],
        "date": manifest["started"][:10],
    }


def write() -> None:
    """Write CSV files and README from the records of the runs."""
    for name, runs in (("mnist5k", SMALL), ("mnist_epoch", MNIST), ("memory", MEMORY)):
        rows = [row_of(run) for run in runs]
        if name == "memory":  # trainings of a few steps: their times mean little
            rows = [{key: row[key] for key in row if key not in ("step_ms", "images_per_s", "seconds")} for row in rows]
        results.keep(name, rows)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = training_table(read_run(RUNS / "odenet").summary, Path("outputs/2026-11-24/14-03-22-123456_odenet_dopri5"))
    readme = with_tables(readme, {"first_run": f"```text\n{table}\n```"})
    (ROOT / "README.md").write_text(readme, encoding="utf-8")
    render_pages()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="run nothing")
    if not parser.parse_args().write:
        run("odenet", SMALL["odenet"])
        steps, scripts = RUNS / "training_step.csv", ROOT / "scripts"
        compare = [str(scripts / "compare_training_step.py"), "--model", "odenet", "--output", str(steps)]
        subprocess.run([sys.executable, *compare], check=True)
        subprocess.run([sys.executable, str(scripts / "results.py"), "training_step", str(steps)], check=True)
        # Timed runs come first. The last ones only measure memory, which other processes do not affect.
        for name, overrides in {**MNIST, **SMALL, **MEMORY}.items():
            run(name, overrides)
    write()


if __name__ == "__main__":
    main()

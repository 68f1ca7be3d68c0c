"""Measure after how many training steps compiling pays: eager, with compiled steps, and with compiled solves.

    python scripts/measure_compiled_training.py FOLDER
    python scripts/measure_compiled_training.py FOLDER ffjord/toy --steps 10

Each row is a process on one thread, whose numbers stay in FOLDER: a measurement that was stopped continues with the
first row that is missing. "cold" has an empty cache of torch's compiler, "warm" that of the process before. Needs an
idle machine and 35 minutes. Writes docs/results/compiled_training.*.csv and docs/compiling.md.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import results
import torch
from render_tables import render_pages

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.tasks import build_task
from odebench.training.checkpoint import TrainingState
from odebench.training.environment import prepare_environment
from odebench.training.loop import train_step

TRAININGS = {
    **{
        words: f"experiment={words}".split()
        for words in (
            "paper/latent_ode_spirals loss.consistency=3",
            "paper/poisson",
            "paper/cnf_density_matching",
            "paper/cnf_maximum_likelihood",
            "ffjord/toy",
        )
    },
    "odenet": ["model=odenet", "data=mnist5k"],
}
# (solver.compile, cache)
VARIANTS = [("false", ""), ("step", "cold"), ("step", "warm"), ("solve", "cold"), ("solve", "warm")]
# The first steps compile: solves that search their first step, and those that do not.
NUM_FIRST_STEPS = 2


def measure(name: str, variant: str, num_steps: int, max_seconds: float, started: float) -> dict[str, Any]:
    """Train for some steps. started: when the process was started, by ``time.time``.

    Returns the seconds before the first step, those of the first steps, and the milliseconds of the others (median and
    quartiles); or why torch did not compile.
    """
    settings = read_settings(
        compose([*TRAININGS[name], f"solver.compile={variant}", "trainer.threads=1", "device=cpu"])
    )
    training = TrainingState(settings, build_task(settings, prepare_environment(settings)))
    row: dict[str, Any] = {"gradient": settings.gradient.name, "startup_s": round(time.time() - started, 2)}
    steps_per_epoch, trainer = training.task.steps_per_epoch, settings.trainer
    row["steps_of_the_training"] = trainer.iterations or trainer.epochs * steps_per_epoch
    seconds: list[float] = []
    first = time.perf_counter()
    try:
        while len(seconds) < NUM_FIRST_STEPS + num_steps and sum(seconds[NUM_FIRST_STEPS:]) < max_seconds:
            start = time.perf_counter()
            train_step(training, settings, row["steps_of_the_training"])
            training.progress.step += 1
            seconds.append(time.perf_counter() - start)
    except UserWarning as warning:
        return row | {"reason": str(warning)}
    later = [1e3 * s for s in seconds[NUM_FIRST_STEPS:]]
    low, median, high = statistics.quantiles(later, n=4)
    row |= {"first_steps_s": round(sum(seconds[:NUM_FIRST_STEPS]), 2), "steps": len(later)}
    row |= {"step_ms": round(median, 2), "step_ms_low": round(low, 2), "step_ms_high": round(high, 2)}
    return row | {"command_s": round(row["startup_s"] + time.perf_counter() - first, 2)}


def run_row(arguments: argparse.Namespace, name: str, variant: str, cache: str) -> dict[str, Any]:
    """Measure a row in a process of its own, unless its numbers are in the folder."""
    file = arguments.folder / f"{name.replace('/', '_')}_{variant}_{cache or 'none'}.json"
    if not file.exists():
        print(name, f"solver.compile={variant}", cache, flush=True)
        command = [sys.executable, __file__, str(file.with_suffix(".part")), "--row", name, variant, str(time.time())]
        limits = ["--steps", str(arguments.steps), "--seconds", str(arguments.seconds)]
        folder = arguments.folder / f"cache_{name.replace('/', '_')}_{variant}"
        if cache == "cold":
            shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([*command, *limits], check=True, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)})
        file.with_suffix(".part").rename(file)
    row = json.loads(file.read_text(encoding="utf-8"))
    print({key: row[key] for key in ("first_steps_s", "step_ms", "reason") if key in row}, flush=True)
    return {"training": name, "compile": variant, "cache": cache, **dict.fromkeys(COLUMNS, ""), **row}


COLUMNS = ["gradient", "steps_of_the_training", "startup_s", "first_steps_s", "steps", "step_ms", "step_ms_low"]
COLUMNS += ["step_ms_high", "command_s", "reason"]


def main() -> None:
    """Measure what is missing, write the CSV file, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("trainings", nargs="*", default=list(TRAININGS), metavar="TRAINING")
    parser.add_argument("--steps", type=int, default=60, help="timed training steps of a row; by default 60")
    parser.add_argument("--seconds", type=float, default=20.0, help="end a row's timed steps after this time")
    parser.add_argument("--no-write", action="store_true", help="only print the numbers")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        name, variant, started = arguments.row
        warnings.filterwarnings("error", message="compile=")
        row = measure(name, variant, arguments.steps, arguments.seconds, float(started))
        arguments.folder.write_text(json.dumps(row), encoding="utf-8")
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    about = {**results.machine_here(), **results.versions_here()}
    rows = [run_row(arguments, name, *variant) | about for name in arguments.trainings for variant in VARIANTS]
    if not arguments.no_write:
        results.keep("compiled_training", rows)
        render_pages()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

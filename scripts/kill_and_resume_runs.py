"""Kill trainings at random moments, restart them, and compare each with an uninterrupted one.

    python scripts/kill_and_resume_runs.py [--kills 50] [--seed 0] [--output DIR]

A run is killed (SIGKILL) repeatedly at random moments within its duration, and restarted by the same command, until it
is done. Then the next run starts. A checkpoint is written at every step, and every second kill waits for a moment at
which a file is being written. After each kill all files must be readable. At the end weights, metrics, summary and
TensorBoard's events must equal those of the uninterrupted run to the last bit, except for times; otherwise the exit
code is 1.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # otherwise each child would import it
from compare_with_commit import IGNORED, Content, differences, events, flat

from odebench.config.compose import compose
from odebench.record import layout
from odebench.record.reader import is_run, read_run
from odebench.training.run import train_run

SETTINGS = [
    "model.width=8",
    "model.groups=4",
    "solver=rk4",
    "solver.steps=2",
    "gradient=backprop",
    "data.train_limit=64",
    "data.validation=40",
    "trainer.batch_size=16",
    "trainer.epochs=4",
    "trainer.log_every=1",
    "trainer.checkpoint_minutes=1e-9",
    "device=cpu",
]


def main() -> int:
    """Kill and compare runs; print a line for each kill, and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a new folder for the runs; by default a temporary one")
    arguments = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it logs the events that it purges after each resume
    with tempfile.TemporaryDirectory() as temporary:
        return kill_runs(arguments.output or Path(temporary), arguments.kills, np.random.RandomState(arguments.seed))


def kill_runs(output: Path, kills: int, rng: np.random.RandomState) -> int:
    """Kill runs `kills` times in total, in as many runs as needed. Returns the exit code."""
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if (code := wait(start(output / "uninterrupted"))) != 0:
        raise SystemExit(f"the uninterrupted run ended with code {code}: see {output / 'uninterrupted.txt'}")
    duration_s = time.monotonic() - started
    uninterrupted = content(output / "uninterrupted")

    moments: Counter[str] = Counter()
    problems: list[str] = []
    run, killed = 1, 0
    while True:
        folder = output / f"run_{run}"
        child = start(folder)
        moment_s = rng.uniform(0, 1.5 * duration_s) if killed < kills else None
        code = wait(child, moment_s, folder if killed % 2 else None)
        if code == -signal.SIGKILL:
            killed += 1
            step, moment, found = inspect(folder, child)
            moments[moment] += 1
            problems += found
            print(f"kill {killed:3}  run {run:2}  step {step:3}  {'; '.join([moment, *found])}", flush=True)
            continue
        found = [f"ended with code {code}"] if code else [*differences(uninterrupted, content(folder))]
        problems += found
        print(f"          run {run:2}  done      {'; '.join(found) or 'equal to the uninterrupted one'}", flush=True)
        if killed == kills:
            break
        run += 1

    for moment, count in sorted(moments.items()):
        print(f"{count:5}  {moment}")
    print(f"{killed} kills over {run} runs of {duration_s:.1f} s, {len(problems)} problems")
    return bool(problems)


def start(folder: Path) -> int:
    """Train in a child process, from the run's checkpoint if there is one. Returns the id of the process."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(f"{folder}.txt", "ab") as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
        overrides = [*SETTINGS, f"run_dir={folder}"]
        code = train_run(compose(overrides), overrides).exit_code
    finally:
        os._exit(code)


def wait(child: int, seconds: float | None = None, folder: Path | None = None) -> int:
    """Wait for the child and return its exit code.

    Kills it after `seconds` or, if a folder is given, at the next moment after that when the child writes a file in it.
    """
    if seconds is not None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or (folder is not None and not writing(folder, child)):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.0002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def writing(folder: Path, child: int) -> list[str]:
    """The names of the files that a child process is writing at this moment."""
    return [path.name.split(".")[1] for pattern in ("", "*/") for path in folder.glob(f"{pattern}.*.{child}.tmp")]


def inspect(folder: Path, child: int) -> tuple[int, str, list[str]]:
    """Return the step of the last checkpoint, a description of the moment of the kill, and the unreadable files."""
    step, problems = 0, []
    for path in folder.glob(f"{layout.CHECKPOINTS}/*.pt"):
        try:
            content = torch.load(path, weights_only=True)
        except Exception as error:
            problems.append(f"{path} cannot be read: {error}")
        else:
            step = max(step, content.get("progress", {}).get("step", 0))
    if names := writing(folder, child):
        return step, f"while {names[0]} was written", problems
    if not is_run(folder):
        return step, "before the record existed", problems
    try:
        run = read_run(folder)
    except Exception as error:
        return step, "?", [*problems, str(error)]
    if run.summary:
        return step, "after the test", problems
    return step, ("between files" if run.metrics else "before the first step"), problems


def content(folder: Path) -> Content:
    """Read weights, metrics, summary, events and status of a run, without times."""
    run, found = read_run(folder), events(folder)
    rows = [{tag: x for tag, x in row.items() if not IGNORED.fullmatch(tag)} for row in run.metrics]
    parts = {
        "status": {name: run.status[name] for name in ("status", "step")},
        "rows": [row for row in rows if len(row) > 1],
        "summary": run.summary,
        "events": {tag: found[tag] for tag in found["tags"]["scalars"]},
        "figures": sorted(path.name for path in (folder / layout.FIGURES).iterdir()),
        "weights": {
            name: torch.load(folder / name, weights_only=True)["model"]
            for name in (layout.LAST_CHECKPOINT, layout.BEST_CHECKPOINT)
        },
    }
    return {key: leaf for name, part in parts.items() for key, leaf in flat(name, part).items()}


if __name__ == "__main__":
    sys.exit(main())

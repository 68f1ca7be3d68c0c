"""Two processes that train one model, beside one process: python scripts/measure_ranks.py [ITERATIONS]

Prints a Markdown table. The gradient of the first step is read from the weights, which plain gradient descent with a
learning rate of 1 takes from the same start to w - g: the norm of the difference of the two, over that of the gradient.
Times are those of the fastest step, so that whatever else the machine does counts little. Every process has one thread.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

from odebench.record.manifest import cpu_model
from odebench.record.reader import read_run
from odebench.record.schema import LAST_CHECKPOINT, MANIFEST

COMMON = ["device=cpu", "schedule=constant", "optim=sgd", "trainer.log_every=1", "trainer.measure_every=1000"]
IMAGES = ["model=odenet", "data.train_limit=2560", "data.validation=40", "trainer.batch_size=128"]
POINTS = ["model=cnf", "data=two_moons", "data.validation=40", "data.test=40", "trainer.batch_size=512"]
SERIES = ["model=latent_ode", "data=periodic", "data.validation=40", "trainer.batch_size=50"]
ADAPTIVE = ["solver=dopri5", "tol=1e-3", "gradient=adjoint"]
TRAININGS = {
    "`odenet`, rk4": [*IMAGES, "solver=rk4", "solver.steps=4", "gradient=adjoint"],
    "`odenet`, dopri5 at 1e-3": [*IMAGES, *ADAPTIVE],
    "`odenet`, the same, `solver.sync_steps=true`": [*IMAGES, *ADAPTIVE, "solver.sync_steps=true"],
    "`cnf`, dopri5 at 1e-3, `solver.sync_steps=true`": [*POINTS, *ADAPTIVE, "solver.sync_steps=true"],
    "`latent_ode`, rk4": [*SERIES, "solver=rk4", "solver.steps=2", "gradient=adjoint"],
}


def train(folder: Path, processes: int, words: list[str]) -> None:
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *torchrun, "-m", "odebench", "train", *COMMON, *words, f"run_dir='{folder}'"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def weights(folder: Path) -> torch.Tensor:
    model = torch.load(folder / LAST_CHECKPOINT, weights_only=True)["model"]
    return torch.cat([tensor.double().reshape(-1) for tensor in model.values()])


def gradient_difference(folder: Path, words: list[str]) -> float:
    """How far two processes' gradient is from one's, relative to its norm."""
    for processes in (1, 2):
        train(folder / f"first{processes}", processes, [*words, "optim.lr=1", "trainer.iterations=1"])
    (norm,) = read_run(folder / "first1").series("optim/grad_norm")[1]
    return (torch.linalg.norm(weights(folder / "first2") - weights(folder / "first1")) / norm).item()


def step_ms(folder: Path, processes: int, words: list[str], iterations: int) -> float:
    run = folder / f"timed{processes}"
    train(run, processes, [*words, "optim.lr=1e-3", f"trainer.iterations={iterations}"])
    return min(read_run(run).series("time/step_ms")[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("iterations", nargs="?", type=int, default=20, help="of the trainings that are timed")
    iterations = parser.parse_args().iterations
    print("| training | difference of the gradients | a step, one process | two processes |\n|---|---|---|---|")
    for number, (name, words) in enumerate(TRAININGS.items()):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            difference = gradient_difference(folder, words)
            one, two = (step_ms(folder, processes, words, iterations) for processes in (1, 2))
            print(f"| {name} | {difference:.1e} | {one:.0f} ms | {two:.0f} ms |", flush=True)
            if number == len(TRAININGS) - 1:
                versions = json.loads((folder / "first1" / MANIFEST).read_text())["versions"]
    machine = f"{len(os.sched_getaffinity(0))} cores ({cpu_model()})"
    print(f"\nMeasured {date.today()} on {machine}, Python {platform.python_version()}, torch {versions['torch']}.")


if __name__ == "__main__":
    main()

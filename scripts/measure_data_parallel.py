"""Compare a training in two processes with the same training in one process.

    python scripts/measure_data_parallel.py [ITERATIONS]

The difference of the gradients is the norm of their difference divided by the norm of the gradient of one process. The
gradient g of the first step is found from the weights: gradient descent with a learning rate of 1 changes them from w
to w - g. Times are those of the fastest step, to reduce the effect of other work on the machine. Every process has one
thread. Writes docs/results/ranks.*.csv.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import results
import torch

from odebench.record.layout import LAST_CHECKPOINT
from odebench.record.reader import read_run

COMMON = ["device=cpu", "schedule=constant", "optim=sgd", "trainer.log_every=1", "trainer.measure_every=1000"]
IMAGES = ["model=odenet", "data.train_limit=2560", "data.validation=40", "trainer.batch_size=128"]
POINTS = ["model=cnf", "data=two_moons", "data.validation=40", "data.test=40", "trainer.batch_size=512"]
ADAPTIVE = ["solver=dopri5", "tol=1e-3", "gradient=adjoint"]
TRAININGS = {
    "`odenet`, rk4": [*IMAGES, "solver=rk4", "solver.steps=4", "gradient=adjoint"],
    "`odenet`, dopri5 at 1e-3": [*IMAGES, *ADAPTIVE],
    "`odenet`, the same, `solver.sync_steps=true`": [*IMAGES, *ADAPTIVE, "solver.sync_steps=true"],
    "`cnf`, dopri5 at 1e-3, `solver.sync_steps=true`": [*POINTS, *ADAPTIVE, "solver.sync_steps=true"],
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
    """The norm of the difference of both gradients, divided by the norm of the gradient of one process."""
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
    parser.add_argument(
        "iterations", nargs="?", type=int, default=20, help="iterations of the trainings that are timed"
    )
    iterations = parser.parse_args().iterations
    rows = []
    for name, words in TRAININGS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            difference = gradient_difference(folder, words)
            one, two = (f"{step_ms(folder, processes, words, iterations):.0f}" for processes in (1, 2))
        measured = {"training": name, "difference": f"{difference:.1e}", "one_process_ms": one, "two_processes_ms": two}
        rows.append({**measured, **results.machine_here(), **results.versions_here()})
        print(measured, flush=True)
    print(results.keep("ranks", rows))


if __name__ == "__main__":
    main()

"""Images a second of ODE-Net's training step: odebench beside a plain loop with torchdiffeq.

    pip install -e ".[dev,peers]"
    python scripts/compare_training_step.py --output docs/results/training_step.csv

Same network, initial weights, batches (real MNIST where data.root or $ODEBENCH_DATA has it, else the 5,000
images), batch size 128, optimiser, tolerance and threads. The plain loop uses the network as published, with the time
prepended as a channel. Each runs in a process of its own, and the two take turns, some steps each, so that a drift of
the machine's speed meets both; before each turn the plain loop takes over odebench's weights, so that both solve the
same ODE. The numbers are the best and the median over the rounds. No GPU is used.

odebench is measured twice: as it comes, each solve searching its first step as torchdiffeq does, and with
solver.first_step=warm, where a training's solve starts with what the last one's first error allowed.
"""

import argparse
import csv
import multiprocessing
import statistics
import time
from datetime import datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

MODES = {"adjoint": "odenet", "backprop": "rknet"}
FIRST_STEPS = {"search": "null", "warm": "warm"}


def settings_of(mode: str, first_step: str, data: str, tol: float):
    from odebench.settings import compose, read_settings

    return read_settings(
        compose(
            [
                f"model={MODES[mode]}",
                f"data={data}",
                f"tol={tol}",
                f"solver.first_step={FIRST_STEPS[first_step]}",
                "trainer.batch_size=128",
                "optim=sgd",
                "optim.lr=0.1",
                "schedule=constant",
                "device=cpu",
            ]
        )
    )


def ours(pipe: Connection, *choices) -> None:
    """The trainer's own step."""
    from odebench.tasks import build_task
    from odebench.training.checkpoint import Training
    from odebench.training.loop import train_step
    from odebench.training.machine import prepare

    settings = settings_of(*choices)
    task = build_task(settings, prepare(settings))
    training = Training(settings, task)

    def step() -> tuple[float, float]:
        numbers = train_step(training, settings, 10**6)
        training.progress.step += 1
        return numbers["nfe/forward"], numbers["nfe/backward"]

    serve(pipe, step, task.model)


def plain(pipe: Connection, mode: str, *choices) -> None:
    """Forward, backward, step, with torchdiffeq."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from torchdiffeq import odeint, odeint_adjoint

    from odebench.data import to_float
    from odebench.tasks import build_task

    settings = settings_of(mode, *choices)
    tol = settings.tol
    torch.manual_seed(settings.seed)
    task = build_task(settings, torch.device("cpu"))
    model = task.model

    class ConcatConv(nn.Module):
        def __init__(self, conv: nn.Conv2d) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, t, x):
            plane = torch.ones_like(x[:, :1]) * t
            return F.conv2d(torch.cat([plane, x], 1), self.conv.weight, self.conv.bias, padding=1)

    class Field(nn.Module):
        def __init__(self, field) -> None:
            super().__init__()
            self.norm1, self.norm2, self.norm3 = field.norm1, field.norm2, field.norm3
            self.conv1, self.conv2 = ConcatConv(field.conv1), ConcatConv(field.conv2)
            self.relu = nn.ReLU(inplace=True)
            self.nfe = 0

        def forward(self, t, y):
            self.nfe += 1
            y = self.conv1(t, self.relu(self.norm1(y)))
            y = self.conv2(t, self.relu(self.norm2(y)))
            return self.norm3(y)

    field = Field(model.field)
    solve = odeint_adjoint if mode == "adjoint" else odeint
    times = torch.tensor([0.0, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), settings.optim.lr, settings.optim.momentum)
    taken = 0

    def step() -> tuple[float, float]:
        nonlocal taken
        images, labels = task.batch(taken)
        taken += 1
        optimizer.zero_grad()
        field.nfe = 0
        y = solve(field, model.stem(to_float(images)), times, rtol=tol, atol=tol, method="dopri5")[1]
        forward = field.nfe
        F.cross_entropy(model.head(y), labels).backward()
        optimizer.step()
        return forward, field.nfe - forward

    serve(pipe, step, model)


def serve(pipe: Connection, step, model) -> None:
    """For each (number, weights) take so many steps from these weights; send the weights before them, the
    seconds, and the mean evaluations a step."""
    import torch

    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        num_steps, weights = order
        if weights is not None:
            model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
        started = time.perf_counter()
        evaluations = [step() for _ in range(num_steps)]
        seconds = time.perf_counter() - started
        pipe.send((before, seconds, *map(statistics.mean, zip(*evaluations, strict=True))))


def take_turns(choices: tuple, arguments: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Library -> for each round its seconds and its mean evaluations a step, forward and backward."""
    context = multiprocessing.get_context("spawn")
    sides = {}
    for name, target in (("odebench", ours), ("torchdiffeq", plain)):
        pipe, theirs = context.Pipe()
        process = context.Process(target=target, args=(theirs, *choices))
        process.start()
        assert pipe.recv() == "ready"
        sides[name] = (pipe, process)
    results: dict[str, list[list[float]]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):
        weights = None
        for name, (pipe, _) in sides.items():
            pipe.send((arguments.steps if number else arguments.warmup, weights))
            weights, *result = pipe.recv()
            if number:
                results[name].append(result)
    for pipe, process in sides.values():
        pipe.send(None)
        process.join()
    return results


def row_of(mode: str, first_step: str, library: str, rounds: list[list[float]], arguments: argparse.Namespace) -> dict:
    """One line of the table."""
    import torch

    from odebench.record.manifest import machine, versions

    images = arguments.steps * 128
    about, installed = machine(torch.device("cpu")), versions()
    seconds = [result[0] for result in rounds]
    row = {
        "gradient": mode,
        "first_step": first_step,
        "library": library,
        "images_per_s_best": round(images / min(seconds), 1),
        "images_per_s_median": round(images / statistics.median(seconds), 1),
        "nfe_forward": round(statistics.mean(result[1] for result in rounds), 1),
        "nfe_backward": round(statistics.mean(result[2] for result in rounds), 1),
        "tol": arguments.tol,
        "data": arguments.data,
        "machine": about["cpu"],
        "cores": about["cores_usable"],
        "threads": about["threads"],
        "python": installed["python"],
        "torch": installed["torch"],
        "torchdiffeq": version("torchdiffeq"),
        "date": f"{datetime.now():%Y-%m-%d}",
    }
    print(
        f"  {library}: {row['images_per_s_median']} images/s (median), NFE {row['nfe_forward']} + {row['nfe_backward']}"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--warmup", type=int, default=8, help="steps before the first round")
    parser.add_argument("--tol", type=float, default=1e-3)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    rows = []
    for mode in MODES:
        for first_step in FIRST_STEPS:
            results = take_turns((mode, first_step, arguments.data, arguments.tol), arguments)
            rows += [row_of(mode, first_step, name, rounds, arguments) for name, rounds in results.items()]
            for kind in ("best", "median"):
                a, b = (row[f"images_per_s_{kind}"] for row in rows[-2:])
                print(
                    f"{mode}, first step {first_step}: {a / b:.2f} times as many images a second ({kind})", flush=True
                )
    if arguments.output:
        with open(arguments.output, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

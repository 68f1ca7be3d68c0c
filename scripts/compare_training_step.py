"""Compare training steps of odebench with those of the same model written with torchdiffeq.

    pip install -e ".[dev,peers]"
    python scripts/compare_training_step.py --model odenet --output steps.csv     also: cnf, latent_ode
    python scripts/results.py training_step steps.csv     (training_step_cnf, training_step_latent_ode)

The models are odenet on MNIST (from data.root or $ODEBENCH_DATA, else on 5,000 of its images), batch 128, tol 1e-3; cnf
on two circles, batch 512, tol 1e-5; and latent_ode on all 1,000 spirals at all 100 times as one batch, tol 1e-5.

Weights, batches, optimiser, tolerance, method and threads are the same. odebench's step is that of its trainer;
torchdiffeq's is forward, backward, step (``torchdiffeq_models.py``). All run in one process in turns, so that a drift
of the machine's speed affects all. Every turn starts from the weights that odebench has after --warmup steps and uses
the same batches; all losses must agree. The numbers are the best and the median of the turns. No GPU is used.

odebench is measured twice. With its default, each solve searches its first step, as in torchdiffeq. With
solver.first_step=warm, each solve starts with the step size that the first error of the previous solve allowed. The
speed of the field alone counts the evaluations of f, and the vector-Jacobian products in a backward solve.
"""

import argparse
import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import results
import torch
import torchdiffeq_models
from torch import nn

from odebench.bench import measure
from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.config.settings import Settings
from odebench.reporting.table import csv_text
from odebench.tasks import build_task
from odebench.tasks.time_series import SeriesTrainingBatch
from odebench.training.checkpoint import TrainingState
from odebench.training.environment import prepare_environment
from odebench.training.loop import train_step
from odebench.training.optim import build_optimizer

FIRST_STEPS = {"search": "null", "warm": "warm"}
# The relative difference of losses may be this many tolerances.
MAX_LOSS_DIFFERENCE = 100

Batches = Callable[[int], Any]


@dataclass(frozen=True)
class StepComparison:
    """A model to compare.

    data, tol, words: settings for both libraries.
    unit, batch_size: what a batch consists of, and how many of these there are.
    gradients: name -> settings of odebench's gradient mode, and the gradient of torchdiffeq to compare with.
    torchdiffeq_model: the same model written with torchdiffeq.
    field: a function that returns the field of odebench's model that the solver evaluates.
    batches: a function from a task to a function that returns the batch of an optimiser step.
    """

    data: str
    tol: float
    words: tuple[str, ...]
    unit: str
    batch_size: int
    gradients: dict[str, tuple[str, str]]
    torchdiffeq_model: type[torchdiffeq_models.TorchdiffeqModel]
    field: Callable[[Any], nn.Module] = lambda model: model.field
    batches: Callable[[Any], Batches] = lambda task: task.batch


def all_spirals(task: Any) -> Batches:
    """The 1,000 spirals of all three splits at their common times; inputs and targets are the same points."""
    parts = [split.inputs(torch.arange(len(split))) for split in task._splits.values()]
    values, mask = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "mask"))
    inputs = dataclasses.replace(parts[0], values=values, mask=mask, labels=None)

    def batch(step: int) -> SeriesTrainingBatch:
        noise = torch.randn(1, len(values), task.model.latent_dim, generator=torch.Generator().manual_seed(step))
        return SeriesTrainingBatch(inputs, inputs, noise, kl_weight=1.0)

    return batch


COMPARISONS = {
    "odenet": StepComparison(
        data="mnist",
        tol=1e-3,
        words=("trainer.batch_size=128", "optim=sgd", "optim.lr=0.1"),
        unit="images",
        batch_size=128,
        gradients={"adjoint": ("gradient=adjoint", "adjoint"), "backprop": ("gradient=backprop", "backprop")},
        torchdiffeq_model=torchdiffeq_models.TorchdiffeqODENet,
    ),
    "cnf": StepComparison(
        data="two_circles",
        tol=1e-5,
        words=("trainer.batch_size=512",),
        unit="samples",
        batch_size=512,
        gradients={"adjoint": ("gradient=adjoint", "adjoint")},
        torchdiffeq_model=torchdiffeq_models.TorchdiffeqCNF,
        field=lambda model: model.transforms[0]._augmented_fields["exact"],
    ),
    "latent_ode": StepComparison(
        data="spirals",
        tol=1e-5,
        words=("data.observed=100",),
        unit="series",
        batch_size=1000,
        gradients={
            "adjoint": ("gradient=adjoint", "adjoint"),
            "adjoint, compiled": ("gradient=adjoint solver.compile=true", "adjoint"),
            "checkpoint": ("gradient=checkpoint", "adjoint"),
            "backprop": ("gradient=backprop", "backprop"),
        },
        torchdiffeq_model=torchdiffeq_models.TorchdiffeqLatentODE,
        batches=all_spirals,
    ),
}


@dataclass
class TimedTraining:
    """A training by one library with one gradient mode.

    step: takes optimiser step n; returns its loss, and its forward and backward NFE.
    losses: the losses of the first step of each turn. nfe: the NFE of all steps.
    """

    library: str
    gradient: str
    first_step: str
    model: nn.Module
    field: nn.Module
    step: Callable[[int], tuple[float, float, float]]
    losses: list[float] = field(default_factory=list)
    nfe: list[tuple[float, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The names of library, gradient mode and first step."""
        return f"{self.library}, {self.gradient}, first step {self.first_step}"


def odebench_training(comparison: StepComparison, settings: Settings, gradient: str, first_step: str) -> TimedTraining:
    """Make a training with the step of odebench's trainer."""
    task = build(settings)
    task.batch = comparison.batches(task)
    training = TrainingState(settings, task)

    def step(number: int) -> tuple[float, float, float]:
        training.progress.step = number
        numbers = train_step(training, settings, 10**6)
        return numbers["train/loss"], numbers["nfe/forward"], numbers["nfe/backward"]

    return TimedTraining("odebench", gradient, first_step, task.model, comparison.field(task.model), step)


def torchdiffeq_training(comparison: StepComparison, settings: Settings, gradient: str) -> TimedTraining:
    """Make a training with torchdiffeq, whose step is forward, backward, step."""
    task = build(settings)
    batch = comparison.batches(task)
    model = comparison.torchdiffeq_model(task.model, settings.tol, gradient)
    optimizer = build_optimizer(settings.optim, task.model)

    def step(number: int) -> tuple[float, float, float]:
        optimizer.zero_grad()
        model.field.nfe = 0
        loss = model.loss(batch(number))
        forward = model.field.nfe
        loss.backward()
        optimizer.step()
        return loss.item(), forward, model.field.nfe - forward

    return TimedTraining("torchdiffeq", gradient, "search", task.model, model.field, step)


def build(settings: Settings) -> Any:
    """Build a task with the weights that the seed gives, after preparing the machine as the trainer does."""
    return build_task(settings, prepare_environment(settings))


def all_trainings(model: str, words: list[str]) -> list[TimedTraining]:
    """Make all trainings, those of odebench first."""
    comparison = COMPARISONS[model]
    trainings = [
        odebench_training(
            comparison, settings_of(model, [*mode.split(), f"solver.first_step={word}", *words]), gradient, first_step
        )
        for gradient, (mode, _) in comparison.gradients.items()
        for first_step, word in FIRST_STEPS.items()
    ]
    gradients = dict.fromkeys(compared_with for _, compared_with in comparison.gradients.values())
    return trainings + [torchdiffeq_training(comparison, settings_of(model, words), gradient) for gradient in gradients]


def settings_of(model: str, words: list[str]) -> Settings:
    """The settings of one training."""
    comparison = COMPARISONS[model]
    settings = [f"model={model}", f"data={comparison.data}", f"tol={comparison.tol}", "schedule=constant", "device=cpu"]
    return read_settings(compose([*settings, *comparison.words, *words]))


def time_in_turns(trainings: list[TimedTraining], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Time all trainings and the fields alone, in turns.

    Returns the name of a training -> the seconds of its turns, and "LIBRARY KIND" -> the seconds of one evaluation of
    that library's field.
    """
    for number in range(arguments.warmup):
        trainings[0].step(number)
    weights = {name: tensor.clone() for name, tensor in trainings[0].model.state_dict().items()}

    def turn(training: TimedTraining) -> float:
        training.model.load_state_dict(weights)
        started = time.perf_counter()
        steps = [training.step(arguments.warmup + number) for number in range(arguments.steps)]
        seconds = time.perf_counter() - started
        training.losses.append(steps[0][0])
        training.nfe += [(forward, backward) for _, forward, backward in steps]
        return seconds

    runs: dict[str, Callable[[], float]] = {}
    for training in trainings:
        with first_call(training.field) as call:
            turn(training)
        turn(training)  # without the hook, a compiled solve is compiled again
        training.losses.clear()
        training.nfe.clear()
        runs[training.name] = functools.partial(turn, training)
        for kind in (measure.FIELD_ONLY, measure.VJPS_TOGETHER, measure.VJP_EACH):
            runs.setdefault(f"{training.library} {kind}", measure.field_timer(training.field, *call, kind))
    return measure.interleave(runs, arguments.turns, math.inf)


@contextlib.contextmanager
def first_call(module: nn.Module) -> Iterator[list[Any]]:
    """Yield a list that gets the arguments (t, state) of the module's first call in this block."""
    call: list[Any] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not call:
            call.extend(inputs[:2])

    handle = module.register_forward_pre_hook(keep)
    yield call
    handle.remove()


def check_losses(trainings: list[TimedTraining], tol: float) -> None:
    """Raise SystemExit unless the losses of all trainings agree."""
    losses = {training.name: statistics.mean(training.losses) for training in trainings}
    if max(losses.values()) - min(losses.values()) > MAX_LOSS_DIFFERENCE * tol * abs(statistics.mean(losses.values())):
        raise SystemExit(f"the losses differ by more than {MAX_LOSS_DIFFERENCE} tolerances: {losses}")


def row_of(
    comparison: StepComparison,
    training: TimedTraining,
    times: dict[str, list[float]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Make one row of the CSV file."""
    seconds, done = times[training.name], comparison.batch_size * arguments.steps
    forward, backward = (statistics.mean(counts) for counts in zip(*training.nfe, strict=True))
    field_s = measure.field_seconds(times, training.library, forward, backward)
    return {
        "gradient": training.gradient,
        "first_step": training.first_step,
        "library": training.library,
        f"{comparison.unit}_per_s_best": round(done / min(seconds), 1),
        f"{comparison.unit}_per_s_median": round(done / statistics.median(seconds), 1),
        f"{comparison.unit}_per_s_bare": round(comparison.batch_size / field_s, 1),
        "nfe_forward": round(forward, 1),
        "nfe_backward": round(backward, 1),
        "tol": comparison.tol,
        "data": comparison.data,
        "turns": arguments.turns,
        **results.machine_here(),
        "threads": torch.get_num_threads(),
        **results.versions_here(),
        "torchdiffeq": version("torchdiffeq"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=COMPARISONS, required=True)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1, help="optimiser steps per turn")
    parser.add_argument("--warmup", type=int, default=50, help="optimiser steps before the first turn")
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*", help="further settings of both, such as data=mnist5k")
    arguments = parser.parse_args()

    comparison = COMPARISONS[arguments.model]
    trainings = all_trainings(arguments.model, arguments.overrides)
    times = time_in_turns(trainings, arguments)
    check_losses(trainings, comparison.tol)
    rows, unit = [], comparison.unit
    for training in trainings:
        if training.library != "odebench":
            continue
        other = ("torchdiffeq", comparison.gradients[training.gradient][1])
        partner = next(one for one in trainings if (one.library, one.gradient) == other)
        pair = [row_of(comparison, one, times, arguments) for one in (training, partner)]
        rows += pair
        print(training.name)
        for row in pair:
            print(
                f"  {row['library']}: {row[f'{unit}_per_s_median']:,} {unit}/s (median), field alone "
                f"{row[f'{unit}_per_s_bare']:,}, NFE {row['nfe_forward']} + {row['nfe_backward']}"
            )
        ratios = (pair[0][f"{unit}_per_s_{kind}"] / pair[1][f"{unit}_per_s_{kind}"] for kind in ("best", "median"))
        print("  ratio: {:.2f} (best), {:.2f} (median)".format(*ratios))
    if arguments.output:
        arguments.output.write_text(csv_text(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

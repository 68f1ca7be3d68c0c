"""Training steps: odebench beside the same model written plainly with torchdiffeq.

    pip install -e ".[dev,peers]"
    python scripts/compare_training_step.py --model odenet --output steps.csv     also: cnf, latent_ode
    python scripts/results.py training_step steps.csv     (training_step_cnf, training_step_latent_ode)

The models: odenet, MNIST (from data.root or $ODEBENCH_DATA, else the 5,000 images), batch 128, tol 1e-3; cnf, two
circles, batch 512, tol 1e-5; latent_ode, all 1,000 spirals at all 100 times as one batch, tol 1e-5.

Same weights, batches, optimiser, tolerance, method and threads; odebench's step is the trainer's own, torchdiffeq's is
forward, backward, step (``torchdiffeq_models.py``). All are in one process and take turns, so that a drift of the
machine's speed meets everybody. Every turn starts from the weights that odebench has after --warmup steps and takes the
same batches; the losses of all must agree. The numbers are the best and the median of the turns. No GPU is used.

odebench is measured twice: as it comes, each solve searching its first step as torchdiffeq does, and with
solver.first_step=warm, where a training's solve starts with what the last one's first error allowed. The bare speed is
that of the evaluations of each one's own field alone: f, and its vector-Jacobian product where there is one.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import results
import torch
import torchdiffeq_models as plain
from torch import nn

from odebench.bench import measure
from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.config.settings import Settings
from odebench.tasks import build_task
from odebench.tasks.time_series import SeriesTrainingBatch
from odebench.training.checkpoint import TrainingState
from odebench.training.environment import prepare
from odebench.training.loop import train_step
from odebench.training.optim import build_optimizer

FIRST_STEPS = {"search": "null", "warm": "warm"}
# So many tolerances may the losses differ, relatively.
AGREEMENT = 100

Batches = Callable[[int], Any]


class GradientChoice(NamedTuple):
    """How odebench takes its gradient: settings, and the gradient of torchdiffeq that it is put beside."""

    words: tuple[str, ...]
    beside: str


ADJOINT, BACKPROP = GradientChoice(("gradient=adjoint",), "adjoint"), GradientChoice(("gradient=backprop",), "backprop")


@dataclass(frozen=True)
class StepComparison:
    """One model.

    data, tol: and further words of its settings. unit, batch_size: what a batch has so many of. gradients: those of
    odebench by name. plain: the peer. field: of odebench's model, as the engine evaluates it. batches: from a task to
    its batch for an optimiser step.
    """

    data: str
    tol: float
    words: tuple[str, ...]
    unit: str
    batch_size: int
    gradients: dict[str, GradientChoice]
    plain: type[plain.TorchdiffeqModel]
    field: Callable[[Any], nn.Module] = lambda model: model.field
    batches: Callable[[Any], Batches] = lambda task: task.batch


def all_spirals(task: Any) -> Batches:
    """The 1,000 spirals of all three splits, which share their times; what is observed is encoded and asked for."""
    parts = [split.inputs(torch.arange(len(split))) for split in task._splits.values()]
    values, mask = (torch.cat([getattr(part, name) for part in parts]) for name in ("values", "mask"))
    inputs = dataclasses.replace(parts[0], values=values, mask=mask, labels=None)

    def batch(step: int) -> SeriesTrainingBatch:
        noise = torch.randn(1, len(values), task.model.latent_dim, generator=torch.Generator().manual_seed(step))
        return SeriesTrainingBatch(inputs, inputs, noise, kl_weight=1.0)

    return batch


CONTESTS = {
    "odenet": StepComparison(
        data="mnist",
        tol=1e-3,
        words=("trainer.batch_size=128", "optim=sgd", "optim.lr=0.1"),
        unit="images",
        batch_size=128,
        gradients={"adjoint": ADJOINT, "backprop": BACKPROP},
        plain=plain.TorchdiffeqODENet,
    ),
    "cnf": StepComparison(
        data="two_circles",
        tol=1e-5,
        words=("trainer.batch_size=512",),
        unit="samples",
        batch_size=512,
        gradients={"adjoint": ADJOINT},
        plain=plain.TorchdiffeqCNF,
        field=lambda model: model.transforms[0]._carried["exact"],
    ),
    "latent_ode": StepComparison(
        data="spirals",
        tol=1e-5,
        words=("data.observed=100",),
        unit="series",
        batch_size=1000,
        gradients={
            "adjoint": ADJOINT,
            "adjoint, compiled": GradientChoice(("gradient=adjoint", "solver.compile=true"), "adjoint"),
            "checkpoint": GradientChoice(("gradient=checkpoint",), "adjoint"),
            "backprop": BACKPROP,
        },
        plain=plain.TorchdiffeqLatentODE,
        batches=all_spirals,
    ),
}


@dataclass
class TimedTraining:
    """One who takes part.

    step: takes optimiser step n; its loss, and its evaluations forward and backward.
    losses, nfe: of the first step of each turn, and of all steps.
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
        """For the reader."""
        return f"{self.library}, {self.gradient}, first step {self.first_step}"


def ours(contest: StepComparison, settings: Settings, gradient: str, first_step: str) -> TimedTraining:
    """The trainer's own step."""
    task = build(settings)
    task.batch = contest.batches(task)
    training = TrainingState(settings, task)

    def step(number: int) -> tuple[float, float, float]:
        training.progress.step = number
        numbers = train_step(training, settings, 10**6)
        return numbers["train/loss"], numbers["nfe/forward"], numbers["nfe/backward"]

    return TimedTraining("odebench", gradient, first_step, task.model, contest.field(task.model), step)


def theirs(contest: StepComparison, settings: Settings, gradient: str) -> TimedTraining:
    """Forward, backward, step."""
    task = build(settings)
    batch = contest.batches(task)
    model = contest.plain(task.model, settings.tol, gradient)
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
    """A task whose weights are the seed's; how the trainer prepares the machine is for all."""
    return build_task(settings, prepare(settings))


def all_sides(model: str, words: list[str]) -> list[TimedTraining]:
    """All who take part, odebench first."""
    contest = CONTESTS[model]
    sides = [
        ours(contest, settings_of(model, [*way.words, f"solver.first_step={word}", *words]), gradient, first_step)
        for gradient, way in contest.gradients.items()
        for first_step, word in FIRST_STEPS.items()
    ]
    peers = dict.fromkeys(way.beside for way in contest.gradients.values())
    return sides + [theirs(contest, settings_of(model, words), gradient) for gradient in peers]


def settings_of(model: str, words: list[str]) -> Settings:
    """The settings of one side."""
    contest = CONTESTS[model]
    about = [f"model={model}", f"data={contest.data}", f"tol={contest.tol}", "schedule=constant", "device=cpu"]
    return read_settings(compose([*about, *contest.words, *words]))


def take_turns(sides: list[TimedTraining], arguments: argparse.Namespace) -> dict[str, measure.RunTimes]:
    """The seconds of each side's turns by its name, and of the evaluations of each library's field by kind."""
    for number in range(arguments.warmup):
        sides[0].step(number)
    weights = {name: tensor.clone() for name, tensor in sides[0].model.state_dict().items()}

    def turn(side: TimedTraining) -> float:
        side.model.load_state_dict(weights)
        started = time.perf_counter()
        taken = [side.step(arguments.warmup + number) for number in range(arguments.steps)]
        seconds = time.perf_counter() - started
        side.losses.append(taken[0][0])
        side.nfe += [(forward, backward) for _, forward, backward in taken]
        return seconds

    runs: dict[str, Callable[[], float]] = {}
    for side in sides:
        with first_call(side.field) as call:
            turn(side)
        turn(side)  # a compiled solve is made again without the hook
        side.losses.clear()
        side.nfe.clear()
        runs[side.name] = functools.partial(turn, side)
        for kind in (measure.PLAIN, measure.TOGETHER, measure.APART):
            runs.setdefault(f"{side.library} {kind}", measure.bare(side.field, *call, kind))
    return measure.interleave(runs, arguments.turns, math.inf)


@contextlib.contextmanager
def first_call(module: nn.Module) -> Iterator[list[Any]]:
    """Time and state of a field's first evaluation in this block."""
    call: list[Any] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not call:
            call.extend(inputs[:2])

    handle = module.register_forward_pre_hook(keep)
    yield call
    handle.remove()


def check_losses(sides: list[TimedTraining], tol: float) -> None:
    """SystemExit where the sides do not train the same model."""
    losses = {side.name: statistics.mean(side.losses) for side in sides}
    if max(losses.values()) - min(losses.values()) > AGREEMENT * tol * abs(statistics.mean(losses.values())):
        raise SystemExit(f"the losses differ by more than {AGREEMENT} tolerances: {losses}")


def bare_s(side: TimedTraining, times: dict[str, measure.RunTimes]) -> float:
    """What the evaluations of a step alone take at best, the backward ones, or else the forward ones, with product."""
    forward, backward = (statistics.mean(counts) for counts in zip(*side.nfe, strict=True))
    plain_s, together_s, apart_s = (
        min(times[f"{side.library} {kind}"].seconds) for kind in (measure.PLAIN, measure.TOGETHER, measure.APART)
    )
    return forward * plain_s + backward * apart_s if backward else forward * together_s


def row_of(
    contest: StepComparison, side: TimedTraining, times: dict[str, measure.RunTimes], arguments: argparse.Namespace
) -> dict[str, Any]:
    """One line of the table."""
    seconds, done = times[side.name].seconds, contest.batch_size * arguments.steps
    forward, backward = (statistics.mean(counts) for counts in zip(*side.nfe, strict=True))
    return {
        "gradient": side.gradient,
        "first_step": side.first_step,
        "library": side.library,
        f"{contest.unit}_per_s_best": round(done / min(seconds), 1),
        f"{contest.unit}_per_s_median": round(done / statistics.median(seconds), 1),
        f"{contest.unit}_per_s_bare": round(contest.batch_size / bare_s(side, times), 1),
        "nfe_forward": round(forward, 1),
        "nfe_backward": round(backward, 1),
        "tol": contest.tol,
        "data": contest.data,
        "turns": arguments.turns,
        **results.machine_here(),
        "threads": torch.get_num_threads(),
        **results.versions_here(),
        "torchdiffeq": version("torchdiffeq"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONTESTS, required=True)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1, help="optimiser steps a turn")
    parser.add_argument("--warmup", type=int, default=50, help="optimiser steps before the first turn")
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*", help="further settings of both, such as data=mnist5k")
    arguments = parser.parse_args()

    contest = CONTESTS[arguments.model]
    sides = all_sides(arguments.model, arguments.overrides)
    times = take_turns(sides, arguments)
    check_losses(sides, contest.tol)
    rows, unit = [], contest.unit
    for side in sides:
        if side.library != "odebench":
            continue
        peer = ("torchdiffeq", contest.gradients[side.gradient].beside)
        beside = next(other for other in sides if (other.library, other.gradient) == peer)
        pair = [row_of(contest, one, times, arguments) for one in (side, beside)]
        rows += pair
        print(side.name)
        for row in pair:
            print(
                f"  {row['library']}: {row[f'{unit}_per_s_median']:,} {unit}/s (median), bare "
                f"{row[f'{unit}_per_s_bare']:,}, NFE {row['nfe_forward']} + {row['nfe_backward']}"
            )
        ratios = (pair[0][f"{unit}_per_s_{kind}"] / pair[1][f"{unit}_per_s_{kind}"] for kind in ("best", "median"))
        print("  times as many: {:.2f} (best), {:.2f} (median)".format(*ratios))
    if arguments.output:
        with open(arguments.output, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

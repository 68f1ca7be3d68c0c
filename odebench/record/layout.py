"""The layout of a record: file names, statuses, tags with units, columns of the HParams table. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from odebench.config.schema.quantities import QUANTITIES, Quantity

SETTINGS = "settings.yaml"
OVERRIDES = "overrides.txt"
MANIFEST = "manifest.json"
STATUS = "status.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
LOG = "log.txt"
EVALUATIONS = "evaluations.jsonl"
STEP_SIZES = "steps.json"
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = "checkpoints/last.pt"
PREVIOUS_CHECKPOINT = "checkpoints/previous.pt"  # the last but one
BEST_CHECKPOINT = "checkpoints/best.pt"
FIGURES = "figures"
EVENT_FILES = "events.out.tfevents.*"  # TensorBoard's files, as a glob pattern

# queued: created by a sweep, not started. interrupted: stopped by a signal; timeout: by a time limit; both can resume.
STATUSES = ("queued", "running", "done", "diverged", "failed", "interrupted", "timeout")


class Tag(NamedTuple):
    """Unit ("" if there is none) and meaning of a logged scalar."""

    unit: str
    description: str


_SPLITS = {"train": "training batch", "val": "validation split", "test": "test split"}


def _quantity_tags(quantities: Mapping[str, Quantity]) -> dict[str, Tag]:
    """The tags of a task's quantities."""
    tags = {}
    for name, (unit, text, _) in quantities.items():
        for split, where in _SPLITS.items():
            tags[f"{split}/{name}"] = Tag(unit, f"{text}; {where}")
        tags[f"best/{name}"] = Tag(unit, f"{text}; validation split, best checkpoint")
        tags[f"final/train_{name}"] = Tag(unit, f"{text}; training batch, last value")
        tags[f"final/val_{name}"] = Tag(unit, f"{text}; validation split, last value")
        tags[f"final/test_{name}"] = Tag(unit, f"{text}; test split, best checkpoint, taken once")
    return tags


_COMMON_TAGS: dict[str, Tag] = {
    "nfe/forward": Tag("evaluations", "NFE of the forward pass of one training step"),
    "nfe/backward": Tag("evaluations", "NFE of the backward pass of one training step"),
    "steps/accepted": Tag("steps", "solver steps accepted in the forward pass"),
    "steps/rejected": Tag("steps", "solver steps rejected in the forward pass"),
    "steps/backward_accepted": Tag("steps", "solver steps accepted in the backward pass"),
    "steps/backward_rejected": Tag("steps", "solver steps rejected in the backward pass"),
    "dynamics/kinetic": Tag("", "integral of |f|^2 / D along the training batch's solutions"),
    "dynamics/jacobian": Tag("", "integral of |eps^T df/dz|^2 / D along the training batch's solutions"),
    "dynamics/taylor": Tag("", "integral of |d^K z / dt^K|^2 / D along the training batch's solutions"),
    "memory/peak_mib": Tag("MiB", "peak of what one training step adds to the tensors that lived before"),
    "memory/saved_mib": Tag("MiB", "peak of what autograd holds for the backward pass in that step"),
    "flops/step": Tag("FLOP", "matrix products and convolutions of one training step"),
    "time/step_ms": Tag("ms", "time of one training step, mean since the row before"),
    "throughput/samples_per_s": Tag("samples/s", "training samples a second, mean since the row before"),
    "optim/lr": Tag("", "learning rate"),
    "optim/grad_norm": Tag("", "2-norm of the gradient of all parameters, before clipping"),
    "best/step": Tag("steps", "optimiser step of the best checkpoint"),
    "best/epoch": Tag("epochs", "epoch of the best checkpoint"),
    "final/nfe_forward": Tag("evaluations", "forward NFE of a training step, mean over the last epoch"),
    "final/nfe_backward": Tag("evaluations", "backward NFE of a training step, mean over the last epoch"),
    "final/peak_mib": Tag("MiB", "last memory/peak_mib"),
    "final/saved_mib": Tag("MiB", "last memory/saved_mib"),
    "final/flops": Tag("FLOP", "last flops/step"),
    "final/step_ms": Tag("ms", "time of one training step, mean over the last epoch"),
    "final/samples_per_s": Tag("samples/s", "training samples a second, mean over the last epoch"),
    "final/minutes": Tag("min", "time the training took, evaluation included"),
}

# Every scalar of a run, by tag. x is the optimiser step everywhere.
TAGS: dict[str, Tag] = {
    tag: meaning for of_task in QUANTITIES.values() for tag, meaning in _quantity_tags(of_task).items()
} | _COMMON_TAGS

HISTOGRAMS: dict[str, Tag] = {
    "steps/size": Tag("time of the ODE", "sizes of the accepted solver steps of one forward solve"),
}

# Prefix of the tags that only one task logs, without a unit.
TASK_PREFIX = "task/"


def is_tag(name: str) -> bool:
    """Whether `name` may be logged as a scalar: one of TAGS, or ``task/...``."""
    return name in TAGS or (name.startswith(TASK_PREFIX) and len(name) > len(TASK_PREFIX))


def summary_tags(task: str) -> list[str]:
    """The summary tags of a task: the metrics of its HParams table."""
    return [tag for tag in _quantity_tags(QUANTITIES.get(task, {})) | _COMMON_TAGS if is_summary_tag(tag)]


def is_end_tag(name: str) -> bool:
    """Whether the tag is logged when a run ends, and so again if a resumed run ends again."""
    return is_summary_tag(name) or name.startswith("test/")


def is_summary_tag(name: str) -> bool:
    """Whether the tag belongs to the summary (``best/...``, ``final/...``): logged once, a metric of HParams."""
    return name.startswith(("best/", "final/"))


# TensorBoard's "Custom Scalars" of a run with an ODE: title of a chart -> its tags.
SOLVER_CHARTS: dict[str, tuple[str, ...]] = {
    "NFE: forward against backward": ("nfe/forward", "nfe/backward"),
    "Steps: accepted against rejected": ("steps/accepted", "steps/rejected"),
    "Backward steps: accepted against rejected": ("steps/backward_accepted", "steps/backward_rejected"),
}


def chart_layout(quantities: Sequence[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Sections of TensorBoard's "Custom Scalars" with their charts, for a run that measures these quantities.

    No chart is empty.
    """
    known = [name for name in quantities if f"val/{name}" in TAGS]
    learning: dict[str, tuple[str, ...]] = {
        f"{name}: train against validation": (f"train/{name}", f"val/{name}")
        for name in known
        if TAGS[f"val/{name}"].unit not in ("evaluations", "samples/s")
    }
    return {"Learning": learning} | ({"Solver": SOLVER_CHARTS} if "nfe" in quantities else {})


# The first columns of the HParams table, which TensorBoard shows by default.
FIRST_HPARAMS = ("model.name", "data.name", "solver.name", "solver.rtol", "gradient.name")

# Columns of TensorBoard's HParams table, with their type, beside all settings of solver, gradient and dynamics, and of
# the task's models and data. TensorBoard takes the columns from the first run that it reads, so all runs of a task have
# the same list; a run omits the settings that it lacks.
HPARAMS: dict[str, type[str | float]] = {
    "loss.name": str,
    "eval_solver": str,
    "eval_tol": float,
    "data.name": str,
    "optim.name": str,
    "optim.lr": float,
    "optim.momentum": float,
    "optim.weight_decay": float,
    "schedule.name": str,
    "trainer.epochs": float,
    "trainer.iterations": float,
    "trainer.batch_size": float,
    "trainer.clip_grad_norm": float,
    "trainer.average": float,
    "trainer.precision": str,
    "seed": float,
}

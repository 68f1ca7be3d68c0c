"""The layout of a run's record: file names, statuses, tags, columns of the HParams table. Imports no torch."""

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
EXPORTS = "exports.json"  # how far the run was sent to Weights & Biases offline
STEP_SIZES = "steps.json"
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = "checkpoints/last.pt"
PREVIOUS_CHECKPOINT = "checkpoints/previous.pt"  # the checkpoint before the last one
BEST_CHECKPOINT = "checkpoints/best.pt"
KEPT_CHECKPOINT = "checkpoints/epoch_{}.pt"  # of an epoch
PROFILE = "profile"
FIGURES = "figures"
EVENT_FILES = "events.out.tfevents.*"  # TensorBoard's files, as a glob pattern

# queued: created by a sweep, not started. interrupted: stopped by a signal. timeout: stopped by a time limit. A run
# with either of the last two can resume.
STATUSES = ("queued", "running", "done", "diverged", "failed", "interrupted", "timeout")

# Settings that say what a run is for.
LABELS = ("name", "tags", "notes")


class Tag(NamedTuple):
    """Unit ("" if there is none) and meaning of a logged scalar. A tag is the scalar's name, such as ``val/loss``."""

    unit: str
    description: str


_SPLITS = {"train": "training batch", "val": "validation split", "test": "test split"}


def _quantity_tags(quantities: Mapping[str, Quantity]) -> dict[str, Tag]:
    """Return every tag of the quantities that a task measures, with its meaning."""
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
    "memory/peak_mib": Tag("MiB", "peak memory that one training step adds to the tensors from before the step"),
    "memory/saved_mib": Tag("MiB", "peak memory that autograd holds for the backward pass of that step"),
    "flops/step": Tag("FLOP", "matrix products and convolutions of one training step"),
    "time/step_ms": Tag("ms", "time of one training step, mean since the row before"),
    "throughput/samples_per_s": Tag("samples/s", "training samples per second, mean since the row before"),
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
    "final/samples_per_s": Tag("samples/s", "training samples per second, mean over the last epoch"),
    "final/minutes": Tag("min", "time the training took, evaluation included"),
}

_FIRST_COSTS = ("nfe_forward", "nfe_backward", "peak_mib", "minutes", "step_ms")

# Every scalar that a run may log, by tag. The x-axis is always the optimiser step.
TAGS: dict[str, Tag] = {
    tag: meaning for of_task in QUANTITIES.values() for tag, meaning in _quantity_tags(of_task).items()
} | _COMMON_TAGS

HISTOGRAMS: dict[str, Tag] = {
    "steps/size": Tag("time of the ODE", "sizes of the accepted solver steps of one forward solve"),
}

# TensorBoard's group of the tags that are logged once, when a run ends: when_done/best/accuracy.
END_GROUP = "when_done/"
# Prefix of tags that are not in TAGS: a single task logs them, and they have no unit.
TASK_PREFIX = "task/"


def is_tag(name: str) -> bool:
    """Whether `name` may be logged as a scalar: one of TAGS, or ``task/...``."""
    return name in TAGS or (name.startswith(TASK_PREFIX) and len(name) > len(TASK_PREFIX))


def summary_tags(task: str, objective: str = "") -> list[str]:
    """Return the summary tags of a task. They are the metrics in its HParams table, which shows the first five.

    objective: the tag of the trainings' objective. Its results and the costs come first.
    """
    name = objective.partition("/")[2]
    first = [f"best/{name}", f"final/test_{name}", *(f"final/{cost}" for cost in _FIRST_COSTS)] if name else []
    tags = [tag for tag in _quantity_tags(QUANTITIES.get(task, {})) | _COMMON_TAGS if is_summary_tag(tag)]
    return [*(tag for tag in first if tag in tags), *(tag for tag in tags if tag not in first)]


def is_end_tag(name: str) -> bool:
    """Whether the tag is logged when a run ends. If an ended run is resumed, it is logged again."""
    return is_summary_tag(name) or name.startswith(("test/", END_GROUP))


def dashboard_tag(name: str) -> str:
    """Return a tag as TensorBoard shows it. It sorts groups by name: those of the end come after all curves."""
    return f"{END_GROUP}{name}" if is_end_tag(name) else name


def is_summary_tag(name: str) -> bool:
    """Return whether a tag (``best/...``, ``final/...``) is of the summary, which HParams shows and is logged once."""
    return name.startswith(("best/", "final/"))


# Charts in TensorBoard's "Custom Scalars" for a run with an ODE: title -> tags.
SOLVER_CHARTS: dict[str, tuple[str, ...]] = {
    "NFE: forward against backward": ("nfe/forward", "nfe/backward"),
    "Steps: accepted against rejected": ("steps/accepted", "steps/rejected"),
    "Backward steps: accepted against rejected": ("steps/backward_accepted", "steps/backward_rejected"),
}


def chart_layout(quantities: Sequence[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the sections of TensorBoard's "Custom Scalars": section -> title of a chart -> tags.

    Only charts of the given quantities are included, so that none is empty.
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

# More columns of TensorBoard's HParams table, with their types. The table also has all settings of solver, gradient and
# dynamics, and of the models and data of the task. TensorBoard takes the columns from the first run that it reads, so
# all runs of a task list the same columns; a run has no value for a setting that it lacks.
HPARAMS: dict[str, type[str | float]] = {
    "name": str,
    "tags": str,
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

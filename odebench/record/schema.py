"""The facts of a record: file names, statuses, tags and units, columns of the HParams table. No torch."""

from typing import NamedTuple

SETTINGS = "settings.yaml"
OVERRIDES = "overrides.txt"
MANIFEST = "manifest.json"
STATUS = "status.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
LOG = "log.txt"
EVALUATIONS = "evaluations.jsonl"
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = "checkpoints/last.pt"
BEST_CHECKPOINT = "checkpoints/best.pt"
FIGURES = "figures"
EVENTS = "events.out.tfevents.*"  # TensorBoard's files, as a glob pattern

# queued: made by a sweep, not started. interrupted: stopped by a signal, timeout: by a time limit; both may
# go on.
STATUSES = ("queued", "running", "done", "diverged", "failed", "interrupted", "timeout")


class Tag(NamedTuple):
    """Unit ("" where the number has none) and meaning of a series."""

    unit: str
    description: str


# Every scalar of a run, by tag. x is the optimiser step everywhere.
TAGS: dict[str, Tag] = {
    "train/loss": Tag("", "training loss, mean over the batch"),
    "train/accuracy": Tag("fraction", "share of the training batch classified rightly"),
    "val/loss": Tag("", "loss on the validation split"),
    "val/accuracy": Tag("fraction", "share of the validation split classified rightly"),
    "val/nfe": Tag("evaluations", "NFE of one validation solve, mean over batches"),
    "test/loss": Tag("", "loss on the test split"),
    "test/accuracy": Tag("fraction", "share of the test split classified rightly"),
    "test/nfe": Tag("evaluations", "NFE of one test solve, mean over batches"),
    "nfe/forward": Tag("evaluations", "NFE of the forward pass of one training step"),
    "nfe/backward": Tag("evaluations", "NFE of the backward pass of one training step"),
    "steps/accepted": Tag("steps", "solver steps accepted in the forward pass"),
    "steps/rejected": Tag("steps", "solver steps rejected in the forward pass"),
    "steps/backward_accepted": Tag("steps", "solver steps accepted in the backward pass"),
    "steps/backward_rejected": Tag("steps", "solver steps rejected in the backward pass"),
    "memory/peak_mib": Tag("MiB", "peak of what one training step adds to the tensors that lived before"),
    "memory/saved_mib": Tag("MiB", "peak of what autograd holds for the backward pass in that step"),
    "flops/step": Tag("FLOP", "matrix products and convolutions of one training step"),
    "time/step_ms": Tag("ms", "time of one training step, mean since the row before"),
    "throughput/samples_per_s": Tag("samples/s", "training samples a second, mean since the row before"),
    "optim/lr": Tag("", "learning rate"),
    "optim/grad_norm": Tag("", "2-norm of the gradient of all parameters, before clipping"),
    "best/accuracy": Tag("fraction", "validation accuracy of the best checkpoint"),
    "best/loss": Tag("", "validation loss of the best checkpoint"),
    "best/step": Tag("steps", "optimiser step of the best checkpoint"),
    "best/epoch": Tag("epochs", "epoch of the best checkpoint"),
    "final/train_loss": Tag("", "last training loss"),
    "final/train_accuracy": Tag("fraction", "last training accuracy"),
    "final/val_loss": Tag("", "last validation loss"),
    "final/val_accuracy": Tag("fraction", "last validation accuracy"),
    "final/test_loss": Tag("", "test loss of the best checkpoint, taken once"),
    "final/test_accuracy": Tag("fraction", "test accuracy of the best checkpoint, taken once"),
    "final/test_nfe": Tag("evaluations", "NFE of one test solve, mean over batches"),
    "final/nfe_forward": Tag("evaluations", "forward NFE of a training step, mean over the last epoch"),
    "final/nfe_backward": Tag("evaluations", "backward NFE of a training step, mean over the last epoch"),
    "final/peak_mib": Tag("MiB", "last memory/peak_mib"),
    "final/saved_mib": Tag("MiB", "last memory/saved_mib"),
    "final/flops": Tag("FLOP", "last flops/step"),
    "final/step_ms": Tag("ms", "time of one training step, mean over the last epoch"),
    "final/samples_per_s": Tag("samples/s", "training samples a second, mean over the last epoch"),
    "final/minutes": Tag("min", "time the training took, evaluation included"),
}

HISTOGRAMS: dict[str, Tag] = {
    "steps/size": Tag("time of the ODE", "sizes of the accepted solver steps of one forward solve"),
}

# Series of a task that is not ours: task/anything, without a unit.
FREE_GROUP = "task/"


def is_tag(name: str) -> bool:
    """Whether `name` may be logged as a scalar: one of TAGS, or of the free group ``task/...``."""
    return name in TAGS or (name.startswith(FREE_GROUP) and len(name) > len(FREE_GROUP))


def is_of_the_end(name: str) -> bool:
    """Whether the tag is logged when a run ends, and so once more where the end is repeated after a resume."""
    return is_closing(name) or name.startswith("test/")


def is_closing(name: str) -> bool:
    """Whether the tag is of a run's end (``best/...``, ``final/...``): logged once, a metric of HParams."""
    return name.startswith(("best/", "final/"))


# TensorBoard's "Custom Scalars": title of a section -> title of a chart -> its tags.
LAYOUT: dict[str, dict[str, tuple[str, ...]]] = {
    "Solver": {
        "NFE: forward against backward": ("nfe/forward", "nfe/backward"),
        "Steps: accepted against rejected": ("steps/accepted", "steps/rejected"),
        "Backward steps: accepted against rejected": ("steps/backward_accepted", "steps/backward_rejected"),
    },
    "Learning": {
        "Loss: train against validation": ("train/loss", "val/loss"),
        "Accuracy: train against validation": ("train/accuracy", "val/accuracy"),
    },
}

# Settings that are columns of TensorBoard's HParams table, with their one type. TensorBoard takes the columns
# from whichever run it meets first, so the list is the same for all runs; a run leaves out what it lacks.
HPARAMS: dict[str, type[str] | type[float] | type[bool]] = {
    "model.name": str,
    "model.width": float,
    "model.groups": float,
    "model.blocks": float,
    "model.hidden": float,
    "model.end_time": float,
    "solver.name": str,
    "solver.rtol": float,
    "solver.atol": float,
    "solver.steps": float,
    "solver.step_size": float,
    "solver.first_step": str,
    "solver.min_step": float,
    "solver.max_step": float,
    "solver.max_steps": float,
    "solver.controller": str,
    "solver.stepping": str,
    "solver.compile": bool,
    "gradient.name": str,
    "gradient.checkpoints": float,
    "gradient.recompute": str,
    "gradient.keep": str,
    "gradient.rtol": float,
    "gradient.atol": float,
    "gradient.method": str,
    "gradient.steps": float,
    "gradient.norm": str,
    "eval_solver": str,
    "eval_tol": float,
    "data.name": str,
    "data.train_limit": float,
    "data.augment": bool,
    "optim.name": str,
    "optim.lr": float,
    "optim.momentum": float,
    "optim.weight_decay": float,
    "schedule.name": str,
    "trainer.epochs": float,
    "trainer.batch_size": float,
    "trainer.clip_grad_norm": float,
    "trainer.average": float,
    "trainer.precision": str,
    "seed": float,
}

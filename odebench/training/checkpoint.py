"""Save and load checkpoints with all state of a training, so that resuming is exact. Loading runs no code in them."""

import logging
import os
import random
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from odebench.config.settings import Settings
from odebench.errors import UsageError
from odebench.record import layout
from odebench.record.files import write_atomically
from odebench.tasks import Task
from odebench.training.distributed import all_gather, is_rank_zero, rank, world_size
from odebench.training.optim import build_optimizer

FORMAT = 1
# In the same folder as the last checkpoint.
PREVIOUS, BEST = (Path(path).name for path in (layout.PREVIOUS_CHECKPOINT, layout.BEST_CHECKPOINT))

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training has come.

    step: number of optimiser steps taken. best, best_step: the best value of the objective (None before the first
    validation), and its step. stale_epochs: epochs since the objective improved. finished: True if only the test
    remains. elapsed_s: training time at the last save.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    stale_epochs: int = 0
    finished: bool = False
    elapsed_s: float = 0.0


class TrainingState:
    """Everything that changes during training: model, optimiser, weight average, the task's state, progress."""

    def __init__(self, settings: Settings, task: Task) -> None:
        self.task = task
        self.model_name = settings.model.name
        self.optimizer = build_optimizer(settings.optim, task.model)
        self.average: AveragedModel | None = None
        if settings.trainer.average is not None:
            average_fn = get_ema_multi_avg_fn(settings.trainer.average)
            self.average = AveragedModel(task.model, multi_avg_fn=average_fn, use_buffers=True)
        self.progress = Progress()

    @property
    def evaluated_model(self) -> nn.Module:
        """The model to evaluate: the average of the weights if there is one, else the trained model."""
        return self.task.model if self.average is None else self.average.module

    def save(self, path: Path, kept: Path | None = None) -> None:
        """Save all state atomically, including random states. An existing file is kept as ``previous.pt``.

        kept: a second file to save it to.
        """
        task, *others = all_gather(self.task.state_dict())
        content = {
            "format": FORMAT,
            "model_name": self.model_name,
            "model": self.task.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task": task,
            "others": others,  # states of the task in the other processes
            "progress": vars(self.progress),
            "random": _random_states(),
        }
        if kept is not None:
            _save(kept, content)
        _save(path, content, path.with_name(PREVIOUS))

    def save_best_weights(self, path: Path) -> None:
        """Save only the weights of the evaluated model and their step, atomically."""
        weights = self.evaluated_model.state_dict()
        _save(path, {"format": FORMAT, "model_name": self.model_name, "model": weights, "step": self.progress.step})

    def load(self, path: Path) -> None:
        """Load a checkpoint that ``save`` wrote, and check that the best weights are those that it knows.

        Raises UsageError if the file is not a checkpoint, or does not fit.
        """
        content = _load(path)
        load_weights(self.task.model, path, self.model_name, content)
        if "optimizer" not in content:
            raise UsageError(f"{path} holds only weights; a training cannot resume from it")
        try:
            if self.average is not None:
                self.average.load_state_dict(content["average"])
            self.optimizer.load_state_dict(content["optimizer"])
            states = [content["task"], *content.get("others", [])]
            self.task.load_state_dict(states[rank() if len(states) == world_size() else 0])
            self.progress = _read_progress(content["progress"])
            _set_random_states(content["random"])
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{path} does not fit these settings ({type(error).__name__}: {error})") from error
        self._restore_best(path.with_name(BEST))

    def _restore_best(self, path: Path) -> None:
        """Write the best weights if they are the loaded ones. Forget the best value if its weights are lost."""
        progress = self.progress
        if progress.best is None:
            return
        if progress.best_step == progress.step:
            self.save_best_weights(path)
            return
        try:
            is_best = _load(path).get("step", progress.best_step) == progress.best_step
        except UsageError:
            is_best = False
        if not is_best:
            line = "%s does not hold the best weights, those of step %d; the next validation counts as the best so far"
            log.warning(line, path, progress.best_step)
            progress.best, progress.best_step = None, 0

    def load_latest(self, path: Path) -> None:
        """Load the last checkpoint. If it is damaged, load the one before it and put that in its place.

        Does nothing if there is no checkpoint. Raises UsageError if there are checkpoints, but none can be used.
        """
        previous = path.with_name(PREVIOUS)
        if not (path.exists() or previous.exists()):
            return
        try:
            self.load(path)
        except UsageError as error:
            if not previous.exists():
                raise
            log.warning("%s; resuming from %s, the checkpoint before it", error, previous)
            self.load(previous)
            # Otherwise the next save would keep the damaged file as the previous checkpoint.
            os.replace(previous, path)


def load_weights(model: nn.Module, path: Path, model_name: str, content: Mapping[str, Any] | None = None) -> int | None:
    """Load a checkpoint's weights into a model. Returns the step of best weights; None if it is unknown.

    content: the checkpoint, if it has been read already. Raises UsageError if the file is missing or is not a
    checkpoint, or if a weight is NaN or infinite. If the weights are of another model, the error names the setting
    ``model``.
    """
    content = _load(path) if content is None else content
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, KeyError):
        other = content.get("model_name", "unknown")
        reason = f"it holds model {other}" if other != model_name else "its shapes differ: other model settings"
        raise UsageError(f"{path} does not fit model {model_name}: {reason}", "model") from None
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise UsageError(f"{path}: {name} holds NaN or infinities; restore the file, or train the run again")
    return content.get("step")


def _read_progress(numbers: Mapping[str, Any]) -> Progress:
    """Create a Progress. Raises TypeError or ValueError if `TrainingState.save` did not write these numbers."""
    progress = Progress(**numbers)
    steps = (progress.step, progress.best_step, progress.stale_epochs)
    if not all(isinstance(step, int) and step >= 0 for step in steps):
        raise ValueError(f"its numbers of steps are {steps}")
    if not isinstance(progress.best, int | float | None) or not isinstance(progress.elapsed_s, int | float):
        raise TypeError("its best value or its time is not a number")
    return progress


def _save(path: Path, content: Mapping[str, Any], previous: Path | None = None) -> None:
    if not is_rank_zero():
        return
    buffer = BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue(), previous)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"no checkpoint {path}: restore the file, or train the run again")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify its checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        line = f"{path} is not a readable checkpoint ({type(error).__name__}): damaged, or not written by odebench"
        raise UsageError(line) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path} is not a checkpoint of this version of odebench (format {FORMAT})")
    weights = content.get("model")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise UsageError(f"{path} is damaged: it holds no weights; restore the file, or train the run again")
    return content


def _random_states() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 (the global state that third-party code draws from)
    return {
        "python": [version, list(internal), gauss],
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    key = np.asarray(states["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**states["numpy"], "state": {**states["numpy"]["state"], "key": key}})  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    # A run may resume on a machine with another number of GPUs.
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])

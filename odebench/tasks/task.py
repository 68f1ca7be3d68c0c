"""The base class of tasks, with the interface that the training loop uses."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from odebench.config.choices import options_of
from odebench.config.settings import Settings
from odebench.data import build_data
from odebench.errors import UsageError
from odebench.ode import Stats
from odebench.tasks.build import build_solvers


class Loss(NamedTuple):
    """The loss of a training batch, with its metrics and the statistics of its solves.

    value: a scalar with its graph. metrics: tag -> number or scalar tensor. solves: one ``Stats`` per solve;
    ``value.backward()`` adds the statistics of the backward pass to them.
    """

    value: Tensor
    metrics: dict[str, Any]
    solves: tuple[Stats, ...]


def read_numbers(values: Iterable[Any]) -> list[float]:
    """Convert numbers and scalar tensors of one device to floats. The host waits for the device only once."""
    values = list(values)
    tensors = [value.detach() for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(read) if isinstance(value, Tensor) else float(value) for value in values]


class Task(ABC):
    """A model, its data and its loss. Batches depend on the step alone, so that resuming needs no state.

    steps_per_epoch: number of optimiser steps in an epoch. note: a line about the data for the user, may be empty.
    provenance: where the data comes from, for the manifest. eval_solve: the solver of evaluations; None without an ODE.
    """

    model: nn.Module

    def __init__(self, settings: Settings, device: torch.device, *kinds: Any) -> None:
        """Load the data and build the solvers. A subclass builds the model.

        kinds: classes of data that the task can use. Raises UsageError if the data is missing, is of another class, or
        is smaller than a batch.
        """
        name, trainer = settings.data.name, settings.trainer
        data: Any = build_data(name, options_of(settings.data), settings.seed, settings.extensions)
        if not isinstance(data, kinds):
            needed = " or ".join(kind.__name__ for kind in kinds)
            raise UsageError(f"data={name}: task={settings.task} needs {needed}")
        self._data: Any = data
        self.note, self.provenance = data.note, data.provenance
        self._device, self._seed = device, settings.seed
        self._loss_options = options_of(settings.loss)
        self.batch_size, self._eval_batch_size = trainer.batch_size, trainer.eval_batch_size
        self.steps_per_epoch = len(data.train) // self.batch_size
        if self.steps_per_epoch == 0:
            raise UsageError(f"trainer.batch_size={self.batch_size}: there are only {len(data.train)} training samples")
        self._solve, self.eval_solve = build_solvers(settings)

    @property
    @abstractmethod
    def quantities(self) -> Sequence[str]:
        """The quantities of ``config.schema.quantities.QUANTITIES`` that a validation measures."""

    @abstractmethod
    def batch(self, step: int) -> Any:
        """Return the training batch of an optimiser step, on the device."""

    @abstractmethod
    def loss(self, batch: Any) -> Loss:
        """Compute the loss of a training batch, with a graph."""

    def _add_penalty(self, loss: Loss, num_dims: int = 1) -> Loss:
        """Add the integrals of the regularised dynamics to a loss, if the settings ask for them.

        num_dims: the number of dimensions over which the loss is summed. The integrals are means over dimensions, and
        their published weights are for the loss per dimension, so they are multiplied by ``num_dims``.
        """
        penalty, values = self._solve.pop_penalty() if self._solve else (None, {})
        if penalty is None:
            return loss
        value = loss.value + num_dims * penalty
        return Loss(value, {**loss.metrics, "train/loss": value.detach(), **values}, loss.solves)

    @abstractmethod
    def evaluate(self, split: str, model: nn.Module | None = None) -> dict[str, float]:
        """Compute the metrics of a split ("train", "validation" or "test").

        Returns them by name, the part of their tag after the slash: nfe for val/nfe. model: a model to evaluate in
        place of the task's own, for example the average of its weights.
        """

    @abstractmethod
    def limit_split(self, split: str, num: int) -> None:
        """Evaluate only the first `num` samples of a split from now on. Training batches do not change."""

    @abstractmethod
    def format_metrics(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Format metrics of ``evaluate`` as rows (name, text) for the terminal. The most important row is the first."""

    @abstractmethod
    def predict(self, split: str) -> dict[str, list[Any]]:
        """Return the model's predictions for the samples of a split: column name -> values."""

    @abstractmethod
    def outputs(self, split: str, num: int) -> Tensor:
        """Compute the model's outputs for the first `num` samples of a split with the evaluation solver.

        They have the dtype of the model's parameters. This may draw numbers from torch's global random state.
        """

    @abstractmethod
    def figures(self, split: str = "test", animate: bool = True) -> Mapping[str, Figure | bytes]:
        """Draw figures of what the model does on a split. Returns them by name; a GIF is returned as bytes.

        animate: also draw GIFs, which take much longer.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state that training keeps between steps, besides the model: the warm first step."""
        return {"warm_step": self._solve.warm_step if self._solve else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        if self._solve:
            self._solve.warm_step = state["warm_step"]

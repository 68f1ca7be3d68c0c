"""The interface between the training loop and a task: a model, its data and its loss."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from odebench.ode import Stats


class Loss(NamedTuple):
    """The loss of a training batch, with its metrics and the statistics of its solves.

    value: scalar with its graph. metrics: by tag, scalars or tensors. solves: one ``Stats`` per solve;
    ``value.backward()`` fills in their statistics of the backward pass.
    """

    value: Tensor
    metrics: dict[str, Any]
    solves: tuple[Stats, ...]


def add_penalty(loss: Loss, solve: Any, num_dims: int = 1) -> Loss:
    """Add the integrals of the regularised dynamics to a loss, if the settings ask for them.

    solve: the task's ``ConfiguredSolver`` for training, or None. num_dims: the number of dimensions that the loss sums
    over. The integrals are means over dimensions, so their weights apply to the loss per dimension, as published.
    """
    penalty, values = solve.pop_penalty() if solve is not None else (None, {})
    if penalty is None:
        return loss
    value = loss.value + num_dims * penalty
    return Loss(value, {**loss.metrics, "train/loss": value.detach(), **values}, loss.solves)


def read_numbers(values: Iterable[Any]) -> list[float]:
    """Return numbers and scalar tensors of one device as floats; the host waits for the device once for all of them."""
    values = list(values)
    tensors = [value.detach() for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(read) if isinstance(value, Tensor) else float(value) for value in values]


class Task(Protocol):
    """A model, its data and its loss. Batches depend on the step alone, so that resuming needs no state.

    steps_per_epoch: optimiser steps between two validations. note: one line for the user, may be empty.
    provenance: of the data. quantities: which of ``config.schema.quantities.QUANTITIES`` each validation measures.
    """

    model: nn.Module
    steps_per_epoch: int
    batch_size: int
    note: str
    provenance: dict[str, Any]

    @property
    def quantities(self) -> Sequence[str]: ...

    def batch(self, step: int) -> Any:
        """Return the training batch of an optimiser step, on the device."""

    def loss(self, batch: Any) -> Loss:
        """Compute the loss of a batch, with a graph."""

    def evaluate(self, split: str, model: nn.Module | None = None) -> dict[str, float]:
        """Compute the metrics of a split ("train", "validation", "test"), named by the second half of their tag (nfe).

        model: evaluated instead of the task's own model (for example the average of its weights).
        """

    def limit_split(self, split: str, num: int) -> None:
        """Evaluate only the first `num` samples of a split from now on; training batches do not change."""

    def format_metrics(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Format the metrics of ``evaluate`` as (name, text) rows for the terminal, the most important one first."""

    def predict(self, split: str) -> dict[str, list[Any]]:
        """Return columns with the model's prediction for each sample of a split."""

    def outputs(self, split: str, num: int) -> Tensor:
        """Compute the model's outputs for the first `num` samples of a split with the evaluation solver, in the dtype
        of its parameters. May draw from torch's global random state."""

    def figures(self) -> Mapping[str, Figure | bytes]:
        """Draw what the model does: figures by name; GIFs as bytes."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that training carries from step to step besides the model: plain numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""

"""The interface between the training loop and a task: a model, its data and its loss."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from matplotlib.figure import Figure
from torch import Tensor, nn

from odebench.ode import Stats


class Loss(NamedTuple):
    """What a training step minimises, and what is known about it.

    value: scalar with its graph. numbers: by tag, scalars or tensors. solves: the statistics of each solve;
    their backward halves are filled by ``value.backward()``.
    """

    value: Tensor
    metrics: dict[str, Any]
    solves: tuple[Stats, ...]


def add_penalty(loss: Loss, solve: Any, num_dims: int = 1) -> Loss:
    """The loss with the integrals that the regularised dynamics of its solves add, where there are such.

    solve: the task's ``ChosenSolve`` for training, or None. num_dims: over how many dimensions the loss is a sum, where
    the integrals are means: so their weights stand against the loss of one, as published.
    """
    penalty, values = solve.pop_penalty() if solve is not None else (None, {})
    if penalty is None:
        return loss
    value = loss.value + num_dims * penalty
    return Loss(value, {**loss.metrics, "train/loss": value.detach(), **values}, loss.solves)


class Task(Protocol):
    """A model, its data and its loss. Batches are a function of the step alone, so that resuming needs no state.

    steps_per_epoch: optimiser steps from one validation to the next. note: one line for the user, may be empty.
    provenance: of the data. measured: which quantities of ``QUANTITIES`` each validation gives.
    """

    model: nn.Module
    steps_per_epoch: int
    batch_size: int
    note: str
    provenance: dict[str, Any]

    @property
    def quantities(self) -> Sequence[str]: ...

    def batch(self, step: int) -> Any:
        """The training batch of an optimiser step, on the device."""

    def loss(self, batch: Any) -> Loss:
        """The loss of a batch, with a graph."""

    def evaluate(self, split: str, model: nn.Module | None = None) -> dict[str, float]:
        """Numbers of a split ("train", "validation", "test"), by the second half of their tag (accuracy, loss, nfe).

        model: evaluated in place of the task's own (the average of its weights, say).
        """

    def limit_split(self, split: str, num: int) -> None:
        """Keep of a split its first `num` samples alone; training batches stay as they are."""

    def format_metrics(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """What ``evaluate`` gave, in words for the screen: name and text, the headline first."""

    def predict(self, split: str) -> dict[str, list[Any]]:
        """Columns of what the model says of each sample of a split."""

    def outputs(self, split: str, num: int) -> Tensor:
        """What the model says of the first `num` samples of a split, by the evaluation's solver, in the dtype of its
        parameters. It may draw from torch's global random state."""

    def figures(self) -> Mapping[str, Figure | bytes]:
        """Pictures of what the model does, by name; GIFs as bytes."""

    def state_dict(self) -> dict[str, Any]:
        """What a training carries from step to step besides the model: plain numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""

"""Where a model, its data and its loss meet. The trainer knows only what ``Task`` names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from odebench.ode import Stats
from odebench.settings import Settings


class Loss(NamedTuple):
    """What a training step minimises, and what is known about it.

    value: scalar with its graph. numbers: by tag, scalars or tensors. solves: the statistics of each solve;
    their backward halves are filled by ``value.backward()``.
    """

    value: Tensor
    numbers: dict[str, Any]
    solves: tuple[Stats, ...]


class Task(Protocol):
    """A model, its data and its loss. Batches are a function of the step alone, so that resuming needs no state."""

    model: nn.Module
    steps_per_epoch: int
    batch_size: int
    note: str
    provenance: dict[str, Any]

    def batch(self, step: int) -> Any:
        """The training batch of an optimiser step, on the device."""

    def loss(self, batch: Any) -> Loss:
        """The loss of a batch, with a graph."""

    def evaluate(self, split: str, model: nn.Module | None = None) -> dict[str, float]:
        """Numbers of a split ("train", "validation", "test"), by the second half of their tag (accuracy, loss, nfe).

        model: evaluated in place of the task's own (the average of its weights, say).
        """

    def predict(self, split: str) -> dict[str, list[Any]]:
        """Columns of what the model says of each sample of a split."""

    def figures(self) -> dict[str, Figure]:
        """Pictures of what the model does, by name."""

    def state_dict(self) -> dict[str, Any]:
        """What a training carries from step to step besides the model: plain numbers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""


def build_task(settings: Settings, device: torch.device) -> Task:
    """The task that the settings name, its data loaded and its model, freshly initialised, on the device."""
    from odebench.tasks.classification import Classification

    tasks: dict[str, Callable[[Settings, torch.device], Task]] = {"classification": Classification}
    return tasks[settings.task](settings, device)

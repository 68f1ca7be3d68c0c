"""What a task's model says of a fixed batch, in the dtype of its parameters."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from odebench.tasks import Task


def outputs(task: Task, split: str, num: int) -> Tensor:
    """See ``Task.outputs``; the same random numbers each time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return task.outputs(split, num)


def in_double(task: Task) -> None:
    """Turn a task's model into float64, and what it is called with."""
    task.model.double().register_forward_pre_hook(lambda model, given: cast(given, torch.float64))


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in that dtype, also inside tuples and dataclasses; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(cast(item, dtype) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: cast(item, dtype) for name, item in vars(value).items()})
    return value

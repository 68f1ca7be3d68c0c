"""A training step that is taken for what it tells: nothing of it is left."""

import contextlib
from collections.abc import Iterator

import torch

from odebench.tasks import Task


@contextlib.contextmanager
def restored_state(task: Task) -> Iterator[None]:
    """Steps within start without gradients; afterwards there are none, and the model's buffers, the task's state and
    the random states are as before, whatever was raised."""
    device = next(task.model.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    state = task.state_dict()
    task.model.zero_grad()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        task.model.zero_grad()
        task.model.load_state_dict(buffers, strict=False)
        task.load_state_dict(state)

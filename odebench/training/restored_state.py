"""Run training steps only to measure them, then restore all state."""

import contextlib
from collections.abc import Iterator

import torch

from odebench.tasks import Task


@contextlib.contextmanager
def restored_state(task: Task) -> Iterator[None]:
    """Clear the gradients before the block. After it, even if it raises, clear them again and restore all other state.

    The state consists of the model's buffers, the task's state and the random states.
    """
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

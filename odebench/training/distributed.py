"""Several processes that train one model together, as torchrun starts them: each takes its share of every batch.

Each process keeps the whole model and the whole order of the data. What they must agree on passes through the
functions here, which in a single process do nothing. The first one alone evaluates, writes the record and prints.

Gradients are averaged by hand after the backward pass, in place of DistributedDataParallel: its hooks count each
parameter once a pass, which holds neither for a field that a solver calls many times, nor for the adjoint's own
backward passes, nor for models with two solves.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_map

from odebench.errors import Diverged, UsageError

T = TypeVar("T")

# The others wait while the first one evaluates; that one of them has died is told by its connection, not by this.
_TIMEOUT = timedelta(days=1)


def num_ranks() -> int:
    """How many processes train together."""
    return _told("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this one is, counted from 0."""
    return _told("RANK", 0)


def local_rank() -> int:
    """Which of those on this machine this one is, counted from 0."""
    return _told("LOCAL_RANK", 0)


def _told(name: str, default: int) -> int:
    # Clusters set some of these for purposes of their own.
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else default


def is_first() -> bool:
    """Whether this process is the one that evaluates, writes and prints."""
    return rank() == 0


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """The processes joined, by nccl between GPUs and by gloo for all else. Of the others only failures are logged."""
    if num_ranks() == 1 or dist.is_initialized():
        yield
        return
    if not is_first():
        logging.getLogger("odebench").setLevel(logging.CRITICAL)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield
    except (ConnectionError, UsageError) as error:
        if is_first():
            raise
        sys.exit(2 if isinstance(error, UsageError) else 1)  # the first one has said why
    dist.destroy_process_group()


@contextlib.contextmanager
def first_ahead() -> Iterator[None]:
    """The first process goes through this alone, then the others: it may have something to fetch for all."""
    if num_ranks() > 1 and not is_first():
        wait_for_all()
    yield
    if num_ranks() > 1 and is_first():
        wait_for_all()


def check_batch(batch_size: int) -> None:
    """UsageError where the global batch has no equal shares."""
    if batch_size % num_ranks():
        raise UsageError(
            f"trainer.batch_size={batch_size}: {num_ranks()} processes share it; make it a multiple of {num_ranks()}",
            "trainer.batch_size",
        )


def share(batch: Any, batch_size: int) -> Any:
    """This process's rows of a global batch: tensors [batch_size, ...] in a tuple, or what has a method ``rows``."""
    if num_ranks() == 1:
        return batch
    num = batch_size // num_ranks()
    rows = slice(rank() * num, (rank() + 1) * num)
    return batch.rows(rows) if hasattr(batch, "rows") else tree_map(lambda x: x[rows], batch)


def seed_step(seed: int, step: int) -> None:
    """Give each process random numbers of its own in an optimiser step, from the seed and the step alone.

    The first one goes on with the state that its checkpoints hold.
    """
    if not is_first():
        torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1)[0]))


def from_first(make: Callable[[], T]) -> T:
    """What ``make()`` gives in the first process, in all of them."""
    if num_ranks() == 1:
        return make()
    box = [make() if is_first() else None]
    with _connection():
        dist.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


def gathered(value: T) -> list[T]:
    """Each process's value, in their order."""
    values = [value] * num_ranks()
    if num_ranks() > 1:
        with _connection():
            dist.all_gather_object(values, value)
    return values


def agreed(*values: Any) -> list[Any]:
    """The largest of each number over the processes; of flags, whether one of them has it set."""
    return list(values) if num_ranks() == 1 else _reduced(values, torch.int64, dist.ReduceOp.MAX)


def wait_for_all() -> None:
    """Return when all processes have come here."""
    agreed(0)


def means(numbers: dict[str, float]) -> dict[str, float]:
    """The mean of each number over the processes; all have the same names, in the same order."""
    if num_ranks() == 1 or not numbers:
        return numbers
    sums = _reduced(list(numbers.values()), torch.float64, dist.ReduceOp.SUM)
    return dict(zip(numbers, (total / num_ranks() for total in sums), strict=True))


def copy_from_first(model: nn.Module) -> None:
    """Give the model the first process's weights and buffers."""
    if num_ranks() > 1:
        with _connection(), torch.no_grad():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over the processes: the global batch's, for equal shares of a mean."""
    if num_ranks() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    with _connection():
        dist.all_reduce(flat)
    flat /= num_ranks()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@contextlib.contextmanager
def diverging_together() -> Iterator[None]:
    """A Diverged that is raised within, in whichever process, is raised in all of them."""
    reason = None
    try:
        yield
    except Diverged as error:
        reason = str(error)
        if num_ranks() == 1:
            raise
    if num_ranks() > 1 and any(agreed(reason is not None)):
        raise Diverged(next(text for text in gathered(reason) if text is not None))


def _reduced(numbers: Sequence[Any], dtype: torch.dtype, how: Any) -> list[Any]:
    tensor = torch.tensor(numbers, dtype=dtype)
    with _connection():
        dist.all_reduce(tensor, how)
    return tensor.tolist()


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """One line for what gloo and nccl raise where another process has died."""
    try:
        yield
    except RuntimeError as error:
        reason, *_ = str(error).split(". ")
        raise ConnectionError(f"another process of this run has ended ({reason})") from error

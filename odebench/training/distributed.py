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


def world_size() -> int:
    """How many processes train together."""
    return _environment_int("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this one is, counted from 0."""
    return _environment_int("RANK", 0)


def local_rank() -> int:
    """Which of those on this machine this one is, counted from 0."""
    return _environment_int("LOCAL_RANK", 0)


def _environment_int(name: str, default: int) -> int:
    # Clusters set some of these for purposes of their own.
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else default


def is_rank_zero() -> bool:
    """Whether this process is the one that evaluates, writes and prints."""
    return rank() == 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The processes joined, by nccl between GPUs and by gloo for all else. Of the others only failures are logged."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    if not is_rank_zero():
        logging.getLogger("odebench").setLevel(logging.CRITICAL)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield
    except (ConnectionError, UsageError) as error:
        if is_rank_zero():
            raise
        sys.exit(2 if isinstance(error, UsageError) else 1)  # the first one has said why
    dist.destroy_process_group()


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """The first process goes through this alone, then the others: it may have something to fetch for all."""
    if world_size() > 1 and not is_rank_zero():
        barrier()
    yield
    if world_size() > 1 and is_rank_zero():
        barrier()


def check_batch_size(batch_size: int) -> None:
    """UsageError where the global batch has no equal shares."""
    if batch_size % world_size():
        raise UsageError(
            f"trainer.batch_size={batch_size}: {world_size()} processes share it; make it a multiple of {world_size()}",
            "trainer.batch_size",
        )


def shard_batch(batch: Any, batch_size: int) -> Any:
    """This process's rows of a global batch: tensors [batch_size, ...] in a tuple, or what has a method ``rows``."""
    if world_size() == 1:
        return batch
    num = batch_size // world_size()
    rows = slice(rank() * num, (rank() + 1) * num)
    return batch.rows(rows) if hasattr(batch, "rows") else tree_map(lambda x: x[rows], batch)


def seed_step(seed: int, step: int) -> None:
    """Give each process random numbers of its own in an optimiser step, from the seed and the step alone.

    The first one goes on with the state that its checkpoints hold.
    """
    if not is_rank_zero():
        torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1)[0]))


def broadcast_result(make: Callable[[], T]) -> T:
    """What ``make()`` gives in the first process, in all of them."""
    if world_size() == 1:
        return make()
    box = [make() if is_rank_zero() else None]
    with _connection_errors():
        dist.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


def all_gather(value: T) -> list[T]:
    """Each process's value, in their order."""
    values = [value] * world_size()
    if world_size() > 1:
        with _connection_errors():
            dist.all_gather_object(values, value)
    return values


def reduce_max(*values: Any) -> list[Any]:
    """The largest of each number over the processes; of flags, whether one of them has it set."""
    return list(values) if world_size() == 1 else _all_reduce(values, torch.int64, dist.ReduceOp.MAX)


def barrier() -> None:
    """Return when all processes have come here."""
    reduce_max(0)


def reduce_mean(metrics: dict[str, float]) -> dict[str, float]:
    """The mean of each number over the processes; all have the same names, in the same order."""
    if world_size() == 1 or not metrics:
        return metrics
    sums = _all_reduce(list(metrics.values()), torch.float64, dist.ReduceOp.SUM)
    return dict(zip(metrics, (total / world_size() for total in sums), strict=True))


def broadcast_model(model: nn.Module) -> None:
    """Give the model the first process's weights and buffers."""
    if world_size() > 1:
        with _connection_errors(), torch.no_grad():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over the processes: the global batch's, for equal shares of a mean."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    with _connection_errors():
        dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@contextlib.contextmanager
def synchronised_divergence() -> Iterator[None]:
    """A Diverged that is raised within, in whichever process, is raised in all of them."""
    reason = None
    try:
        yield
    except Diverged as error:
        reason = str(error)
        if world_size() == 1:
            raise
    if world_size() > 1 and any(reduce_max(reason is not None)):
        raise Diverged(next(text for text in all_gather(reason) if text is not None))


def _all_reduce(values: Sequence[Any], dtype: torch.dtype, how: Any) -> list[Any]:
    tensor = torch.tensor(values, dtype=dtype)
    with _connection_errors():
        dist.all_reduce(tensor, how)
    return tensor.tolist()


@contextlib.contextmanager
def _connection_errors() -> Iterator[None]:
    """One line for what gloo and nccl raise where another process has died."""
    try:
        yield
    except RuntimeError as error:
        reason, *_ = str(error).split(". ")
        raise ConnectionError(f"another process of this run has ended ({reason})") from error

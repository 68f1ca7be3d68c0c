"""Data-parallel training in several processes started by torchrun: each process takes its shard of every batch.

Each process holds the whole model, and knows the order of all data. The processes communicate only through the
functions here, which do nothing if there is only one process. Only rank 0 evaluates, writes the record and prints.

Gradients are averaged explicitly after the backward pass. DistributedDataParallel cannot do this: its hooks expect each
parameter once per pass. That is wrong for a field that a solver calls many times, for the backward passes inside the
adjoint, and for models with two solves.
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

# Long, because the other ranks wait while rank 0 evaluates. If a process dies, its closed connection shows it at once.
_TIMEOUT = timedelta(days=1)


def world_size() -> int:
    """Return the number of processes that train together."""
    return _environment_int("WORLD_SIZE", 1)


def rank() -> int:
    """Return the index of this process, from 0."""
    return _environment_int("RANK", 0)


def local_rank() -> int:
    """Return the index of this process among those on this machine, from 0."""
    return _environment_int("LOCAL_RANK", 0)


def _environment_int(name: str, default: int) -> int:
    # Some clusters set these variables for other purposes, so they count only under torchrun.
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else default


def is_rank_zero() -> bool:
    """Whether this process has rank 0: it evaluates, writes and prints."""
    return rank() == 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connect the processes inside the block: by nccl for GPUs, else by gloo. Ranks other than 0 log failures only."""
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
        sys.exit(2 if isinstance(error, UsageError) else 1)  # rank 0 has printed the reason
    dist.destroy_process_group()


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let rank 0 run the block before the others, for example to download data for all."""
    if world_size() > 1 and not is_rank_zero():
        barrier()
    yield
    if world_size() > 1 and is_rank_zero():
        barrier()


def shard_batch(batch: Any, batch_size: int) -> Any:
    """Return this process's rows of a global batch.

    batch: tensors [batch_size, ...] in a tuple, or an object with a method ``rows`` that selects rows.
    """
    if world_size() == 1:
        return batch
    num = batch_size // world_size()
    rows = slice(rank() * num, (rank() + 1) * num)
    return batch.rows(rows) if hasattr(batch, "rows") else tree_map(lambda x: x[rows], batch)


def seed_step(seed: int, step: int) -> None:
    """Seed this process for an optimiser step. The seed depends only on ``seed``, the step and the rank.

    Rank 0 is not seeded: it keeps its random state, which checkpoints contain.
    """
    if not is_rank_zero():
        torch.manual_seed(int(np.random.SeedSequence((seed, step, rank())).generate_state(1)[0]))


def broadcast_result(make: Callable[[], T]) -> T:
    """Call ``make()`` on rank 0 and return its result on all ranks."""
    if world_size() == 1:
        return make()
    box = [make() if is_rank_zero() else None]
    with _connection_errors():
        dist.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    values = [value] * world_size()
    if world_size() > 1:
        with _connection_errors():
            dist.all_gather_object(values, value)
    return values


def reduce_max(*values: Any) -> list[Any]:
    """Return the maximum of each value over the processes. A flag is then set if it is set in any process."""
    return list(values) if world_size() == 1 else _all_reduce(values, torch.int64, dist.ReduceOp.MAX)


def barrier() -> None:
    """Wait until all processes have reached this call."""
    reduce_max(0)


def reduce_mean(metrics: dict[str, float]) -> dict[str, float]:
    """Return the mean of each metric over the processes. All must pass the same names in the same order."""
    if world_size() == 1 or not metrics:
        return metrics
    sums = _all_reduce(list(metrics.values()), torch.float64, dist.ReduceOp.SUM)
    return dict(zip(metrics, (total / world_size() for total in sums), strict=True))


def broadcast_model(model: nn.Module) -> None:
    """Copy weights and buffers of rank 0 to all ranks."""
    if world_size() > 1:
        with _connection_errors(), torch.no_grad():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over the processes. Shards have equal sizes, so it is the global batch's."""
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
    """If one process raises Diverged inside the block, raise it in all processes."""
    reason = None
    try:
        yield
    except Diverged as error:
        reason = str(error)
        if world_size() == 1:
            raise
    if world_size() > 1 and any(reduce_max(reason is not None)):
        raise Diverged(next(text for text in all_gather(reason) if text is not None))


def _all_reduce(values: Sequence[Any], dtype: torch.dtype, operation: Any) -> list[Any]:
    tensor = torch.tensor(values, dtype=dtype)
    with _connection_errors():
        dist.all_reduce(tensor, operation)
    return tensor.tolist()


@contextlib.contextmanager
def _connection_errors() -> Iterator[None]:
    """Convert errors of gloo and nccl to a ConnectionError of one line. They raise them if another process has died."""
    try:
        yield
    except RuntimeError as error:
        reason, *_ = str(error).split(". ")
        raise ConnectionError(f"another process of this run has ended ({reason})") from error

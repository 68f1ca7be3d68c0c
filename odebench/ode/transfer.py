"""Numbers between the host and a device: coefficients are copied once, other numbers without waiting for the device."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


# Cached over solves: an adjoint with many output times consists of many short solves.
@functools.lru_cache(maxsize=1024)
def constant(numbers: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The coefficients of a method as a tensor; callers share it and must not write to it."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


def queued(numbers: Sequence[Any], like: Tensor) -> Tensor:
    """Numbers as a tensor with dtype and device of ``like``. The copy is queued on the device: the host goes on."""
    return torch.tensor(numbers, dtype=like.dtype, device="cpu").to(like.device, non_blocking=True)


def store_times(tensors: Sequence[Tensor], times: Sequence[float]) -> None:
    """Let each scalar tensor keep its time on the host, too, for ``read_time``."""
    for tensor, time in zip(tensors, times, strict=True):
        tensor.__dict__["time_on_host"] = time


def read_time(t: Tensor) -> float:
    """The value of a scalar tensor; waits for its device only if ``store_times`` has not been called for it."""
    if "time_on_host" not in t.__dict__:
        return t.item()
    return torch.tensor(t.__dict__["time_on_host"], dtype=t.dtype, device="cpu").item()  # rounded to t's dtype

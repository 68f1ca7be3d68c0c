"""Transfer of numbers between the host and a device.

Coefficients are copied only once. Other numbers are copied without waiting for the device.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


# Cached over solves: an adjoint with many output times consists of many short solves.
@functools.lru_cache(maxsize=1024)
def constant(numbers: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the coefficients of a method as a tensor. Callers share this tensor and must not write to it."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


def queued(numbers: Sequence[Any], like: Tensor) -> Tensor:
    """Return numbers as a tensor with dtype and device of ``like``, without waiting for the copy to the device."""
    return torch.tensor(numbers, dtype=like.dtype, device="cpu").to(like.device, non_blocking=True)


def store_times(tensors: Sequence[Tensor], times: Sequence[float]) -> None:
    """Store the value of each scalar tensor on the host as well, for ``read_time``."""
    for tensor, time in zip(tensors, times, strict=True):
        tensor.__dict__["time_on_host"] = time


def read_time(t: Tensor) -> float:
    """Return the value of a scalar tensor. Waits for its device only if ``store_times`` was not called for it."""
    if "time_on_host" not in t.__dict__:
        return t.item()
    return torch.tensor(t.__dict__["time_on_host"], dtype=t.dtype, device="cpu").item()  # rounded to t's dtype

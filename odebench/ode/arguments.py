"""Conversion of a user's numbers and times. Each error message is one line and names the argument."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from odebench.ode.torch_func import needs_derivative, to_list, under_vmap

# float() would take some of them.
_NO_NUMBERS = (str, bytes, bool, type(None))


def as_number(name: str, value: Any) -> float:
    """Convert a Python or NumPy number, or a tensor of one element, to a float. Raises TypeError for anything else."""
    if not isinstance(value, _NO_NUMBERS):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"{name} must be a number, got {short_repr(value)}")


def as_positive(name: str, value: Any) -> float:
    """Convert with ``as_number``. Raises ValueError unless the number is greater than zero."""
    x = as_number(name, value)
    if not x > 0:
        raise ValueError(f"{name} must be positive, got {x:g}")
    return x


def as_positive_integer(name: str, value: Any) -> int:
    """Convert with ``as_positive``. Raises ValueError unless the number is whole."""
    if type(value) is int and value > 0:
        return value
    x = as_positive(name, value)
    if not x.is_integer():
        raise ValueError(f"{name} must be a whole number, got {x:g}")
    return int(x)


def as_flag(name: str, value: Any) -> bool:
    """Return a bool unchanged. Raises TypeError for anything else, since most objects count as True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {short_repr(value)}")
    return value


def as_finite_times(name: str, values: Any) -> tuple[float, ...]:
    """Convert a list of times or a tensor [M] to finite floats.

    Raises ValueError for times of ``jump_t`` that require a gradient, since it is not computed. The result does not
    depend on the times of ``step_t``, which may require a gradient.
    """
    tensors = values if isinstance(values, list | tuple) else [values]
    if not tensors:
        return ()
    if name == "jump_t" and any(isinstance(x, Tensor) and needs_derivative(x) for x in tensors):
        raise ValueError(
            "jump_t requires a gradient, which is not computed; pass jump_t.detach(), or make two solves, one up to "
            "the jump and one from it, each with its own f and with the time of the jump in t"
        )
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a list of times, got {short_repr(values)}")
    times = tuple(as_number(f"each time of {name}", value) for value in values)
    if not all(map(math.isfinite, times)):
        raise ValueError(f"{name} must be finite, got {times}")
    return times


def times_as_tensor(t: Any) -> Tensor:
    """Return the times as one tensor, which is float64 if they were a list. Raises TypeError if they are not numbers,
    and ValueError if they are batched by ``torch.func.vmap``."""
    if isinstance(t, Tensor):
        if under_vmap(t):
            raise ValueError(
                "t differs between the samples of torch.func.vmap, which hides its values; solve the whole batch with "
                "stepping='per_sample' and t [B, T]"
            )
        return t
    if not hasattr(t, "__iter__") or isinstance(t, str | dict | set):
        raise TypeError(f"t must be a tensor or a list of two or more times, got {short_repr(t)}")
    t = list(t)
    try:
        if any(isinstance(time, Tensor) for time in t):
            return torch.stack([torch.as_tensor(time, dtype=torch.float64) for time in t])
        return torch.tensor(t, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"t must be a tensor or a list of numbers, got {short_repr(t)}") from error


def check_times(t: Tensor) -> list[float]:
    """Return the times [T] as floats. Raises ValueError unless they are strictly increasing or decreasing."""
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"t must hold real times, got {t.dtype}")
    if t.dim() != 1 or t.numel() < 2:
        raise ValueError(f"t must hold two or more times in one dimension, got shape {tuple(t.shape)}")
    times: list[float] = to_list(t)
    if not all(map(math.isfinite, times)):
        raise ValueError("t must be finite")
    if times not in (increasing := sorted(set(times)), increasing[::-1]):
        raise ValueError("t must be strictly increasing or strictly decreasing")
    return times


def short_repr(value: Any) -> str:
    """Return a short form of a value for error messages."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"


def as_compile(value: Any) -> bool | Literal["solve"]:
    """Check the argument ``compile`` and return it, with True for "step"."""
    if value in ("step", "solve"):
        return "solve" if value == "solve" else True
    if not isinstance(value, bool):
        raise TypeError(f"compile must be True or False, 'step' or 'solve', got {short_repr(value)}")
    return value

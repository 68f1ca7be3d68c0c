"""The numbers and times of a user, as the engine takes them; one line, by the argument's name, for what is none."""

import math
from typing import Any

from torch import Tensor


class TooManyStepsError(ValueError):
    """Fixed steps that are more than ``max_steps`` over the times asked for."""


def as_number(name: str, value: Any) -> float:
    """A number, of Python's, of NumPy's, or a tensor of one element; TypeError for anything else."""
    if not isinstance(value, str | bytes | bool | None):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"{name} must be a number, got {short_repr(value)}")


def as_positive(name: str, value: Any) -> float:
    """The same above zero; ValueError for others, NaN among them."""
    x = as_number(name, value)
    if not x > 0:
        raise ValueError(f"{name} must be positive, got {x:g}")
    return x


def as_positive_integer(name: str, value: Any) -> int:
    """The same without a fraction."""
    x = as_positive(name, value)
    if not x.is_integer():
        raise ValueError(f"{name} must be a whole number, got {x:g}")
    return int(x)


def as_finite_times(name: str, values: Any) -> tuple[float, ...]:
    """Finite times from a list of them or a tensor [M]."""
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a list of times, got {short_repr(values)}")
    found = tuple(as_number(f"each time of {name}", value) for value in values)
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name} must be finite, got {found}")
    return found


def short_repr(value: Any) -> str:
    """A value in an error's one line."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"

"""Conversion of a user's numbers and times. Each error message is one line and names the argument."""

import math
from typing import Any

from torch import Tensor

from odebench.ode.torch_func import needs_derivative

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


def short_repr(value: Any) -> str:
    """Return a short form of a value for error messages."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"

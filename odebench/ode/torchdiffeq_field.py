"""The vector field of a drop-in call, whose results are converted as torchdiffeq converts them."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odebench.ode.compiled.field import modules_of


class CoercedField(nn.Module):
    """A wrapper of func that converts those results that torchdiffeq accepts to the shapes and dtype of the state.

    These are results of another dtype, tensors of a tuple in another shape with the same number of elements, and a
    tensor whose shape broadcasts to that of the state.
    """

    def __init__(
        self, func: Callable[..., Any], is_tuple: bool, like: tuple[tuple[torch.Size, torch.dtype], ...]
    ) -> None:
        super().__init__()
        self.func, self._tuple, self._like = func, is_tuple, like

    def forward(self, t: Tensor, y: Any) -> Any:
        """Return dy/dt in the structure, shapes and dtype of y, if possible; InitialValueProblem refuses the rest."""
        rate = self.func(t, y)
        if self._tuple:
            tensors = isinstance(rate, tuple | list) and all(isinstance(part, Tensor) for part in rate)
            if not tensors or len(rate) != len(self._like):
                return rate
            # torchdiffeq joins the tensors into one vector: a single number broadcasts to it.
            broadcast = len(rate) == 1 and rate[0].numel() == 1
            return tuple(_coerce(part, *like, True, broadcast) for part, like in zip(rate, self._like, strict=True))
        return _coerce(rate, *self._like[0], False, True) if isinstance(rate, Tensor) else rate


@functools.lru_cache(maxsize=64)
def compiled_field(func: Callable[..., Any], *like: Any) -> CoercedField:
    """Make a field that also owns the modules that func refers to, whose parameters a compiled solve has as inputs."""
    field = CoercedField(func, *like)
    field.referenced = nn.ModuleList([] if isinstance(func, nn.Module) else modules_of([func]))
    return field


def _coerce(rate: Tensor, shape: torch.Size, dtype: torch.dtype, by_elements: bool, broadcast: bool) -> Tensor:
    if by_elements and rate.shape != shape and rate.numel() == shape.numel():
        rate = rate.reshape(shape)
    elif broadcast and rate.shape != shape and _broadcasts(rate.shape, shape):
        rate = rate.view(rate.shape[max(0, rate.dim() - len(shape)) :]).expand(shape)
    return rate if rate.dtype == dtype or rate.is_complex() else rate.to(dtype)


def _broadcasts(small: torch.Size, large: torch.Size) -> bool:
    """Return whether ``small`` broadcasts to ``large``, which may have fewer dimensions if the first ones are 1."""
    return all(s in (1, n) for s, n in itertools.zip_longest(reversed(small), reversed(large), fillvalue=1))

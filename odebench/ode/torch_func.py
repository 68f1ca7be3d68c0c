"""Checks of solves inside ``torch.func`` (grad, jvp, vmap, ...) and forward-mode differentiation.

Both differentiate only torch's own operations: hand-written steps and backward passes would lose derivatives.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def under_vmap(x: Tensor) -> bool:
    """Return whether x is batched by ``torch.func.vmap``, so that its values cannot be read."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def needs_derivative(x: Tensor) -> bool:
    """Return whether a derivative with respect to x is needed: in forward mode, or in reverse mode with autograd on."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def transform_active() -> bool:
    """Return whether torch.func or forward-mode differentiation is active.

    In this case the results of f are wrapped tensors, which cannot be stored in a buffer that was allocated before.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def to_list(x: Tensor) -> Any:
    """Do what ``x.tolist()`` does, also under torch.func with older versions of torch."""
    try:
        return x.tolist()
    except RuntimeError:
        return [to_list(part) for part in x] if x.dim() else x.item()


class _NestedAutocast:
    """Only keep autocast's cache for contexts inside f, as every context of autocast does."""

    def __enter__(self) -> None:
        torch.autocast_increment_nesting()

    def __exit__(self, *_: object) -> None:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


_NESTED_AUTOCAST = _NestedAutocast()


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Do what ``torch.autocast(device_type, enabled=False)`` does, which takes as long as some steps of a small f."""
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else _NESTED_AUTOCAST


def has_saved_tensor_hooks() -> bool:
    """Return whether hooks process saved tensors, for example to measure memory; torch.func does not support them."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(""):
            return False
    except RuntimeError:
        return True


def check_mode_under_transform(name: str) -> None:
    """Raise ValueError if a gradient mode has a hand-written backward pass; name: the name of the mode."""
    if name != "backprop" and torch.is_grad_enabled():
        raise ValueError(
            f"gradient={name!r} does not support torch.func and forward-mode differentiation, which do not see its "
            "backward pass; use gradient='backprop' (odeint), or torch.autograd.grad around the solve"
        )

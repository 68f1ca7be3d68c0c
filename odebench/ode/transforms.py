"""Solves inside ``torch.func`` (grad, jvp, vmap, ...) and forward-mode differentiation, which look into torch's own
operations alone: what is written by hand, steps or backward passes, would lose derivatives there."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def under_vmap(x: Tensor) -> bool:
    """Whether x stands for many tensors inside ``torch.func.vmap``, so that its numbers cannot be read."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def needs_derivative(x: Tensor) -> bool:
    """Whether a derivative with respect to x is wanted: backward, where gradients are on, or forward."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def transform_active() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: then what f gives may hold more than memory made
    before has room for."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def check_mode_under_transform(name: str) -> None:
    """Raises ValueError for a gradient mode, by its name, whose backward pass is written by hand."""
    if name != "backprop" and torch.is_grad_enabled():
        raise ValueError(
            f"gradient={name!r} does not go under torch.func and forward-mode differentiation, which do not see its "
            "backward pass; use gradient='backprop' (odeint), or torch.autograd.grad around the solve"
        )

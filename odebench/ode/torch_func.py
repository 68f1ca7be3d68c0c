"""Solves inside ``torch.func`` (grad, jvp, vmap, ...) and forward-mode differentiation.

These differentiate torch's own operations only: hand-written steps and backward passes would lose derivatives.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def under_vmap(x: Tensor) -> bool:
    """Whether x is batched by ``torch.func.vmap``, so that its values cannot be read."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def needs_derivative(x: Tensor) -> bool:
    """Whether a derivative with respect to x is needed, in reverse mode with gradients enabled or in forward mode."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def transform_active() -> bool:
    """Whether torch.func or forward-mode differentiation is active.

    Then a result of f, a wrapped tensor, does not fit into a buffer that was allocated before.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def has_saved_tensor_hooks() -> bool:
    """Whether hooks process saved tensors, to measure memory or to offload it: torch.func supports none."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(""):
            return False
    except RuntimeError:
        return True


def check_mode_under_transform(name: str) -> None:
    """Raise ValueError for a gradient mode with a hand-written backward pass, given its name."""
    if name != "backprop" and torch.is_grad_enabled():
        raise ValueError(
            f"gradient={name!r} does not support torch.func and forward-mode differentiation, which do not see its "
            "backward pass; use gradient='backprop' (odeint), or torch.autograd.grad around the solve"
        )

"""Gradients that raise an error when they are differentiated again."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odebench.ode.torch_func import transform_active


class _RaiseOnBackward(torch.autograd.Function):
    """Return the first ``count`` tensors; raise an error when they are differentiated."""

    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(ctx.message)


def once_differentiable(
    backward: Callable[..., Any],
    message: str = "this gradient cannot be differentiated again; use gradient='backprop' with an explicit method",
) -> Callable[..., Any]:
    """Decorate a backward pass, so that differentiating its gradients with respect to a saved tensor raises an error.

    torch's own once_differentiable raises an error only if the incoming gradient is differentiated. With a linear loss,
    a second derivative would be zero without any error.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            outputs = list(backward(ctx, *gradients))
        if not torch.is_grad_enabled():
            return tuple(outputs)
        sources = [x for x in (*ctx.saved_tensors, *gradients) if isinstance(x, Tensor) and x.requires_grad]
        present = [i for i, output in enumerate(outputs) if output is not None]
        guarded = _RaiseOnBackward.apply(message, len(present), *(outputs[i] for i in present), *sources)
        for i, output in zip(present, guarded, strict=True):
            outputs[i] = output
        return tuple(outputs)

    return wrapper


class _DifferentiableOnce(torch.autograd.Function):
    """Return the tensor; its gradient cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor]:
        return (gradient,)

    backward = staticmethod(
        once_differentiable(
            _backward,
            "the derivatives of an event's time and state, and with respect to t, cannot be differentiated again",
        )
    )


def first_derivative_only(x: Tensor) -> Tensor:
    """Return x such that only its first derivatives can be computed.

    Multiply the result by a factor that is held constant. First derivatives are then right. Second derivatives would
    ignore the factor, and so raise an error. Under ``torch.func``, which allows no such error, x itself is returned.
    """
    return x if transform_active() or not x.requires_grad else _DifferentiableOnce.apply(x)

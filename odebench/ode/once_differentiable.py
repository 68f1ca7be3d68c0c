"""Gradients that can be taken once, and say so where they are to be differentiated again."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odebench.ode.transforms import transform_active


class _RaiseOnBackward(torch.autograd.Function):
    """The first ``count`` tensors as they are; raises where they are differentiated."""

    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(ctx.message)


def once_differentiable(
    backward: Callable[..., Any],
    message: str = "this gradient is differentiable once; use gradient='backprop' with an explicit method",
) -> Callable[..., Any]:
    """A backward pass whose gradients refuse to be differentiated with respect to any saved tensor.

    torch's once_differentiable refuses along the incoming gradient alone: behind a linear loss, a second derivative
    would silently be zero.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            outputs = list(backward(ctx, *gradients))
        if not torch.is_grad_enabled():
            return tuple(outputs)
        sources = [x for x in (*ctx.saved_tensors, *gradients) if isinstance(x, Tensor) and x.requires_grad]
        given = [i for i, output in enumerate(outputs) if output is not None]
        refusing = _RaiseOnBackward.apply(message, len(given), *(outputs[i] for i in given), *sources)
        for i, output in zip(given, refusing, strict=True):
            outputs[i] = output
        return tuple(outputs)

    return wrapper


class _DifferentiableOnce(torch.autograd.Function):
    """A tensor as it is; its gradient is differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor]:
        return (gradient,)

    backward = staticmethod(
        once_differentiable(
            _backward, "the derivatives of an event's time and state, and with respect to t, are differentiable once"
        )
    )


def first_derivative_only(x: Tensor) -> Tensor:
    """x as a factor whose other one is held constant: first derivatives are right, second ones would silently lack what
    the other one moves with, and are refused. Under ``torch.func``, which has no way to refuse, x itself."""
    return x if transform_active() or not x.requires_grad else _DifferentiableOnce.apply(x)

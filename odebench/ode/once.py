"""Gradients that can be taken once, and say so where they are to be differentiated again."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Refusal(torch.autograd.Function):
    """The first ``count`` tensors as they are; raises where they are differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        raise RuntimeError("this gradient is differentiable once; use gradient='backprop' with an explicit method")


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
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
        refusing = _Refusal.apply(len(given), *(outputs[i] for i in given), *sources)
        for i, output in zip(given, refusing, strict=True):
            outputs[i] = output
        return tuple(outputs)

    return wrapper

"""The loop back over the stored steps, as a graph: the exact gradient of the steps, with f evaluated again."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vjp

from odebench.ode.compiled.field import FieldModule, rate_of_inputs
from odebench.ode.compiled.forward import LoopStages
from odebench.ode.compiled.graph import loop
from odebench.ode.methods.compiled_step import weighted_sum
from odebench.ode.methods.tableau import Tableau
from odebench.ode.problem import StateLayout


def make_backward(
    module: FieldModule,
    layout: StateLayout,
    method: Tableau,
    inner: bool,
    names: tuple[str, ...],
    arg_idx: tuple[int, ...],
) -> Callable[..., tuple[Tensor, ...]]:
    """The function ``backward`` below. inner: as in ``make_forward``; names: of the parameters and arg_idx: the
    positions of the arguments that get gradients."""
    stages = LoopStages.of(method, inner)
    _ = layout.is_tensor, layout.is_tuple, layout.view_shape

    def backward(
        n: Tensor,
        grad_y: Tensor,
        grad_k: Tensor,
        steps: Tensor,
        kept: Tensor,
        grad_kept: Tensor | None,
        parameters: list[Tensor],
        args: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """The gradients of y and f at the start of the first of n stored steps, then of the parameters and arguments.

        n: int64. grad_y, grad_k: those of y and f [N] at the end of the last step.
        steps, kept: as stored by ``solve``. grad_kept: like kept, the gradients from outputs inside the steps.
        """
        inputs = [*parameters, *(args[i] for i in arg_idx)]

        def vjp_of_field(t: Tensor, y: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
            return vjp(rate_of_inputs(module, layout, names, arg_idx, t, args), y, *inputs)[1](gradient)

        def is_left(i: Tensor, *carried: Tensor) -> Tensor:
            return i >= 0

        def step_back(i: Tensor, grad_end: Tensor, grad_next: Tensor, *totals: Tensor) -> tuple[Tensor, ...]:
            idx = i.reshape(1)
            t, h, _, _ = steps.index_select(0, idx)[0].unbind()
            y, *ks = kept.index_select(0, idx)[0].unbind()
            h_y = h.to(y.dtype)
            grad_start, *grads = [torch.zeros_like(y)] * (len(stages.c) + 1)
            if grad_kept is not None:
                grad_start, *grads = grad_kept.index_select(0, idx)[0].unbind()
            grads[stages.end] = grads[stages.end] + grad_next
            for j in range(len(stages.c) - 1, 0, -1):
                y_j = y + h_y * weighted_sum(stages.a[j], ks)
                grad_j, *parts = vjp_of_field((t + stages.c[j] * h).to(y.dtype), y_j, grads[j])
                if j == stages.end:  # y at the end of the step is this stage's argument
                    grad_j = grad_j + grad_end
                grad_start = grad_start + grad_j
                for m, weight in enumerate(stages.a[j]):
                    if weight:
                        grads[m] = grads[m] + h_y * weight * grad_j
                totals = tuple(total + part for total, part in zip(totals, parts, strict=True))
            return i - 1, grad_start.clone(), grads[0].clone(), *totals

        zeros = [torch.zeros_like(x) for x in inputs]
        _, *gradients = loop(is_left, step_back, (n - 1, grad_y.clone(), grad_k.clone(), *zeros))
        return tuple(gradients)

    return backward

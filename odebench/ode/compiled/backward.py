"""The loop back over the stored steps, as a graph: the exact gradient of the steps, with f evaluated again."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vjp

from odebench.ode.compiled.field import FieldModule, GraphField, rate_of_inputs, slots_of
from odebench.ode.compiled.forward import LoopStages
from odebench.ode.compiled.graph import loop
from odebench.ode.methods.compiled_step import weighted_sum
from odebench.ode.methods.tableau import Tableau


def make_backward(
    field: GraphField,
    module: FieldModule,
    method: Tableau,
    inner: bool,
    names: tuple[str, ...],
    arg_idx: tuple[int, ...],
) -> Callable[..., tuple[Tensor, ...]]:
    """The function ``backward`` below.

    module: f as a module. inner: as in ``make_forward``. names: of the parameters and arg_idx: the positions of the
    arguments that get gradients.
    """
    stages, layout, slots = LoopStages.of(method, inner), field.layout, slots_of(module, names)

    def backward(
        n: Tensor,
        span: Tensor,
        times: Tensor,
        grad_states: Tensor,
        grad_y: Tensor,
        output_weights: list[Tensor],
        steps: Tensor,
        kept: Tensor,
        parameters: list[Tensor],
        args: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """The gradients of y at the start of the first of n stored steps, then of the parameters and arguments.

        n: int64. span [2]: the times where the steps start and end. times [T], steps, kept: of ``solve``.
        grad_states [T, N]: of the output states. grad_y [N]: of y at the end, except that of an output there.
        output_weights: those that ``solve`` returned.
        """
        inputs = [*parameters, *(args[i] for i in arg_idx)]
        start, end = span.unbind()
        direction = torch.sign(end - start)

        def gradient_at(time: Tensor) -> Tensor:
            return torch.where((times == time).unsqueeze(1), grad_states, 0.0).sum(0)

        def vjp_of_field(t: Tensor, y: Tensor, inward: Tensor | None, gradient: Tensor) -> tuple[Tensor, ...]:
            time = field.time(t, y, inward)
            return vjp(rate_of_inputs(module, layout, slots, arg_idx, time, args), y, *inputs)[1](gradient)

        grad_kept = None
        if inner:
            grad_inside = torch.where((times != end).unsqueeze(1), grad_states, 0.0)
            grad_kept = gradient_of_kept(grad_inside, output_weights, kept)

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
                inward = {0.0: direction, 1.0: -direction}.get(stages.c[j])
                grad_j, *parts = vjp_of_field(t + stages.c[j] * h, y_j, inward, grads[j])
                if j == stages.end:  # y at the end of the step is this stage's argument
                    grad_j = grad_j + grad_end
                grad_start = grad_start + grad_j
                for m, weight in enumerate(stages.a[j]):
                    if weight:
                        grads[m] = grads[m] + h_y * weight * grad_j
                totals = tuple(total + part for total, part in zip(totals, parts, strict=True))
            return i - 1, grad_start.clone(), grads[0].clone(), *totals

        zeros = [torch.zeros_like(x) for x in inputs]
        _, grad_y, grad_k, *totals = loop(
            is_left, step_back, (n - 1, grad_y + gradient_at(end), torch.zeros_like(grad_y), *zeros)
        )
        # The first stage of the first step.
        grad_0, *parts = vjp_of_field(start, kept[0, 0], direction, grad_k)
        # A later start is also the end of the steps before, which have this gradient already.
        grad_y = grad_y + grad_0 + torch.where(start == times[0], gradient_at(start), 0.0)
        return grad_y, *(total + part for total, part in zip(totals, parts, strict=True))

    return backward


def gradient_of_kept(grad_states: Tensor, output_weights: list[Tensor], kept: Tensor) -> Tensor:
    """The gradient of y and the stages of each step, in the shape of kept, from that of output states [T, N]."""
    idx, weight, inside = output_weights
    grad_inside = torch.where(inside.unsqueeze(1), grad_states, 0.0)
    weighted = weight.unsqueeze(2) * grad_inside.unsqueeze(1)
    weighted = torch.nn.functional.pad(weighted, (0, 0, 0, kept.shape[1] - weight.shape[1]))
    return torch.zeros_like(kept).index_add(0, idx, weighted)

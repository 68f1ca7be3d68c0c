"""The loop over the steps of a given grid and the loop back over them, as graphs that torch compiles."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vjp

from odebench.ode.compiled.field import FieldModule, GraphField, rate_of_inputs, slots_of
from odebench.ode.compiled.graph import loop
from odebench.ode.methods.compiled_step import weighted_sum
from odebench.ode.methods.tableau import Tableau


def make_fixed_forward(field: GraphField, method: Tableau) -> Callable[..., Tensor]:
    """The function ``solve`` below."""
    layout = field.layout

    def solve(n: Tensor, grid: Tensor, y: Tensor, args: list[Tensor], path: Tensor, slopes: Tensor | None) -> Tensor:
        """The state [N] after n steps from y [N].

        n: int64. grid [rows + 1]: the steps go from each time to the next, float64.
        path [rows, N]: overwritten with the state at the start of each step.
        slopes [rows, 3, N]: overwritten with the slopes of each step's ``HERMITE`` interpolation. No jump may lie
            between the steps then.
        """
        steps = torch.stack([grid[:-1], grid[1:]], dim=1)
        direction = torch.sign(grid[1] - grid[0])

        def rate(t: Tensor, y: Tensor) -> Tensor:
            return layout.evaluate_flat(field.f, t, y, args)

        def is_left(i: Tensor, *carried: Tensor) -> Tensor:
            return i < n

        def step(i: Tensor, y: Tensor, *k: Tensor) -> tuple[Tensor, ...]:
            row = (i.reshape(1),)
            t, t_next = steps.index_select(0, *row)[0].unbind()
            # Not by path[i] = ..., which inductor does not lower in a loop.
            path.index_put_(row, y.unsqueeze(0))
            y_next = take_step(field, method, rate, t, t_next, y, *k)
            if slopes is None:
                return i + 1, y_next
            k_next = field.at(t_next, y_next, args, -direction)
            mean = (y_next - y) / (t_next - t).to(y.dtype)
            slopes.index_put_(row, torch.stack([*k, k_next, mean]).unsqueeze(0))
            return i + 1, y_next, k_next

        first = () if slopes is None else (field.at(grid[0], y, args, direction).clone(),)
        return loop(is_left, step, (torch.zeros_like(n), y.clone(), *first))[1]

    return solve


def make_fixed_backward(
    field: GraphField,
    module: FieldModule,
    method: Tableau,
    names: tuple[str, ...],
    arg_idx: tuple[int, ...],
    moves: bool,
) -> Callable[..., tuple[Tensor, ...]]:
    """The function ``backward`` below.

    module: f as a module. names: of the parameters and arg_idx: the positions of the arguments that get gradients.
    moves: whether the times of the grid get gradients.
    """
    layout, slots = field.layout, slots_of(module, names)

    def backward(
        n: Tensor,
        grid: Tensor,
        path: Tensor,
        grad_y: Tensor,
        grad_path: Tensor | None,
        parameters: list[Tensor],
        args: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """The gradients of the state at the first of n steps, of the ends of each step [rows, 2] if the grid moves, of
        parameters and arguments.

        n, grid, path: as in ``solve``. grad_y: [N], that of the state after the last step. grad_path: that of ``path``.
        """
        steps = torch.stack([grid[:-1], grid[1:]], dim=1)
        inputs = [*parameters, *(args[i] for i in arg_idx)]

        def is_left(i: Tensor, *carried: Tensor) -> Tensor:
            return i >= 0

        def step_back(i: Tensor, grad_y: Tensor, *totals: Tensor) -> tuple[Tensor, ...]:
            row = i.reshape(1)
            ends, y = steps.index_select(0, row)[0].unbind(), path.index_select(0, row)[0]

            def step(y: Tensor, *inputs: Tensor) -> Tensor:
                t, t_next = inputs[:2] if moves else ends
                values = inputs[2:] if moves else inputs

                def rate(t: Tensor, y: Tensor) -> Tensor:
                    return rate_of_inputs(module, layout, slots, arg_idx, t, args)(y, *values)

                return take_step(field, method, rate, t, t_next, y)

            grad_y, *parts = vjp(step, y, *(ends if moves else ()), *inputs)[1](grad_y)
            if moves:
                grad_ends = torch.stack(parts[:2]).unsqueeze(0)
                parts = [torch.zeros_like(steps).index_add(0, row, grad_ends), *parts[2:]]
            if grad_path is not None:
                grad_y = grad_y + grad_path.index_select(0, row)[0]
            return i - 1, grad_y.clone(), *(total + part for total, part in zip(totals, parts, strict=True))

        zeros = [torch.zeros_like(x) for x in (*([steps] if moves else []), *inputs)]
        return tuple(loop(is_left, step_back, (n - 1, grad_y.clone(), *zeros))[1:])

    return backward


def take_step(
    field: GraphField,
    method: Tableau,
    rate: Callable[[Tensor, Tensor], Tensor],
    t: Tensor,
    t_next: Tensor,
    y: Tensor,
    *first: Tensor,
) -> Tensor:
    """The state [N] at t_next after a step from y [N] at t.

    rate: f(t, y) [N] at a time from ``field.time``. first: the first stage [N], if it was evaluated already.
    """
    h = t_next - t
    h_y = h.to(y.dtype)
    ks = [*first]
    for c, row in zip(method.c[len(ks) :], method.a[len(ks) :], strict=True):
        time = (t + c * h).to(y.dtype)
        if field.one_sided and c in (0.0, 1.0):
            inside = field.time(time.detach(), y, (1 - 2 * c) * torch.sign(h.detach()))
            # With the derivative of the time itself, as nextafter has none.
            time = time + (inside - time).detach()
        ks.append(rate(time, y + h_y * weighted_sum(row, ks) if any(row) else y))
    return y + h_y * weighted_sum(method.b, ks)

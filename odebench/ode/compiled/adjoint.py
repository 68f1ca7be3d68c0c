"""The backward solve of the continuous adjoint as a graph: one loop over the steps of all intervals between times.

The equations and the step sizes are those of ``odebench.ode.gradients.adjoint``.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from odebench.ode.compiled.field import Field, FieldModule, rate_of_inputs, slots_of
from odebench.ode.compiled.graph import loop
from odebench.ode.compiled.step_control import (
    STEP_COLUMNS,
    LoopState,
    StepBounds,
    fit_step,
    next_step,
)
from odebench.ode.control import Controller, LargestRms
from odebench.ode.methods.compiled_step import weighted_sum
from odebench.ode.methods.tableau import Tableau

# Steps that the table for statistics holds; a longer solve enters the loop again.
STORED_STEPS = 64


class AdjointChoices(NamedTuple):
    """What distinguishes the graphs of one field's backward solves.

    norm: of the error of the backward state: y [N], the adjoint [N] and, if ``full``, the gradient of each target.
    interpolates: whether y comes from the dense output of the forward solve and is no part of the backward state.
    full: whether the norm measures the gradients of the targets, too. relative, warm_start: see ``BackwardSolve``.
    names: of the parameters and arg_idx: the positions of the arguments that get gradients, the targets.
    """

    method: Tableau
    controller: Controller
    norm: LargestRms
    interpolates: bool
    full: bool
    relative: bool
    warm_start: bool
    names: tuple[str, ...]
    arg_idx: tuple[int, ...]


def make_adjoint(
    field: Field, module: FieldModule, choices: AdjointChoices
) -> Callable[..., tuple[list[Tensor], list[Tensor], Tensor, Tensor]]:
    """The function ``backward`` below."""
    method, controller, arg_idx = choices.method, choices.controller, choices.arg_idx
    error_weights = method.error
    assert error_weights is not None
    # Computing cached properties inside would break the graph.
    layout, slots = field.layout, slots_of(module, choices.names)
    fsal, _ = method.fsal, (layout.is_tensor, layout.is_tuple, layout.view_shape)
    num_states = 1 if choices.interpolates else 2
    full, uses_past = choices.full, bool(controller.proportional or controller.derivative)

    def backward(
        progress: Tensor,
        numbers: Tensor,
        tolerance: Tensor,
        stops: Tensor,
        states: Tensor,
        gradients: Tensor,
        backward_state: list[Tensor],
        totals: list[Tensor],
        parameters: list[Tensor],
        args: list[Tensor],
        path: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Step back to the first time, or until ``STORED_STEPS`` steps are accepted.

        progress: where the solve stands; see ``BackwardProgress``.
        numbers: [4] min_step, max_step, first step, and attempts allowed in an interval.
        tolerance: rtol and atol, [2], or [2, Z] for the Z components of the backward state.
        stops [T, 3]: the times at which steps end, from the first time to the last; 1e-12 of the largest time in the
            interval that ends there; 1 for an output time, else 0. states, gradients: [T, N] y and dL/dy there.
        backward_state: y and the adjoint [N] and, if the norm measures them, the integrals over the interval so far of
            a^T df/dtheta for each target.
        totals: the gradients of the targets, without these integrals. path: see ``CompiledRun.path``; or empty.

        Returns the backward state (at the end, its adjoint is dL/dy at the first time), the totals, the progress, and
        the table of accepted steps [STORED_STEPS, 4], see ``STEP_COLUMNS``.
        """
        # A loop takes no two views of one tensor.
        _, i, _, _, attempts, t, h, _, ratio, *past, scale = (x.clone() for x in progress.unbind())
        min_step, max_step, first_step, max_steps = (x.clone() for x in numbers.unbind())
        times, floors, is_output = (x.clone() for x in stops.unbind(1))
        direction = torch.sign(times[0] - times[1])
        targets = [*parameters, *(args[j] for j in arg_idx)]

        def at(table: Tensor, i: Tensor) -> Tensor:
            return table.index_select(0, i.reshape(1))[0]

        def fit(i: Tensor, t: Tensor, h: Tensor, n: Tensor, attempts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The next step as proposed and as fitted to the end of the interval, and the ``LoopState``."""
            before = (i - 1).clamp(min=0)
            h, step, too_small = fit_step(t, h, at(times, before), StepBounds(min_step, max_step, at(floors, before)))
            state = torch.where(n < STORED_STEPS, int(LoopState.running), int(LoopState.full))
            state = torch.where(attempts < max_steps, state, int(LoopState.max_steps))
            state = torch.where(too_small, int(LoopState.underflow), state)
            return h, step, torch.where(i > 0, state, int(LoopState.finished))

        def start_interval(i: Tensor, a: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """y [N], the adjoint [N] and its scale at time i; a: the adjoint without the gradient of y at this time."""
            y, a = at(states, i), a + at(gradients, i)
            if choices.relative:
                # At the end, the adjoint is the gradient of y at the first time.
                scale = torch.where(i > 0, _size(a), 1.0)
                a = a / scale.to(a.dtype)
            return y, a, scale

        def slopes_of(t: Tensor, signed: Tensor, z: list[Tensor]) -> tuple[list[list[Any]], list[Tensor]]:
            """The slopes at the stages of a step, of y, of the adjoint and of each target, and the last arguments.

            Those of the targets are 0 at stages without weight.
            """
            slopes: list[list[Any]] = [[] for _ in range(num_states + len(targets))]
            ends = z[:num_states]
            for j, row in enumerate(method.a):
                if j:
                    h_y = signed.to(z[0].dtype)
                    ends = [x + h_y * weighted_sum(row, ks) for x, ks in zip(z[:num_states], slopes, strict=False)]
                inward = {0.0: direction, 1.0: -direction}.get(method.c[j])
                time, a = field.time(t + method.c[j] * signed, z[0], inward), ends[-1]
                y = _interpolate(time, direction, *path) if choices.interpolates else ends[0]
                rate = rate_of_inputs(module, layout, slots, arg_idx, time, args)
                weighted = method.b[j] != 0 or (full and error_weights[j] != 0)
                k, pull, *_ = vjp(rate, y, *targets) if weighted else vjp(partial(_rate, rate, targets), y)
                parts: list[Any] = [*([] if choices.interpolates else [k]), *(-part for part in pull(a))]
                if full:
                    parts = [part.to(y.dtype) for part in parts]
                parts += [0.0] * (len(slopes) - len(parts))
                for ks, part in zip(slopes, parts, strict=True):
                    ks.append(part)
            return slopes, ends

        def is_running(state: Tensor, *carried: Tensor) -> Tensor:
            return state == int(LoopState.running)

        def attempt(
            state: Tensor,
            i: Tensor,
            n: Tensor,
            tried: Tensor,
            attempts: Tensor,
            t: Tensor,
            h: Tensor,
            step: Tensor,
            ratio: Tensor,
            scale: Tensor,
            steps: Tensor,
            *carried: Tensor,
        ) -> tuple[Tensor, ...]:
            loop_past, z, totals = _split(carried, 2 * uses_past, num_parts)
            end = at(times, i - 1)
            at_end = step == (end - t).abs()
            signed = direction * step
            h_y = signed.to(z[0].dtype)
            slopes, ends = slopes_of(t, signed, z)
            if not fsal:
                ends = [x + h_y * weighted_sum(method.b, ks) for x, ks in zip(z[:num_states], slopes, strict=False)]
            integrals = [h_y * weighted_sum(method.b, ks) for ks in slopes[num_states:]]
            z_next = [*ends, *(g + integral for g, integral in zip(z[num_states:], integrals, strict=False))]
            errors = [h_y * weighted_sum(error_weights, ks) for ks in slopes[:num_parts]]
            ratio = _error_norm(choices.norm, errors, z, z_next, tolerance)
            accepted = (ratio <= 1) | ((h <= min_step) & (ratio < torch.inf))
            proposal, h_next, next_past = next_step(controller, method.order, h, step, ratio, accepted, loop_past)
            # Not in place: torch cannot compile a loop that both writes to a tensor and differentiates.
            here = torch.arange(STORED_STEPS).unsqueeze(1) == n
            steps = torch.where(here, torch.stack([t, signed, ratio, proposal]), steps)

            arrived = accepted & at_end
            done = arrived & (at(is_output, i - 1) != 0)
            scale_y = scale.to(h_y.dtype)
            if full:
                changes, changed = z_next[num_states:], done
            else:
                changes, changed = integrals, accepted
            totals = [
                torch.where(changed, (x + scale_y * part).to(x.dtype), x)
                for x, part in zip(totals, changes, strict=True)
            ]
            y_end, a_end, next_scale = start_interval(i - 1, scale_y * z_next[num_states - 1], scale)
            starts = [*[y_end, a_end][-num_states:], *map(torch.zeros_like, z[num_states:])]
            z = [torch.where(accepted, x_next, x) for x_next, x in zip(z_next, z, strict=True)]
            z = [torch.where(done, start, x) for start, x in zip(starts, z, strict=True)]
            i_next, n_next = i - arrived.to(torch.int64), n + accepted.to(torch.int64)
            scale, attempts = torch.where(done, next_scale, scale), torch.where(done, 0, attempts + 1)
            t_next = torch.where(accepted, torch.where(at_end, end, t + signed), t)
            h_next = h_next if choices.warm_start else torch.where(done, first_step, h_next)
            h_next, step_next, state = fit(i_next, t_next, h_next, n_next, attempts)
            past = [torch.where(done, 1.0, x) for x in next_past]
            ratio = torch.where(done, torch.nan, ratio)
            head = (state, i_next, n_next, tried + 1, attempts, t_next, h_next, step_next, ratio, scale)
            return *head, steps, *past, *z, *totals

        num_parts = len(backward_state)
        i, attempts = i.to(torch.int64), attempts.to(torch.int64)
        n, tried = torch.zeros_like(i), torch.zeros_like(i)
        steps = torch.zeros(STORED_STEPS, STEP_COLUMNS, dtype=torch.float64)
        h, step, state = fit(i, t, h, n, attempts)
        carried = [x.clone() for x in (*(past if uses_past else ()), *backward_state, *totals)]
        state, i, n, tried, attempts, t, h, step, ratio, scale, steps, *carried = loop(
            is_running, attempt, (state, i, n, tried, attempts, t, h, step, ratio, scale, steps, *carried)
        )
        loop_past, z, totals = _split(carried, 2 * uses_past, num_parts)
        numbers_out = (state, i, n, tried, attempts, t, h, step, ratio, *(loop_past or past), scale)
        return z, totals, torch.stack([x.to(torch.float64) for x in numbers_out]), steps

    return backward


def _split(carried: Sequence[Tensor], num_past: int, num_parts: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The past error ratios, the backward state and the totals among the carried tensors."""
    end = num_past + num_parts
    return list(carried[:num_past]), list(carried[num_past:end]), list(carried[end:])


def _interpolate(
    time: Tensor, direction: Tensor, span: Tensor, starts: Tensor, kept: Tensor, polynomials: Tensor
) -> Tensor:
    """y [N] at a time as f gets it, which the backward solve reaches; for the tables see ``CompiledRun.path``.

    Outside of the span by more than rounding errors, it extrapolates, as ``AdjointField`` does.
    """
    low, high = span.unbind()
    t = time.to(torch.float64)
    inside = torch.minimum(torch.maximum(t, low), high)
    t = torch.where((t - inside).abs() < 1e-6 * (high - low), inside, t)
    # The table follows the forward solve.
    idx = torch.searchsorted(-direction * starts[:, 0].contiguous(), (-direction * t).reshape(1), right=True) - 1
    idx = idx.clamp(min=0)
    start, h = starts.index_select(0, idx)[0].unbind()
    y, *slopes = kept.index_select(0, idx)[0].unbind()
    powers = ((t - start) / h).expand(polynomials.shape[0], 1).cumprod(0)
    weights = ((powers * polynomials).sum(0) * h).to(y.dtype)
    return y + sum(weight * slope for weight, slope in zip(weights.unbind(), slopes, strict=True))


def _size(a: Tensor) -> Tensor:
    """The scale of an adjoint [N], as ``adjoint._scale`` computes it, float64."""
    size = torch.linalg.vector_norm(a).to(torch.float64) / math.sqrt(max(a.numel(), 1))
    largest = a.abs().max().to(torch.float64) if a.numel() else size
    return torch.where(size == 0, 1.0, torch.where(size == torch.inf, largest, size))


def _error_norm(
    norm: LargestRms, errors: list[Tensor], z: list[Tensor], z_next: list[Tensor], tolerance: Tensor
) -> Tensor:
    """The norm of the errors of the parts of a backward state, in units of the tolerance, float64."""
    # For each component, or the same for all.
    tolerances = tolerance.split([x.numel() for x in z], 1) if tolerance.dim() == 2 else [tolerance] * len(z)
    parts: list[Tensor] = []
    for both, error, start, end in zip(tolerances, errors, z, z_next, strict=True):
        rtol, atol = both.unbind()
        scale = atol + rtol * torch.maximum(start.abs(), end.abs()).reshape(-1)
        if tolerance.dim() == 1:
            scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
        parts.append(error.reshape(-1) / scale)
    if [part.numel() for part in parts] != list(norm.sizes):
        parts = list(torch.cat(parts)[: sum(norm.sizes)].split(norm.sizes))
    largest = torch.zeros((), dtype=torch.float64)
    for part, divisor in zip(parts, norm.divisors, strict=True):
        size = torch.linalg.vector_norm(part).to(torch.float64) / (divisor * math.sqrt(max(part.numel(), 1)))
        # As max() of Python, which the eager norm calls: a later NaN has no effect.
        largest = torch.where(size > largest, size, largest) if part is not parts[0] else size
    return largest


def _rate(rate: Callable[..., Tensor], inputs: list[Tensor], y: Tensor) -> Tensor:
    return rate(y, *inputs)

"""The loop over attempted steps of an explicit Runge-Kutta method, as a graph that torch compiles.

The rules of ``step_control.py`` choose its steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odebench.ode.compiled.field import Field
from odebench.ode.compiled.graph import loop
from odebench.ode.compiled.step_control import LoopState, StepBounds, first_step_size, fit_step, next_step
from odebench.ode.control import Controller
from odebench.ode.methods.compiled_step import scaled_error_norm, weighted_sum
from odebench.ode.methods.tableau import Tableau


class LoopStages(NamedTuple):
    """The S stages of a step in the loop. Stage ``end`` is f at the end of the step, the next step's first stage.

    c, a, dense: as in ``Tableau``. b, error: weights of the first stages.
    """

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...]
    dense: tuple[tuple[float, ...], ...]
    end: int

    @classmethod
    def of(cls, method: Tableau, inner: bool) -> "LoopStages":
        """inner: with the extra stages that dense output needs."""
        assert method.error is not None
        assert method.dense is not None
        c, a = method.c, method.a
        if inner:
            c, a = (*c, *method.extra_c), (*a, *method.extra_a)
        end = method.end_stage
        if end is None or end >= len(c):
            c, a, end = (*c, 1.0), (*a, method.b), len(c)
        return cls(c, a, method.b, method.error, method.dense, end)


def make_forward(
    field: Field, method: Tableau, controller: Controller, inner: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """The function ``solve`` below. inner: whether there are output times inside the span."""
    stages, order = LoopStages.of(method, inner), method.order
    # Computing cached properties inside would break the graph.
    _ = field.layout.is_tensor, field.layout.is_tuple, field.layout.view_shape
    uses_past = bool(controller.proportional or controller.derivative)
    differences = method.last_differences

    def solve(
        numbers: Tensor,
        tolerance: Tensor,
        times: Tensor,
        polynomials: Tensor,
        states: Tensor,
        y: Tensor,
        args: list[Tensor],
        steps: Tensor,
        kept: Tensor,
    ) -> tuple[Tensor, ...]:
        """Step from y [N] until the end, or until ``steps`` is full.

        numbers: [12] start, proposed step or NaN if it is to be searched, last error ratios (one, and those of the last
            two accepted steps), end, time left in the solve, direction, min_step, max_step, 1e-12 of the largest time,
            attempts left.
        tolerance: rtol and atol, [2] or [2, N]. times: [T] output times, and NaN.
        polynomials: see ``output_weights``. states [T, N]: those of earlier calls.
        steps [rows, 4]: overwritten with the accepted steps; see ``STEP_COLUMNS``.
        kept [rows, S + 1, N] or [1, S + 1, N]: overwritten with y and the stages of each, or of the last attempt.

        Returns y at the end; the states [T, N], NaN at times not reached; what ``output_weights`` returns; and [13] the
        ``LoopState``, steps stored, row of the last attempt (-1: none), attempts, time, proposed and fitted next step,
        last ratio, the last two ratios of accepted steps, evaluations of the search, and the norms of the differences
        between the last two slopes and between their states.
        """
        # A loop takes no two views of one tensor.
        start, first_step, ratio, last_ratio, earlier_ratio, end, span, direction, *bounds, max_steps = (
            x.clone() for x in numbers.unbind()
        )
        min_step, max_step, floor = bounds
        y_start = y
        k = field.at(start, y, args, direction).clone()

        def is_unknown(unknown: Tensor, h: Tensor, evaluations: Tensor) -> Tensor:
            return unknown.clone()

        def search(unknown: Tensor, h: Tensor, evaluations: Tensor) -> tuple[Tensor, ...]:
            h, evaluated = first_step_size(field, start, y, k, args, span, order, tolerance)
            return torch.zeros_like(unknown), h, evaluations + evaluated

        zero = torch.zeros((), dtype=torch.int64)
        _, h, evaluations = loop(is_unknown, search, (first_step.isnan(), first_step, zero.clone()))

        def fit(t: Tensor, h: Tensor, n: Tensor, attempts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """The next step within its bounds as proposed and as fitted to the end, and the ``LoopState``."""
            h, step, too_small = fit_step(t, h, end, StepBounds(min_step, max_step, floor))
            state = torch.where(n < steps.shape[0], int(LoopState.running), int(LoopState.full))
            state = torch.where(attempts < max_steps, state, int(LoopState.max_steps))
            return h, step, torch.where(too_small, int(LoopState.underflow), state)

        def is_running(state: Tensor, *carried: Tensor) -> Tensor:
            return state == int(LoopState.running)

        def attempt(
            state: Tensor,
            n: Tensor,
            row: Tensor,
            attempts: Tensor,
            t: Tensor,
            h: Tensor,
            step: Tensor,
            ratio: Tensor,
            y: Tensor,
            k: Tensor,
            *past: Tensor,
        ) -> tuple[Tensor, ...]:
            at_end = step == (end - t).abs()
            signed = direction * step
            h_y = signed.to(y.dtype)
            y_next, ks = y, [k]
            for i in range(1, len(stages.c)):
                y_i = y + h_y * weighted_sum(stages.a[i], ks)
                y_next = y_i if i == stages.end else y_next
                inward = {0.0: direction, 1.0: -direction}.get(stages.c[i])
                ks.append(field.at(t + stages.c[i] * signed, y_i, args, inward))
            error = h_y * weighted_sum(stages.error, ks)
            ratio = scaled_error_norm(error, y, y_next, tolerance).to(torch.float64)
            accepted = (ratio <= 1) | ((h <= min_step) & (ratio < torch.inf))
            proposal, h_next, past = next_step(controller, order, h, step, ratio, accepted, past)
            # Not by steps[n] = ..., which inductor does not lower in a loop.
            steps.index_put_((n.reshape(1),), torch.stack([t, signed, ratio, proposal]).unsqueeze(0))
            kept_row = n if len(kept) > 1 else torch.zeros_like(n)
            kept.index_put_((kept_row.reshape(1),), torch.stack([y, *ks]).unsqueeze(0))
            t_next = torch.where(accepted, torch.where(at_end, end, t + signed), t)
            n_next = n + accepted.to(torch.int64)
            h_fitted, step_next, state = fit(t_next, h_next, n_next, attempts + 1)
            finished = accepted & at_end
            return (
                torch.where(finished, int(LoopState.finished), state),
                n_next,
                n.clone(),
                attempts + 1,
                t_next,
                torch.where(finished, h_next, h_fitted),
                step_next,
                ratio,
                torch.where(accepted, y_next, y),
                torch.where(accepted, ks[stages.end], k),
                *past,
            )

        h, step, state = fit(start, h, zero, zero)
        state = torch.where(h.isnan(), int(LoopState.non_finite), state)
        ratios = (last_ratio, earlier_ratio)
        carried = (
            state,
            zero.clone(),
            torch.full_like(zero, -1),
            zero.clone(),
            start.clone(),
            h,
            step,
            ratio,
            y.clone(),
            k.clone(),
        )
        state, n, row, attempts, t, h, step, ratio, y, _, *past = loop(
            is_running, attempt, (*carried, *(ratios if uses_past else ()))
        )
        finished = state == int(LoopState.finished)
        states = torch.where(start == times[0], torch.nan, states)
        weights: tuple[Tensor, ...] = ()
        if inner:
            weights = output_weights(times, steps, n, start, t, direction, polynomials, kept.dtype)
            idx, weight, inside = weights
            rows = kept.index_select(0, idx)[:, : weight.shape[1]]
            states = torch.where(inside.unsqueeze(1), (weight.unsqueeze(2) * rows).sum(1), states)
        states = torch.where((times == start).unsqueeze(1), y_start, states)
        states = torch.where(((times == end) & finished).unsqueeze(1), y, states)
        norms = [torch.zeros_like(t)] * 2
        if differences:
            ks = kept.index_select(0, row.clamp(min=0, max=len(kept) - 1).reshape(1))[0].unbind()[1:]
            norms = [torch.linalg.vector_norm(weighted_sum(w, ks)) for w in differences]
        info = [state, n, row, attempts, t, h, step, ratio, *(past or ratios), evaluations, *norms]
        return y, states, *weights, torch.stack([x.to(torch.float64) for x in info])

    return solve


def output_weights(
    times: Tensor,
    steps: Tensor,
    n: Tensor,
    start: Tensor,
    t: Tensor,
    direction: Tensor,
    polynomials: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """How the states at output times follow from the n stored steps from ``start`` to t.

    times: [T]. polynomials [p, s]: the coefficients of the powers 1 to p of theta in the weights of the stages.

    Returns the step of each time [T], the weights [T, s + 1] of y and its stages in ``dtype``, and whether the time
    lies inside these steps [T]; the weights of other times are 0.
    """
    num_rows = steps.shape[0]
    begins, sizes, _, _ = steps.unbind(1)
    begins = torch.where(torch.arange(num_rows) < n, direction * begins, torch.inf)
    targets = direction * times
    # A step's end is not the next one's start.
    idx = (torch.searchsorted(begins, targets.contiguous()) - 1).clamp(min=0, max=num_rows - 1)
    inside = (targets > direction * start) & (targets <= direction * t)
    h = sizes.index_select(0, idx)
    theta = ((times - steps.index_select(0, idx)[:, 0]) / h).unsqueeze(1)
    weight = torch.zeros_like(theta)
    for coefficients in reversed(polynomials.unbind()):
        weight = (weight + coefficients) * theta
    weight = torch.cat([torch.ones_like(theta), weight * h.unsqueeze(1)], 1)
    return idx, torch.where(inside.unsqueeze(1), weight, 0.0).to(dtype), inside

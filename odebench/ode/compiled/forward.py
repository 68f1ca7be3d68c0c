"""The loop over attempted steps of an explicit Runge-Kutta method, as a graph that torch compiles.

The rules of ``step_control.py`` choose its steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odebench.ode.compiled.graph import loop
from odebench.ode.compiled.step_control import LoopState, StepBounds, fit_step, next_step
from odebench.ode.control import Controller
from odebench.ode.methods.compiled_step import scaled_error_norm, weighted_sum
from odebench.ode.methods.tableau import Tableau
from odebench.ode.problem import StateLayout


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
    f: Callable[..., Any], layout: StateLayout, method: Tableau, controller: Controller, inner: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """The function ``solve`` below. inner: with the stages for dense output, as there are times inside the span."""
    stages = LoopStages.of(method, inner)
    # Computing cached properties inside would break the graph.
    _ = layout.is_tensor, layout.is_tuple, layout.view_shape
    uses_past = bool(controller.proportional or controller.derivative)

    def solve(
        numbers: Tensor,
        tolerance: Tensor,
        y: Tensor,
        k: Tensor,
        args: list[Tensor],
        steps: Tensor,
        kept: Tensor,
    ) -> tuple[Tensor, ...]:
        """Step from y [N] and k = f there until the end, or until ``steps`` is full.

        numbers: [11] start, proposed step, last error ratios (one, and those of the last two accepted steps), end,
            direction, min_step, max_step, 1e-12 of the largest time, attempts left.
        tolerance: [2] rtol and atol.
        steps [rows, 4]: overwritten with the accepted steps; see ``STEP_COLUMNS``.
        kept [rows, S + 1, N] or [1, S + 1, N]: overwritten with y and the stages of each, or of the last attempt.

        Returns y and k at the end, and [10] the ``LoopState``, steps stored, row of the last attempt (-1: none),
        attempts, time, proposed and fitted next step, last ratio, and the last two ratios of accepted steps.
        """
        # A loop takes no two views of one tensor.
        t, h, ratio, last_ratio, earlier_ratio, end, direction, min_step, max_step, floor, max_steps = (
            x.clone() for x in numbers.unbind()
        )

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
                ks.append(layout.evaluate_flat(f, (t + stages.c[i] * signed).to(y.dtype), y_i, args))
            error = h_y * weighted_sum(stages.error, ks)
            ratio = scaled_error_norm(error, y, y_next, tolerance).to(torch.float64)
            accepted = (ratio <= 1) | ((h <= min_step) & (ratio < torch.inf))
            proposal, h_next, past = next_step(controller, method.order, h, step, ratio, accepted, past)
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

        n, attempts = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        h, step, state = fit(t, h, n, attempts)
        ratios = (last_ratio, earlier_ratio)
        carried = (state, n, torch.full_like(n, -1), attempts, t, h, step, ratio, y.clone(), k.clone())
        state, n, row, attempts, t, h, step, ratio, y, k, *past = loop(
            is_running, attempt, (*carried, *(ratios if uses_past else ()))
        )
        info = [state, n, row, attempts, t, h, step, ratio, *(past or ratios)]
        return y, k, torch.stack([x.to(torch.float64) for x in info])

    return solve

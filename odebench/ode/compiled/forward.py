"""The loop over attempted steps of an explicit Runge-Kutta method, as a graph that torch compiles.

The rules of ``step_control.py`` choose its steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odebench.ode.compiled.field import GraphField
from odebench.ode.compiled.graph import loop
from odebench.ode.compiled.step_control import (
    LoopState,
    StepBounds,
    first_step_size,
    fit_step,
    largest,
    next_step,
    pack,
    root_mean_square,
)
from odebench.ode.control import Controller
from odebench.ode.methods.compiled_step import scaled_error, weighted_sum
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


class Numbers(NamedTuple):
    """The numbers that a run of the loop starts from.

    start, end: its times. first_step: the proposed size; NaN if it is to be searched. ratio: of the last attempt.
    past: the error ratios of the last two accepted steps. span: the time left in the solve, signed. direction: 1 or -1.
    max_steps: the attempts that are left.
    """

    start: Tensor
    first_step: Tensor
    ratio: Tensor
    past: tuple[Tensor, Tensor]
    end: Tensor
    span: Tensor
    direction: Tensor
    bounds: StepBounds
    max_steps: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> "Numbers":
        """numbers: [12] the fields in order, those of tuples one after the other."""
        start, first_step, ratio, last, before_last, end, span, direction, *bounds, max_steps = numbers.unbind()
        past = (last, before_last)
        return cls(start, first_step, ratio, past, end, span, direction, StepBounds(*bounds), max_steps)


class LoopProgress(NamedTuple):
    """The scalars that the loop carries from step to step, in one tensor.

    state: a ``LoopState``. n: steps stored. row: of the last attempt; -1 before. attempts: steps tried.
    t, h, step: time, proposed and fitted next step. ratio: of the last attempt.
    past: the error ratios of the last two accepted steps; empty for integral control.
    """

    state: Tensor
    n: Tensor
    row: Tensor
    attempts: Tensor
    t: Tensor
    h: Tensor
    step: Tensor
    ratio: Tensor
    past: tuple[Tensor, ...]

    @classmethod
    def of(cls, packed: Tensor) -> "LoopProgress":
        """packed: see ``packed``."""
        state, n, row, attempts, t, h, step, ratio, *past = packed.unbind()
        return cls(state, n, row, attempts, t, h, step, ratio, tuple(past))

    def packed(self) -> Tensor:
        """The scalars as one float64 tensor [8] or [10]."""
        *scalars, past = self
        return pack([*scalars, *past])


class AdaptiveLoop(NamedTuple):
    """The loop over attempted steps.

    numbers: [12] see ``Numbers``.
    by_tensor: whether the error is the largest of those of the state's tensors, not that of the whole state.
    steps [rows, 4]: overwritten with the accepted steps; see ``STEP_COLUMNS``.
    kept [rows, S + 1, N] or [1, S + 1, N]: overwritten with y and the stages of each, or of the last attempt.
    """

    field: GraphField
    args: list[Tensor]
    stages: LoopStages
    order: int
    controller: Controller
    tolerance: Tensor
    numbers: Tensor
    steps: Tensor
    kept: Tensor
    by_tensor: bool

    def norm(self, x: Tensor) -> Tensor:
        """The norm of a scaled error [N], float64."""
        parts = self.field.layout.split(x) if self.by_tensor else [x]
        return largest([root_mean_square(part) for part in parts])

    def first_step(self, y: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The size of the first step, and the evaluations that its search took; k: f [N] at y [N]."""

        def is_unknown(unknown: Tensor, h: Tensor, evaluations: Tensor) -> Tensor:
            return unknown.clone()

        def search(unknown: Tensor, h: Tensor, evaluations: Tensor) -> tuple[Tensor, ...]:
            given = Numbers.of(self.numbers)
            h, evaluated = first_step_size(
                self.field, given.start, y, k, self.args, given.span, self.order, self.tolerance, self.norm
            )
            return torch.zeros_like(unknown), h, evaluations + evaluated

        h, zero = Numbers.of(self.numbers).first_step, torch.zeros((), dtype=torch.int64)
        _, h, evaluations = loop(is_unknown, search, (h.isnan(), h.clone(), zero))
        return h, evaluations

    def fit(self, given: Numbers, t: Tensor, h: Tensor, n: Tensor, attempts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next step within its bounds as proposed and as fitted to the end, and the ``LoopState``."""
        h, step, too_small = fit_step(t, h, given.end, given.bounds)
        state = torch.where(n < self.steps.shape[0], int(LoopState.running), int(LoopState.full))
        state = torch.where(attempts < given.max_steps, state, int(LoopState.max_steps))
        return h, step, torch.where(too_small, int(LoopState.underflow), state)

    def stages_of_step(
        self, t: Tensor, h: Tensor, y: Tensor, k: Tensor, direction: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The state [N] after a step of signed size h, and the stages, each [N]."""
        stages, h_y = self.stages, h.to(y.dtype)
        y_next, ks = y, [k]
        for i in range(1, len(stages.c)):
            y_i = y + h_y * weighted_sum(stages.a[i], ks)
            y_next = y_i if i == stages.end else y_next
            inward = {0.0: direction, 1.0: -direction}.get(stages.c[i])
            ks.append(self.field.at(t + stages.c[i] * h, y_i, self.args, inward))
        return y_next, ks

    def attempt(self, progress: Tensor, y: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Try a step from y [N], where f is k [N]; return all three after it. progress: see ``LoopProgress``."""
        given, kept = Numbers.of(self.numbers), self.kept
        _, n, _, attempts, t, h, step, _, past = LoopProgress.of(progress)
        at_end = step == (given.end - t).abs()
        signed = given.direction * step
        y_next, ks = self.stages_of_step(t, signed, y, k, given.direction)
        error = signed.to(y.dtype) * weighted_sum(self.stages.error, ks)
        ratio = self.norm(scaled_error(error, y, y_next, self.tolerance))
        accepted = (ratio <= 1) | ((h <= given.bounds.min_step) & (ratio < torch.inf))
        proposal, h_next, past = next_step(self.controller, self.order, h, step, ratio, accepted, past)
        # Not by steps[n] = ..., which inductor does not lower in a loop.
        row = n.to(torch.int64).reshape(1)
        self.steps.index_put_((row,), pack([t, signed, ratio, proposal]).unsqueeze(0))
        kept.index_put_((row if len(kept) > 1 else torch.zeros_like(row),), torch.stack([y, *ks]).unsqueeze(0))
        t_next = torch.where(accepted, torch.where(at_end, given.end, t + signed), t)
        n_next, attempts = n + accepted.to(torch.float64), attempts + 1
        h_fitted, step_next, state = self.fit(given, t_next, h_next, n_next, attempts)
        finished = accepted & at_end
        state = torch.where(finished, int(LoopState.finished), state)
        h_next = torch.where(finished, h_next, h_fitted)
        progress = LoopProgress(state, n_next, n, attempts, t_next, h_next, step_next, ratio, past).packed()
        return progress, torch.where(accepted, y_next, y), torch.where(accepted, ks[self.stages.end], k)

    def run(self, y: Tensor, k: Tensor, h: Tensor) -> tuple[LoopProgress, Tensor]:
        """Step from y [N], where f is k, with a first step of size h; return the progress and y at the end."""
        given, zero = Numbers.of(self.numbers), torch.zeros((), dtype=torch.float64)
        h, step, state = self.fit(given, given.start, h, zero, zero)
        state = torch.where(h.isnan(), int(LoopState.non_finite), state)
        past = given.past if self.controller.proportional or self.controller.derivative else ()
        progress = LoopProgress(state, zero, zero - 1, zero, given.start, h, step, given.ratio, past)

        def is_running(progress: Tensor, y: Tensor, k: Tensor) -> Tensor:
            return progress[0] == int(LoopState.running)

        packed, y, _ = loop(is_running, self.attempt, (progress.packed(), y.clone(), k.clone()))
        return LoopProgress.of(packed), y


def make_forward(
    field: GraphField, method: Tableau, controller: Controller, inner: bool, by_tensor: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """The function ``solve`` below.

    inner: whether there are output times inside the span. by_tensor: see ``AdaptiveLoop``.
    """
    stages, order, differences = LoopStages.of(method, inner), method.order, method.last_differences

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

        numbers: [12] see ``Numbers``. tolerance: rtol and atol, [2] or [2, N]. times: [T] output times, and NaN.
        polynomials: see ``output_weights``. states [T, N]: those of earlier calls. steps, kept: see ``AdaptiveLoop``.

        Returns y at the end; the states [T, N], NaN at times not reached; what ``output_weights`` returns; and [13] the
        ``LoopProgress``, with two ratios of accepted steps for each controller, the evaluations of the search, and the
        norms of the differences between the last two slopes and between their states.
        """
        given = Numbers.of(numbers)
        start, direction = given.start, given.direction
        adaptive = AdaptiveLoop(field, args, stages, order, controller, tolerance, numbers, steps, kept, by_tensor)
        k = field.at(start, y, args, direction).clone()
        h, evaluations = adaptive.first_step(y, k)
        progress, y_end = adaptive.run(y, k, h)
        t = progress.t
        weights: tuple[Tensor, ...] = ()
        states = torch.where(start == times[0], torch.nan, states)
        if inner:
            weights = output_weights(times, steps, progress.n, start, t, direction, polynomials, kept.dtype)
            idx, weight, inside = weights
            rows = kept.index_select(0, idx)[:, : weight.shape[1]]
            states = torch.where(inside.unsqueeze(1), (weight.unsqueeze(2) * rows).sum(1), states)
        is_end = (times == given.end) & (progress.state == int(LoopState.finished))
        states = torch.where((times == start).unsqueeze(1), y, states)
        states = torch.where(is_end.unsqueeze(1), y_end, states)
        norms = [torch.zeros_like(t)] * 2
        if differences:
            row = progress.row.to(torch.int64).clamp(min=0, max=len(kept) - 1).reshape(1)
            ks = kept.index_select(0, row)[0].unbind()[1:]
            norms = [torch.linalg.vector_norm(weighted_sum(w, ks)) for w in differences]
        *scalars, past = progress
        return y_end, states, *weights, pack([*scalars, *(past or given.past), evaluations, *norms])

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

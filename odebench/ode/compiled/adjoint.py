"""The backward solve of the continuous adjoint as a graph: one loop over the steps of all intervals between times.

The equations and the step sizes are those of ``odebench.ode.gradients.adjoint``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from odebench.ode.compiled.field import FieldModule, GraphField, rate_of_inputs, slots_of
from odebench.ode.compiled.graph import loop
from odebench.ode.compiled.step_control import (
    STEP_COLUMNS,
    LoopState,
    StepBounds,
    fit_step,
    largest,
    next_step,
    pack,
    root_mean_square,
)
from odebench.ode.control import Controller
from odebench.ode.methods.compiled_step import weighted_sum
from odebench.ode.methods.tableau import Tableau

# Steps that the table for statistics holds; a longer solve enters the loop again.
STORED_STEPS = 64


class BackwardNorm(NamedTuple):
    """The largest root mean square of y, of the adjoint and of the gradient of each target, for any size of the state.

    by_tensor: whether each tensor of the state is a part of its own. with_targets: whether the gradients are measured.
    divisor: all root mean squares except that of y are divided by it.
    """

    by_tensor: bool
    with_targets: bool
    divisor: float


class AdjointChoices(NamedTuple):
    """The choices that a graph of the backward solve is compiled for.

    norm: how errors are measured.
    interpolates: whether y comes from the dense output of the forward solve and is no part of the backward state.
    full: whether the gradients of the targets are part of it. relative, warm_start: see ``BackwardSolve``.
    names: of the parameters and arg_idx: the positions of the arguments that get gradients, the targets.
    """

    method: Tableau
    controller: Controller
    norm: BackwardNorm
    interpolates: bool
    full: bool
    relative: bool
    warm_start: bool
    names: tuple[str, ...]
    arg_idx: tuple[int, ...]


class AdjointLoop(NamedTuple):
    """The loop over attempted steps.

    slots: see ``slots_of``.
    numbers: [5] min_step, max_step, first step, attempts allowed in an interval, and the direction of time, 1 or -1.
    stops [T, 3]: the times at which steps must end, from the first time to the last; ``StepBounds.floor`` of the
        interval that ends there; 1 for an output time, else 0. states, gradients: [T, N] y and dL/dy at output times.
    targets: the tensors that get gradients. path: see ``path_tables``; or empty.
    num_states: 2 for y and the adjoint, 1 for the adjoint. num_parts: with the gradients of the targets, if ``full``.
    """

    field: GraphField
    module: FieldModule
    slots: Any
    choices: AdjointChoices
    numbers: Tensor
    tolerance: Tensor
    stops: Tensor
    states: Tensor
    gradients: Tensor
    targets: list[Tensor]
    args: list[Tensor]
    path: list[Tensor]
    num_states: int
    num_parts: int

    def fit(self, i: Tensor, t: Tensor, h: Tensor, n: Tensor, attempts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next step as proposed and as fitted to the next stop, and the ``LoopState``."""
        min_step, max_step, _, max_steps, _ = self.numbers.unbind()
        end, floor, _ = _at(self.stops, (i - 1).clamp(min=0)).unbind()
        h, step, too_small = fit_step(t, h, end, StepBounds(min_step, max_step, floor))
        state = torch.where(n < STORED_STEPS, int(LoopState.running), int(LoopState.full))
        state = torch.where(attempts < max_steps, state, int(LoopState.max_steps))
        state = torch.where(too_small, int(LoopState.underflow), state)
        return h, step, torch.where(i > 0, state, int(LoopState.finished))

    def start_interval(self, i: Tensor, a: Tensor, scale: Tensor) -> tuple[list[Tensor], Tensor]:
        """y and the adjoint [N] at time i, as far as the loop carries them, and the scale of the adjoint.

        a: the adjoint without the gradient of y at this time.
        """
        y, a = _at(self.states, i), a + _at(self.gradients, i)
        if self.choices.relative:
            # At the end, the adjoint is the gradient of y at the first time.
            scale = torch.where(i > 0, _size(a), 1.0)
            a = a / scale.to(a.dtype)
        return [y, a][-self.num_states :], scale

    def slopes_at(self, j: int, t: Tensor, states: list[Tensor]) -> list[Any]:
        """The slopes at stage j, which is at t: of the states, and of the targets, 0 at a stage without weight."""
        method, choices, direction = self.choices.method, self.choices, self.numbers[4]
        inward = {0.0: direction, 1.0: -direction}.get(method.c[j])
        time, a = self.field.time(t, states[0], inward), states[-1]
        y = interpolate(time, direction, *self.path) if choices.interpolates else states[0]
        rate = rate_of_inputs(self.module, self.field.layout, self.slots, choices.arg_idx, time, self.args)
        error = method.error or ()
        if method.b[j] != 0 or (choices.full and error[j] != 0):
            k, pull, *_ = vjp(rate, y, *self.targets)
        else:
            k, pull, *_ = vjp(partial(_rate, rate, self.targets), y)
        slopes: list[Any] = [*([] if choices.interpolates else [k]), *(-part for part in pull(a))]
        if choices.full:
            slopes = [slope.to(y.dtype) for slope in slopes]
        return slopes + [0.0] * (self.num_states + len(self.targets) - len(slopes))

    def take_step(self, t: Tensor, h: Tensor, z: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The backward state after a step of signed size h from z, the targets' integrals over it, and its error."""
        method, num_states, h_y = self.choices.method, self.num_states, h.to(z[0].dtype)
        slopes: list[list[Any]] = [[] for _ in range(num_states + len(self.targets))]
        ends = z[:num_states]
        for j, row in enumerate(method.a):
            if j:
                ends = [x + h_y * weighted_sum(row, ks) for x, ks in zip(z[:num_states], slopes, strict=False)]
            for ks, slope in zip(slopes, self.slopes_at(j, t + method.c[j] * h, ends), strict=True):
                ks.append(slope)
        if not method.fsal:
            ends = [x + h_y * weighted_sum(method.b, ks) for x, ks in zip(z[:num_states], slopes, strict=False)]
        integrals = [h_y * weighted_sum(method.b, ks) for ks in slopes[num_states:]]
        z_next = [*ends, *(g + integral for g, integral in zip(z[num_states:], integrals, strict=False))]
        num_measured = self.num_parts if self.choices.norm.with_targets else num_states
        errors = [h_y * weighted_sum(method.error or (), ks) for ks in slopes[:num_measured]]
        return z_next, integrals, self.error_norm(errors, z, z_next)

    def error_norm(self, errors: list[Tensor], z: list[Tensor], z_next: list[Tensor]) -> Tensor:
        """The norm of errors of the first parts of a backward state, in units of the tolerance, float64."""
        norm, tolerance = self.choices.norm, self.tolerance
        # For each component, or the same for all.
        tolerances = tolerance.split([x.numel() for x in z], 1) if tolerance.dim() == 2 else [tolerance] * len(z)
        norms: list[Tensor] = []
        for i, (both, error, start, end) in enumerate(zip(tolerances, errors, z, z_next, strict=False)):
            rtol, atol = both.unbind()
            scale = atol + rtol * torch.maximum(start.abs(), end.abs()).reshape(-1)
            scaled = error.reshape(-1) / scale.clamp_min(torch.finfo(scale.dtype).tiny)
            parts = self.field.layout.split(scaled) if norm.by_tensor and i < self.num_states else [scaled]
            divisor = 1.0 if i < self.num_states - 1 else norm.divisor
            norms += [root_mean_square(part) / divisor for part in parts]
        return largest(norms)

    def attempt(self, progress: Tensor, steps: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
        """Try a step; return everything after it.

        progress: see ``BackwardProgress``. steps: the table of accepted steps.
        carried: the backward state and the totals of the targets.
        """
        _, i, n, tried, attempts, t, h, step, _, *past, scale = progress.unbind()
        min_step, _, first_step, _, direction = self.numbers.unbind()
        end, _, is_output = _at(self.stops, i - 1).unbind()
        z, totals = list(carried[: self.num_parts]), list(carried[self.num_parts :])
        at_end, signed = step == (end - t).abs(), direction * step
        z_next, integrals, ratio = self.take_step(t, signed, z)
        accepted = (ratio <= 1) | ((h <= min_step) & (ratio < torch.inf))
        controller, order = self.choices.controller, self.choices.method.order
        past = past if controller.proportional or controller.derivative else []
        proposal, h_next, next_past = next_step(controller, order, h, step, ratio, accepted, past)
        # Not in place: torch cannot compile a loop that both writes to a tensor and differentiates.
        here = torch.arange(STORED_STEPS).unsqueeze(1) == n
        steps = torch.where(here, pack([t, signed, ratio, proposal]), steps)
        arrived = accepted & at_end
        done = arrived & (is_output != 0)
        totals = self.add_to_totals(totals, integrals, z_next, scale, accepted, done)
        z, next_scale = self.next_state(i - 1, z, z_next, scale, accepted, done)
        i_next, n_next = i - arrived.to(torch.float64), n + accepted.to(torch.float64)
        scale, attempts = torch.where(done, next_scale, scale), torch.where(done, 0, attempts + 1)
        t_next = torch.where(accepted, torch.where(at_end, end, t + signed), t)
        h_next = h_next if self.choices.warm_start else torch.where(done, first_step, h_next)
        h_next, step_next, state = self.fit(i_next, t_next, h_next, n_next, attempts)
        # The solve over the next interval starts anew.
        ratio, *past = torch.where(done, torch.nan, ratio), *(torch.where(done, 1.0, x) for x in next_past)
        past = past or [torch.ones_like(t)] * 2
        head = (state, i_next, n_next, tried + 1, attempts, t_next, h_next, step_next, ratio)
        return pack([*head, *past, scale]), steps, *z, *totals

    def add_to_totals(
        self,
        totals: list[Tensor],
        integrals: list[Tensor],
        z_next: list[Tensor],
        scale: Tensor,
        accepted: Tensor,
        done: Tensor,
    ) -> list[Tensor]:
        """The totals after a step. Integrals in the backward state are added where it arrives at an output time."""
        parts, changed = (z_next[self.num_states :], done) if self.choices.full else (integrals, accepted)
        factor = scale.to(z_next[0].dtype)
        pairs = zip(totals, parts, strict=True)
        return [torch.where(changed, (x + factor * part).to(x.dtype), x) for x, part in pairs]

    def next_state(
        self, i: Tensor, z: list[Tensor], z_next: list[Tensor], scale: Tensor, accepted: Tensor, done: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The backward state and its scale after a step from z to z_next, which ends at stop i if it is ``done``."""
        last = self.num_states - 1
        starts, scale = self.start_interval(i, scale.to(z[0].dtype) * z_next[last], scale)
        starts += [torch.zeros_like(x) for x in z[self.num_states :]]
        z = [torch.where(accepted, x_next, x) for x_next, x in zip(z_next, z, strict=True)]
        return [torch.where(done, start, x) for start, x in zip(starts, z, strict=True)], scale

    def run(
        self, progress: Tensor, z: list[Tensor], totals: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """Returns what ``backward`` of ``make_adjoint`` does."""
        _, i, _, _, attempts, t, h, _, *rest = progress.unbind()
        zero = torch.zeros_like(t)
        h, step, state = self.fit(i, t, h, zero, attempts)
        progress = pack([state, i, zero, zero, attempts, t, h, step, *rest])
        steps = torch.zeros(STORED_STEPS, STEP_COLUMNS, dtype=torch.float64)

        def is_running(progress: Tensor, *carried: Tensor) -> Tensor:
            return progress[0] == int(LoopState.running)

        start = (progress, steps, *(x.clone() for x in (*z, *totals)))
        progress, steps, *carried = loop(is_running, self.attempt, start)
        return list(carried[: self.num_parts]), list(carried[self.num_parts :]), progress, steps


def make_adjoint(
    field: GraphField, module: FieldModule, choices: AdjointChoices
) -> Callable[..., tuple[list[Tensor], list[Tensor], Tensor, Tensor]]:
    """The function ``backward`` below."""
    slots = slots_of(module, choices.names)
    _ = choices.method.fsal  # computing a cached property inside would break the graph

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
        numbers, stops, states, gradients, path: see ``AdjointLoop``.
        tolerance: rtol and atol, [2], or [2, Z] for the Z components of the backward state.
        backward_state: y and the adjoint [N] and, if the norm measures them, the integrals over the interval so far of
            a^T df/dtheta for each target.
        totals: the gradients of the targets, without these integrals.

        Returns the backward state (at the end, its adjoint is dL/dy at the first time), the totals, the progress, and
        the table of accepted steps [STORED_STEPS, 4], see ``STEP_COLUMNS``.
        """
        adjoint_loop = AdjointLoop(
            field,
            module,
            slots,
            choices,
            numbers,
            tolerance,
            stops,
            states,
            gradients,
            [*parameters, *(args[j] for j in choices.arg_idx)],
            args,
            path,
            num_states=1 if choices.interpolates else 2,
            num_parts=len(backward_state),
        )
        return adjoint_loop.run(progress, backward_state, totals)

    return backward


def _at(table: Tensor, i: Tensor) -> Tensor:
    """Row i of a table; i: a scalar."""
    return table.index_select(0, i.to(torch.int64).reshape(1))[0]


def interpolate(
    time: Tensor, direction: Tensor, span: Tensor, starts: Tensor, kept: Tensor, polynomials: Tensor
) -> Tensor:
    """y [N] at a time as f gets it, which the backward solve reaches; for the tables see ``path_tables``.

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
    size = root_mean_square(a)
    largest_element = a.abs().max().to(torch.float64) if a.numel() else size
    return torch.where(size == 0, 1.0, torch.where(size == torch.inf, largest_element, size))


def _rate(rate: Callable[..., Tensor], inputs: list[Tensor], y: Tensor) -> Tensor:
    return rate(y, *inputs)

"""The loops: fixed and adaptive stepping of an explicit Runge-Kutta method over flat states.

Time, step sizes and tolerances are Python floats, and the adaptive loop waits for the device once a step,
when it reads the error.
"""

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odebench.ode import control
from odebench.ode.methods import Tableau
from odebench.ode.methods.runge_kutta import Buffer, Tape, attempt, dense_weights
from odebench.ode.status import Outcome, Stats, Status

Field = Callable[..., Tensor]
"""field(t, y [N], counts) -> dy/dt [N]; ``counts`` says whether the evaluation carries weight in a step's
result, or starts the next step (rather than only serving the error estimate or another stage)."""


@dataclass(frozen=True)
class Plan:
    """How to step.

    method: its tableau.
    tolerance: None for fixed steps.
    step_size: the size of fixed steps, positive.
    first_step: the first adaptive step, positive; None searches for one at the cost of one evaluation.
    max_steps: attempts, rejected ones included, between the first and the last time.
    norm: of the scaled error.
    """

    method: Tableau
    tolerance: control.Tolerance | None
    step_size: float | None
    first_step: float | None
    max_steps: int
    norm: control.Norm = control.rms


class Quadrature:
    """What an integral along the accepted steps must be told. This one integrates nothing."""

    def accept(self, h: float) -> None:
        """The step just attempted counts, with the signed size h."""

    def reject(self) -> None:
        """The step just attempted is repeated from the same first stage."""


def integrate(
    field: Field,
    y: Tensor,
    times: list[float],
    plan: Plan,
    stats: Stats,
    *,
    f: Tensor | None = None,
    quadrature: Quadrature | None = None,
) -> tuple[Tensor, Outcome, float]:
    """States at ``times`` from y [N] at the first of them.

    f: the field at the first time, where it is known already.
    stats: accepted and rejected steps are counted here, evaluations by the field itself.

    Returns the states [T, N] (NaN where not reached), the outcome, and the size of the step that would come
    next, positive.
    """
    stages = Tape() if torch.is_grad_enabled() else Buffer(plan.method, y)
    loop = _fixed if plan.tolerance is None else _adaptive
    with torch.autocast(y.device.type, enabled=False):
        outputs, outcome, proposal = loop(field, y, times, plan, stats, stages, f, quadrature or Quadrature())
    if len(outputs) < len(times):
        outputs += [torch.full_like(y, math.nan)] * (len(times) - len(outputs))
    return torch.stack(outputs), outcome, proposal


def _fixed(
    field: Field,
    y: Tensor,
    times: list[float],
    plan: Plan,
    stats: Stats,
    stages: Buffer | Tape,
    f: Tensor | None,
    quadrature: Quadrature,
) -> tuple[list[Tensor], Outcome, float]:
    """Equal steps of at most ``plan.step_size`` between each two times."""
    assert plan.step_size is not None
    outputs, status, h = [y], Status.success, plan.step_size
    taken = 0
    for start, end in itertools.pairwise(times):
        num_steps = max(1, math.ceil(abs(end - start) / plan.step_size - 1e-9))
        if taken + num_steps > plan.max_steps:
            status = Status.max_steps
            break
        taken += num_steps
        h = (end - start) / num_steps
        for n in range(num_steps):
            t = start + n * h
            stages.put(0, field(t, y, True) if f is None else f)
            f = None
            y = attempt(field, plan.method, stages, t, h, y, last=True)
            quadrature.accept(h)
            stats.accepted += 1
            stats.step_sizes.append(h)
        if not torch.isfinite(y.detach()).all():
            status = Status.non_finite
            break
        outputs.append(y)
    reached = len(outputs)
    return outputs, Outcome(status, reached, times[reached - 1], h, math.nan, stats.nfe), abs(h)


def _adaptive(
    field: Field,
    y: Tensor,
    times: list[float],
    plan: Plan,
    stats: Stats,
    stages: Buffer | Tape,
    f: Tensor | None,
    quadrature: Quadrature,
) -> tuple[list[Tensor], Outcome, float]:
    """Steps as large as the tolerance allows; times inside a step are read off its continuous extension."""
    method, tolerance = plan.method, plan.tolerance
    assert method.error is not None
    assert tolerance is not None
    t, end = times[0], times[-1]
    direction = 1.0 if end > t else -1.0
    # A smaller step would not move t.
    min_step = 8 * sys.float_info.epsilon * max(abs(t), abs(end))
    ratio = math.nan
    outputs = [y]

    stages.put(0, field(t, y, True) if f is None else f)
    h = plan.first_step
    if h is None:
        with torch.no_grad():
            h = control.first_step(field, t, y, stages.get(0), end, method.order, tolerance, plan.norm)
        if math.isnan(h):
            return outputs, Outcome(Status.non_finite, 1, t, 0.0, ratio, stats.nfe), h

    attempts = 0
    while True:
        step = control.fit_to_end(h, abs(end - t))
        last = step == abs(end - t)
        if step < min_step and not last:
            status = Status.step_underflow if math.isfinite(ratio) else Status.non_finite
            return outputs, Outcome(status, len(outputs), t, direction * step, ratio, stats.nfe), h
        if attempts == plan.max_steps:
            return outputs, Outcome(Status.max_steps, len(outputs), t, direction * step, ratio, stats.nfe), h
        attempts += 1

        y_next = attempt(field, method, stages, t, direction * step, y, last)
        with torch.no_grad():
            ratio = tolerance.ratio(stages.error(method.error, direction * step), y, y_next, plan.norm)
        proposal = control.next_step(step, ratio, method.order)
        if not ratio <= 1:  # NaN is a rejection too
            quadrature.reject()
            stats.rejected += 1
            h = proposal
            continue

        quadrature.accept(direction * step)
        stats.accepted += 1
        stats.step_sizes.append(direction * step)
        stats.warm_step = stats.warm_step or proposal
        t_next = end if last else t + direction * step
        outputs += _outputs(method, stages, t, direction * step, y, y_next, times, t_next, len(outputs))
        # A step cut short by the end says nothing against the size that was proposed for it.
        h = max(proposal, h) if step < h else proposal
        if last:
            return outputs, Outcome(Status.success, len(times), end, direction * step, ratio, stats.nfe), h
        t, y = t_next, y_next
        stages.put(0, stages.get(method.stages - 1) if method.fsal else field(t, y, True))


def _outputs(
    method: Tableau,
    stages: Buffer | Tape,
    t: float,
    h: float,
    y: Tensor,
    y_next: Tensor,
    times: list[float],
    t_next: float,
    due: int,
) -> list[Tensor]:
    """The states at the times from number ``due`` on that lie in the step's (t, t_next]."""
    thetas = []
    while due < len(times) and (times[due] - t_next) * h < 0:
        thetas.append((times[due] - t) / h)
        due += 1
    outputs = stages.interpolate(y, [dense_weights(method, theta) for theta in thetas], h) if thetas else []
    return [*outputs, y_next] if due < len(times) and times[due] == t_next else [*outputs]

"""Step size control: the sizes of the first step, of the next step, and of the step that ends at the last time.

Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, section II.4; Soederlind 2003, Digital
filters in adaptive time-stepping.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from odebench.ode.torch_func import to_list

Norm = Callable[[Tensor], float]
"""A function from a scaled error [N] to a number, zero or positive, with |c x| = |c| |x|.

It synchronises with the device.
"""

# A step may be this many times as long if it then reaches the end. Its error stays acceptable at order 5, as
# (1.1 x 0.9)^5 < 1, where 0.9 is the safety factor.
END_STRETCH = 1.1
# A smaller step, relative to the time, would not change the time.
SMALLEST_STEP = 8 * sys.float_info.epsilon
# Times near 0 count as this share of the largest time of the solve.
SMALLEST_TIME = 1e-12
# Controllers treat smaller errors as if they were this error, in units of the tolerance.
SMALLEST_RATIO = 1e-12


def rms(x: Tensor) -> float:
    """Return the root mean square of all elements of x [N], the usual error norm; 0 for an empty state."""
    return torch.linalg.vector_norm(x).item() / math.sqrt(max(x.numel(), 1))


def rms_of_parts(parts: Sequence[Tensor], group: ProcessGroup | None) -> list[float]:
    """Return the root mean square of each part, over all processes of a group.

    The processes hold equal shares of each part.
    """
    norms = torch.stack(torch._foreach_norm(list(parts)))
    num_shares = 1
    if group is not None:
        num_shares = group.size()
        norms = sum_over(group, norms.double().square()).sqrt()
    return [x / math.sqrt(max(part.numel() * num_shares, 1)) for x, part in zip(to_list(norms), parts, strict=True)]


@dataclass(frozen=True)
class LargestRms:
    """The norm that is the largest root mean square of consecutive parts of x.

    sizes: the numbers of elements of the parts. Elements after the last part have no influence.
    divisors: each root mean square is first divided by its divisor.
    group: see ``rms_of_parts``.
    """

    sizes: tuple[int, ...]
    divisors: tuple[float, ...]
    group: ProcessGroup | None = None

    def __call__(self, x: Tensor) -> float:
        """Return the norm of x [N]."""
        num_elements = sum(self.sizes)
        x = x if num_elements == x.numel() else x[:num_elements]
        norms = rms_of_parts(x.split(self.sizes), self.group)
        return max(norm / divisor for norm, divisor in zip(norms, self.divisors, strict=True))


def sum_over(group: ProcessGroup | None, x: Tensor) -> Tensor:
    """Sum x in place over the processes of a group; None stands for all processes.

    Raises ConnectionError if one of them has ended.
    """
    try:
        torch.distributed.all_reduce(x, group=group)
    except RuntimeError as error:
        reason, *_ = str(error).split(". ")
        raise ConnectionError(f"another process of this run has ended ({reason})") from error
    return x


def rms_over(group: ProcessGroup | None) -> Norm:
    """Make the norm ``rms`` over the rows of all processes of a group."""
    return rms if group is None else lambda x: rms_of_parts([x], group)[0]


@dataclass(frozen=True)
class Tolerance:
    """An error is acceptable when norm(error / (atol + rtol max(|y0|, |y1|))) <= 1.

    rtol, atol: numbers, or tensors [N] for one tolerance per component.
    """

    rtol: float | Tensor
    atol: float | Tensor

    @property
    def numbers(self) -> tuple[float, float] | None:
        """The pair of rtol and atol if both are numbers, else None."""
        rtol, atol = self.rtol, self.atol
        return (rtol, atol) if isinstance(rtol, float) and isinstance(atol, float) else None

    def scale(self, size: Tensor) -> Tensor:
        """Return the acceptable error [N] of components with the absolute values ``size`` [N].

        ``size`` is overwritten.
        """
        scale = size.mul_(self.rtol).add_(self.atol)
        is_positive = isinstance(self.atol, float) and self.atol > 0
        return scale if is_positive else scale.clamp_min_(torch.finfo(scale.dtype).tiny)


class ScaledErrorNorm:
    """The norm of the error of each step in one solve that starts at y [N], in units of the tolerance."""

    def __init__(self, tolerance: Tolerance, norm: Norm, y: Tensor) -> None:
        self._tolerance, self._norm = tolerance, norm
        self._size = self._size_next = y.detach().abs()
        self._rtol, atol = tolerance.numbers or (0.0, 0.0)
        # A tensor, because adding a Python number takes longer.
        self._atol_over_rtol = self._size.new_full((), atol / self._rtol) if 0 < atol < 1e30 * self._rtol else None

    def error_ratio(self, error: Tensor, y_next: Tensor) -> float:
        """Return the norm of the error [N] of a step to y_next [N]. A scalar error is already this norm."""
        if error.dim() == 0:
            return error.item()
        self._size_next = y_next.detach().abs()
        return self.remeasure(error)

    def remeasure(self, error: Tensor) -> float:
        """Return the norm of another error [N] of the same step. Synchronises once, and may overwrite the error."""
        size = torch.maximum(self._size, self._size_next)
        if self._atol_over_rtol is None:
            return self._norm(error.div_(self._tolerance.scale(size)))
        # Python divides by rtol: one tensor operation less.
        return self._norm(error.div_(size.add_(self._atol_over_rtol))) / self._rtol

    def accept(self) -> None:
        """Accept the step, so that the next step starts at its end."""
        self._size = self._size_next


@dataclass(frozen=True)
class Controller:
    """The rule for the next step size h'.

    It depends on the errors r_n, r_(n-1), r_(n-2) of the last steps, in units of the tolerance:

    h' = h safety r_n^-(i+p+d)/k r_(n-1)^(p+2d)/k r_(n-2)^-d/k, limited to [min_factor, max_factor] h,

    where the error is of order h^k. After an accepted step, pure integral control never shrinks the step. A rejected
    step is repeated with the size h safety r_n^-1/k. ``ControllerState`` applies the rule to one solve, and
    ``step_factors`` to tensors.

    proportional, integral, derivative: the numbers p, i and d; pure integral control is (0, 1, 0).
    safety: a factor below 1, so that steps are rejected less often.
    min_factor, max_factor: the bounds of h' / h.
    """

    proportional: float = 0.0
    integral: float = 1.0
    derivative: float = 0.0
    safety: float = 0.9
    min_factor: float = 0.2
    max_factor: float = 10.0

    def __post_init__(self) -> None:
        if not self.integral > 0:
            raise ValueError(f"controller: integral must be positive, got {self.integral}")
        if not 0 < self.safety < 1 or not 0 < self.min_factor < 1 < self.max_factor:
            raise ValueError(
                "controller: safety and min_factor must lie between 0 and 1, max_factor must be above 1, got "
                f"{self.safety}, {self.min_factor}, {self.max_factor}"
            )


CONTROLLERS = {
    "integral": Controller(),
    # Hairer, Norsett & Wanner 1993, section IV.2 (vol. II), with beta = 0.04 at order 5.
    "pi": Controller(proportional=0.2, integral=0.65),
    # Kennedy & Carpenter 2003, Additive Runge-Kutta schemes for convection-diffusion-reaction equations, section 2.3.
    "pid": Controller(proportional=0.14, integral=0.25, derivative=0.10),
}


class ControllerState:
    """A controller in one solve; it stores the errors of the last two accepted steps."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._previous_ratios = (1.0, 1.0)

    def propose(self, h: float, ratio: float, accepted: bool, order: int) -> float:
        """Return the next step size after a step of size h.

        ratio: the error of the step in units of the tolerance. accepted: whether the step was accepted.
        order: the power of h that the error is proportional to.
        """
        controller = self._controller
        if not math.isfinite(ratio):
            return h * controller.min_factor
        if not accepted:
            return h * max(controller.min_factor, controller.safety * ratio ** (-1 / order))
        p, i, d = controller.proportional, controller.integral, controller.derivative
        ratio = max(ratio, SMALLEST_RATIO)
        last, before_last = self._previous_ratios
        self._previous_ratios = (ratio, last)
        factor = controller.safety * ratio ** (-(p + i + d) / order)
        if p or d:
            factor *= last ** ((p + 2 * d) / order) * before_last ** (-d / order)
        # Integral control never shrinks the step after an accepted one, as in torchdiffeq.
        min_factor = controller.min_factor if p or d else 1.0
        return h * min(controller.max_factor, max(min_factor, factor))


def step_factors(
    controller: Controller, order: int, ratio: Tensor, accepted: Tensor, past_ratios: Sequence[Tensor]
) -> Tensor:
    """Return the next step size divided by this one, as ``ControllerState.propose`` computes it, for tensors.

    order: the power of the step size that the error is proportional to.
    ratio, accepted: the errors in units of the tolerance, and whether the steps are accepted; float64 and bool, of the
        same shape.
    past_ratios: the errors of the last two accepted steps, the last one first. Only PI and PID control read them.
    """
    p, i, d = controller.proportional, controller.integral, controller.derivative
    factor = ratio.pow(-1 / order).mul_(controller.safety)
    if p or d or i != 1:
        factor_accepted = controller.safety * ratio.clamp(min=SMALLEST_RATIO).pow(-(p + i + d) / order)
        if p or d:
            last, before_last = past_ratios
            factor_accepted *= last.pow((p + 2 * d) / order) * before_last.pow(-d / order)
        factor = torch.where(accepted, factor_accepted, factor)
    # Integral control never shrinks the step after an accepted one.
    floor = torch.full_like(factor, controller.min_factor)
    if not (p or d):
        floor = torch.where(accepted, 1.0, floor)
    # fmax takes the smallest factor where the error is NaN.
    return torch.fmax(factor, floor).clamp_(max=controller.max_factor)


def first_step(
    evaluate: Callable[[float, Tensor], Tensor],
    t: float,
    y: Tensor,
    f: Tensor,
    end: float,
    order: int,
    tolerance: Tolerance,
    norm: Norm,
) -> float:
    """Return a positive size of the first step (Hairer, Norsett & Wanner 1993, section II.4, p. 169).

    It takes one evaluation, at a time not beyond ``end``. The result is NaN if y or f is not finite, and 0 if f in
    units of the tolerance overflows.

    evaluate: a function of t and y that returns dy/dt. f: the value f(t, y), which was evaluated already.
    order: the power of the step size that the error is proportional to.
    """
    scale = tolerance.scale(y.abs())
    d0, d1 = norm(y / scale), norm(f / scale)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    if not math.isfinite(h0) or h0 == 0:
        return _zero_if_finite(norm, y, f)
    direction, h0 = math.copysign(1.0, end - t), min(h0, abs(end - t))
    f1 = evaluate(t + direction * h0, torch.add(y, f, alpha=direction * h0))
    d2 = norm((f1 - f).div_(scale)) / h0
    steepest = max(d1, d2)
    h1 = max(1e-6, h0 * 1e-3) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / order)
    return min(100 * h0, h1) or _zero_if_finite(norm, f, f1)


def _zero_if_finite(norm: Norm, *tensors: Tensor) -> float:
    """Return 0 if all tensors [N] are finite, else NaN. All processes whose states the norm includes get the same."""
    return sum(norm(x * 0) for x in tensors)


def fit_to_end(h: float, remaining: float, max_step: float = math.inf) -> float:
    """Fit the proposed step h > 0 to the remaining time, to reach the end exactly and without a tiny last step."""
    h = min(h, max_step)
    if remaining <= min(h * END_STRETCH, max_step):
        return remaining
    return remaining / 2 if 2 * h > remaining else h

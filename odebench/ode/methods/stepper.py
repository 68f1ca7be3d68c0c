"""The interface of steppers, their options, and the functions with which they evaluate the field."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from odebench.ode.control import Norm, Tolerance, rms
from odebench.ode.dense import HERMITE, LINEAR, Interpolant
from odebench.ode.solution import Stats, Status


class Field(Protocol):
    """The vector field of a solve: a function that returns dy/dt [N].

    t: the time, a scalar tensor made by ``time_tensors``.
    y: the state [N].
    in_result: True if the evaluation has weight in the result of this step, or is the first stage of the next step.
        False if it is used only in the error estimate or in another stage.
    out: memory [N] that the result may be written to.
    """

    def __call__(self, t: Tensor, y: Tensor, in_result: bool = True, out: Tensor | None = None) -> Tensor:
        """Evaluate the field."""

    def time_tensors(self, times: Sequence[float]) -> Sequence[Tensor]:
        """Return the times as the scalar tensors that f gets."""


class StepperOptions(NamedTuple):
    """The options of a stepper; each family of methods uses those that concern it.

    compiled: whether to compile the step.
    with_stages: whether a compiled step returns its stages, which outputs inside the step need.
    side: the direction of time, +1 or -1, if f is to be evaluated just after the start of a step and just before
        its end; otherwise 0.
    tolerance, norm: the tolerance and the norm of the error. Implicit methods solve their equations to a fraction of
        this tolerance, or to round-off if it is None; a compiled step measures its error with them.
    stats: counts the Jacobians and the linear solves.
    """

    compiled: bool = False
    with_stages: bool = True
    side: float = 0.0
    tolerance: Tolerance | None = None
    norm: Norm = rms
    stats: Stats | None = None


class Stepper(Protocol):
    """The interface of an object that takes the steps of one method in one solve.

    If autograd is on, every state has a graph.

    order: the power of h that the error is proportional to; a method of variable order changes it.
    failure: the reason why the last attempt has no result; None if it has one. The error of a failed attempt is
        infinite. With ``unstable`` there is no error, and the solve ends.
    """

    order: int
    failure: Status | None = None
    _field: Field
    _side: float
    # f at the start of the next step, and f at the end of the last attempt; None if it was not evaluated.
    _slope: Tensor | None = None
    _end: Tensor | None = None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Reset, and start at y [N]; f: the field at y, or None if it was not evaluated."""

    def slope(self, t: float, y: Tensor) -> Tensor:
        """Return the field [N] at the start of the next step; evaluate it if that was not done yet."""
        if self._slope is None:
            self._slope = evaluate(self._field, t, y, self._side)
        return self._slope

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [N] after a step of signed size h; last: True if no step will follow."""

    def error(self) -> Tensor:
        """Return the error estimate [N] of the last attempt, without a graph; the caller may overwrite it.

        A compiled step may return a scalar instead: the root mean square of the error in units of the tolerance.
        """

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """Return the dense output of the last attempt. Must be called before ``accept``.

        interpolation: "linear" or "cubic", the interpolation of a method without dense output.
        """

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Advance to the state after the last attempt."""

    def stiffness(self) -> float | None:
        """Estimate h |lambda| from the last attempt; None if the method has no such estimate."""
        return None

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply the slopes that the next step will use by the factor. Must be called before ``accept``."""
        self._end = None if self._end is None else self._end * factor

    def _slope_at_end(self, t_next: float, y_next: Tensor) -> Tensor:
        """Return f [N] at the start of the step that follows the last attempt."""
        return evaluate(self._field, t_next, y_next, self._side) if self._end is None else self._end

    def _hermite(
        self, t: float, h: float, y: Tensor, y_next: Tensor, interpolation: str, slope_at_end: Callable[[], Tensor]
    ) -> Interpolant:
        """Interpolate linearly, or by a cubic Hermite polynomial with the slopes at both ends of the step."""
        mean = (y_next - y) / h
        if interpolation == "linear":
            return Interpolant(t, h, y, [mean], LINEAR)
        self._end = slope_at_end()
        return Interpolant(t, h, y, [self.slope(t, y), self._end, mean], HERMITE)


class VariableOrderStepper(Protocol):
    """A stepper that chooses its order."""

    def choose_order(self, measure: Callable[[Tensor], float], ratio: float, accepted: bool) -> float:
        """Choose the order of the next attempt; return the error of the last attempt at that order.

        The controller computes the next step size from this error. Errors are in units of the tolerance.

        measure: a function that returns the norm of an error [N], and overwrites the error.
        ratio: the error of the last attempt. accepted: whether this attempt was accepted.
        """


def evaluate(field: Field, t: float, y: Tensor, side: float, ending_step: float = 0.0) -> Tensor:
    """Evaluate the field [N] at t.

    side: see ``StepperOptions``. If it is not 0, the field is evaluated just after t.
    ending_step: the signed size of the step that ends at t. If it is given too, the field is evaluated just before t.
    """
    (time,) = field.time_tensors([t])
    if side:
        time = torch.nextafter(time, time - ending_step if ending_step else time + side)
    return field(time, y, True)


def stage_times(field: Field, t: float, h: float, c: Sequence[float], side: float) -> Sequence[Tensor]:
    """Return the times t + c_i h of stages, as f gets them.

    side: see ``StepperOptions``. If it is not 0, the times at the ends of the step are moved just inside the step.
    h: the signed step size; 0 stands for the start of a step in the direction ``side``.
    """
    times = field.time_tensors([t + c_i * h for c_i in c])
    if not side:
        return times
    inward = {0.0: math.copysign(1.0, h or side), 1.0: -h}
    return [
        torch.nextafter(time, time + inward[c_i]) if c_i in inward else time for time, c_i in zip(times, c, strict=True)
    ]


def copy_without_graph(k: Tensor) -> Tensor:
    """Return k, or a copy if k has no graph: the next call of f may overwrite its memory."""
    return k if k.requires_grad else k.clone()

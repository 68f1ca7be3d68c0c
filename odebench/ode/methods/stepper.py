"""The interface of steppers, their options, and how they evaluate the field."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from odebench.ode.control import Norm, Tolerance, rms
from odebench.ode.dense import HERMITE, LINEAR, Interpolant
from odebench.ode.solution import Stats, Status


class Field(Protocol):
    """dy/dt [N] = field(t, y [N], in_result, out), t a scalar tensor of ``time_tensors``.

    in_result: whether the evaluation has weight in the result of this step or is the first stage of the next, rather
        than only in the error estimate or another stage.
    out: [N] memory that the result may be written to.
    """

    def __call__(self, t: Tensor, y: Tensor, in_result: bool = True, out: Tensor | None = None) -> Tensor:
        """Evaluate the field."""

    def time_tensors(self, times: Sequence[float]) -> Sequence[Tensor]:
        """Times as scalar tensors, as f gets them."""


class StepperOptions(NamedTuple):
    """The options of a stepper; each family of methods uses those that concern it.

    compiled: compile the step. with_stages: a compiled step returns its stages, for outputs inside of it.
    one_sided: the direction of time, +1 or -1, to evaluate f just after the start of a step and just before its end;
        or 0.
    tolerance, norm: how accurately the equations of implicit steps are solved (None: to round-off), and how a compiled
        step measures its error.
    stats: counts Jacobians and linear solves.
    """

    compiled: bool = False
    with_stages: bool = True
    one_sided: float = 0.0
    tolerance: Tolerance | None = None
    norm: Norm = rms
    stats: Stats | None = None


class Stepper(Protocol):
    """Steps of one method in one solve. If autograd is on, every state has a graph.

    order: the error is proportional to h^order; a variable-order method changes it.
    failure: why the last attempt has no result, else None. Its error is then infinite; only ``unstable`` has no error,
        and ends the solve.
    """

    order: int
    failure: Status | None = None
    _field: Field
    _one_sided: float
    # f at the start of the next step, and at the end of the last attempt, if it is known.
    _slope: Tensor | None = None
    _end: Tensor | None = None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Reset, and start at y [N]; f is the field there, if it is known."""

    def slope(self, t: float, y: Tensor) -> Tensor:
        """The field [N] at the start of the next step, evaluated when it is needed."""
        if self._slope is None:
            self._slope = evaluate(self._field, t, y, self._one_sided)
        return self._slope

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] after a step of signed size h; ``last``: no step will follow."""

    def error(self) -> Tensor:
        """Error estimate [N] of the last attempt, without graph; the caller may overwrite it.

        Or a scalar: its root mean square in units of the tolerance.
        """

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """The dense output of the last attempt, before ``accept``.

        interpolation: "linear" or "cubic", for a method without dense output.
        """

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Advance to the state after the last attempt."""

    def stiffness(self) -> float | None:
        """Estimate of h |lambda| from the last attempt; None if the method has none."""
        return None

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply the slopes that the next step will use, before ``accept``."""
        self._end = None if self._end is None else self._end * factor

    def _slope_at_end(self, t_next: float, y_next: Tensor) -> Tensor:
        """f [N] at the start of the step after the last attempt."""
        return evaluate(self._field, t_next, y_next, self._one_sided) if self._end is None else self._end

    def _hermite(
        self, t: float, h: float, y: Tensor, y_next: Tensor, interpolation: str, slope_at_end: Callable[[], Tensor]
    ) -> Interpolant:
        """Linear interpolation, or cubic Hermite with the slopes at both ends."""
        mean = (y_next - y) / h
        if interpolation == "linear":
            return Interpolant(t, h, y, [mean], LINEAR)
        self._end = slope_at_end()
        return Interpolant(t, h, y, [self.slope(t, y), self._end, mean], HERMITE)


class VariableOrderStepper(Protocol):
    """A stepper that chooses its order."""

    def choose_order(self, measure: Callable[[Tensor], float], ratio: float, accepted: bool) -> float:
        """Choose the order of the next attempt; returns the last attempt's error at that order.

        The next step size follows from it. Errors are in units of the tolerance.

        measure: the norm of an error [N]; overwrites it.
        ratio: the last attempt's error. accepted: whether the attempt was accepted.
        """


def evaluate(field: Field, t: float, y: Tensor, one_sided: float, ending_step: float = 0.0) -> Tensor:
    """The field [N] at t.

    If ``one_sided``, just after t; or just before t, at the end of a step of signed size ``ending_step``.
    """
    (time,) = field.time_tensors([t])
    if one_sided:
        time = torch.nextafter(time, time - ending_step if ending_step else time + one_sided)
    return field(time, y, True)


def stage_times(field: Field, t: float, h: float, c: Sequence[float], one_sided: float) -> Sequence[Tensor]:
    """The times t + c_i h of stages, as f gets them; if ``one_sided``, those at the ends of the step just inside it.

    A step of size 0 stands for the start of a step.
    """
    times = field.time_tensors([t + c_i * h for c_i in c])
    if not one_sided:
        return times
    inward = {0.0: math.copysign(1.0, h or one_sided), 1.0: -h}
    return [
        torch.nextafter(time, time + inward[c_i]) if c_i in inward else time for time, c_i in zip(times, c, strict=True)
    ]


def copy_without_graph(k: Tensor) -> Tensor:
    """k, copied if it has no graph, since f may overwrite its memory in the next call."""
    return k if k.requires_grad else k.clone()

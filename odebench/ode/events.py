"""Events: times at which a function of the solution crosses zero.

If the function has different signs at the two ends of an accepted step, its zero is searched on the interpolant of the
step. Two zeros inside one step are therefore missed; set ``max_step`` if that matters.

The derivatives of an event follow from the implicit function theorem. If g(t*, y(t*)) = 0, then
dt* = -dg / (dg/dt + <dg/dy, f>). Here dg is the change of g at fixed t*, which comes from the state and the parameters
of g. The state y* = y(t*) of the event changes by dy* = dy(t*) + f dt* (Chen, Amos & Nickel 2021, Learning neural event
functions for ordinary differential equations, section 3).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odebench.ode.arguments import short_repr
from odebench.ode.dense import Interpolant
from odebench.ode.once_differentiable import first_derivative_only
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import EventHits
from odebench.ode.torch_func import needs_derivative, to_list, transform_active

# If a function is exactly zero at the start of a step, its sign is taken at this theta instead.
THETA_AFTER_START = 2.0**-10


@dataclass(frozen=True)
class Event:
    """A function whose zeros along the solution are to be found.

    It is evaluated at the ends of every step. It has a zero where its sign changes, and where it is exactly zero at the
    end of a step. If it is zero at the start of the solve, this is not a zero. NaN has no sign.

    function: event(t, y, *args), which gets the arguments of f and returns a tensor of floats or booleans. A tensor of
        several elements stands for several functions, any of which may cross zero. True counts as 1 and False as -1:
        the time of a change is found, but has no gradient.
    terminal: whether the first zero ends the solve.
    direction: +1 finds only rising zeros (False to True), -1 only falling zeros, 0 both. Rising means in the direction
        of the solve: in a solve backward in time, the function grows while t falls.
    """

    function: Callable[..., Tensor]
    terminal: bool = True
    direction: int = 0

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"an event must be callable as event(t, y, *args), got {type(self.function).__name__}")
        if self.direction not in (-1, 0, 1):
            raise ValueError(f"direction must be -1, 0 or 1, got {self.direction}")


@dataclass(frozen=True)
class ZeroCrossing:
    """A zero in a step, at t + theta h: that of element ``element`` of event number ``index``."""

    theta: float
    index: int
    element: int


@dataclass(frozen=True)
class EventHit:
    """A zero at the time ``time``: that of element ``element`` of event number ``index``.

    row: the index of the state at this time in ``IntegrationResult.states``.
    """

    index: int
    element: int
    time: float
    row: int


class EventDetector:
    """Find the zeros of event functions in the accepted steps, which must be given in order."""

    def __init__(self, events: Sequence[Event], problem: InitialValueProblem) -> None:
        self.events = tuple(events)
        self._problem = problem
        self._args = problem.layout.rebuild_args(problem.args)
        self._values: list[float] | None = None
        self._functions: list[tuple[int, int]] | None = None

    @classmethod
    def from_argument(
        cls, event: Event | Sequence[Event] | Callable[..., Tensor] | None, problem: InitialValueProblem
    ) -> "EventDetector | None":
        """Make the detector for the ``event`` argument of ``solve``; return None if no event is given."""
        if event is None:
            return None
        events = event if isinstance(event, Sequence) else [event]
        if not events:
            raise ValueError("event must be an Event or several, got an empty list; leave event out")
        args = problem.layout.rebuild_args(problem.args)
        return cls([as_event(e, args) for e in events], problem)

    @torch.no_grad()
    def detect(self, interpolant: Interpolant, t_next: float, y_next: Tensor) -> tuple[list[ZeroCrossing], bool]:
        """Return the zeros in one step in the order of time, and whether the last one ends the solve."""
        before = self._evaluate(interpolant.t, interpolant.y) if self._values is None else self._values
        after = self._values = self._evaluate(t_next, y_next)
        found = []
        assert self._functions is not None
        for which, start, end in zip(self._functions, before, after, strict=True):
            theta = self._find_crossing(interpolant, which, start, end)
            if theta is not None:
                found.append(ZeroCrossing(theta, *which))
        found.sort(key=lambda crossing: crossing.theta)
        for i, crossing in enumerate(found):
            if self.events[crossing.index].terminal:
                return found[: i + 1], True
        return found, False

    def collect(self, hits: Sequence[EventHit], states: Tensor) -> tuple[EventHits, ...]:
        """Return the times and states of the zeros of each event function, differentiable.

        hits: the zeros. states: the states [R, N], with the graph of the gradient mode.

        If the event function gets a gradient, each zero takes one evaluation of the field.
        """
        problem = self._problem
        like = problem.t.detach() if problem.t.is_floating_point() else problem.t.double()
        collected = []
        for index in range(len(self.events)):
            pairs = [self._attach_gradient(hit, states[hit.row], like) for hit in hits if hit.index == index]
            times = torch.stack([time for time, _ in pairs]) if pairs else like[:0]
            rows = torch.stack([y for _, y in pairs]) if pairs else states[:0]
            collected.append(EventHits(times, problem.unflatten(rows)))
        return tuple(collected)

    def _find_crossing(
        self, interpolant: Interpolant, which: tuple[int, int], start: float, end: float
    ) -> float | None:
        """Return theta of a zero in a step; None if the sign does not change in the direction of the event.

        which: the event number and the element. start, end: the values at both ends of the step.
        """
        index, element = which
        first = 0.0

        def value(theta: float) -> float:
            time = interpolant.t + theta * interpolant.h
            return self._call(index, time, interpolant.evaluate([theta])[0])[element].item()

        if start == 0:
            first, start = THETA_AFTER_START, value(THETA_AFTER_START)
        direction = self.events[index].direction
        rises, falls = start < 0 <= end, start > 0 >= end
        if not ((rises and direction >= 0) or (falls and direction <= 0)):
            return None
        if end == 0:
            return 1.0
        # theta cannot be more accurate than the rounding of the state and of the time.
        size = max(abs(interpolant.t), abs(interpolant.t + interpolant.h))
        resolution = max(torch.finfo(self._problem.time_dtype).eps, math.ulp(size) / abs(interpolant.h))
        return find_zero(value, (first, start), (1.0, end), 2 * resolution)

    def _evaluate(self, t: float, y: Tensor) -> list[float]:
        """Return the elements of all event functions in one list. Synchronises with the device once."""
        values = [self._call(index, t, y) for index in range(len(self.events))]
        functions = [(index, element) for index, value in enumerate(values) for element in range(len(value))]
        if self._functions not in (None, functions):
            raise ValueError("an event function must always return the same number of elements as at the first time")
        self._functions = functions
        return to_list(torch.cat(values))

    def _call(self, index: int, t: float, y: Tensor) -> Tensor:
        """Return the elements [E] of an event function at t and y [N]."""
        (time,) = self._problem.time_tensors([t])
        return self._elements(index, time, y)

    def _elements(self, index: int, time: Tensor, y: Tensor) -> Tensor:
        value = self.events[index].function(time, self._problem.unflatten(y), *self._args)
        return as_signed(value).reshape(-1)

    def _attach_gradient(self, hit: EventHit, y: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the time t* and the state y* [N] of a zero, with their gradients.

        y: the state [N] at fixed t*. like: a tensor with the dtype and device of t*.
        """
        time = like.new_tensor(hit.time)
        if not torch.is_grad_enabled():
            return time, y
        g = self._call(hit.index, hit.time, y)[hit.element]
        if not needs_derivative(g):
            return time, y
        slope, f = self._total_derivative(hit, y.detach())
        # If g only touches zero, its slope is 0 and the derivative of t* infinite; the value must stay finite.
        shift = first_derivative_only(-(g - g.detach()).to(time) / (slope or torch.finfo(time.dtype).tiny))
        return time + shift, y + shift.to(y.device, y.real.dtype) * f

    def _total_derivative(self, hit: EventHit, y: Tensor) -> tuple[float, Tensor]:
        """Return dg/dt + <dg/dy, f>, the slope of g along the solution, and f [N]."""
        (time,) = self._problem.time_tensors([hit.time])
        with torch.no_grad():
            f = self._problem(time, y)

        slopes = partial_derivatives(lambda *at: self._elements(hit.index, *at)[hit.element], time, y)
        if slopes is None:
            return 0.0, f
        dgdt, dgdy = slopes
        return (dgdt + torch.vdot(dgdy, f).real).item(), f


def partial_derivatives(g: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> Sequence[Tensor] | None:
    """Return dg/dt and dg/dy of an event function, in the shapes of t and y; None if g depends on neither."""
    if transform_active():
        return torch.func.grad(lambda *at: g(*at).sum(), argnums=(0, 1))(t, y)
    with torch.enable_grad():
        leaves = (t.detach().requires_grad_(), y.detach().requires_grad_())
        value = g(*leaves)
        if not value.requires_grad:
            return None
        return torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)


def as_event(event: Any, args: Sequence[Any]) -> Event:
    """Return an ``Event`` for a function, or an ``Event`` unchanged.

    Raises TypeError if the function does not take the args of the solve.
    """
    event = event if isinstance(event, Event) else Event(event)
    if not args:
        return event
    try:
        signature = inspect.signature(event.function)
    except ValueError:  # a built-in function
        return event
    try:
        signature.bind(None, None, *args)
    except TypeError as error:
        raise TypeError(
            f"an event function must take the args of the solve (here {len(args)}), as f does: event(t, y, *args), "
            f"got {short_repr(event.function)}: {error}"
        ) from error
    return event


def as_signed(value: Any) -> Tensor:
    """Convert the value of an event function to a real tensor whose sign changes at an event.

    True becomes 1 and False becomes -1. Raises TypeError for other values, and for integers, which may stay zero.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point():
            return value
        if value.dtype == torch.bool:
            return 2.0 * value - 1.0
    got = value.dtype if isinstance(value, Tensor) else type(value).__name__
    raise TypeError(
        f"an event function must return a tensor of floats or booleans, got {got}; a comparison, such as y > 3, gives "
        "booleans"
    )


def find_zero(
    value: Callable[[float], float], start: tuple[float, float], end: tuple[float, float], tolerance: float
) -> float:
    """Find the point between ``start`` and ``end`` where a function changes its sign, to within ``tolerance``.

    start, end: each a point and the value of the function there.

    Chandrupatla 1997, A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function without
    using derivatives. It uses inverse quadratic interpolation if that is safe, otherwise bisection. A jump through zero
    is found as well. NaN counts as a value with the sign at ``end``.
    """
    (a, fa), (b, fb) = end, start
    fraction = 0.5
    while True:
        x = a + fraction * (b - a)
        fx = value(x)
        if math.isnan(fx):
            fx = math.copysign(math.inf, end[1])
        if (fx > 0) == (fa > 0):
            c, fc = a, fa
        else:
            c, fc, b, fb = b, fb, a, fa
        a, fa = x, fx
        bound = tolerance / abs(b - a)
        if fx == 0 or bound > 0.5:
            return a if abs(fa) <= abs(fb) else b
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        fraction = 0.5
        if phi * phi < xi and (1 - phi) * (1 - phi) < 1 - xi:
            fraction = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        fraction = min(1 - bound, max(bound, fraction))

"""Drop-in replacements for torchdiffeq's functions, with the same signatures, defaults and behaviour.

R. T. Q. Chen, torchdiffeq 0.2.5, 2018-2024. ``odebench.ode.solve`` offers more: statistics, a status,
arguments of f that get gradients, dictionaries of tensors as states, dense output.

Differences from torchdiffeq:

- The last step ends at the last time instead of overshooting it. The backward solve starts each interval with the last
  step size of the interval that it solved before. Both give smaller errors with fewer evaluations.
- ``adaptive_heun`` and ``fehlberg2`` take more evaluations: torchdiffeq starts each of their steps with the last stage
  of the step before, which is not the slope at that point. ``dopri8`` takes three more evaluations for a step with
  output times inside it.
- ``explicit_adams`` and ``implicit_adams`` have the right coefficients on uneven grids.
- torchdiffeq differentiates its steps with respect to times. Here this holds only for fixed steps without events, and
  not if ``interp="cubic"`` interpolates inside the steps of Adams methods. In other cases the gradient is that of the
  exact solution, which takes one evaluation per time. An output time at the end of a step moves along this step, while
  torchdiffeq's linear interpolation has a gradient of 0 at this time. The points of a ``grid_constructor`` move as
  their graph says, and its first and last point move with those of t.
- The backward solve has no equation for times: a user's norm gets a zero in the place of their gradient.
- Event times are exact up to round-off. Parameters of the event function get gradients. A function that is zero at the
  start does not end the solve.
- ``max_num_steps`` limits the steps of all intervals together, to ``max_num_steps`` times the number of intervals.
- Adjoint callbacks get the true time, also in solves that run backward in time.
- A field that changes y in place raises an error. BatchNorm, dropout and other noise cause a warning, and so does a
  tensor whose gradient ``odeint_adjoint`` would lose.
- ``scipy_solver`` has no events. ``options["dtype"]`` has no effect, since times are Python floats.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odebench.ode.arguments import as_compile, as_positive, short_repr
from odebench.ode.events import Event, EventDetector
from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients import Backprop, GradientMode
from odebench.ode.integrate import Observer
from odebench.ode.methods.scipy_methods import SciPyMethod
from odebench.ode.solution import Solution, SolveError, Status
from odebench.ode.solving import finish, prepare
from odebench.ode.torch_func import check_mode_under_transform, transform_active
from odebench.ode.torchdiffeq_adjoint import BackwardArguments, DropInAdjoint, make_adjoint
from odebench.ode.torchdiffeq_options import DropInCall, check_options, find_callbacks, make_call

MAX_EVENT_STEPS = 20_000


class OdeintError(SolveError, AssertionError):
    """The error of ``odeint`` and ``odeint_adjoint`` if a solve fails; torchdiffeq raises an AssertionError."""


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y), y(t[0]) = y0, with plain autograd through the steps.

    func: a function of t, a scalar tensor of the state's dtype, and y, which has the structure of y0.
    y0: a tensor of any shape, or a tuple of tensors.
    t: the times [T], strictly increasing or decreasing. They may require a gradient; see ``solve``.
    rtol, atol: the tolerance of adaptive steps: numbers, tensors that broadcast to y0, or one of them for each tensor
        of a tuple. A step from y0 to y1 is accepted if the root mean square of error / (atol + rtol max(|y0|, |y1|)) is
        at most 1. For a tuple, this is the largest root mean square of its tensors.
    method: a name from ``METHODS``; None stands for dopri5.
    options: for adaptive methods ``norm min_step max_step first_step step_t jump_t safety ifactor dfactor
        max_num_steps dtype``, for the others ``step_size grid_constructor interp perturb`` and for multistep methods
        ``max_order max_iters``. By default, fixed steps go from each time of t to the next. ``compile`` is as in
        ``odebench.ode.solve``.
    event_fn: a function event_fn(t, y) whose zero ends the solve. Then only the first time and the direction of t
        matter.

    If func has attributes ``callback_step``, ``callback_accept_step`` and ``callback_reject_step``, they are called
    with (t, y, dt) for every step that is tried, accepted and rejected, respectively.

    Returns the states [T, *shape], or a tuple of them if y0 is a tuple. With ``event_fn``, returns the time of the
    event, and the states [2, *shape] at the first time and at the event.

    Raises ValueError or TypeError for invalid arguments, and OdeintError if an adaptive solve fails.
    """
    if _has_one_time(t, event_fn):
        return pytree.tree_map(lambda part: part.unsqueeze(0), y0)
    call = make_call(func, y0, t, rtol, atol, method, options, parameters_known=True)
    # Autograd cannot differentiate through SciPy.
    with torch.set_grad_enabled(torch.is_grad_enabled() and not isinstance(call.plan.method, SciPyMethod)):
        return _solve_call(call, Backprop(), event_fn, options)


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Tensor] | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """Solve like ``odeint``, with the gradient of the continuous adjoint.

    Memory does not grow with the number of steps.

    adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: the tolerance, method and options of the backward
        solve; by default those of the forward solve, except for its norm.
    adjoint_options["norm"]: the norm of the error in the backward solve. By default, it is the largest norm of y, of
        its adjoint and of the gradient of any parameter. "seminorm" leaves the parameters out. A function gets the
        tuple (t, y, adjoint of y, *gradients of parameters).
    options["compile"]: "solve" compiles both solves, if both have adaptive steps of explicit methods.
    adjoint_params: the tensors that get gradients besides y0 and t. By default, these are the parameters of func and
        every other leaf tensor that it uses.

    The callbacks of the backward solve are those attributes of func whose names end in ``_adjoint``.

    Raises the errors of ``odeint``, also in the backward pass.
    """
    if adjoint_method not in (None, method) and options is not None and adjoint_options is None:
        raise ValueError(
            "If `adjoint_method != method` then we cannot infer `adjoint_options` from `options`. So as `options` has "
            "been passed then `adjoint_options` must be passed as well."
        )
    if as_compile(check_options("options", options).get("compile", False)) is True:
        raise ValueError("options['compile']='step' is for odeint; with the adjoint, choose 'solve'")
    if check_options("adjoint_options", adjoint_options).get("compile"):
        raise ValueError(
            "adjoint_options['compile'] does not exist; options['compile'] compiles the backward solve, too"
        )
    if adjoint_options is None:
        adjoint_options = {key: value for key, value in (options or {}).items() if key not in ("norm", "compile")}
    if _has_one_time(t, event_fn):
        return pytree.tree_map(lambda part: part.unsqueeze(0), y0)
    call = make_call(func, y0, t, rtol, atol, method, options, parameters_known=adjoint_params is not None)
    if not torch.is_grad_enabled():
        return _solve_call(call, Backprop(), event_fn, options)
    if transform_active():
        check_mode_under_transform(DropInAdjoint.name)
    arguments = BackwardArguments(adjoint_rtol, adjoint_atol, adjoint_method or method, adjoint_options, adjoint_params)
    return _solve_call(call, make_adjoint(call, arguments, OdeintError), event_fn, options)


def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Tensor,
    *,
    event_fn: Callable[..., Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Solve from y0 at t0 until event_fn(t, y) changes its sign.

    event_fn: a function that returns a tensor. Several elements stand for several functions, and the first zero of any
        of them ends the solve.
    reverse_time: whether to solve backward in time.
    odeint_interface: ``odeint`` or ``odeint_adjoint``.
    kwargs: further arguments for odeint_interface.

    Returns the time of the event and the states [2, *shape] at t0 and at the event. The time and the state of the event
    have gradients with respect to y0, t0 and the parameters of func and event_fn (Chen, Amos & Nickel 2021, Learning
    neural event functions for ordinary differential equations, section 3).

    Raises the errors of odeint_interface.
    """
    if not isinstance(t0, Tensor):
        raise TypeError(f"t0 must be a tensor of one time, got {short_repr(t0)}")
    start = t0.reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    return odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)


def _has_one_time(t: Tensor, event_fn: Any) -> bool:
    if event_fn is not None and isinstance(t, Tensor) and len(t) != 2:
        raise ValueError(f"We require len(t) == 2 when in event handling mode, but got len(t)={len(t)}.")
    return isinstance(t, Tensor) and t.dim() == 1 and len(t) == 1


def _solve_call(
    call: DropInCall, mode: GradientMode, event_fn: Callable[..., Tensor] | None, options: dict[str, Any] | None
) -> Any:
    """Solve, and return what ``odeint`` returns. Raises OdeintError if the solve fails."""
    observers = find_callbacks(call.func, call.plan, call.problem.unflatten, call.t.dtype)
    if event_fn is not None:
        return _solve_until_event(call, mode, observers, event_fn, options)
    solution = _solve(call, mode, observers)
    # If fixed steps end in NaN, return it, as torchdiffeq does.
    returned = {Status.success} if call.plan.tolerance is not None else {Status.success, Status.non_finite}
    if solution.status not in returned:
        raise OdeintError(solution.outcome, solution)
    return solution.y


def _solve(
    call: DropInCall, mode: GradientMode, observers: tuple[Observer, ...], detector: EventDetector | None = None
) -> Solution:
    prepare(call.problem, call.plan, mode, detector)
    result = mode.solve_with_gradient(ForwardSolve(call.problem, call.plan, observers, detector))
    return finish(call.problem, call.plan, mode, detector, result)


def _solve_until_event(
    call: DropInCall,
    mode: GradientMode,
    observers: tuple[Observer, ...],
    event_fn: Callable[..., Tensor],
    options: dict[str, Any] | None,
) -> tuple[Tensor, Any]:
    """Return the time of the event, and the states at the first time and at the event."""
    problem = call.problem
    start, direction = problem.times[0], math.copysign(1.0, problem.times[1] - problem.times[0])
    longest = math.inf
    if call.plan.tolerance is None:
        if not options or options.get("step_size") is None:
            raise ValueError("fixed steps until an event need options={'step_size': ...}")
        longest = MAX_EVENT_STEPS * as_positive("step_size", options["step_size"])
    problem.times = [start, start + direction * longest]
    solution = _solve(call, mode, observers, EventDetector([Event(event_fn)], problem))
    if solution.status is not Status.event:
        outcome = solution.outcome
        if solution.status is Status.success:
            outcome = dataclasses.replace(outcome, status=Status.max_steps)
        raise OdeintError(outcome, solution, "odeint_event, whose event was not reached,")
    event = solution.events[0]
    states = pytree.tree_map(lambda y, at_event: torch.cat([y[:1], at_event[-1:]]), solution.y, event.y)
    return event.t[-1], states

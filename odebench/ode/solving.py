"""The door of the engine."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odebench.ode.control import Tolerance
from odebench.ode.gradients import GRADIENTS, Adjoint, Backprop
from odebench.ode.integrate import Plan
from odebench.ode.methods import METHODS, Tableau
from odebench.ode.problem import Problem
from odebench.ode.status import Solution, SolveError, Status


def solve(
    f: Callable[..., Any],
    y0: Any,
    t: Tensor | Sequence[float],
    *,
    args: tuple[Any, ...] = (),
    method: str | Tableau = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-6,
    steps: int | None = None,
    step_size: float | None = None,
    first_step: float | None = None,
    max_steps: int = 100_000,
    gradient: str | Backprop | Adjoint = "backprop",
    throw: bool = True,
) -> Solution:
    """Solve dy/dt = f(t, y, *args), y(t[0]) = y0.

    f: called with a scalar tensor t, the state y and args; returns the structure, shapes and dtype of y. Time
        comes in the state's dtype (float32 for half precision).
    y0: a tensor of any shape, or tuples, lists and dicts of tensors of one dtype and device.
    t: [T] two or more times, strictly increasing or decreasing; where it is a tensor that requires a gradient it
        gets the one of the exact solution, dL/dt_i = <dL/dy_i, f(t_i, y_i)>, f taken as a constant.
    args: tuples, lists and dicts; the tensors in them get gradients.
    method: a name from ``METHODS`` or a ``Tableau``.
    rtol, atol: a step is accepted when the root mean square of error / (atol + rtol max(|y0|, |y1|)) is at
        most 1. Step sizes are not differentiated.
    steps, step_size: fixed steps instead: so many over the whole span, or of at most this size; each interval
        between two times is divided evenly, into one step or more. A method without error estimate needs one of them.
    first_step: size of the first adaptive step; by default searched for, at the cost of one evaluation.
    max_steps: attempted steps of one solve.
    gradient: "backprop", "adjoint", or one of the classes of ``odebench.ode.gradients`` with its options.
    throw: raise SolveError for a solve that fails; False returns what was reached, with its status.

    Returns a Solution; ``y`` has the structure of y0, each tensor [T, *its shape].

    Raises ValueError or TypeError for arguments that cannot be meant, and SolveError.
    """
    problem = Problem(f, y0, t, args)
    plan = _plan(method, rtol, atol, steps, step_size, first_step, max_steps, problem.times)
    mode = _mode(gradient)
    time_wants_gradient = torch.is_grad_enabled() and problem.t.requires_grad
    if time_wants_gradient:
        initial = problem.y0
        problem.y0 = initial - problem.time_shift(0, initial)
    states, outcome = mode.integrate(problem, plan)
    if time_wants_gradient:
        later = [states[i] + problem.time_shift(i, states[i]) for i in range(1, outcome.reached)]
        states = torch.stack([initial, *later, *states[outcome.reached :]])
    solution = Solution(problem.t, problem.unflatten(states), problem.stats, outcome)
    if throw and outcome.status is not Status.success:
        raise SolveError(outcome, solution)
    return solution


def _plan(
    method: str | Tableau,
    rtol: float,
    atol: float,
    steps: int | None,
    step_size: float | None,
    first_step: float | None,
    max_steps: int,
    times: list[float],
) -> Plan:
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; the methods are {', '.join(sorted(METHODS))}")
        method = METHODS[method]
    numbers = {"steps": steps, "step_size": step_size, "first_step": first_step, "max_steps": max_steps}
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if steps is not None and step_size is not None:
        raise ValueError("give steps or step_size, not both")
    if steps is not None or step_size is not None:
        size = step_size or abs(times[-1] - times[0]) / steps  # type: ignore[operator]
        return Plan(method.fixed(), None, size, None, max_steps)
    if not method.adaptive:
        raise ValueError(f"method {method.name} has no error estimate: give steps (20, say) or step_size")
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise ValueError(f"rtol and atol must not be negative, nor both zero; got {rtol} and {atol}")
    return Plan(method, Tolerance(rtol, atol), None, first_step, max_steps)


def _mode(gradient: str | Backprop | Adjoint) -> Backprop | Adjoint:
    if isinstance(gradient, str):
        if gradient not in GRADIENTS:
            raise ValueError(f"unknown gradient mode {gradient!r}; the modes are {', '.join(GRADIENTS)}")
        return GRADIENTS[gradient]()
    return gradient

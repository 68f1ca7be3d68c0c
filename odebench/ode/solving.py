"""The public function ``solve``."""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from odebench.ode.arguments import (
    as_compile,
    as_finite_times,
    as_flag,
    as_number,
    as_positive,
    as_positive_integer,
    short_repr,
)
from odebench.ode.combinations import Combination, find_conflict
from odebench.ode.control import CONTROLLERS, Controller, Tolerance, rms_over
from odebench.ode.dense import DenseOutput
from odebench.ode.events import Event, EventDetector
from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients import GRADIENTS, GradientMode
from odebench.ode.gradients.moving_grid import grid_moves
from odebench.ode.integrate import IntegrationResult
from odebench.ode.methods import Method, Tableau
from odebench.ode.methods.adams import FixedOrderAdams
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.methods.scipy_methods import SciPyMethod
from odebench.ode.methods.steppers import find_method
from odebench.ode.noise import refuse_layers_in_training_mode
from odebench.ode.per_sample import RowProblem, grid_with_num_steps, solve_rows, unwrap_rows
from odebench.ode.plan import GridFunction, SolvePlan, TooManyStepsError, corners_at_times, even_grid
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import Solution, SolveError, Status
from odebench.ode.torch_func import check_mode_under_transform, needs_derivative, to_list, transform_active, under_vmap


def solve(
    f: Callable[..., Any],
    y0: Any,
    t: Tensor | Sequence[float],
    *,
    args: tuple[Any, ...] = (),
    method: str | Method = "dopri5",
    rtol: Any = 1e-5,
    atol: Any = 1e-6,
    steps: int | None = None,
    step_size: float | None = None,
    first_step: float | None = None,
    min_step: float = 0.0,
    max_step: float = math.inf,
    max_steps: int = 100_000,
    controller: str | Controller = "integral",
    step_t: Sequence[float] | Tensor = (),
    jump_t: Sequence[float] | Tensor = (),
    stepping: Literal["shared", "per_sample"] = "shared",
    event: Event | Sequence[Event] | Callable[..., Tensor] | None = None,
    dense: bool = False,
    gradient: str | GradientMode = "backprop",
    group: ProcessGroup | None = None,
    compile: bool | Literal["step", "solve"] = False,
    compile_math: Literal["exact", "fast"] = "exact",
    throw: bool = True,
) -> Solution:
    """Solve dy/dt = f(t, y, *args), y(t[0]) = y0.

    f: a function of a scalar tensor t, the state y and args. It returns dy/dt in the structure, shapes and dtype of y.
        Times have the dtype of the state (float32 for half precision).
    y0: a tensor of any shape, or tuples, lists and dicts of tensors of one dtype and device. The state may be complex.
        A state of half precision is solved in float32, and only f gets half precision.
    t: two or more times [T], strictly increasing or decreasing. A tensor that requires grad gets the gradient of the
        exact solution with f held constant: dL/dt_i = <dL/dy_i, f(t_i, y_i)> for i > 0, and dL/dt_0 = -<a, f(t_0, y_0)>
        with a the gradient of y_0 through the later states. With backprop and fixed steps, it gets the gradient of the
        discrete solve, whose grid moves with t; see ``grid_moves`` for exceptions. In this case f gets t with a graph:
        ``t.numpy()`` raises an error, and ``t.item()`` loses df/dt without an error.
    args: further arguments of f, which may contain tuples, lists and dicts. The tensors in them get gradients.
    method: a name from ``METHODS``, or the description of a method, such as a ``Tableau``.
    rtol, atol: the tolerance of adaptive steps, as numbers, or in the structure of y0 with tensors that broadcast to
        those of y0. A step from y0 to y1 is accepted if the root mean square of error / (atol + rtol max(|y0|, |y1|))
        is at most 1. Step sizes are not differentiated.
    steps, step_size: give one of them for fixed steps: the number of steps over the whole span, or the largest step
        size. Each interval between two times is divided evenly. A method without error estimate needs one of them.
    first_step: the size of the first adaptive step; by default it is estimated, which takes one evaluation.
    min_step, max_step: the bounds of an adaptive step size. A step of size min_step is accepted whatever its error.
    max_steps: the largest number of attempted steps.
    controller: how adaptive step sizes are chosen: "integral", "pi", "pid" or a ``Controller``. PI control is slightly
        more accurate over many steps; in a short solve it increases the step size more slowly.
    step_t, jump_t: times that a step must end at. At those of jump_t, f jumps and is evaluated on both sides.
    stepping: "shared" takes the same steps for the whole state. "per_sample" gives each row of the state, whose tensors
        are [B, ...], its own steps; see ``odebench.ode.per_sample``.
    event: one or several ``Event``, or a function event(t, y, *args) that ends the solve where it crosses zero, or
        changes between False and True. Two zeros inside one step are missed; ``max_step`` bounds the steps. States at
        times after a terminal event are NaN.
    dense: whether to keep the solution at all times, as ``Solution.dense``.
    gradient: a name from ``GRADIENTS``, such as "backprop" or "adjoint", or one of the classes of
        ``odebench.ode.gradients`` with its options.
    group: processes of torch.distributed that each solve an equal share of the rows. The error is measured over all
        rows, so that all processes take the steps that one process with all rows would take. For explicit Runge-Kutta
        methods with shared steps only.
    compile: whether to use torch.compile, which is worth it for small vector fields that are solved many times. "step"
        or True compiles the step, "solve" the whole loop; see docs/compiling.md.
    compile_math: "fast" computes tanh and small matrix products of float32 faster in a compiled solve, with other
        rounding errors.
    throw: True raises SolveError if the solve fails; False returns the states that were reached, with the status.

    Returns a Solution; ``y`` has the structure of y0, each tensor [T, *its shape].

    Raises ValueError or TypeError for invalid arguments, and SolveError.
    """
    if stepping not in ("shared", "per_sample"):
        raise ValueError(f"unknown stepping {stepping!r}; choose 'shared' or 'per_sample'")
    if compile_math not in ("exact", "fast"):
        raise ValueError(f"unknown compile_math {compile_math!r}; choose 'exact' or 'fast'")
    throw = as_flag("throw", throw)
    if group is not None and not isinstance(group, ProcessGroup):
        raise TypeError(f"group must be a ProcessGroup of torch.distributed, got {short_repr(group)}")
    jumps = as_finite_times("jump_t", jump_t)
    problem = (
        RowProblem(f, y0, t, args) if stepping == "per_sample" else InitialValueProblem(f, y0, t, unwrap_rows(args))
    )
    problem.buffered = refuse_layers_in_training_mode(f, (value for _, value in problem.layout.constants))
    description, max_steps = find_method(method), as_positive_integer("max_steps", max_steps)
    tolerance = Tolerance(problem.flat_tolerance(rtol, "rtol"), problem.flat_tolerance(atol, "atol"))
    grid = _fixed_grid(problem, steps, step_size, max_steps)
    plan = SolvePlan(
        method=description if grid is None else description.for_fixed_steps(),
        tolerance=tolerance if grid is None else None,
        grid=grid,
        corners=None if grid is None else corners_at_times,
        first_step=None if first_step is None else as_positive("first_step", first_step),
        min_step=as_number("min_step", min_step),
        max_step=as_positive("max_step", max_step),
        max_steps=max_steps,
        controller=find_controller(controller),
        norm=rms_over(group),
        group=group,
        step_times=(*as_finite_times("step_t", step_t), *jumps),
        jump_times=frozenset(jumps),
        one_sided=len(jumps) > 0,
        dense=as_flag("dense", dense),
        compile=as_compile(compile),
        compile_math=compile_math,
    )
    plan, mode = check_plan(plan), find_gradient_mode(gradient)
    if isinstance(problem, RowProblem):
        check_combination(problem, plan, mode, event is not None)
        solution = solve_rows(problem, plan, mode, event)
    else:
        detector = EventDetector.from_argument(event, problem)
        prepare(problem, plan, mode, detector)
        result = mode.solve_with_gradient(ForwardSolve(problem, plan, (), detector))
        solution = finish(problem, plan, mode, detector, result)
    if throw and solution.status not in (Status.success, Status.event):
        raise SolveError(solution.outcome, solution)
    return solution


def prepare(problem: InitialValueProblem, plan: SolvePlan, mode: GradientMode, detector: EventDetector | None) -> None:
    """Check a solve before it starts, and give the problem's y0 the gradient with respect to the first time."""
    check_combination(problem, plan, mode, detector is not None)
    problem.checks_first = plan.compile == "solve"
    if transform_active():
        _check_transforms(problem, plan, mode, detector is not None)
    if not needs_derivative(problem.t) or (mode.name == "backprop" and grid_moves(problem, plan, detector)):
        return
    problem.first_output = problem.y0
    problem.y0 = problem.y0 - problem.time_derivative_term(0, problem.y0)


def finish(
    problem: InitialValueProblem,
    plan: SolvePlan,
    mode: GradientMode,
    detector: EventDetector | None,
    result: IntegrationResult,
) -> Solution:
    """Make the solution from the result of the gradient mode; add the gradient with respect to the other times."""
    states, outcome = result.states, result.outcome
    events = detector.collect(result.hits, states) if detector else ()
    if result.hits:
        states = states[result.output_rows]
        outcome = dataclasses.replace(outcome, reached=bisect.bisect_left(result.output_rows, outcome.reached))
    if problem.first_output is not None:
        later = [states[i] + problem.time_derivative_term(i, states[i]) for i in range(1, outcome.reached)]
        states = torch.stack([problem.first_output, *later, *states[1 + len(later) :]])
    dense = None
    if plan.dense and result.interpolants:
        has_graph = mode.name == "backprop" and plan.compile != "solve"
        source = states if states.requires_grad and not has_graph else None
        dense = DenseOutput(result.interpolants, problem.unflatten, outcome.time, source)
    if result.stepper:
        problem.stats.stiffness = result.stepper.stiffness()
    return Solution(problem.t, problem.unflatten(states), problem.stats, outcome, dense=dense, events=events)


def _check_transforms(problem: InitialValueProblem, plan: SolvePlan, mode: GradientMode, has_events: bool) -> None:
    """Raise ValueError if the solve would lose derivatives under ``torch.func`` or forward-mode differentiation."""
    method = plan.method
    if isinstance(method, ImplicitTableau | Rosenbrock | SciPyMethod):
        raise ValueError(
            f"method {method.name} does not support torch.func and forward-mode differentiation; use an explicit "
            "method, such as dopri5, or torch.autograd.grad around the solve"
        )
    if plan.compile:
        raise ValueError(
            f"compile={plan.compile!r} does not support torch.func and forward-mode differentiation; leave it out"
        )
    check_mode_under_transform(mode.name)
    with torch.no_grad():
        # Evaluate f once more: it may capture a batched tensor in its closure.
        rate = problem.evaluate(problem.time_tensors(problem.times[:1])[0], problem.y0, problem.args)
    if not (under_vmap(problem.y0) or under_vmap(rate)):
        return
    if plan.tolerance is not None:
        raise ValueError(
            "step sizes cannot be chosen under torch.func.vmap, which hides the error estimate: give steps or "
            "step_size, or solve the whole batch with stepping='per_sample'"
        )
    if has_events:
        raise ValueError(
            "events read values that torch.func.vmap hides: solve the whole batch with stepping='per_sample', or leave "
            "event out"
        )
    if not isinstance(method, Tableau) and not (isinstance(method, FixedOrderAdams) and not method.implicit):
        raise ValueError(
            f"method {method.name} reads values that torch.func.vmap hides; use an explicit Runge-Kutta method with "
            "steps or step_size"
        )


def check_combination(
    problem: InitialValueProblem | RowProblem, plan: SolvePlan, mode: GradientMode, event: bool
) -> None:
    """Raise ValueError if choices exclude each other; event: whether the solve has an event."""
    adjoint_method = getattr(mode, "method", None)
    combination = Combination(
        method=plan.method,
        gradient=mode.name,
        differentiable=torch.is_grad_enabled() and problem.y0.requires_grad,
        fixed=plan.tolerance is None,
        stepping="per_sample" if isinstance(problem, RowProblem) else "shared",
        compile=plan.compile,
        compile_math=plan.compile_math,
        event=event,
        dense=plan.dense,
        step_t=bool(plan.step_times),
        jump_t=plan.one_sided or bool(plan.jump_times),
        group=plan.group is not None,
        checkpoints=getattr(mode, "checkpoints", None),
        recompute=getattr(mode, "recompute", "step"),
        keep=getattr(mode, "keep", "states"),
        norm=getattr(mode, "norm", "semi"),
        adjoint_method=None if adjoint_method is None else find_method(adjoint_method),
        adjoint_steps=getattr(mode, "steps", None),
    )
    if conflict := find_conflict(combination):
        argument = conflict.arguments[0]
        value = getattr(combination, argument, None)
        raise ValueError(conflict.message(_spell(argument, value) if isinstance(value, str) else argument, _spell))


def _spell(argument: str, value: str) -> str:
    """Return a choice as Python code, such as method='dopri5'."""
    return f"{argument}={value if value.replace('.', '').isdigit() else repr(value)}"


def find_controller(controller: str | Controller) -> Controller:
    """Look up a controller by name. Raises ValueError for an unknown name."""
    if isinstance(controller, Controller):
        return controller
    if not isinstance(controller, str) or controller not in CONTROLLERS:
        raise ValueError(f"unknown controller {controller!r}; the controllers are {', '.join(CONTROLLERS)}")
    return CONTROLLERS[controller]


def find_gradient_mode(gradient: str | GradientMode) -> GradientMode:
    """Look up a gradient mode by name. Raises ValueError for an unknown name, TypeError for other objects."""
    if not isinstance(gradient, str):
        if isinstance(gradient, type) or not hasattr(gradient, "solve_with_gradient"):
            raise TypeError(
                "gradient must be a name, or a mode with its options, such as Checkpoint(checkpoints=8), got "
                + short_repr(gradient)
            )
        return gradient
    if gradient not in GRADIENTS:
        raise ValueError(f"unknown gradient mode {gradient!r}; the modes are {', '.join(GRADIENTS)}")
    return GRADIENTS[gradient]()


def _fixed_grid(
    problem: InitialValueProblem | RowProblem, steps: int | None, step_size: float | None, max_steps: int
) -> GridFunction | None:
    """Return the grid of the fixed steps; None for adaptive steps."""
    if steps is None and step_size is None:
        return None
    if steps is not None and step_size is not None:
        raise ValueError("give steps or step_size, not both")
    if isinstance(problem, RowProblem):
        span = max(to_list((problem.times[-1] - problem.times[0]).abs()), default=0.0)
    else:
        span = abs(problem.times[-1] - problem.times[0])
    if step_size is not None:
        size = as_positive("step_size", step_size)
        grid = even_grid(size)
    else:
        count = as_positive_integer("steps", steps)
        size = span / count
        grid = grid_with_num_steps(count) if isinstance(problem, RowProblem) else even_grid(size)
    # Check before making a grid that would be too large; 1.001 allows for rounding.
    if span > 1.001 * size * max_steps:
        raise TooManyStepsError(
            f"{span / size:.6g} steps are more than max_steps={max_steps}; take larger steps, or raise max_steps"
        )
    return grid


def check_plan(plan: SolvePlan) -> SolvePlan:
    """Return the plan. Raises ValueError for values that are invalid or contradict each other."""
    if not 0 <= plan.min_step <= plan.max_step:
        raise ValueError(
            f"min_step must lie between 0 and max_step, got min_step={plan.min_step} and max_step={plan.max_step}"
        )
    if plan.tolerance is None:
        return plan
    rtol, atol = (
        tol if isinstance(tol, float) else tol.min().item() for tol in (plan.tolerance.rtol, plan.tolerance.atol)
    )
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise ValueError(f"rtol and atol must not be negative, and not both zero; got {rtol} and {atol}")
    return plan

"""Conversion of torchdiffeq's arguments to those of the solver: a problem, a plan, and an observer for callbacks."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odebench.ode.arguments import as_compile, as_finite_times, as_number, as_positive, as_positive_integer, short_repr
from odebench.ode.control import Controller, LargestRms, Norm, Tolerance, rms
from odebench.ode.integrate import Observer
from odebench.ode.methods import METHODS, Method
from odebench.ode.methods.adams import HIGHEST_ORDER, FixedOrderAdams
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.scipy_methods import SCIPY_METHODS, SciPyMethod
from odebench.ode.noise import warn_of_changing_layers
from odebench.ode.plan import (
    Corners,
    GridFunction,
    SolvePlan,
    constructed_grid,
    corners_at_times,
    corners_of_full_steps,
    grid_of_full_steps,
)
from odebench.ode.problem import InitialValueProblem, check_state
from odebench.ode.solving import check_plan
from odebench.ode.torchdiffeq_field import CoercedField, compiled_field

# torchdiffeq takes fixed steps with these methods, whether or not they have an error estimate here.
FIXED_STEPS = frozenset(
    ["implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "radauIIA5", "gl4", "gl6", "sdirk2", "trbdf2"]
)
ALIASES = {"fixed_adams": "implicit_adams"}
CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


@dataclasses.dataclass(frozen=True)
class DropInCall:
    """A call of ``odeint``, converted to the solver's terms.

    func, y0, t: the arguments that the user gave.
    num_tensors: the number of tensors in a state that is a tuple; None for a single tensor.
    user_norm: the user's norm of the state; None if the user gave none.
    norm: the error norm, made from ``user_norm``, or else the default.
    """

    func: Callable[..., Any]
    y0: Any
    t: Tensor
    problem: InitialValueProblem
    num_tensors: int | None
    tolerance: Tolerance
    user_norm: Callable[[Any], Any] | None
    norm: Norm
    plan: SolvePlan


def make_call(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: dict[str, Any] | None,
    *,
    parameters_known: bool,
) -> DropInCall:
    """Convert the arguments of a call. For errors and warnings, see ``make_problem`` and ``make_plan``."""
    compiles = bool(check_options("options", options).get("compile"))
    problem = make_problem(func, y0, t, parameters_known=parameters_known, compiles=compiles)
    num_tensors = len(y0) if isinstance(y0, tuple) else None
    user_norm = check_options("options", options).get("norm")
    norm = state_norm(problem, user_norm, num_tensors)
    flat = functools.partial(flat_tolerance, problem, num_tensors=num_tensors)
    tolerance = Tolerance(flat(rtol, "rtol"), flat(atol, "atol"))
    plan = make_plan(method, options, (func, y0, t), tolerance, norm, user_norm=user_norm is not None)
    return DropInCall(func, y0, t, problem, num_tensors, tolerance, user_norm, norm, plan)


def check_options(name: str, options: Any) -> dict[str, Any]:
    """Return the options. Raises TypeError unless they are a dictionary, and the norm in it is a function."""
    if not isinstance(options or {}, dict):
        raise TypeError(f"{name} must be a dictionary, such as {{'step_size': 0.1}}, got {short_repr(options)}")
    norm = (options or {}).get("norm")
    if norm is not None and not callable(norm) and not (norm == "seminorm" and name == "adjoint_options"):
        raise TypeError(f"{name}['norm'] must be a function of the state, got {short_repr(norm)}")
    return options or {}


def make_problem(
    func: Callable[..., Any], y0: Any, t: Any, *, parameters_known: bool, compiles: bool
) -> InitialValueProblem:
    """Make the initial value problem of a call.

    parameters_known: True if no parameters of func have to be found, apart from those of a module or those that the
        user named.
    compiles: whether the solve is compiled, so that another call with this func must give an equal field.

    Warns about batch normalisation, dropout and other noise. Raises TypeError if the state is neither a tensor nor a
    tuple of tensors, or if the times are not a floating-point tensor; and the errors of ``InitialValueProblem``.
    """
    if not isinstance(y0, Tensor | tuple):
        raise TypeError(f"y0 must be a torch.Tensor or a tuple of them, got {type(y0).__name__}")
    if not isinstance(t, Tensor) or not t.is_floating_point():
        kind = t.type() if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(f"`t` must be a floating point Tensor but is a {kind}")
    if isinstance(y0, tuple) and all(isinstance(part, Tensor) for part in y0):
        # torchdiffeq joins the tensors with torch.cat, which promotes dtypes.
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in y0))
        y0 = tuple(part.to(dtype) for part in y0)
    report_noise, buffered = warn_of_changing_layers(func)
    if not callable(func):
        raise TypeError(f"func must be callable as func(t, y), got {short_repr(func)}")
    check_state([*y0] if isinstance(y0, tuple) else [y0])
    like = tuple((part.shape, part.dtype) for part in (y0 if isinstance(y0, tuple) else (y0,)))
    coerced = (compiled_field if compiles else CoercedField)(func, isinstance(y0, tuple), like)
    field = coerced if parameters_known or isinstance(func, nn.Module) else coerced.forward
    problem = InitialValueProblem(field, y0, t, ())
    problem.report_noise, problem.buffered = report_noise, buffered
    return problem


def _find_method(name: str | None, options: dict[str, Any]) -> Method:
    if name is None:
        name = "dopri5"
    if name == "scipy_solver":
        solver = options.pop("solver", "LSODA")
        if solver not in SCIPY_METHODS:
            raise ValueError(f'Invalid solver "{solver}". Must be one of {sorted(SCIPY_METHODS)}.')
        return SCIPY_METHODS[solver]
    name = ALIASES.get(name, name) if isinstance(name, str) else name
    if not isinstance(name, str) or name not in METHODS:
        names = '", "'.join([*METHODS, *ALIASES, "scipy_solver"])
        raise ValueError(f'Invalid method "{name}". Must be one of {{"{names}"}}.')
    return METHODS[name]


def flat_tolerance(problem: InitialValueProblem, tolerance: Any, name: str, num_tensors: int | None) -> float | Tensor:
    """Convert a tolerance to a number, or to one number for each element of the state.

    num_tensors: the number of tensors in a state that is a tuple; None for a single tensor.
    """
    if isinstance(tolerance, Tensor) and tolerance.requires_grad:
        raise ValueError(f"{name} cannot require gradient")
    if isinstance(tolerance, str) or not hasattr(tolerance, "__len__"):
        return as_number(name, tolerance)
    single = not isinstance(tolerance, tuple | list) and torch.as_tensor(tolerance).numel() == 1
    if single and (num_tensors is None or torch.as_tensor(tolerance).dim() == 0):
        return float(tolerance)
    if num_tensors is None:
        return problem.flat_tolerance(torch.as_tensor(tolerance), name)
    tolerances = tuple(tolerance)
    if len(tolerances) != num_tensors:
        raise ValueError(f"{name}: got {len(tolerances)} tolerances for a state of {num_tensors} tensors")
    return problem.flat_tolerance(tolerances, name)


def state_norm(problem: InitialValueProblem, norm: Callable[[Any], Any] | None, num_tensors: int | None) -> Norm:
    """Make the error norm: the user's, or by default the root mean square (of a tuple, the largest of its tensors)."""
    if norm is not None:
        return lambda x: abs(float(norm(problem.unflatten(x))))
    return rms if num_tensors is None else max_rms([shape.numel() for shape in problem.shapes])


def max_rms(sizes: Sequence[int]) -> LargestRms:
    """Make the norm that is the largest root mean square of consecutive parts of the given sizes."""
    return LargestRms(tuple(sizes), (1.0,) * len(sizes))


def make_plan(
    name: str | None,
    options: dict[str, Any] | None,
    call_args: tuple[Callable[..., Any], Any, Tensor],
    tolerance: Tolerance,
    norm: Norm,
    *,
    user_norm: bool,
) -> SolvePlan:
    """Make the plan for the name of a method and its options.

    call_args: the tuple of func, y0 and t.
    tolerance, norm: the tolerance and the error norm of adaptive steps.
    user_norm: whether the norm is a user's function.

    Warns about options that the method does not have. Raises ValueError for invalid options.
    """
    options = {key: value for key, value in (options or {}).items() if key != "norm"}
    method = _find_method(name, options)
    if user_norm:
        # If rtol is a number, ScaledErrorNorm divides by it after taking the norm. This is wrong for a user's function,
        # which need not be homogeneous.
        rtol, atol = (
            x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64, device="cpu")
            for x in (tolerance.rtol, tolerance.atol)
        )
        tolerance = Tolerance(rtol, atol)
    plan = SolvePlan(method=method, tolerance=tolerance, grid=None, norm=norm)
    if isinstance(method, SciPyMethod):
        plan = _with_scipy_options(plan, options)
    elif method.adaptive and method.name not in FIXED_STEPS:
        plan = _with_adaptive_options(plan, options, call_args[2])
    else:
        plan = _with_grid_options(plan, options, call_args)
    plan = dataclasses.replace(plan, compile=as_compile(options.pop("compile", False)))
    if plan.compile == "solve":
        _check_compiled_solve(plan)
    if options:
        warnings.warn(f"{method.name}: Unexpected arguments {options}", stacklevel=4)
    return check_plan(plan)


def _check_compiled_solve(plan: SolvePlan) -> None:
    """Raise ValueError for options that a compiled solve does not have."""
    if plan.tolerance is not None and not (plan.norm is rms or isinstance(plan.norm, LargestRms)):
        reason = "knows no norm functions; leave options['norm'] out"
    elif plan.grid is not None and plan.interpolation == "cubic":
        reason = "has no interp='cubic'; leave either out"
    else:
        return
    raise ValueError(f"options['compile']='solve' {reason}")


def _with_adaptive_options(plan: SolvePlan, options: dict[str, Any], t: Tensor) -> SolvePlan:
    # It has no effect, since times are Python floats on every device.
    options.pop("dtype", None)
    first_step = options.pop("first_step", None)
    controller = Controller(
        safety=as_number("safety", options.pop("safety", 0.9)),
        min_factor=as_number("dfactor", options.pop("dfactor", 0.2)),
        max_factor=as_number("ifactor", options.pop("ifactor", 10.0)),
    )
    step_t, jump_t = (as_finite_times(key, _or_empty(options.pop(key, None))) for key in ("step_t", "jump_t"))
    if len({*step_t, *jump_t}) < len(step_t) + len(jump_t):
        raise ValueError("`step_t` and `jump_t` must not have any repeated elements between them.")
    # torchdiffeq counts the steps of each interval separately.
    max_steps = as_positive_integer("max_num_steps", options.pop("max_num_steps", 2**31 - 1)) * (len(t) - 1)
    return dataclasses.replace(
        plan,
        min_step=as_number("min_step", options.pop("min_step", 0.0)),
        max_step=as_positive("max_step", options.pop("max_step", math.inf)),
        first_step=None if first_step is None else as_positive("first_step", first_step),
        controller=controller,
        step_times=(*step_t, *jump_t),
        jump_times=frozenset(jump_t),
        one_sided=bool(step_t or jump_t),
        max_steps=max_steps,
    )


def _with_scipy_options(plan: SolvePlan, options: dict[str, Any]) -> SolvePlan:
    for key in ("grid_points", "eps"):
        options.pop(key, None)
    return dataclasses.replace(
        plan,
        min_step=as_number("min_step", options.pop("min_step", 0.0)),
        max_step=as_positive("max_step", options.pop("max_step", math.inf)),
        max_steps=2**31 - 1,
    )


def _or_empty(times: Any) -> Any:
    return () if times is None else times


def _with_grid_options(
    plan: SolvePlan, options: dict[str, Any], call_args: tuple[Callable[..., Any], Any, Tensor]
) -> SolvePlan:
    step_size, constructor = options.pop("step_size", None), options.pop("grid_constructor", None)
    if step_size is not None and constructor is not None:
        raise ValueError("step_size and grid_constructor are mutually exclusive arguments.")
    interpolation = options.pop("interp", "linear")
    if interpolation not in ("linear", "cubic"):
        raise ValueError(f"Unknown interpolation method {interpolation}")
    t = call_args[2]
    grid: GridFunction = list
    corners: Corners | None = corners_at_times
    if step_size is not None:
        grid = grid_of_full_steps(as_positive("step_size", step_size), t.dtype)
        corners = corners_of_full_steps(grid)
    elif constructor is not None:
        if not callable(constructor):
            raise TypeError(f"grid_constructor must be a function (func, y0, t), got {short_repr(constructor)}")
        grid, corners = constructed_grid(functools.partial(constructor, *call_args[:2]), t)
    method = plan.method
    if isinstance(method, FixedOrderAdams):
        assert plan.tolerance is not None
        method = _torchdiffeq_adams(method, options, plan.tolerance)
    if isinstance(method, ImplicitTableau):
        # It has no effect, since Newton's iteration stops by its convergence test.
        options.pop("max_iters", None)
    return dataclasses.replace(
        plan,
        method=method.for_fixed_steps(),
        tolerance=None,
        grid=grid,
        corners=corners,
        max_steps=2**31 - 1,
        interpolation=interpolation,
        one_sided=bool(options.pop("perturb", False)),
    )


def _torchdiffeq_adams(method: FixedOrderAdams, options: dict[str, Any], tolerance: Tolerance) -> Method:
    """Return the method with torchdiffeq's iteration, and with its start, which increases the order at each step."""
    max_order = as_positive_integer("max_order", options.pop("max_order", HIGHEST_ORDER))
    max_iters = as_positive_integer("max_iters", options.pop("max_iters", 4))
    if max_order > HIGHEST_ORDER:
        raise ValueError(f"max_order must be at most {HIGHEST_ORDER}")
    if max_order < 4:
        warnings.warn("max_order is below 4, so the solver reduces to `rk4`.", stacklevel=5)
        return METHODS["rk4"]
    rtol, atol = (float(torch.as_tensor(x).min()) for x in (tolerance.rtol, tolerance.atol))
    # max_order counts the stored slopes and the slope at the end of the step, which only an implicit step computes.
    order = max_order if method.implicit else max_order - 1
    return dataclasses.replace(
        method, order=order, start="growing", rtol=rtol, atol=atol, max_iters=max_iters, lenient=True
    )


@dataclasses.dataclass(frozen=True)
class CallbackObserver(Observer):
    """An observer that calls the user's functions of (t, y, dt) at steps; dt is positive.

    on_step, on_accept, on_reject: the functions for steps that are tried, accepted and rejected.
    unflatten: a function from a flat state [N] to the state that the callbacks get.
    dtype: the dtype of t and dt.
    """

    on_step: Callable[..., Any] | None
    on_accept: Callable[..., Any] | None
    on_reject: Callable[..., Any] | None
    unflatten: Callable[[Tensor], Any]
    dtype: torch.dtype

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Call ``on_step``, before the step is tried."""
        self._call(self.on_step, t, y, h)

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Call ``on_accept``."""
        self._call(self.on_accept, t, y, h)

    def reject(self, t: float, y: Tensor, h: float) -> None:
        """Call ``on_reject``."""
        self._call(self.on_reject, t, y, h)

    def _call(self, callback: Callable[..., Any] | None, t: float, y: Tensor, h: float) -> None:
        if callback is not None:
            time, size = (torch.tensor(x, dtype=self.dtype, device=y.device) for x in (t, abs(h)))
            callback(time, self.unflatten(y), size)


def find_callbacks(
    func: Any, plan: SolvePlan, unflatten: Callable[[Tensor], Any], time_dtype: torch.dtype, suffix: str = ""
) -> tuple[CallbackObserver, ...]:
    """Make the observer that calls func's callbacks, if any; warn about callbacks that the method does not support."""
    names = [name + suffix for name in CALLBACKS]
    found = {name: callback for name in names if (callback := getattr(func, name, None)) is not None}
    adaptive = plan.tolerance is not None
    supported = names if adaptive else names[:1]
    unsupported = found.keys() - (() if isinstance(plan.method, SciPyMethod) else supported)
    if unsupported:
        warnings.warn(f"Solver '{plan.method.name}' does not support callbacks {unsupported}", stacklevel=4)
    step, accept, reject = (None if name in unsupported else found.get(name) for name in names)
    if plan.compile == "solve" and (step or accept or reject):
        raise ValueError("options['compile']='solve' calls no callbacks; leave it out, or remove them from func")
    dtype = torch.promote_types(torch.float64, time_dtype) if adaptive else time_dtype
    return (CallbackObserver(step, accept, reject, unflatten, dtype),) if step or accept or reject else ()

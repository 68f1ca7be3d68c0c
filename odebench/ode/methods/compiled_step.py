"""Steps of explicit Runge-Kutta methods, each compiled into one function.

They are for small vector fields, for which calling torch's operations takes longer than the computation itself.
"""

import functools
import math
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odebench.ode.control import rms
from odebench.ode.methods.stepper import StepperOptions
from odebench.ode.methods.tableau import Tableau
from odebench.ode.noise import evaluate_watched, refuse_noise
from odebench.ode.problem import FieldArguments, StateLayout
from odebench.ode.transfer import constant

StepFunction = Callable[..., tuple[Tensor, ...]]


class CompiledStep:
    """The compiled step of a method for one problem.

    field: the vector field and its arguments.
    y: any state [N]; the step gets its dtype and device.
    options: if the tolerances are numbers and the norm is ``rms``, the compiled step computes the norm of its error.

    Compiled steps are cached. Raises ValueError if f or a constant among its arguments is not hashable.
    """

    def __init__(self, field: FieldArguments, method: Tableau, y: Tensor, options: StepperOptions) -> None:
        self._field, self._c = field, method.c[1:]
        numbers = (0.0, 1.0) if options.tolerance is None else options.tolerance.numbers
        # A tensor, so that the numbers are not compiled into the step.
        self._tolerance = constant(numbers, y.real.dtype, y.device) if numbers and options.norm is rms else None
        one_sided = options.side != 0
        try:
            self._step = _compile(field.f, field.layout, method, options.with_stages, one_sided, y.device.type)
        except TypeError as error:
            raise ValueError(f"compile=True: f and the constants in args must be hashable ({error})") from error

    def __call__(self, t: float, h: float, y: Tensor, k0: Tensor) -> tuple[Tensor, ...]:
        """Take a step from y [N], with the first stage k0 [N].

        Returns y at t + h [N], the last stage [N] and, without a graph, the error [N] or its norm. If ``with_stages``
        is set, all stages [s, N] follow.
        """
        step = self._step
        if self._field.stats.nfe == 1:  # with fixed steps, f is evaluated here first
            step = functools.partial(evaluate_watched, step, refuse_noise, ())
        self._field.stats.nfe += len(self._c)
        numbers = self._field.to_tensor([h, *(t + c_i * h for c_i in self._c)])
        return step(numbers, y, k0, list(self._field.args), self._tolerance)


# Bounded, since each entry keeps its function; a new lambda in every solve compiles every time.
@functools.lru_cache(maxsize=64)
def _compile(
    f: Callable[..., Any], layout: StateLayout, method: Tableau, with_stages: bool, one_sided: bool, device_type: str
) -> StepFunction:
    fsal = method.fsal  # a cached property, at which torch would break the graph

    def step(
        numbers: Tensor, y: Tensor, k0: Tensor, args: list[Tensor], tolerance: Tensor | None
    ) -> tuple[Tensor, ...]:
        h, *stage_times = numbers.unbind()
        stages = [k0]
        for i, time in enumerate(stage_times, start=1):
            y_next = y + h * weighted_sum(method.a[i], stages)
            time = torch.nextafter(time, time - h) if one_sided and method.c[i] == 1 else time
            stages.append(layout.evaluate_flat(f, time, y_next, args))
        if not fsal:
            y_next = y + h * weighted_sum(method.b, stages)
        error = y.new_zeros(())
        if method.error is not None:
            error = h * weighted_sum(method.error, stages).detach()
            error = error if tolerance is None else scaled_error_norm(error, y, y_next, tolerance)
        # Stack the stages: for autograd, each further output takes as long as a small stage.
        return y_next, stages[-1], error, *([torch.stack(stages)] if with_stages else ())

    return compile_or_fall_back(step, device_type)


def compile_or_fall_back(step: Any, device_type: str) -> StepFunction:
    """Compile the step; if torch cannot compile it, warn and run it eagerly."""
    # Call the small kernels from C++, which on the CPU needs no further compiler.
    compiled = torch.compile(own_code(step), dynamic=False, options={"cpp_wrapper": device_type == "cpu"})
    state = {"compiles": True}

    def run(*inputs: Any) -> tuple[Tensor, ...]:
        if state["compiles"]:
            try:
                return compiled(*inputs)
            except torch._dynamo.exc.TorchDynamoException as error:
                state["compiles"] = False
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"compile=True has no effect, torch cannot compile here: {reason}", stacklevel=2)
        return step(*inputs)

    return run


def own_code(function: Any) -> Callable[..., Any]:
    """Return a copy of the function with its own code object, since torch limits recompilations per code object."""
    code, name = function.__code__.replace(), function.__name__
    return types.FunctionType(code, function.__globals__, name, None, function.__closure__)


def scaled_error_norm(error: Tensor, y: Tensor, y_next: Tensor, tolerance: Tensor) -> Tensor:
    """Return the root mean square of an error [N] in units of the tolerance; see ``scaled_error``."""
    return torch.linalg.vector_norm(scaled_error(error, y, y_next, tolerance)) / math.sqrt(max(y.numel(), 1))


def scaled_error(error: Tensor, y: Tensor, y_next: Tensor, tolerance: Tensor) -> Tensor:
    """Return an error [N] in units of the tolerance.

    y, y_next: the states at both ends of the step. tolerance: rtol and atol, [2], or [2, N] for each component.
    """
    rtol, atol = tolerance.unbind()
    size = torch.maximum(y.detach().abs(), y_next.detach().abs())
    return error / (atol + rtol * size).clamp_min(torch.finfo(tolerance.dtype).tiny)


def weighted_sum(weights: Sequence[float], stages: Sequence[Tensor]) -> Any:
    """Return sum_i weights_i k_i over the given stages."""
    terms = [weight * stage for weight, stage in zip(weights, stages, strict=False) if weight]
    return functools.reduce(torch.add, terms)

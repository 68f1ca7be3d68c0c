"""One step of the continuous adjoint as a single compiled function.

The function computes all stages with their vector-Jacobian products. It is for vector fields so small that calling
torch's operations takes longer than the operations themselves.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp

from odebench.ode.compiled.field import names_of, rate_of_inputs, slots_of
from odebench.ode.gradients.captured_tensors import GradientAccumulator
from odebench.ode.integrate import Observer
from odebench.ode.methods.compiled_step import StepFunction, compile_or_fall_back, weighted_sum
from odebench.ode.methods.tableau import Tableau
from odebench.ode.problem import InitialValueProblem, StateLayout
from odebench.ode.solution import Stats, Status
from odebench.ode.torch_func import has_saved_tensor_hooks


class CompiledAdjointStepper:
    """The ``Stepper`` of a compiled backward solve, whose state is y and the adjoint ``a``, [2N].

    Each step evaluates its own first stage, since most intervals between two output times are a single step.

    integrals: the integral of a^T df/dtheta over the last attempted step, for every parameter.
    totals: the totals of the accumulator.
    """

    failure: Status | None = None

    def __init__(
        self, method: Tableau, problem: InitialValueProblem, accumulator: GradientAccumulator, stats: Stats
    ) -> None:
        self._method, self._problem, self._stats = method, problem, stats
        self.totals, self._accumulator = accumulator.totals, accumulator
        self._names = _parameter_names(problem.f, accumulator) or ()
        self._parameters = [tensor.detach() for tensor in accumulator.tensors[: len(self._names)]]
        self._args = [arg.detach() for arg in accumulator.args]
        arg_idx = tuple(i for i, arg in enumerate(accumulator.args) if arg.requires_grad)
        self._step = _compile_step(problem.f, problem.layout, method, self._names, arg_idx, problem.y0.device.type)
        self._error: Tensor | None = None
        self.integrals: list[Tensor] = []
        self.order = method.order

    @staticmethod
    def supports(problem: InitialValueProblem, accumulator: GradientAccumulator, method: Any) -> bool:
        """Return whether torch.func can differentiate f for this solve.

        It can if the state is real, f is a module that owns all parameters, and no hooks process saved tensors.
        """
        real = not problem.y0.is_complex()
        named = isinstance(method, Tableau) and _parameter_names(problem.f, accumulator) is not None
        return real and named and not has_saved_tensor_hooks()

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Do nothing: steps share no state."""

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [2N] at t + h."""
        self._stats.nfe += self._method.stages
        numbers = self._problem.to_tensor([h, *(t + c_i * h for c_i in self._method.c)])
        # All inputs are detached. If the results have a graph, f uses a captured tensor, whose gradient would be lost.
        with torch.enable_grad():
            results = self._step(numbers, y, self._parameters, self._args)
        if results[0].requires_grad or results[1].requires_grad:
            self._accumulator.note_unknown_leaves(results, numbers[-1])
            results = tuple(result.detach() for result in results)
        y_next, self._error, *self.integrals = results
        return y_next

    def error(self) -> Tensor:
        """Return the difference [2N] between the result and that of the embedded method."""
        assert self._error is not None
        return self._error

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Do nothing: steps share no state."""


@dataclass
class StepQuadrature(Observer):
    """Add ``scale`` times the integral of a^T df/dtheta over each accepted step."""

    stepper: CompiledAdjointStepper
    scale: float

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Add the integral over the step, by which dL/dtheta grows backward in time."""
        if self.stepper.integrals:
            torch._foreach_add_(self.stepper.totals, self.stepper.integrals, alpha=-self.scale)


def _parameter_names(f: Any, accumulator: GradientAccumulator) -> tuple[str, ...] | None:
    own = set(map(id, accumulator.args))
    return names_of([tensor for tensor in accumulator.tensors if id(tensor) not in own], f)


@functools.lru_cache(maxsize=64)
def _compile_step(
    f: nn.Module,
    layout: StateLayout,
    method: Tableau,
    names: tuple[str, ...],
    arg_idx: tuple[int, ...],
    device_type: str,
) -> StepFunction:
    # Evaluate cached properties before tracing: torch would break the graph at a property that it has to compute.
    fsal, _, _, _ = method.fsal, layout.is_tensor, layout.is_tuple, layout.view_shape
    slots = slots_of(f, names)

    def step(numbers: Tensor, z: Tensor, parameters: list[Tensor], args: list[Tensor]) -> tuple[Tensor, ...]:
        h, *stage_times = numbers.unbind()
        inputs = [*parameters, *(args[i] for i in arg_idx)]

        def linearize(t: Tensor, y: Tensor, with_parameters: bool) -> Any:
            rate = rate_of_inputs(f, layout, slots, arg_idx, t, args)
            return vjp(rate, y, *inputs) if with_parameters else vjp(lambda y: rate(y, *inputs), y)

        stages: list[Tensor] = []
        integrands: list[tuple[Tensor, ...]] = []
        z_next = z
        for i, t in enumerate(stage_times):
            z_next = z + h * weighted_sum(method.a[i], stages) if i else z
            y, a = z_next.chunk(2)
            k, vjp_at = linearize(t, y, method.b[i] != 0)
            a_dfdy, *integrand = vjp_at(a)
            stages.append(torch.cat([k, -a_dfdy]))
            integrands.append(tuple(integrand))
        if not fsal:
            z_next = z + h * weighted_sum(method.b, stages)
        error = z.new_zeros(()) if method.error is None else h * weighted_sum(method.error, stages)
        nonzero = [i for i, b in enumerate(method.b) if b]
        b = [method.b[i] for i in nonzero]
        integrals = [h * weighted_sum(b, parts) for parts in zip(*(integrands[i] for i in nonzero), strict=True)]
        return z_next, error, *integrals

    return compile_or_fall_back(step, device_type)

"""One step of the continuous adjoint as a single compiled function: all stages with their vector-Jacobian products, for
vector fields so small that calling torch's operations costs more than they do."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

from odebench.ode.gradients.captured_tensors import Targets
from odebench.ode.methods.compiled_step import StepFunction, compiled_or_plain, weighted_sum
from odebench.ode.methods.tableau import Tableau
from odebench.ode.problem import InitialValueProblem, StateLayout
from odebench.ode.solution import Stats, Status


class CompiledAdjoint:
    """The stepper of a compiled backward solve in (y, a) [2N]; see ``odebench.ode.methods.steppers.Stepper``.

    Each step evaluates its first stage itself: most intervals between two output times are one step.

    gathered: the integral over the last attempt of a^T df/dtheta for every wanted target; totals: the targets' own.
    """

    failure: Status | None = None

    def __init__(self, method: Tableau, problem: InitialValueProblem, targets: Targets, stats: Stats) -> None:
        self._method, self._problem, self._stats = method, problem, stats
        self.totals = targets.totals
        self._names = tuple(_names(problem.f, targets) or ())
        self._parameters = [target.detach() for target in targets.wanted[: len(self._names)]]
        self._args = [arg.detach() for arg in targets.args]
        wanted = tuple(i for i, arg in enumerate(targets.args) if arg.requires_grad)
        self._step = _compile(problem.f, problem.layout, method, self._names, wanted, problem.y0.device.type)
        self._error: Tensor | None = None
        self.gathered: list[Tensor] = []
        self.order = method.order

    @staticmethod
    def serves(problem: InitialValueProblem, targets: Targets, method: Any) -> bool:
        """Whether f's parameters are those of a module, so that torch can differentiate f as a function of them."""
        real = not problem.y0.is_complex()
        known = isinstance(method, Tableau) and _names(problem.f, targets) is not None
        return real and known and not _saves_by_hooks()

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Nothing is kept from step to step."""

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [2N] at t + h."""
        self._stats.nfe += self._method.stages
        numbers = self._problem.to_tensor([h, *(t + c_i * h for c_i in self._method.c)])
        y_next, self._error, *self.gathered = self._step(numbers, y, self._parameters, self._args)
        return y_next

    def error(self) -> Tensor:
        """The difference to the embedded method [2N]."""
        assert self._error is not None
        return self._error

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Nothing is kept."""


@dataclass
class StepQuadrature:
    """The integral of a^T df/dtheta along the accepted steps, times ``size``."""

    steps: CompiledAdjoint
    size: float

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Nothing yet."""

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Add that over the step just tried: dL/dtheta grows by it backward in time."""
        if self.steps.gathered:
            torch._foreach_add_(self.steps.totals, self.steps.gathered, alpha=-self.size)

    def reject(self, t: float, y: Tensor, h: float) -> None:
        """The next attempt gives its own."""


def _saves_by_hooks() -> bool:
    """Whether saved tensors go through hooks, as where memory is measured or moved to the CPU: torch.func has none."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(""):
            return False
    except RuntimeError:
        return True


def _names(f: Any, targets: Targets) -> list[str] | None:
    """The names of the wanted parameters in the module f, None where it is none or they are not all its own."""
    if not isinstance(f, nn.Module):
        return None
    names = {id(parameter): name for name, parameter in f.named_parameters()}
    own = set(map(id, targets.args))
    parameters = [target for target in targets.wanted if id(target) not in own]
    return [names[id(p)] for p in parameters] if all(id(p) in names for p in parameters) else None


@functools.lru_cache(maxsize=64)
def _compile(
    f: nn.Module,
    layout: StateLayout,
    method: Tableau,
    names: tuple[str, ...],
    wanted: tuple[int, ...],
    device_type: str,
) -> StepFunction:
    # Known before they are traced: where a cached property is made, torch would cut the step in two.
    fsal, _, _, _ = method.fsal, layout.is_tensor, layout.is_tuple, layout.view_shape

    def step(numbers: Tensor, z: Tensor, parameters: list[Tensor], args: list[Tensor]) -> tuple[Tensor, ...]:
        h, *clock = numbers.unbind()
        inputs = [*parameters, *(args[i] for i in wanted)]

        def linearize(t: Tensor, y: Tensor, gathers: bool) -> Any:
            def rate(y: Tensor, *inputs: Tensor) -> Tensor:
                given = list(args)
                for i, value in zip(wanted, inputs[len(names) :], strict=True):
                    given[i] = value
                state = dict(zip(names, inputs, strict=False))
                return layout.evaluate_flat(lambda *called: functional_call(f, state, called), t, y, given)

            return vjp(rate, y, *inputs) if gathers else vjp(lambda y: rate(y, *inputs), y)

        stages: list[Tensor] = []
        integrands: list[tuple[Tensor, ...]] = []
        z_next = z
        for i, t in enumerate(clock):
            z_next = z + h * weighted_sum(method.a[i], stages) if i else z
            y, a = z_next.chunk(2)
            k, pull = linearize(t, y, method.b[i] != 0)
            a_dfdy, *integrand = pull(a)
            stages.append(torch.cat([k, -a_dfdy]))
            integrands.append(tuple(integrand))
        if not fsal:
            z_next = z + h * weighted_sum(method.b, stages)
        error = z.new_zeros(()) if method.error is None else h * weighted_sum(method.error, stages)
        counts = [i for i, b in enumerate(method.b) if b]
        b = [method.b[i] for i in counts]
        gathered = [h * weighted_sum(b, parts) for parts in zip(*(integrands[i] for i in counts), strict=True)]
        return z_next, error, *gathered

    return compiled_or_plain(step, device_type)

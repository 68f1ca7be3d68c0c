"""One step of an explicit Runge-Kutta method as a single compiled function, for vector fields so small that calling
torch's operations costs more than they do."""

import functools
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odebench.ode.methods.tableau import Tableau
from odebench.ode.problem import Layout, PureField

Step = Callable[..., tuple[Tensor, ...]]


class CompiledStep:
    """A step of ``method`` for one problem.

    field: gives the evaluations. with_stages: whether the stages are wanted, for the continuous extension.

    Raises ValueError where f or a constant among its arguments is unhashable, so that it cannot be recognised.
    """

    def __init__(self, field: PureField, method: Tableau, with_stages: bool) -> None:
        self._field, self._num_evaluations = field, method.stages - 1
        try:
            self._step = _compile(field.f, field.layout, method, with_stages)
        except TypeError as error:
            raise ValueError(f"compile=True: f and the constants in args must be hashable ({error})") from error

    def __call__(self, clock: Sequence[Tensor], h: float, y: Tensor, k0: Tensor) -> tuple[Tensor, ...]:
        """y at t + h, the last stage and, outside the graph, the error, all [N]; then the stages between if wanted."""
        self._field.stats.nfe += self._num_evaluations
        # A number would be compiled into the step.
        size = torch.full((), h, dtype=y.real.dtype, device=y.device)
        return self._step(tuple(clock), size, y, k0, list(self._field.args))


# Bounded, and each with its function: who solves with ever new lambdas compiles ever anew.
@functools.lru_cache(maxsize=64)
def _compile(f: Callable[..., Any], layout: Layout, method: Tableau, with_stages: bool) -> Step:
    # Known before they are traced: where a cached property is made, torch would cut the step in two.
    fsal, _, _ = method.fsal, layout.single, layout.is_tuple

    def step(clock: tuple[Tensor, ...], h: Tensor, y: Tensor, k0: Tensor, args: list[Tensor]) -> tuple[Tensor, ...]:
        stages = [k0]
        for i in range(1, method.stages):
            y_next = y + h * weighted_sum(method.a[i], stages)
            stages.append(layout.rate(f, clock[i], y_next, args))
        if not fsal:
            y_next = y + h * weighted_sum(method.b, stages)
        error = y.new_zeros(()) if method.error is None else h * weighted_sum(method.error, stages).detach()
        return y_next, stages[-1], error, *(stages[1:-1] if with_stages else ())

    return compiled_or_plain(step)


def compiled_or_plain(step: Any) -> Step:
    """The step compiled; where that fails a warning, and the step as it is."""
    # torch counts recompilations by code object, and gives up after a few: each step gets its own.
    own = types.FunctionType(step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__)
    compiled = torch.compile(own, dynamic=False)
    state = {"works": True}

    def run(*inputs: Any) -> tuple[Tensor, ...]:
        if state["works"]:
            try:
                return compiled(*inputs)
            except torch._dynamo.exc.TorchDynamoException as error:
                state["works"] = False
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"compile=True has no effect, torch cannot compile here: {reason}", stacklevel=2)
        return step(*inputs)

    return run


def weighted_sum(weights: Sequence[float], stages: Sequence[Tensor]) -> Any:
    """sum_i weights_i k_i, over as many stages as there are."""
    terms = [weight * stage for weight, stage in zip(weights, stages, strict=False) if weight]
    return functools.reduce(torch.add, terms)

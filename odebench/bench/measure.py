"""Count evaluations of the field and tensor operations outside the field, and time several functions in turns.

``odebench.record.profiling`` measures memory. Counting and timing use separate runs, since counting makes a run slower.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from odebench.bench.cases import leaves_of, like_state

_aten = torch.ops.aten
# Operations for whose result the host must wait.
_SYNCHRONISING = {_aten._local_scalar_dense, _aten.nonzero, _aten.equal, _aten.masked_select}


class TooManyEvaluations(RuntimeError):
    """A solve that was stopped after too many evaluations."""


class CountingField(nn.Module):
    """A vector field that counts its evaluations and the rows in them.

    limit: the largest number of calls; the next one raises TooManyEvaluations. ``is_evaluating`` is True during a call.
    torchdiffeq calls the two callbacks for each accepted and each rejected step.
    """

    def __init__(self, vector_field: nn.Module, limit: float = math.inf) -> None:
        super().__init__()
        self.vector_field, self.limit, self.is_evaluating = vector_field, limit, False
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.calls = self.rows = self.accepted = self.rejected = 0

    def forward(self, t: Tensor, y: Any) -> Any:
        """Evaluate f(t, y)."""
        if self.calls >= self.limit:
            raise TooManyEvaluations(f"more than {self.limit:,} evaluations")
        first = y[0] if isinstance(y, tuple) else y
        self.calls += 1
        self.rows += len(first) if first.dim() > 1 else 1
        self.is_evaluating = True
        try:
            return self.vector_field(t, y)
        finally:
            self.is_evaluating = False

    def callback_accept_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        """Count an accepted step."""
        self.accepted += 1

    def callback_reject_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        """Count a rejected step."""
        self.rejected += 1


class OperationCounter(TorchDispatchMode):
    """Counts tensor operations outside the field, except views, and synchronisations of the host."""

    def __init__(self, counted: CountingField) -> None:
        super().__init__()
        self._counted = counted
        self.operations = 0
        self.synchronisations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._counted.is_evaluating:
            if func.overloadpacket in _SYNCHRONISING:
                self.synchronisations += 1
            elif not is_view(func):
                self.operations += 1
        return func(*args, **(kwargs or {}))


def is_view(func: Any) -> bool:
    """Whether an operation only returns a view of its input."""
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def interleave(timers: Mapping[str, Callable[[], float]], repeats: int, limit_s: float) -> dict[str, list[float]]:
    """Time several functions in rounds, so that a drift of the machine's speed affects all of them.

    Returns name -> the seconds of each run. The order rotates from round to round, so that no function always follows
    the same one.

    timers: name -> function that runs once and returns its seconds. A function that has used ``limit_s`` is skipped
    after its third run.
    """
    times: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    collecting = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()  # else each round searches all objects of the libraries, which takes longer than the solves
    try:
        for number in range(repeats):
            gc.collect()
            start = number % len(names) if names else 0
            for name in (*names[start:], *names[:start]):
                spent = times[name]
                if len(spent) < min(3, repeats) or sum(spent) < limit_s:
                    spent.append(timers[name]())
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return times


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """Make a function that calls ``run`` once and returns the seconds, including the time to free the result."""

    def seconds() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


FIELD_TIMING_S, MAX_FIELD_CALLS = 5e-3, 50

# How a field is timed alone: FIELD_ONLY: evaluations. VJPS_TOGETHER: evaluations, then one backward pass for all
# vector-Jacobian products, as in backpropagation. VJP_EACH: each evaluation followed by its product, as in an adjoint
# solve.
FIELD_ONLY, VJPS_TOGETHER, VJP_EACH = "f", "f + products together", "f + product"


def field_timer(vector_field: nn.Module, t: Tensor, state: Any, kind: str) -> Callable[[], float]:
    """Make a function that times one evaluation of the field.

    The function returns the mean over calls that take some milliseconds together. kind: FIELD_ONLY, or with the
    vector-Jacobian products for state and parameters: VJPS_TOGETHER or VJP_EACH.
    """
    gradient = kind != FIELD_ONLY
    leaves = [leaf.detach().requires_grad_(gradient) for leaf in leaves_of(state)]
    y = like_state(state, leaves)
    inputs = [*vector_field.parameters(), *leaves]
    ones = [torch.ones_like(leaf) for leaf in leaves]

    def calls(number: int) -> None:
        rates: list[Tensor] = []
        with torch.set_grad_enabled(gradient):
            for _ in range(number):
                rate = leaves_of(vector_field(t, y))
                if kind == VJP_EACH:
                    torch.autograd.grad(rate, inputs, ones, allow_unused=True)
                elif kind == VJPS_TOGETHER:
                    rates += rate
            if rates:
                torch.autograd.grad(rates, inputs, ones * number, allow_unused=True)

    calls(2)
    number = int(min(MAX_FIELD_CALLS, max(2, FIELD_TIMING_S / timed(lambda: calls(1))())))
    seconds = timed(lambda: calls(number))
    return lambda: seconds() / number


def field_seconds(times: Mapping[str, Sequence[float]], name: str, forward: float, backward: float) -> float:
    """A lower bound of a run's time: the time of its evaluations of f and vector-Jacobian products alone.

    There is one product for each backward evaluation or, if there are none, for each forward evaluation. Products are
    left out if they were not timed.

    times: ``NAME KIND`` -> seconds measured by `field_timer`. name: NAME. forward, backward: numbers of evaluations.
    """
    together = times.get(f"{name} {VJPS_TOGETHER}")
    if together is not None and not backward:
        return forward * min(together)
    seconds = forward * min(times[f"{name} {FIELD_ONLY}"])
    return seconds + backward * min(times[f"{name} {VJP_EACH}"]) if backward else seconds

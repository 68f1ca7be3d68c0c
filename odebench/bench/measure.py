"""The meters: evaluations of the field, tensor operations outside of it, time taken turn by turn.

Memory is ``odebench.record.profiling``'. Counting and timing are different runs: a watched run is slow.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# Operations whose result the host must wait for.
_SYNCHRONISING = {_aten._local_scalar_dense, _aten.nonzero, _aten.equal, _aten.masked_select}


class CountingField(nn.Module):
    """A vector field that counts its evaluations, and the rows in them, and knows when it is at work.

    torchdiffeq tells it of accepted and rejected steps, through the two callbacks.
    """

    def __init__(self, vector_field: nn.Module) -> None:
        super().__init__()
        self.vector_field = vector_field
        self.inside = False
        self.reset()

    def reset(self) -> None:
        """Start from zero."""
        self.calls = self.rows = self.accepted = self.rejected = 0

    def forward(self, t: Tensor, y: Any) -> Any:
        """f(t, y)."""
        first = y[0] if isinstance(y, tuple) else y
        self.calls += 1
        self.rows += len(first) if first.dim() > 1 else 1
        self.inside = True
        try:
            return self.vector_field(t, y)
        finally:
            self.inside = False

    def callback_accept_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        """A step counts."""
        self.accepted += 1

    def callback_reject_step(self, t0: Tensor, y0: Any, dt: Tensor) -> None:
        """A step is repeated."""
        self.rejected += 1


class OperationCounter(TorchDispatchMode):
    """Counts the tensor operations that run outside the field, views left out, and the waits for their results."""

    def __init__(self, counted: CountingField) -> None:
        super().__init__()
        self._counted = counted
        self.operations = 0
        self.synchronisations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._counted.inside:
            if func.overloadpacket in _SYNCHRONISING:
                self.synchronisations += 1
            elif not is_view(func):
                self.operations += 1
        return func(*args, **(kwargs or {}))


def is_view(func: Any) -> bool:
    """Whether an operation only looks at its input's memory in another way, and so computes nothing."""
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


@dataclass
class RunTimes:
    """Seconds of each run of one contestant."""

    seconds: list[float] = field(default_factory=list)

    @property
    def min_ms(self) -> float:
        """The fastest run."""
        return 1e3 * min(self.seconds)

    @property
    def median_ms(self) -> float:
        """The middle run."""
        return 1e3 * statistics.median(self.seconds)


def interleave(
    contestants: Mapping[str, Callable[[], float]],
    repeats: int,
    limit_s: float,
    tick: Callable[[str], None] = lambda name: None,
) -> dict[str, RunTimes]:
    """Each contestant's times, taken in rounds, so that a drift of the machine's speed meets all of them.

    contestants: name -> runs once and returns its seconds; whoever has used up ``limit_s`` sits out the later rounds
        (but has three). The order turns from round to round, so that nobody always follows the same neighbour.
    """
    times = {name: RunTimes() for name in contestants}
    names = list(contestants)
    collecting = gc.isenabled()
    try:
        for number in range(repeats):
            gc.collect()
            gc.disable()
            start = number % len(names) if names else 0
            for name in (*names[start:], *names[:start]):
                spent = times[name].seconds
                if len(spent) < min(3, repeats) or sum(spent) < limit_s:
                    spent.append(contestants[name]())
                tick(name)
            gc.enable()
    finally:
        if collecting:
            gc.enable()
        else:
            gc.disable()
    return times


def stopwatch(run: Callable[[], Any]) -> Callable[[], float]:
    """A function that runs once and returns the seconds it took; what ``run`` returns is dropped in the time."""

    def timed() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return timed


BARE_S, MAX_BARE_CALLS = 5e-3, 50


PLAIN, TOGETHER, APART = "f", "f + products together", "f + product"
"""What is timed of a field alone: evaluations; evaluations, then their vector-Jacobian products in one backward pass,
as backpropagation has them; an evaluation and its product, one after the other, as an adjoint has them."""


def bare(vector_field: nn.Module, t: Tensor, state: Any, kind: str) -> Callable[[], float]:
    """Times an evaluation of the field alone, or one with its product for the state and the parameters; the mean over
    some milliseconds of calls."""
    gradient = kind != PLAIN
    leaves = [leaf.detach().requires_grad_(gradient) for leaf in _leaves(state)]
    y = tuple(leaves) if isinstance(state, tuple) else leaves[0]
    inputs = [*vector_field.parameters(), *leaves]
    ones = [torch.ones_like(leaf) for leaf in leaves]

    def calls(number: int) -> None:
        rates: list[Tensor] = []
        with torch.set_grad_enabled(gradient):
            for _ in range(number):
                rate = list(_leaves(vector_field(t, y)))
                if kind == APART:
                    torch.autograd.grad(rate, inputs, ones, allow_unused=True)
                elif kind == TOGETHER:
                    rates += rate
            if rates:
                torch.autograd.grad(rates, inputs, ones * number, allow_unused=True)

    calls(2)
    number = int(min(MAX_BARE_CALLS, max(2, BARE_S / stopwatch(lambda: calls(1))())))
    timed = stopwatch(lambda: calls(number))
    return lambda: timed() / number


def _leaves(state: Any) -> Iterator[Tensor]:
    return iter(state) if isinstance(state, tuple) else iter((state,))

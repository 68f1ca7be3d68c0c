"""Events: times at which a function of the solution crosses zero."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from odebench.ode.dense import Extension
from odebench.ode.problem import Problem
from odebench.ode.status import EventHits


@dataclass(frozen=True)
class Event:
    """A function whose zeros along the solution are looked for.

    function: event(t, y) -> a scalar tensor; t and y as f gets them.
    terminal: its first zero ends the solve.
    direction: +1 counts rising zeros only, -1 falling ones, 0 both.
    """

    function: Callable[..., Tensor]
    terminal: bool = True
    direction: int = 0


@dataclass
class Hit:
    """A zero of event function number ``index`` at ``time``, in the state [N]."""

    index: int
    time: Tensor
    state: Tensor


class Watch:
    """Looks for the zeros of event functions in each accepted step."""

    hits: list[Hit]

    @classmethod
    def of(cls, event: Event | Sequence[Event] | Callable[..., Tensor] | None, problem: Problem) -> "Watch | None":
        """The watch for what ``solve`` got, None for nothing."""
        if event is None:
            return None
        raise NotImplementedError

    def look(self, extension: Extension, y_next: Tensor) -> float | None:
        """Look into one step; theta of a terminal event, None where the solve goes on."""
        raise NotImplementedError

    def collect(self, hits: Sequence[Hit]) -> tuple[EventHits, ...]:
        """The hits of each event function, in the user's structure."""
        raise NotImplementedError

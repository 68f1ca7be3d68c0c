"""Backpropagation through the solver."""

from dataclasses import dataclass

from odebench.ode.events import Watch
from odebench.ode.integrate import Observer, Result, integrate
from odebench.ode.plan import Plan
from odebench.ode.problem import Problem


@dataclass(frozen=True)
class Backprop:
    """Plain autograd through every step: exact for the discrete solve, and differentiable any number of
    times (in all but t).

    Memory: the graph of every evaluation of an accepted step. Work backward: no evaluation.
    """

    name = "backprop"

    def integrate(
        self, problem: Problem, plan: Plan, observers: tuple[Observer, ...] = (), watch: Watch | None = None
    ) -> Result:
        """The states at the problem's times, with their graph."""
        return integrate(problem, problem.y0, problem.times, plan, problem.stats, observers=observers, watch=watch)

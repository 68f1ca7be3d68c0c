"""Backpropagation through the solver."""

from dataclasses import dataclass

from odebench.ode.events import EventDetector
from odebench.ode.integrate import IntegrationResult, Observer, integrate
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem


@dataclass(frozen=True)
class Backprop:
    """Plain autograd through every step: exact for the discrete solve, and differentiable any number of times, except
    with respect to t.

    Memory: the graph of every evaluation of an accepted step. Backward: no evaluations.
    """

    name = "backprop"

    def integrate(
        self,
        problem: InitialValueProblem,
        plan: SolvePlan,
        observers: tuple[Observer, ...] = (),
        detector: EventDetector | None = None,
    ) -> IntegrationResult:
        """The states at the problem's times, with their graph."""
        return integrate(
            problem, problem.y0, problem.times, plan, problem.stats, observers=observers, detector=detector
        )

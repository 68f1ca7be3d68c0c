"""Backpropagation through the solver."""

from dataclasses import dataclass

from odebench.ode.events import EventDetector
from odebench.ode.gradients.moving_grid import MovingGrid, grid_moves
from odebench.ode.integrate import IntegrationResult, Observer, integrate
from odebench.ode.methods.steppers import Field
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem


@dataclass(frozen=True)
class Backprop:
    """Plain autograd through every step: exact for the discrete solve, and differentiable any number of times. For
    gradients with respect to t see ``grid_moves``.

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
        field: Field = problem
        if grid_moves(problem, plan, detector):
            field = grid = MovingGrid(problem, plan.stop_times(problem.times[0], problem.times[-1]))
            observers = (*observers, grid)
        return integrate(field, problem.y0, problem.times, plan, problem.stats, observers=observers, detector=detector)

"""Backpropagation through the solver."""

from dataclasses import dataclass

from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients.compiled_exact import solve_with_exact_gradient
from odebench.ode.gradients.moving_grid import MovingGrid, grid_moves
from odebench.ode.integrate import IntegrationResult, integrate


@dataclass(frozen=True)
class Backprop:
    """Plain autograd through every step.

    The gradient is exact for the discrete solve, and there are derivatives of any order. ``grid_moves`` says when the
    gradient with respect to t is also exact for the discrete solve.

    Memory: the graphs of all evaluations in all accepted steps. The backward pass evaluates f no further.
    """

    name = "backprop"

    def solve_with_gradient(self, solve: ForwardSolve) -> IntegrationResult:
        """Solve; return the states at the problem's times, with their graph."""
        if solve.plan.compile == "solve":
            return solve_with_exact_gradient(self, solve)
        problem, plan, observers, detector = solve.problem, solve.plan, solve.observers, solve.detector
        y0, times, stats = problem.y0, problem.times, problem.stats
        if not grid_moves(problem, plan, detector):
            return integrate(problem, y0, times, plan, stats, observers=observers, detector=detector)
        grid = MovingGrid(problem, plan)
        stepper, shift, observers = grid.stepper, grid.output_shift, (*observers, grid)
        result = integrate(grid, y0, times, plan, stats, observers=observers, stepper=stepper, output_shift=shift)
        del grid.stepper  # otherwise grid and stepper keep each other, and the graph, until garbage is collected
        return result

"""Backpropagation through the solver."""

from dataclasses import dataclass

from torch import Tensor

from odebench.ode.integrate import Plan, integrate
from odebench.ode.problem import Problem
from odebench.ode.status import Outcome


@dataclass(frozen=True)
class Backprop:
    """Plain autograd through every step: exact for the discrete solve, and differentiable any number of
    times (in all but t).

    Memory: the graph of every evaluation of an accepted step. Work backward: no evaluation.
    """

    def integrate(self, problem: Problem, plan: Plan) -> tuple[Tensor, Outcome]:
        """The states [T, N] at the problem's times, and how it ended."""
        states, outcome, _ = integrate(problem.evaluate, problem.y0, problem.times, plan, problem.stats)
        return states, outcome

"""The gradient modes by name: how dL/dtheta is computed."""

from typing import Protocol

from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients.adjoint import Adjoint, InterpolatedAdjoint
from odebench.ode.gradients.backprop import Backprop
from odebench.ode.gradients.checkpoint import Checkpoint
from odebench.ode.gradients.reversible import ReversibleGradient
from odebench.ode.integrate import IntegrationResult


class GradientMode(Protocol):
    """A gradient mode with its options; ``name`` is what ``gradient=`` calls it."""

    @property
    def name(self) -> str: ...

    def solve_with_gradient(self, solve: ForwardSolve) -> IntegrationResult:
        """Solve; return the states at the problem's times, with the graph that gives this mode's gradient.

        Raises ValueError for a method or an option that the mode does not support.
        """


GRADIENTS: dict[str, type[GradientMode]] = {
    "backprop": Backprop,
    "checkpoint": Checkpoint,
    "adjoint": Adjoint,
    "interpolated_adjoint": InterpolatedAdjoint,
    "reversible": ReversibleGradient,
}

__all__ = [
    "GRADIENTS",
    "Adjoint",
    "Backprop",
    "Checkpoint",
    "GradientMode",
    "InterpolatedAdjoint",
    "ReversibleGradient",
]

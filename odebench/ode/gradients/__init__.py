"""The gradient modes by name: how dL/dtheta is had."""

from odebench.ode.gradients.adjoint import Adjoint
from odebench.ode.gradients.backprop import Backprop

GRADIENTS: dict[str, type[Backprop] | type[Adjoint]] = {"backprop": Backprop, "adjoint": Adjoint}

__all__ = ["GRADIENTS", "Adjoint", "Backprop"]

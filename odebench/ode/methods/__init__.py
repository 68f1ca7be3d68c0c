"""The methods by name. Importing this needs no torch."""

from odebench.ode.methods import explicit
from odebench.ode.methods.tableau import Tableau

METHODS: dict[str, Tableau] = {
    "euler": explicit.EULER,
    "midpoint": explicit.MIDPOINT,
    "rk4": explicit.RK4,
    "bosh3": explicit.BOSH3,
    "dopri5": explicit.DOPRI5,
    "tsit5": explicit.TSIT5,
}

__all__ = ["METHODS", "Tableau"]

"""The methods by name. Importing this needs no torch."""

from typing import Protocol

from odebench.ode.methods import explicit
from odebench.ode.methods.tableau import Tableau


class Method(Protocol):
    """A method as data: what ``METHODS`` holds, whatever its family.

    name, source: what users call it, and where it comes from.
    order: of the step; the highest one of a method whose order varies.
    stages: evaluations of f that a step is made of.
    adaptive: whether it estimates its error, and so can choose its step sizes.
    stiff: whether its steps stay stable, however stiff the field.
    reversible: whether a step can be undone exactly.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def order(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def adaptive(self) -> bool: ...
    @property
    def stiff(self) -> bool: ...
    @property
    def reversible(self) -> bool: ...

    def fixed(self) -> "Method":
        """The same step without what only error control needs: for fixed steps."""


METHODS: dict[str, Method] = {
    "euler": explicit.EULER,
    "midpoint": explicit.MIDPOINT,
    "rk4": explicit.RK4,
    "bosh3": explicit.BOSH3,
    "dopri5": explicit.DOPRI5,
    "tsit5": explicit.TSIT5,
}

__all__ = ["METHODS", "Method", "Tableau"]

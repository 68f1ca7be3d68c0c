"""The table of methods by name. Imports no torch."""

from typing import Protocol

from odebench.ode.methods import adams, explicit, explicit_high_order, implicit, reversible, rosenbrock, scipy_methods
from odebench.ode.methods.tableau import Tableau


class Method(Protocol):
    """The description of a method, of any family, in ``METHODS``.

    name, source: its name for users, and the publication.
    order: order of the step; the highest one if the order varies.
    stages: evaluations of f per step.
    adaptive: whether it estimates its error, and so can choose its step sizes.
    stiff: whether it is suited to stiff fields.
    reversible: whether a step can be undone exactly.

    The tuple ``options``, if there is one, names the fields that users may set.
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

    def for_fixed_steps(self) -> "Method":
        """Return this method without its error estimate, for fixed steps."""


_METHODS: tuple[Method, ...] = (
    explicit.EULER,
    explicit.MIDPOINT,
    explicit.HEUN2,
    explicit.RALSTON,
    explicit.HEUN3,
    explicit.RK4,
    explicit.RK4_CLASSIC,
    explicit.ADAPTIVE_HEUN,
    explicit.FEHLBERG2,
    explicit.BOSH3,
    explicit.DOPRI5,
    explicit.TSIT5,
    explicit_high_order.VERN7,
    explicit_high_order.DOPRI8,
    adams.EXPLICIT_ADAMS,
    adams.IMPLICIT_ADAMS,
    adams.ADAMS,
    scipy_methods.RK23,
    scipy_methods.RK45,
    scipy_methods.DOP853,
    scipy_methods.RADAU,
    scipy_methods.BDF,
    scipy_methods.LSODA,
    scipy_methods.VODE_ADAMS,
    reversible.ALF,
    reversible.REVERSIBLE_HEUN,
    reversible.REVERSIBLE_MIDPOINT,
    reversible.REVERSIBLE_RK4,
    reversible.REVERSIBLE_BOSH3,
    reversible.REVERSIBLE_DOPRI5,
    reversible.REVERSIBLE_TSIT5,
    implicit.IMPLICIT_EULER,
    implicit.IMPLICIT_MIDPOINT,
    implicit.TRAPEZOID,
    implicit.GL4,
    implicit.GL6,
    implicit.RADAU_IIA3,
    implicit.RADAU_IIA5,
    implicit.SDIRK2,
    implicit.TRBDF2,
    implicit.KVAERNO3,
    implicit.KVAERNO5,
    rosenbrock.RODAS4,
)
METHODS = {method.name: method for method in _METHODS}

__all__ = ["METHODS", "Method", "Tableau"]

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


METHODS: dict[str, Method] = {
    "euler": explicit.EULER,
    "midpoint": explicit.MIDPOINT,
    "heun2": explicit.HEUN2,
    "ralston": explicit.RALSTON,
    "heun3": explicit.HEUN3,
    "rk4": explicit.RK4,
    "rk4_classic": explicit.RK4_CLASSIC,
    "adaptive_heun": explicit.ADAPTIVE_HEUN,
    "fehlberg2": explicit.FEHLBERG2,
    "bosh3": explicit.BOSH3,
    "dopri5": explicit.DOPRI5,
    "tsit5": explicit.TSIT5,
    "vern7": explicit_high_order.VERN7,
    "dopri8": explicit_high_order.DOPRI8,
    "explicit_adams": adams.EXPLICIT_ADAMS,
    "implicit_adams": adams.IMPLICIT_ADAMS,
    "adams": adams.ADAMS,
    "scipy_rk23": scipy_methods.RK23,
    "scipy_rk45": scipy_methods.RK45,
    "scipy_dop853": scipy_methods.DOP853,
    "scipy_radau": scipy_methods.RADAU,
    "scipy_bdf": scipy_methods.BDF,
    "scipy_lsoda": scipy_methods.LSODA,
    "vode_adams": scipy_methods.VODE_ADAMS,
    "alf": reversible.ALF,
    "reversible_heun": reversible.REVERSIBLE_HEUN,
    "reversible_midpoint": reversible.REVERSIBLE_MIDPOINT,
    "reversible_rk4": reversible.REVERSIBLE_RK4,
    "reversible_bosh3": reversible.REVERSIBLE_BOSH3,
    "reversible_dopri5": reversible.REVERSIBLE_DOPRI5,
    "reversible_tsit5": reversible.REVERSIBLE_TSIT5,
    "implicit_euler": implicit.IMPLICIT_EULER,
    "implicit_midpoint": implicit.IMPLICIT_MIDPOINT,
    "trapezoid": implicit.TRAPEZOID,
    "gl4": implicit.GL4,
    "gl6": implicit.GL6,
    "radauIIA3": implicit.RADAU_IIA3,
    "radauIIA5": implicit.RADAU_IIA5,
    "sdirk2": implicit.SDIRK2,
    "trbdf2": implicit.TRBDF2,
    "kvaerno3": implicit.KVAERNO3,
    "kvaerno5": implicit.KVAERNO5,
    "rodas4": rosenbrock.RODAS4,
}

__all__ = ["METHODS", "Method", "Tableau"]

"""The table of methods by name. Imports no torch."""

from odebench.ode.methods import adams, explicit, explicit_high_order, implicit, reversible, rosenbrock, scipy_methods
from odebench.ode.methods.tableau import Tableau

# The description of a method, of any family. It has these attributes:
#
# name, source: the method's name for users, and the publication.
# order: the order of a step; the highest order if the order varies.
# stages: the number of evaluations of f per step.
# adaptive: whether the method estimates its error, and so can choose its step sizes.
# stiff: whether the method is suited to stiff fields.
# reversible: whether a step can be undone exactly.
# for_fixed_steps(): returns the method without its error estimate, or unchanged if it has no error estimate or no
#     fixed steps.
#
# Some descriptions have a tuple ``options``, which names the fields that users may set.
Method = (
    Tableau
    | adams.FixedOrderAdams
    | adams.VariableOrderAdams
    | scipy_methods.SciPyMethod
    | reversible.ReversibleRungeKutta
    | reversible.AsynchronousLeapfrog
    | reversible.ReversibleHeun
    | implicit.ImplicitTableau
    | rosenbrock.Rosenbrock
)

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
    *scipy_methods.SCIPY_METHODS.values(),
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

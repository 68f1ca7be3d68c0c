"""The interface of steppers, and which stepper class steps which method."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from odebench.ode.arguments import short_repr
from odebench.ode.control import Norm, Tolerance, rms
from odebench.ode.dense import Interpolant
from odebench.ode.methods import METHODS, Method
from odebench.ode.methods.adams import FixedOrderAdams, VariableOrderAdams
from odebench.ode.methods.adams_fixed_stepper import FixedOrderAdamsStepper
from odebench.ode.methods.adams_variable_stepper import VariableOrderAdamsStepper
from odebench.ode.methods.explicit_stepper import ExplicitRungeKuttaStepper
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.implicit_stepper import ImplicitRungeKuttaStepper
from odebench.ode.methods.reversible import AsynchronousLeapfrog, ReversibleHeun, ReversibleRungeKutta
from odebench.ode.methods.reversible_stepper import (
    AsynchronousLeapfrogStepper,
    ReversibleHeunStepper,
    ReversibleRungeKuttaStepper,
)
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.methods.rosenbrock_stepper import RosenbrockStepper
from odebench.ode.methods.scipy_methods import SciPyMethod
from odebench.ode.methods.tableau import Tableau
from odebench.ode.solution import Stats, Status


class Field(Protocol):
    """dy/dt [N] = field(t, y [N], in_result, out), t a scalar tensor of ``time_tensors``.

    in_result: whether the evaluation has weight in the result of this step or is the first stage of the next, rather
        than only in the error estimate or another stage.
    out: [N] memory that the result may be written to.
    """

    def __call__(self, t: Tensor, y: Tensor, in_result: bool = True, out: Tensor | None = None) -> Tensor:
        """Evaluate the field."""

    def time_tensors(self, times: Sequence[float]) -> Sequence[Tensor]:
        """Times as scalar tensors, as f gets them."""


class Stepper(Protocol):
    """Steps of one method in one solve. If autograd is on, every state has a graph.

    order: the error is proportional to h^order; a variable-order method changes it.
    failure: why the last attempt has no result, else None; its error is then infinite.
    """

    order: int
    failure: Status | None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Reset, and start at y [N]; f is the field there, if it is known."""

    def slope(self, t: float, y: Tensor) -> Tensor:
        """The field [N] at the start of the next step."""

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] after a step of signed size h; ``last``: no step will follow."""

    def error(self) -> Tensor:
        """Error estimate [N] of the last attempt, without graph; the caller may overwrite it. Or a scalar: its root
        mean square in units of the tolerance."""

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """The dense output of the last attempt, before ``accept``."""

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Advance to the state after the last attempt."""

    def stiffness(self) -> float | None:
        """Estimate of h |lambda| from the last attempt; None if the method has none."""


@runtime_checkable
class VariableOrderStepper(Protocol):
    """A stepper that chooses its order."""

    def choose_order(self, measure: Callable[[Tensor], float], ratio: float, accepted: bool) -> float:
        """Choose the order of the next attempt; returns the last attempt's error at that order in units of the
        tolerance, from which the next step size follows.

        measure: the norm of an error [N] in units of the tolerance; overwrites the error.
        ratio: the last attempt's error in units of the tolerance. accepted: whether the attempt was accepted.
        """


@runtime_checkable
class SlopeKeeper(Protocol):
    """A stepper whose steps use a slope of the step before."""

    def scale_slope(self, factor: Tensor) -> None:
        """Multiply the slope that the last attempt leaves, before ``accept``."""


STEPPERS: dict[type, Callable[..., Any]] = {
    Tableau: ExplicitRungeKuttaStepper,
    ReversibleRungeKutta: ReversibleRungeKuttaStepper,
    AsynchronousLeapfrog: AsynchronousLeapfrogStepper,
    ReversibleHeun: ReversibleHeunStepper,
    FixedOrderAdams: FixedOrderAdamsStepper,
    VariableOrderAdams: VariableOrderAdamsStepper,
    ImplicitTableau: ImplicitRungeKuttaStepper,
    Rosenbrock: RosenbrockStepper,
}


def find_method(method: str | Method) -> Method:
    """Find a method by its name, or check a description. Raises ValueError for an unknown name, TypeError otherwise."""
    if isinstance(method, str):
        if method not in METHODS:
            near = difflib.get_close_matches(method, METHODS, n=3)
            hint = f"did you mean {' or '.join(sorted(near))}?" if near else f"the methods are {', '.join(METHODS)}"
            raise ValueError(f"unknown method {method!r}; {hint}")
        return METHODS[method]
    if type(method) not in STEPPERS and not isinstance(method, SciPyMethod):
        raise TypeError(
            f"method must be a name, such as 'dopri5', or a description, such as a Tableau, got {short_repr(method)}"
        )
    return method


def make_stepper(
    method: Method,
    field: Field,
    y: Tensor,
    *,
    compiled: bool = False,
    with_stages: bool = True,
    one_sided: float = 0.0,
    tolerance: Tolerance | None = None,
    norm: Norm = rms,
    stats: Stats | None = None,
) -> Stepper:
    """Make the stepper of a method for states like y [N].

    compiled: compile the step. with_stages: a compiled step returns its stages, for outputs inside of it.
    one_sided: the direction of time to evaluate f just after a step's start and just before its end; or 0.
    tolerance, norm: how accurately the equations of implicit steps are solved (None: to round-off), and how a compiled
        step measures its error.
    stats: counts Jacobians and linear solves.
    """
    options: dict[str, Any] = {"compiled": compiled, "one_sided": one_sided}
    if isinstance(method, Tableau):
        options |= {"with_stages": with_stages, "tolerance": tolerance, "norm": norm}
    if isinstance(method, ImplicitTableau | Rosenbrock):
        options |= {"tolerance": tolerance, "norm": norm, "stats": stats}
    return STEPPERS[type(method)](method, field, y, **options)

"""What every family of methods offers the loops, and which class steps which description."""

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
    """dy/dt [N] = field(t, y [N], in_result, out), t a scalar tensor of ``clock``.

    in_result: whether the evaluation has weight in the result of this step or is the first stage of the next, rather
        than only in the error estimate or another stage.
    out: [N] memory to write the result to, where that is no more work than giving it in memory of its own.
    """

    def __call__(self, t: Tensor, y: Tensor, in_result: bool = True, out: Tensor | None = None) -> Tensor:
        """One evaluation."""

    def time_tensors(self, times: Sequence[float]) -> Sequence[Tensor]:
        """Times as f gets them: scalar tensors."""


class Stepper(Protocol):
    """One method at work on one solve. Where autograd is on, every state it gives carries its graph.

    order: the power of h that the error falls with; a variable-order method changes it.
    failure: why the last attempt has no result, where it has none; its error is then infinite.
    """

    order: int
    failure: Status | None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Forget everything and begin at y [N]; f is the field there, where it is known."""

    def slope(self, t: float, y: Tensor) -> Tensor:
        """The field [N] at the start of the next step."""

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] after a step of signed size h; ``last``: nothing will follow it."""

    def error(self) -> Tensor:
        """Estimate of the last attempt's error [N], outside the graph; the caller may overwrite it. Or a scalar: its
        root mean square in units of the tolerance."""

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """The continuous extension of the last attempt, to be read before ``accept``."""

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Move on to the state after the last attempt."""

    def stiffness(self) -> float | None:
        """h |lambda| as the last attempt saw it; None where the method gives no estimate."""


@runtime_checkable
class VariableOrderStepper(Protocol):
    """What a stepper that changes its order offers besides."""

    def choose_order(self, measure: Callable[[Tensor], float], ratio: float, accepted: bool) -> float:
        """Choose the order of the next attempt, and give the last one's error at that order in units of the tolerance:
        what the next step size follows from.

        measure: an error [N] in units of the tolerance; overwrites it.
        ratio: the last attempt's error in units of the tolerance; accepted: whether it counts.
        """


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
    """A method by its name. Raises ValueError where there is none, TypeError for what is neither."""
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
    """The stepper of a method for states like y [N].

    compiled: the step, as one function; with_stages: that its stages are wanted as well, for outputs inside of it.
    one_sided: the direction of time where f is to be evaluated just after a step's start and just before its end; or 0.
    tolerance, norm: how exactly the equations of implicit steps are solved, to round-off where there is no tolerance;
        and how a compiled step measures its error.
    stats: where what they cost is counted.
    """
    how: dict[str, Any] = {"compiled": compiled, "one_sided": one_sided}
    if isinstance(method, Tableau):
        how |= {"with_stages": with_stages, "tolerance": tolerance, "norm": norm}
    if isinstance(method, ImplicitTableau | Rosenbrock):
        how |= {"tolerance": tolerance, "norm": norm, "stats": stats}
    return STEPPERS[type(method)](method, field, y, **how)

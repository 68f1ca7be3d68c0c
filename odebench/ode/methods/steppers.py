"""The table of steppers: one class for each family of methods."""

import difflib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from odebench.ode.arguments import short_repr
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
from odebench.ode.methods.stepper import Field, Stepper, StepperOptions
from odebench.ode.methods.tableau import Tableau

STEPPERS: dict[type, Callable[[Any, Field, Tensor, StepperOptions], Stepper]] = {
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
    """Return the method with this name, or the method itself if its description is given.

    Raises ValueError for an unknown name, and TypeError for anything that is neither a name nor a description.
    """
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


def make_stepper(method: Method, field: Field, y: Tensor, **options: Any) -> Stepper:
    """Make the stepper of a method, for states with the shape, dtype and device of y [N].

    options: the fields of ``StepperOptions``.
    """
    return STEPPERS[type(method)](method, field, y, StepperOptions(**options))

"""Solves inside ``torch.func`` (grad, jvp, vmap, ...) and forward-mode differentiation, which look into torch's own
operations alone: what is written by hand, steps or backward passes, would lose derivatives there."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from odebench.ode.methods import Method
from odebench.ode.methods.adams import FixedAdams
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.methods.scipy_methods import SciPySolver
from odebench.ode.methods.tableau import Tableau


def under_vmap(x: Tensor) -> bool:
    """Whether x stands for many tensors inside ``torch.func.vmap``, so that its numbers cannot be read."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def wants_derivative(x: Tensor) -> bool:
    """Whether a derivative with respect to x is wanted: backward, where gradients are on, or forward."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: then what f gives may hold more than memory made
    before has room for."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def check_method(method: Method, compiled: bool) -> None:
    """Raises ValueError for steps that do not go under the transformation at work."""
    if isinstance(method, ImplicitTableau | Rosenbrock | SciPySolver):
        raise ValueError(
            f"method {method.name} does not go under torch.func and forward-mode differentiation; use an explicit "
            "method, such as dopri5, or torch.autograd.grad around the solve"
        )
    if compiled:
        raise ValueError("compile=True does not go under torch.func and forward-mode differentiation; leave it out")


def check_batch(method: Method, adaptive: bool, tensors: Iterable[Tensor]) -> None:
    """Raises ValueError for steps that read numbers, where any of the tensors stands for many inside ``vmap``."""
    if not any(map(under_vmap, tensors)):
        return
    if adaptive:
        raise ValueError(
            "steps cannot be chosen under torch.func.vmap, which hides the error: give steps or step_size, or solve "
            "the whole batch with stepping='per_sample'"
        )
    if not isinstance(method, Tableau) and not (isinstance(method, FixedAdams) and not method.implicit):
        raise ValueError(
            f"method {method.name} reads numbers that torch.func.vmap hides; use an explicit Runge-Kutta method with "
            "steps or step_size"
        )


def check_gradient(name: str) -> None:
    """Raises ValueError for a gradient mode, by its name, whose backward pass is written by hand."""
    if name != "backprop" and torch.is_grad_enabled():
        raise ValueError(
            f"gradient={name!r} does not go under torch.func and forward-mode differentiation, which do not see its "
            "backward pass; use gradient='backprop' (odeint), or torch.autograd.grad around the solve"
        )

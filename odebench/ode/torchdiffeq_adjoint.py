"""The backward solve of ``odeint_adjoint``: the continuous adjoint with torchdiffeq's norms, options and callbacks.

The equations are those of ``odebench.ode.gradients.adjoint``. Only the choice of step sizes differs: errors are
absolute here, not relative to the size of the gradient, so that tolerances have the same meaning as in torchdiffeq.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odebench.ode.arguments import as_number, short_repr
from odebench.ode.control import LargestRms, Norm, Tolerance
from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients.adjoint_field import Quadrature, packed_size, unpack_gradients
from odebench.ode.gradients.backward_solve import AdjointSolve, BackwardSolve, quadrature_for
from odebench.ode.gradients.captured_tensors import (
    CapturedTensors,
    alive_tensors,
    check_without_backward,
    evaluate_first,
    graph_leaves,
    run_with_backward,
)
from odebench.ode.integrate import IntegrationResult, Observer
from odebench.ode.methods import Tableau
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import SolveError, Status
from odebench.ode.torchdiffeq_options import DropInCall, find_callbacks, make_plan, max_rms

BackwardUnpacker = Callable[[Tensor], tuple[Tensor, ...]]
"""A function from a backward state [2N + P] to the tuple that torchdiffeq's norms and callbacks get.

This tuple holds the gradient of t, the state y, the adjoint of y, and the gradients of parameters.
"""

HINT = "name it in adjoint_params=(...), or use odeint"


def find_parameters(problem: InitialValueProblem, func: Any, given: Iterable[Tensor] | None) -> CapturedTensors:
    """Find the tensors that get gradients besides y0 and t.

    given: the tensors that the user named. If it is None, they are the parameters of func and the leaf tensors that
        func uses at the first time.

    If func uses a tensor that was computed outside of it, this function warns if func is a module; otherwise it raises
    ValueError.
    """
    if given is not None:
        named = list(given) if isinstance(given, Iterable) else [given]
        if not all(isinstance(parameter, Tensor) for parameter in named):
            raise TypeError(f"adjoint_params must be a tuple of tensors, got {short_repr(given)}")
        return CapturedTensors(named, None, None)
    if getattr(func, "_is_replica", False):
        # nn.DataParallel's copies hold plain tensors instead of parameters.
        attributes = [value for module in func.modules() for value in vars(module).values()]
        return CapturedTensors([x for x in attributes if isinstance(x, Tensor) and x.requires_grad], None, None)
    y = problem.y0.detach().requires_grad_()
    _, f, first_nr = evaluate_first(problem, y, [])
    captured: list[Tensor] | None = None
    try:
        found = graph_leaves(f, "adjoint", first_nr)
        f = f.detach()
        captured = [x for x in alive_tensors(found) if x is not y]
    except ValueError as error:
        text = "func uses a tensor that was computed outside of it and requires a gradient; name it in adjoint_params"
        if not isinstance(func, nn.Module):
            raise ValueError(f"odeint_adjoint: {text}") from error
        warnings.warn(f"odeint_adjoint: {text}, or it gets none", stacklevel=3)
    module = func.parameters() if isinstance(func, nn.Module) else ()
    return CapturedTensors(list(dict.fromkeys((*module, *(captured or ())))), captured, f.detach())


def backward_unpacker(problem: InitialValueProblem, parameters: Sequence[Tensor], single: bool) -> BackwardUnpacker:
    """Make a function that unpacks a backward state as torchdiffeq does.

    single: whether the user's state is one tensor. If so, y has its shape; the state of a tuple is flat.
    """
    n = len(problem.y0)
    shape = problem.shapes[0] if single else (n,)

    def unpack(z: Tensor) -> tuple[Tensor, ...]:
        # The gradient of t is not part of this backward state.
        return z.new_zeros(()), z[:n].view(shape), z[n : 2 * n].view(shape), *unpack_gradients(z[2 * n :], parameters)

    return unpack


def backward_norm(call: DropInCall, parameters: Sequence[Tensor], norm: Any) -> Norm:
    """Make the norm of the error in the backward solve; norm: the user's function, "seminorm" or None."""
    problem, single = call.problem, call.num_tensors is None
    n, sizes = len(problem.y0), [packed_size(parameter, problem.y0) for parameter in parameters]
    if callable(norm):
        unpack = backward_unpacker(problem, parameters, single)

        def user_norm(z: Tensor) -> float:
            t, y, a, *gradients = unpack(z)
            states = [y, a] if single else [*problem.unflatten(y), *problem.unflatten(a)]
            return abs(float(norm((t, *states, *gradients))))

        return user_norm
    if norm == "seminorm":
        sizes = []
    if call.user_norm is not None:
        rest, end = max_rms(sizes), 2 * n + sum(sizes)
        return lambda z: max(call.norm(z[:n]), call.norm(z[n : 2 * n]), rest(z[2 * n : end]) if sizes else 0.0)
    return max_rms([shape.numel() for shape in problem.shapes] * 2 + sizes)


def backward_tolerance(
    forward: float | Tensor, given: Any, name: str, problem: InitialValueProblem, parameters: Sequence[Tensor]
) -> float | Tensor:
    """Return the tolerance of the backward solve: a number, or one number for each element of the backward state.

    forward: the tolerance of the forward solve, used if ``given`` is None. Parameters then get its smallest element.
    given: the user's tolerance: a number, or one tolerance for each entry of the tuple that norm functions get.
    name: the name of the argument, for messages.
    """
    if given is None:
        if isinstance(forward, float):
            return forward
        return torch.cat([forward, forward, forward.min().expand(sum(packed_size(p, problem.y0) for p in parameters))])
    if not isinstance(given, tuple | list | Tensor) or (isinstance(given, Tensor) and given.dim() == 0):
        return as_number(name, given)
    sizes = [len(problem.y0)] * 2 + [packed_size(parameter, problem.y0) for parameter in parameters]
    tolerances = [torch.as_tensor(x, dtype=problem.y0.real.dtype, device=problem.y0.device) for x in given]
    if len(tolerances) != len(sizes) + 1:
        raise ValueError(
            f"{name}: got {len(tolerances)} tolerances; give one for each of t, y, the adjoint of y and the "
            f"{len(parameters)} parameters"
        )
    return torch.cat([x.reshape(-1).expand(size) for x, size in zip(tolerances[1:], sizes, strict=True)])


@dataclasses.dataclass(frozen=True)
class BackwardArguments:
    """The arguments of ``odeint_adjoint`` for the backward solve.

    rtol, atol: the tolerance; if None, that of the forward solve.
    method: the method; if None, dopri5.
    parameters: the tensors that get gradients besides y0 and t; if None, they are found by an evaluation.
    """

    rtol: Any
    atol: Any
    method: str | None
    options: dict[str, Any]
    parameters: Iterable[Tensor] | None


def make_adjoint(call: DropInCall, arguments: BackwardArguments, error: type[SolveError]) -> "DropInAdjoint":
    """Make the gradient mode of a call; error: the exception to raise if the backward solve fails."""
    problem, single, norm = call.problem, call.num_tensors is None, arguments.options.get("norm")
    found = find_parameters(problem, call.func, arguments.parameters)
    parameters = [parameter for parameter in found.parameters if parameter.requires_grad]
    if found.captured is not None:
        check_without_backward(problem, parameters, DropInAdjoint.name, HINT)
    if callable(norm) and len(parameters) < len(found.parameters):
        warnings.warn(
            "An adjoint parameter was passed without requiring gradient. For efficiency this will be excluded from the "
            "adjoint pass, and will not appear as a tensor in the adjoint norm.",
            stacklevel=3,
        )
    rtol, atol = (
        backward_tolerance(forward, given, name, problem, parameters)
        for forward, given, name in (
            (call.tolerance.rtol, arguments.rtol, "adjoint_rtol"),
            (call.tolerance.atol, arguments.atol, "adjoint_atol"),
        )
    )
    measure = backward_norm(call, parameters, norm)
    user_norm = callable(norm) or call.user_norm is not None
    call_args = (call.func, call.y0, call.t.detach()[:2].flip(0))
    tolerance = Tolerance(rtol, atol)
    plan = make_plan(arguments.method, arguments.options, call_args, tolerance, measure, user_norm=user_norm)
    plan = dataclasses.replace(plan, compile=call.plan.compile)
    if plan.compile == "solve":
        _check_compiled_solve(plan)
    unpack = backward_unpacker(problem, parameters, single)
    observers = find_callbacks(call.func, plan, unpack, call.t.dtype, "_adjoint")
    same_everywhere = isinstance(rtol, float) and isinstance(atol, float)
    separate = norm == "seminorm" and same_everywhere and not observers
    quadrature = quadrature_for("semi", plan.method) if separate else None
    captured = CapturedTensors(parameters, found.captured, found.f)
    return DropInAdjoint(plan, captured, observers, error, quadrature)


def _check_compiled_solve(plan: SolvePlan) -> None:
    """Raise ValueError for options that a compiled backward solve does not have."""
    if not isinstance(plan.method, Tableau):
        reason = f"has explicit methods only, not adjoint_method={plan.method.name!r}; choose 'dopri5', say"
    elif plan.tolerance is not None and not isinstance(plan.norm, LargestRms):
        reason = "knows no norm functions; leave adjoint_options['norm'] out, or choose 'seminorm'"
    else:
        return
    raise ValueError(f"options['compile']='solve' {reason}")


@dataclasses.dataclass(frozen=True)
class DropInAdjoint:
    """The gradient mode of ``odeint_adjoint``: the continuous adjoint, with a given plan.

    plan: the plan of the backward solve.
    captured: the tensors that get gradients besides y0 and t.
    observers: the observers of the backward steps.
    error: the exception to raise if the backward solve fails.
    quadrature: how the gradients of parameters are integrated; None if they are part of the backward state.
    """

    plan: SolvePlan
    captured: CapturedTensors
    observers: tuple[Observer, ...]
    error: type[SolveError]
    quadrature: Quadrature

    name = "adjoint"

    def solve_with_gradient(self, solve: ForwardSolve) -> IntegrationResult:
        """Solve; return the states at the problem's times, and how the solve ended."""
        backward_solve = functools.partial(self._backward_solve, solve.problem, solve.plan)
        return run_with_backward(AdjointSolve, solve, self.captured, backward_solve)

    def _backward_solve(
        self, problem: InitialValueProblem, plan: SolvePlan, result: IntegrationResult
    ) -> BackwardSolve:
        # Other methods, such as SciPy's, start every interval anew with order 1.
        warm_start = self.plan.first_step is None and isinstance(self.plan.method, Tableau)
        backward_plan, step_sizes = self.plan, problem.stats.step_sizes
        if warm_start and step_sizes and self.plan.method == plan.method:
            backward_plan = dataclasses.replace(self.plan, first_step=abs(step_sizes[-1]))
        ended_early = result.outcome.status is Status.event
        return BackwardSolve(
            backward_plan,
            self.quadrature,
            result.times[: result.outcome.reached] if ended_early else result.times,
            relative=False,
            warm_start=warm_start,
            observers=self.observers,
            hint=HINT,
            # If fixed steps end in NaN, the gradient is NaN.
            error=None if self.plan.tolerance is None else self.error,
        )

"""The backward solve of ``odeint_adjoint``: the continuous adjoint with torchdiffeq's norms, options and callbacks.

The equations are those of ``odebench.ode.gradients.adjoint``. Only the choice of step sizes differs: errors here are
absolute, not relative to the size of the gradient, so that tolerances mean the same as in torchdiffeq.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odebench.ode.arguments import as_number, short_repr
from odebench.ode.control import Norm, Tolerance
from odebench.ode.events import EventDetector
from odebench.ode.gradients.adjoint import Adjoint, integrate_backward, quadrature_for
from odebench.ode.gradients.adjoint_field import AdjointField, Quadrature, packed_size, unpack_gradients
from odebench.ode.gradients.captured_tensors import (
    GradientAccumulator,
    alive_tensors,
    check_without_backward,
    graph_leaves,
)
from odebench.ode.integrate import IntegrationResult, Observer, integrate
from odebench.ode.methods import Tableau
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import InitialValueProblem
from odebench.ode.solution import SolveError, Stats, Status
from odebench.ode.torchdiffeq_options import DropInCall, find_callbacks, make_plan, max_rms

BackwardUnpacker = Callable[[Tensor], tuple[Tensor, ...]]
"""From a backward state [2N + P] to the tuple that torchdiffeq's norms and callbacks get: the gradient of t, y, its
adjoint, and the gradients of parameters."""

HINT = "name it in adjoint_params=(...), or use odeint"


@dataclasses.dataclass(frozen=True)
class AdjointParameters:
    """The parameters that get gradients, besides y0 and t.

    captured: those that func uses at the first time; None if the caller named the parameters.
    f: the field [N] at the first time, if it was evaluated to find them.
    """

    parameters: Sequence[Tensor]
    captured: Sequence[Tensor] | None = None
    f: Tensor | None = None


def find_parameters(problem: InitialValueProblem, func: Any, given: Iterable[Tensor] | None) -> AdjointParameters:
    """The tensors ``given``, else the parameters of func and the leaf tensors it uses at the first time.

    Warns if a module uses a tensor that was computed outside of it; raises ValueError if another func does.
    """
    if given is not None:
        named = list(given) if isinstance(given, Iterable) else [given]
        if not all(isinstance(parameter, Tensor) for parameter in named):
            raise TypeError(f"adjoint_params must be a tuple of tensors, got {short_repr(given)}")
        return AdjointParameters(named)
    if getattr(func, "_is_replica", False):
        # nn.DataParallel's copies hold plain tensors instead of parameters.
        attributes = [value for module in func.modules() for value in vars(module).values()]
        return AdjointParameters([x for x in attributes if isinstance(x, Tensor) and x.requires_grad])
    y = problem.y0.detach().requires_grad_()
    (t,) = problem.time_tensors(problem.times[:1])
    with torch.enable_grad():
        # Autograd numbers its nodes in order of creation: nodes with smaller numbers were made before func ran.
        first_node = (torch.zeros((), requires_grad=True) * 1).grad_fn
        assert first_node is not None
        f = problem(t, y)
    captured: list[Tensor] | None = None
    try:
        found = graph_leaves(f, "adjoint", first_node._sequence_nr())
        f = f.detach()
        captured = [x for x in alive_tensors(found) if x is not y]
    except ValueError as error:
        text = "func uses a tensor that was computed outside of it and requires a gradient; name it in adjoint_params"
        if not isinstance(func, nn.Module):
            raise ValueError(f"odeint_adjoint: {text}") from error
        warnings.warn(f"odeint_adjoint: {text}, or it gets none", stacklevel=3)
    module = func.parameters() if isinstance(func, nn.Module) else ()
    return AdjointParameters(list(dict.fromkeys((*module, *(captured or ())))), captured, f.detach())


def backward_unpacker(problem: InitialValueProblem, parameters: Sequence[Tensor], single: bool) -> BackwardUnpacker:
    """Unpacks a backward state as torchdiffeq does; y keeps its shape if ``single``, and is flat for a tuple."""
    n = len(problem.y0)
    shape = problem.shapes[0] if single else (n,)

    def unpack(z: Tensor) -> tuple[Tensor, ...]:
        # The gradient of t is no part of our backward state.
        return z.new_zeros(()), z[:n].view(shape), z[n : 2 * n].view(shape), *unpack_gradients(z[2 * n :], parameters)

    return unpack


def backward_norm(call: DropInCall, parameters: Sequence[Tensor], norm: Any) -> Norm:
    """The norm of the backward error. norm: the user's function, "seminorm" or None."""
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
    sizes = [shape.numel() for shape in problem.shapes] * 2 + sizes
    largest = max_rms(sizes)
    return lambda z: largest(z[: sum(sizes)])


def backward_tolerance(
    forward: float | Tensor, given: Any, name: str, problem: InitialValueProblem, parameters: Sequence[Tensor]
) -> float | Tensor:
    """The tolerance of the backward state: a number, or one per element.

    forward: that of the forward solve, the default; parameters get its smallest element.
    given: a number, or one per entry of the tuple that norms get.
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
        raise ValueError(f"{name}: {len(tolerances)} tolerances for t, y, its adjoint and {len(parameters)} parameters")
    return torch.cat([x.reshape(-1).expand(size) for x, size in zip(tolerances[1:], sizes, strict=True)])


@dataclasses.dataclass(frozen=True)
class BackwardArguments:
    """The arguments of ``odeint_adjoint`` for the backward solve; None stands for those of the forward solve."""

    rtol: Any
    atol: Any
    method: str | None
    options: dict[str, Any]
    parameters: Iterable[Tensor] | None


def make_adjoint(call: DropInCall, arguments: BackwardArguments, error: type[SolveError]) -> "DropInAdjoint":
    """The gradient mode of a call; ``error`` is raised when its backward solve fails."""
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
    unpack = backward_unpacker(problem, parameters, single)
    observers = find_callbacks(call.func, plan, unpack, call.t.dtype, "_adjoint")
    same_everywhere = isinstance(rtol, float) and isinstance(atol, float)
    separate = norm == "seminorm" and same_everywhere and not observers
    quadrature = quadrature_for(Adjoint(norm="semi"), plan.method) if separate else None
    return DropInAdjoint(plan, parameters, found.captured, found.f, observers, error, quadrature)


@dataclasses.dataclass(frozen=True)
class DropInAdjoint:
    """A gradient mode: the continuous adjoint by its own plan, one solve per interval between two times.

    plan: of the backward solve.
    parameters, captured, f: see ``AdjointParameters``.
    observers: of the backward steps.
    error: the exception of a failed backward solve.
    quadrature: how the gradients of parameters are integrated, if they are no part of the backward state.
    """

    plan: SolvePlan
    parameters: Sequence[Tensor]
    captured: Sequence[Tensor] | None
    f: Tensor | None
    observers: tuple[Observer, ...]
    error: type[SolveError]
    quadrature: Quadrature

    name = "adjoint"

    @property
    def warm_start(self) -> bool:
        """Whether a solve starts with the last step size of the one before; SciPy's methods start anew with order 1."""
        return isinstance(self.plan.method, Tableau)

    def integrate(
        self,
        problem: InitialValueProblem,
        plan: SolvePlan,
        observers: tuple[Observer, ...] = (),
        detector: EventDetector | None = None,
    ) -> IntegrationResult:
        """The states at the problem's times, and how the solve ended."""
        results: list[IntegrationResult] = []
        states = _DropInAdjointSolve.apply(
            self, problem, plan, observers, detector, results, problem.y0, *self.parameters
        )
        return dataclasses.replace(results[0], states=states)


class _DropInAdjointSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mode: DropInAdjoint,
        problem: InitialValueProblem,
        plan: SolvePlan,
        observers: tuple[Observer, ...],
        detector: EventDetector | None,
        results: list[IntegrationResult],
        y0: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        result = integrate(
            problem, y0, problem.times, plan, problem.stats, f=mode.f, observers=observers, detector=detector
        )
        results.append(result)
        ctx.mode, ctx.problem = mode, problem
        # Fixed steps that end in NaN have a gradient of NaN.
        ended_early = result.outcome.status is Status.event
        ctx.times = result.times[: result.outcome.reached] if ended_early else result.times
        step_sizes = problem.stats.step_sizes
        warm = step_sizes and mode.warm_start and mode.plan.method == plan.method
        ctx.warm_step = abs(step_sizes[-1]) if warm else None
        # Not as saved tensors: hooks may replace those, and captured tensors are recognised by identity.
        ctx.parameters = parameters
        ctx.save_for_backward(result.states, *parameters)
        return result.states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        states, mode, problem = ctx.saved_tensors[0], ctx.mode, ctx.problem
        stats = problem.stats.backward = problem.stats.backward or Stats()
        accumulator = GradientAccumulator(problem, mode.name, ctx.parameters, [], captured=mode.captured, hint=HINT)
        field = AdjointField(problem, accumulator, None, mode.quadrature)
        first_step, times = mode.plan.first_step or ctx.warm_step, ctx.times
        stepper: Any = None
        a = grad_states[len(times) - 1]
        for i in range(len(times) - 1, 0, -1):
            z = field.initial_state(states[i], a)
            plan = dataclasses.replace(mode.plan, first_step=first_step)
            span = [times[i], times[i - 1]]
            if mode.quadrature is None:
                result = integrate(field, z, span, plan, stats, observers=mode.observers)
            else:
                result = integrate_backward(field, z, span, plan, stats, 1.0, stepper)
                stepper = result.stepper
            if result.outcome.status is not Status.success and plan.tolerance is not None:
                raise mode.error(result.outcome, during="backward solve of the adjoint")
            a = field.extract_adjoint(result.states[1], 1.0) + grad_states[i - 1]
            first_step = mode.plan.first_step or (result.next_step if mode.warm_start else None)
        return None, None, None, None, None, None, a, *accumulator.gradients()

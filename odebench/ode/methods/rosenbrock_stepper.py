"""The stepper of Rosenbrock methods."""

import math
from typing import Any

import torch
from torch import Tensor

from odebench.ode.dense import Interpolant, evaluate_weights
from odebench.ode.methods.explicit_stepper import StageList
from odebench.ode.methods.jacobian import MAX_DENSE_SIZE, JacobianBlock, real_size, value_and_derivatives
from odebench.ode.methods.newton import StageSystem, StageTolerance
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.methods.stepper import Stepper, StepperOptions, stage_times
from odebench.ode.solution import Stats, Status
from odebench.ode.transfer import constant

# The nodes of Gauss quadrature on (0, 1), which has order 4 like the steps.
GAUSS_NODES = (1 / 2 - math.sqrt(3) / 6, 1 / 2 + math.sqrt(3) / 6)


class RosenbrockStepper(Stepper):
    """The stepper of the methods described by a ``Rosenbrock``.

    If autograd is on, the Jacobian has a graph, which allows derivatives of any order. The state may then have at most
    ``MAX_DENSE_SIZE`` real numbers.
    """

    def __init__(self, method: Rosenbrock, field: Any, y: Tensor, options: StepperOptions) -> None:
        if torch.is_grad_enabled() and real_size(y) > MAX_DENSE_SIZE:
            raise ValueError(
                f"method {method.name} supports autograd only for states of up to {MAX_DENSE_SIZE} numbers, got "
                f"{real_size(y)}; use gradient='adjoint', or kvaerno5"
            )
        self._method, self._field, self._side = method, field, options.side
        self._accuracy = StageTolerance(options.tolerance, options.norm)
        self._stats = options.stats or Stats()
        # The relative and absolute tolerances of the linear systems: the acceptable error, or round-off.
        self._linear_tolerances = (0.0, 1.0) if options.tolerance else (1e3 * torch.finfo(y.dtype).eps, 0.0)
        self._u = StageList(exclusive=True)
        self._attempted: tuple[float, float, Tensor] = (0.0, 0.0, y)
        # The weights of the stages in the states at the Gauss nodes.
        self._node_weights: Tensor | None = None
        self._linearization: tuple[Tensor, JacobianBlock, Tensor] | None = None
        self.order = method.order

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Reset; f is evaluated later, when it is needed."""
        self._slope, self._linearization = f, None

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """Return the state [N] at t + h, or y if a linear system could not be solved; see ``failure``."""
        method = self._method
        self.failure, self._attempted = None, (t, h, y)
        times = stage_times(self._field, t, h, method.alpha, self._side)
        if self._linearization is None:
            self._linearization = value_and_derivatives(self._field, times[0], y, h, self._stats)
        f_start, block, f_t = self._linearization
        gamma = constant(((method.gamma,),), y.real.dtype, y.device)
        system = StageSystem([block], h, gamma, self._stats)
        acceptable = self._accuracy.acceptable(y.detach(), y.detach()[None])
        for i in range(method.stages):
            y_i = self._u.combine(y, method.a[i], 1.0)
            f = f_start if i == 0 else self._field(times[i], y_i, True)
            right = torch.add(f, f_t, alpha=h * method.gammas[i]) * (h * method.gamma)
            right = self._u.combine(right, method.c[i], method.gamma)
            self._u.set(i, system.solve(right[None], acceptable, *self._linear_tolerances)[0])
            if not system.solved:
                self.failure = Status.not_converged
                return y
        return self._u.combine(y, method.b, 1.0)

    def error(self) -> Tensor:
        """Return the error estimate [N], which is infinite after a failure."""
        if self.failure is not None:
            return torch.full_like(self._attempted[2].detach(), math.inf)
        assert self._method.error is not None
        return self._u.error(self._method.error, 1.0)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """Return the dense output of the method."""
        h = self._attempted[1]
        return Interpolant(t, h, y, self._slopes(h), self._method.dense)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Drop the slope and the Jacobian, which the next step computes again."""
        self._slope, self._linearization = None, None

    def quadrature_points(self) -> list[tuple[float, Tensor, Tensor]]:
        """Return a list of (weight, time, state [N]) for integrals over the last attempt.

        The sum of weight * g(time, state) is the integral of g, up to an error of the order of the method.
        """
        t, h, y = self._attempted
        slopes = self._slopes(h)
        if self._node_weights is None:
            self._node_weights = evaluate_weights(self._method.dense, GAUSS_NODES, slopes)
        states = torch.addmm(y.unsqueeze(0), self._node_weights, slopes, alpha=h)
        times = self._field.time_tensors([t + theta * h for theta in GAUSS_NODES])
        return [(h / 2, time, state) for time, state in zip(times, states.unbind(), strict=True)]

    def _slopes(self, h: float) -> Tensor:
        """Return the stages u_i divided by h, [s, N]."""
        return torch.stack(self._u.first(self._method.stages)) / h

"""The stepper of Rosenbrock methods."""

import math
from typing import Any

import torch
from torch import Tensor

from odebench.ode.control import Norm, Tolerance, rms
from odebench.ode.dense import Interpolant, evaluate_weights
from odebench.ode.methods.jacobian import MAX_DENSE_SIZE, JacobianBlock, real_size, value_and_derivatives
from odebench.ode.methods.newton import StageSystem, StageTolerance
from odebench.ode.methods.rosenbrock import Rosenbrock
from odebench.ode.solution import Stats, Status
from odebench.ode.transfer import constant

# Nodes of Gauss quadrature on (0, 1), of order 4 like the steps.
GAUSS_NODES = (1 / 2 - math.sqrt(3) / 6, 1 / 2 + math.sqrt(3) / 6)


class RosenbrockStepper:
    """The stepper of a ``Rosenbrock``; see ``odebench.ode.methods.steppers.Stepper``.

    If autograd is on, the Jacobian has a graph, which allows derivatives of any order, for states of at most
    ``MAX_DENSE_SIZE`` real numbers. tolerance, norm: of adaptive steps. stats: counts Jacobians and linear solves.
    """

    def __init__(
        self,
        method: Rosenbrock,
        field: Any,
        y: Tensor,
        *,
        compiled: bool = False,
        one_sided: float = 0.0,
        tolerance: Tolerance | None = None,
        norm: Norm = rms,
        stats: Stats | None = None,
    ) -> None:
        if torch.is_grad_enabled() and real_size(y) > MAX_DENSE_SIZE:
            raise ValueError(
                f"method {method.name} has no graph for states of more than {MAX_DENSE_SIZE} numbers, got "
                f"{real_size(y)}; use gradient='adjoint', or kvaerno5"
            )
        self._method, self._field, self._one_sided = method, field, one_sided
        self._accuracy, self._stats = StageTolerance(tolerance, norm, False), stats or Stats()
        # Relative and absolute tolerance of the linear systems: the acceptable error, or round-off.
        self._linear_tolerances = (0.0, 1.0) if tolerance else (1e3 * torch.finfo(y.dtype).eps, 0.0)
        self._u: list[Tensor] = []
        self._attempted: tuple[float, float, Tensor] = (0.0, 0.0, y)
        self._slope: Tensor | None = None
        # Weights of the stages in the states at the nodes.
        self._node_weights: Tensor | None = None
        self._linearization: tuple[Tensor, JacobianBlock, Tensor] | None = None
        self.order = method.order
        self.failure: Status | None = None

    def start(self, t: float, y: Tensor, f: Tensor | None) -> None:
        """Reset; f is evaluated when it is needed."""
        self._slope, self._linearization = f, None

    def slope(self, t: float, y: Tensor) -> Tensor:
        """f at the start of the next step."""
        if self._slope is None:
            self._slope = self._field(self._stage_times(t, 0.0)[0], y, True)
        return self._slope

    def attempt(self, t: float, h: float, y: Tensor, last: bool) -> Tensor:
        """The state [N] at t + h."""
        method = self._method
        self.failure, self._attempted = None, (t, h, y)
        stage_times = self._stage_times(t, h)
        if self._linearization is None:
            self._linearization = value_and_derivatives(self._field, stage_times[0], y, h, self._stats)
        f_start, block, f_t = self._linearization
        gamma = constant(((method.gamma,),), y.real.dtype, y.device)
        system = StageSystem([block], h, gamma, self._stats)
        acceptable = self._accuracy.acceptable(y.detach(), y.detach()[None])
        self._u = []
        for i in range(method.stages):
            y_i = self._combine(y, method.a[i])
            f = f_start if i == 0 else self._field(stage_times[i], y_i, True)
            right = torch.add(f, f_t, alpha=h * method.gammas[i]) * (h * method.gamma)
            right = self._combine(right, tuple(method.gamma * c for c in method.c[i]))
            self._u.append(system.solve(right[None], acceptable, *self._linear_tolerances)[0])
            if not system.solved:
                self.failure = Status.not_converged
                return y
        return self._combine(y, method.b)

    def error(self) -> Tensor:
        """The error estimate [N]; infinite after a failure."""
        y = self._attempted[2].detach()
        if self.failure is not None:
            return torch.full_like(y, math.inf)
        assert self._method.error is not None
        with torch.no_grad():
            return self._combine(torch.zeros_like(y), self._method.error)

    def interpolant(self, t: float, t_next: float, y: Tensor, y_next: Tensor, interpolation: str) -> Interpolant:
        """The dense output of the method."""
        h = self._attempted[1]
        return Interpolant(t, h, y, torch.stack(self._u) / h, self._method.dense)

    def accept(self, t_next: float, y_next: Tensor, last: bool) -> None:
        """Nothing is reused in the next step."""
        self._slope, self._linearization = None, None

    def quadrature_points(self) -> list[tuple[float, Tensor, Tensor]]:
        """List of (weight, time, state [N]); the sum of weight g(time, state) is the integral of g over the last
        attempt, to the order of the method."""
        t, h, y = self._attempted
        slopes = torch.stack(self._u) / h
        if self._node_weights is None:
            self._node_weights = evaluate_weights(self._method.dense, GAUSS_NODES, slopes)
        states = torch.addmm(y.unsqueeze(0), self._node_weights, slopes, alpha=h)
        times = self._field.time_tensors([t + theta * h for theta in GAUSS_NODES])
        return [(h / 2, time, state) for time, state in zip(times, states.unbind(), strict=True)]

    def stiffness(self) -> float | None:
        """None: stiffness does not limit the steps."""
        return None

    def _combine(self, y: Tensor, weights: tuple[float, ...]) -> Tensor:
        """y + sum_i weights_i u_i, [N]."""
        for weight, u in zip(weights, self._u, strict=False):
            if weight:
                y = torch.add(y, u, alpha=weight)
        return y

    def _stage_times(self, t: float, h: float) -> list[Tensor]:
        times = list(self._field.time_tensors([t + alpha * h for alpha in self._method.alpha]))
        if self._one_sided:
            times[0] = torch.nextafter(times[0], times[0] + self._one_sided)
            times[1:] = [
                torch.nextafter(time, time - h) if alpha == 1 else time
                for time, alpha in zip(times[1:], self._method.alpha[1:], strict=True)
            ]
        return times

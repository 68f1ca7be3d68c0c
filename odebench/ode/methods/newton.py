"""The equations of implicit stages: linear systems, Newton iterations, and the derivative of the solution.

The equations of m stages are W_i = h f(t_i, Y_i), Y_i = base_i + sum_j a_ij W_j, with the unknowns W [m, N]. They are
solved by simplified Newton iterations (Hairer & Wanner 1996, Solving Ordinary Differential Equations II, section IV.8).
With J = df/dy at the start of the step, and x the Kronecker product, the change dW in one iteration solves

    (I - h a x J) dW = h f(Y) - W.

If J is not computed as a matrix but only through its products with vectors, GMRES solves these linear systems (Saad &
Schultz 1986, GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odebench.ode.control import Norm, Tolerance
from odebench.ode.methods.jacobian import MAX_DENSE_SIZE, JacobianBlock, as_real, dense_jacobian, from_real, real_size
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.solution import Stats, Status
from odebench.ode.transfer import queued

# The iterations end when the estimate of the remaining error is this fraction of the tolerance.
NEWTON_RTOL = 0.01
# The tolerance of a linear system relative to its right-hand side, and relative to the acceptable error.
LINEAR_RTOL, LINEAR_ATOL = 1e-2, 0.1
MAX_ITERATIONS = 10
# The number of Krylov vectors in a cycle of GMRES, and the largest number of cycles.
RESTART = 100
MAX_CYCLES = 4


class StageSystem:
    """The linear system (I - h a x J) X = R for m stages; J consists of diagonal blocks. It is factorized once."""

    def __init__(self, blocks: Sequence[JacobianBlock], h: float, a: Tensor, stats: Stats) -> None:
        self._blocks, self._h, self._stats = blocks, h, stats
        self._a = a.real
        self._factors = [self._factorize(block.matrix) for block in blocks]
        self.solved = True

    def solve(self, right: Tensor, acceptable: Tensor, rtol: float = LINEAR_RTOL, atol: float = LINEAR_ATOL) -> Tensor:
        """Solve for X [m, N].

        right: the right-hand side R [m, N].
        acceptable: the acceptable error [N].
        rtol, atol: used by GMRES, which solves for blocks of J without a matrix. It stops when the residual is ``rtol``
            times R, or ``atol`` times the acceptable error. Afterwards ``solved`` says whether it converged.
        """
        self._stats.linear_solves += 1
        self.solved = True
        parts, start = [], 0
        real = as_real(right)
        scale = acceptable.repeat_interleave(2) if right.is_complex() else acceptable
        for block, factors in zip(self._blocks, self._factors, strict=True):
            here = slice(start, start + block.size)
            start += block.size
            if factors is not None:
                flat = torch.linalg.lu_solve(*factors, real[:, here].reshape(-1, 1))
                parts.append(flat.reshape(len(real), -1))
            elif block.jvp is not None:
                parts.append(self._solve_matrix_free(block.jvp, real[:, here], scale[here], rtol, atol))
            else:
                parts.append(real[:, here])
        return from_real(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), right)

    def _factorize(self, matrix: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if matrix is None:
            return None
        system = torch.kron(self._a, matrix * -self._h) if len(self._a) > 1 else matrix * (self._a[0, 0] * -self._h)
        system = system + torch.eye(len(system), dtype=system.dtype, device=system.device)
        return torch.linalg.lu_factor_ex(system)[:2]

    def _solve_matrix_free(
        self, jvp: Callable[[Tensor], Tensor], right: Tensor, scale: Tensor, rtol: float, atol: float
    ) -> Tensor:
        def apply(x: Tensor) -> Tensor:
            x = x.view_as(right)
            products = torch.stack([jvp(row * scale) for row in x])
            return (x - self._h * (self._a @ products) / scale).reshape(-1)

        x, solved = gmres(apply, (right / scale).reshape(-1), rtol, atol * math.sqrt(right.numel()))
        self.solved = self.solved and solved
        return x.view_as(right) * scale


@dataclass(frozen=True)
class StageTolerance:
    """The accuracy to which stages are solved.

    tolerance, norm: the error may be at most a fraction of this tolerance, in this norm. The tolerance is None for
        fixed steps and for solutions that are differentiated: then the stages are solved to round-off, and iterations
        may stagnate before the error is acceptable.
    max_jacobians: the largest number of Jacobians to try.
    """

    tolerance: Tolerance | None
    norm: Norm
    max_jacobians: int = 1

    def acceptable(self, y: Tensor, stages: Tensor) -> Tensor:
        """Return the acceptable error [N] for the stages [m, N] of a step from y [N]."""
        size = torch.maximum(y.abs(), stages.abs().amax(0))
        floor = 10 * torch.finfo(size.dtype).eps
        if self.tolerance is None:
            # Positive, and large enough that quotients by it can be squared.
            minimum = torch.finfo(size.dtype).tiny ** 0.4
            return (size + size.sum() / max(len(size), 1)).mul_(floor).add_(minimum)
        return torch.maximum(NEWTON_RTOL * self.tolerance.scale(size.clone()), floor * size)


@dataclass
class StageEquations:
    """The equations of m stages, in the notation of this module.

    evaluate: a function of i and Y_i that returns h f(t_i, Y_i) [N].
    base, a: the terms base_i [m, N] and the coefficients a_ij [m, m].
    system: the linear system of the iterations.
    relinearize: a function that makes a new linear system at the stage values Y [m, N].
    """

    evaluate: Callable[[int, Tensor], Tensor]
    base: Tensor
    a: Tensor
    system: StageSystem
    relinearize: Callable[[Tensor], StageSystem]

    def solve(self, y: Tensor, guess: Tensor, accuracy: StageTolerance) -> tuple[Tensor, Status | None]:
        """Solve for the unknowns W [m, N] in a step from y [N], starting from ``guess`` [m, N].

        Returns W, and the status if the solve failed, else None.
        """
        w, jacobians, iteration = guess, 1, 0
        previous = math.inf
        stages = self.base + self.a @ w
        acceptable = accuracy.acceptable(y, stages)
        while True:
            slopes = torch.stack([self.evaluate(i, stage) for i, stage in enumerate(stages.unbind())])
            change = self.system.solve(slopes - w, acceptable)
            w = w + change
            stages = self.base + self.a @ w
            if accuracy.tolerance is None:
                acceptable = accuracy.acceptable(y, stages)
            size = accuracy.norm((self.a @ change).abs().amax(0) / acceptable)
            if not math.isfinite(size):
                return w, Status.non_finite
            rate = size / previous if previous > 0 else 0.0
            iteration += 1
            if self._converged(size, rate, iteration, accuracy):
                return w, None
            previous = size
            if self.system.solved and self._will_converge(size, rate, iteration):
                continue
            if jacobians == accuracy.max_jacobians:
                return w, Status.not_converged
            self.system = self.relinearize(stages)
            jacobians, iteration, previous = jacobians + 1, 0, math.inf

    def _will_converge(self, size: float, rate: float, iteration: int) -> bool:
        """Return whether the iterations will converge within ``MAX_ITERATIONS`` at their present rate."""
        if iteration < 3:
            # The second change may be as large as the first, in components that the first did not change.
            return rate < 2
        return rate < 0.9 and size * rate ** (MAX_ITERATIONS - iteration) <= 1

    def _converged(self, size: float, rate: float, iteration: int, accuracy: StageTolerance) -> bool:
        """Return whether the remaining error is acceptable.

        It is estimated by the sum of all later changes, size * rate / (1 - rate).
        """
        if iteration == 1:
            return size <= 1
        if rate < 1 and size * rate / (1 - rate) <= 1:
            return True
        return accuracy.tolerance is None and rate > 0.3 and size <= 100


class _ImplicitFunction(torch.autograd.Function):
    """The identity on solved stages; its backward pass uses the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, slopes: Tensor, solved: Tensor, solve_transposed: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.solve_transposed = solve_transposed
        ctx.save_for_backward(slopes)
        return solved.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.solve_transposed(gradient), None, None


def with_implicit_gradient(
    w: Tensor, slopes: list[Tensor], stages: list[Tensor], h: float, a: Tensor, stats: Stats
) -> Tensor:
    """Return the solution W [m, N] with a graph that gives first derivatives only.

    w: the values of W.
    stages: the stage values Y_i, each [N].
    slopes: the slopes f(t_i, Y_i), each [N], with graphs that contain Y_i.

    By the implicit function theorem, W = h f(base + a W, theta) implies dW = (I - h a x J)^-1 h df, with J evaluated at
    each stage value.
    """
    rates = torch.stack([h * slope for slope in slopes])
    if not rates.requires_grad:
        return w

    def solve_transposed(gradient: Tensor) -> Tensor:
        # (I - h a x J)^T x = gradient
        if real_size(w[0]) <= MAX_DENSE_SIZE:
            return _solve_transposed_dense(gradient, slopes, stages, h, a)
        return _solve_transposed_matrix_free(gradient, slopes, stages, h, a, stats)

    return _ImplicitFunction.apply(rates, w, solve_transposed)


def _solve_transposed_dense(
    gradient: Tensor, slopes: list[Tensor], stages: list[Tensor], h: float, a: Tensor
) -> Tensor:
    real = as_real(gradient)
    m, n = real.shape
    system = torch.eye(m * n, dtype=real.dtype, device=real.device).view(m, n, m, n)
    for i, (f, y) in enumerate(zip(slopes, stages, strict=True)):
        if f.requires_grad:
            system[i] -= torch.einsum("j,kl->kjl", h * a[i].real, dense_jacobian(f, y))
    solution = torch.linalg.solve(system.reshape(m * n, m * n).t(), real.reshape(-1))
    return from_real(solution.view(m, n), gradient)


def _solve_transposed_matrix_free(
    gradient: Tensor, slopes: list[Tensor], stages: list[Tensor], h: float, a: Tensor, stats: Stats
) -> Tensor:
    real = as_real(gradient)

    def apply(x: Tensor) -> Tensor:
        x = x.view_as(real)
        products = []
        for f, y, row in zip(slopes, stages, x.unbind(), strict=True):
            stats.jacobian_products += 1
            options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
            products.append(as_real(torch.autograd.grad(f, y, from_real(row, f), **options)[0]))
        return (x - h * (a.real.t() @ torch.stack(products))).reshape(-1)

    eps = torch.finfo(real.dtype).eps
    solution, solved = gmres(apply, real.reshape(-1), 1000 * eps)
    if not solved:
        raise RuntimeError("the linear system for the gradient of an implicit step was not solved; take smaller steps")
    return from_real(solution.view_as(real), gradient)


def gmres(apply: Callable[[Tensor], Tensor], b: Tensor, rtol: float, atol: float = 0.0) -> tuple[Tensor, bool]:
    """Solve apply(x) = b until |b - apply(x)| <= max(rtol |b|, atol); return x, and whether the iteration converged.

    apply: a linear function from [n] to [n]. Each call of it synchronises with the device once.
    """
    x, residual = torch.zeros_like(b), b
    size = torch.linalg.vector_norm(b).item()
    target = max(rtol * size, atol)
    for _ in range(MAX_CYCLES):
        if size <= target or not math.isfinite(size):
            break
        x = x + _cycle(apply, residual, size, target)
        residual = b - apply(x)
        size = torch.linalg.vector_norm(residual).item()
    # The residual inside a cycle differs from the true one by round-off.
    return x, size <= 2 * target


def _cycle(apply: Callable[[Tensor], Tensor], residual: Tensor, size: float, target: float) -> Tensor:
    """Compute one cycle of ``gmres``: return the change of x [n].

    residual: the residual [n] before the cycle. size: its norm. target: the norm at which the cycle stops early.
    """
    dimension = min(RESTART, len(residual))
    basis = residual.new_empty(dimension + 1, len(residual))
    torch.div(residual, size, out=basis[0])
    columns: list[list[float]] = []
    rotations: list[tuple[float, float]] = []
    right = [size]
    for j in range(dimension):
        previous, w = basis[: j + 1], apply(basis[j])
        # Orthogonalise twice: doing it once would lose orthogonality.
        first = previous @ w
        w = torch.addmv(w, previous.t(), first, alpha=-1)
        second = previous @ w
        w = torch.addmv(w, previous.t(), second, alpha=-1)
        *column, below = torch.cat((first + second, torch.linalg.vector_norm(w).reshape(1))).tolist()
        for i, (cos, sin) in enumerate(rotations):
            column[i], column[i + 1] = cos * column[i] + sin * column[i + 1], cos * column[i + 1] - sin * column[i]
        radius = math.hypot(column[j], below)
        if not (0 < radius < math.inf):
            break
        rotations.append((column[j] / radius, below / radius))
        column[j] = radius
        columns.append(column)
        right[j:] = [right[j] * rotations[j][0], -right[j] * rotations[j][1]]
        if abs(right[-1]) <= target or below == 0:
            break
        torch.div(w, below, out=basis[j + 1])
    weights = _back_substitute(columns, right)
    return torch.mv(basis[: len(weights)].t(), queued(weights, residual))


def _back_substitute(columns: list[list[float]], right: list[float]) -> list[float]:
    """Solve the upper triangular system that has these columns, and this right-hand side."""
    weights = right[: len(columns)]
    for i in reversed(range(len(columns))):
        weights[i] = (weights[i] - sum(columns[k][i] * weights[k] for k in range(i + 1, len(columns)))) / columns[i][i]
    return weights

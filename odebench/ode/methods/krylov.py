"""GMRES, for linear systems whose matrix is known by its products with vectors.

Saad & Schultz 1986, GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from odebench.ode.transfer import queued

# Krylov vectors per cycle, and the most cycles.
RESTART = 100
MAX_CYCLES = 4


def gmres(apply: Callable[[Tensor], Tensor], b: Tensor, rtol: float, atol: float = 0.0) -> tuple[Tensor, bool]:
    """Solve apply(x) = b, with apply: [n] -> [n] linear, to |b - apply(x)| <= max(rtol |b|, atol); x and whether it
    converged. Synchronises with the device once per product.
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
    """One cycle: an update of x [n] that reduces ``residual`` [n], of norm ``size``, to ``target`` if it can."""
    dimension = min(RESTART, len(residual))
    basis = residual.new_empty(dimension + 1, len(residual))
    torch.div(residual, size, out=basis[0])
    columns: list[list[float]] = []
    rotations: list[tuple[float, float]] = []
    right = [size]
    for j in range(dimension):
        previous, w = basis[: j + 1], apply(basis[j])
        # Orthogonalise twice: once loses orthogonality.
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
    """Solve the upper triangular system with these columns."""
    weights = right[: len(columns)]
    for i in reversed(range(len(columns))):
        weights[i] = (weights[i] - sum(columns[k][i] * weights[k] for k in range(i + 1, len(columns)))) / columns[i][i]
    return weights

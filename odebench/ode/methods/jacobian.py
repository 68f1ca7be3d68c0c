"""df/dy of a field that is any Python callable, as a matrix where it is small, else as its products with vectors.

Complex states count as twice as many real numbers: f need not be holomorphic.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odebench.ode.status import Stats

# The largest state, in real numbers, whose Jacobian is a matrix.
DENSE_SIZE = 256

Rate = Callable[[Tensor], Tensor]
"""From a state [N] to its derivative [N]."""


@dataclass(frozen=True)
class Block:
    """A square part on the diagonal of df/dy; zero where neither ``matrix`` nor ``product`` is given.

    size: n real numbers of the state.
    matrix: [n, n], real.
    product, transposed: from v [n], real, to the block, or its transpose, times v.
    """

    size: int
    matrix: Tensor | None = None
    product: Callable[[Tensor], Tensor] | None = None
    transposed: Callable[[Tensor], Tensor] | None = None

    def minus_transpose(self) -> "Block":
        """-(block)^T: of the adjoint equation."""
        if self.matrix is not None:
            return Block(self.size, matrix=-self.matrix.t().contiguous())
        transposed = self.transposed
        assert transposed is not None
        return Block(self.size, product=lambda v: -transposed(v))


def as_real(x: Tensor) -> Tensor:
    """Complex numbers [..., N] as their parts [..., 2N]; real ones as they are."""
    return torch.view_as_real(x).flatten(-2) if x.is_complex() else x


def as_like(x: Tensor, y: Tensor) -> Tensor:
    """The inverse of ``as_real``, for numbers of y's kind."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) if y.is_complex() else x


def real_size(y: Tensor) -> int:
    """How many real numbers y is made of."""
    return 2 * y.numel() if y.is_complex() else y.numel()


def recording() -> AbstractContextManager[Any]:
    """Autograd on, whatever the caller's mode."""
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    return stack


def leaf(y: Tensor) -> Tensor:
    """The same numbers as a leaf that wants a gradient."""
    return (y.clone() if y.is_inference() else y.detach()).requires_grad_()


def linearize(f: Any, t: Tensor, y: Tensor, stats: Stats, exact: bool = False) -> list[Block]:
    """df/dy at t and y [N] of a field, as blocks on its diagonal.

    A field may say how it is best linearized, by a method ``linearize(t, y, stats)``; what that gives need not be
    ``exact``, only good enough for Newton iterations to converge.
    """
    if hasattr(f, "linearize") and not exact:
        return f.linearize(t, y, stats)
    evaluate = getattr(f, "differentiable", f)
    return [linearize_rate(lambda state: evaluate(t, state, False), y, stats)]


def linearize_rate(rate: Rate, y: Tensor, stats: Stats) -> Block:
    """Its derivative at y [N], from one evaluation where autograd can tell it."""
    stats.jacobians += 1
    size = real_size(y)
    if size <= DENSE_SIZE:
        return Block(size, matrix=matrix(rate, y))
    products = Products(rate, y, stats)
    return Block(size, product=products.forward, transposed=products.transposed)


def matrix(rate: Rate, y: Tensor) -> Tensor:
    """d rate/dy at y [N], [n, n] with n real numbers in y; with its graph where y has one."""
    differentiated = torch.is_grad_enabled()
    with recording():
        x = y if differentiated and y.requires_grad else leaf(y)
        f = rate(x)
        if f.requires_grad:
            return rows(f, x, create_graph=differentiated)
    columns = [difference(rate, y, f, unit) for unit in torch.eye(real_size(y), dtype=y.real.dtype, device=y.device)]
    return torch.stack(columns, dim=1) if columns else f.real.new_zeros(0, 0)


def rows(f: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    """df/dy [n, n] from the graph of f [N], which is kept."""
    units = as_like(torch.eye(real_size(f), dtype=f.real.dtype, device=f.device), f)
    how: dict[str, Any] = {"retain_graph": True, "create_graph": create_graph, "materialize_grads": True}
    try:
        (result,) = torch.autograd.grad(f, y, units, is_grads_batched=True, **how)
    except RuntimeError:  # an operation that cannot be batched
        result = torch.stack([torch.autograd.grad(f, y, unit, **how)[0] for unit in units])
    return as_real(result)


def difference(rate: Rate, y: Tensor, f: Tensor, v: Tensor) -> Tensor:
    """(d rate/dy) v [n] for a real v [n], by a difference to f = rate(y), for what autograd cannot tell."""
    with torch.no_grad():
        x = as_real(y)
        size = torch.linalg.vector_norm(v).item()
        if size == 0 or not math.isfinite(size):
            return torch.zeros_like(v) * size
        typical = 1 + (torch.linalg.vector_norm(x) / math.sqrt(max(len(x), 1))).item()
        step = math.sqrt(torch.finfo(v.dtype).eps) * typical / size
        return as_real(rate(as_like(x + step * v, y)) - f.detach()) / step


@dataclass
class Products:
    """Products of d rate/dy at y [N] with real vectors [n], and of its transpose, from the graph of one evaluation."""

    rate: Rate
    y: Tensor
    stats: Stats
    _f: Tensor = field(init=False)
    _x: Tensor = field(init=False)
    _pair: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        with recording():
            self._x = leaf(self.y)
            self._f = self.rate(self._x)
            if not self._f.requires_grad:
                return
            # J^T u is linear in u: its derivative with respect to u, times v, is J v.
            u = torch.zeros_like(self._f).requires_grad_()
            try:
                (g,) = torch.autograd.grad(self._f, self._x, u, create_graph=True, materialize_grads=True)
            except RuntimeError:  # an operation that can be differentiated once only
                return
        self._pair = (g, u) if g.requires_grad else None

    def forward(self, v: Tensor) -> Tensor:
        """J v."""
        self.stats.jacobian_products += 1
        if self._pair is None:
            return difference(self.rate, self.y, self._f, v)
        g, u = self._pair
        return as_real(torch.autograd.grad(g, u, as_like(v, g), retain_graph=True, materialize_grads=True)[0])

    def transposed(self, v: Tensor) -> Tensor:
        """J^T v. Raises RuntimeError where autograd cannot differentiate f."""
        self.stats.jacobian_products += 1
        pulled = torch.autograd.grad(self._f, self._x, as_like(v, self._f), retain_graph=True, materialize_grads=True)
        return as_real(pulled[0])


def time_derivative(f: Any, t: Tensor, y: Tensor, h: float) -> Tensor:
    """df/dt [N] at t and y [N]: exact where the graph of f reaches t, else by a difference within the step h."""
    evaluate: Callable[..., Tensor] = getattr(f, "differentiable", f)
    differentiated = torch.is_grad_enabled()
    with recording():
        time = leaf(t)
        rate = evaluate(time, y if differentiated else y.detach(), False)
        if rate.requires_grad:
            u = torch.zeros_like(rate).requires_grad_()
            (g,) = torch.autograd.grad(rate, time, u, create_graph=True, allow_unused=True)
            if g is not None and g.requires_grad:
                (derivative,) = torch.autograd.grad(g, u, torch.ones_like(g), create_graph=differentiated)
                return derivative
    step = math.copysign(math.sqrt(torch.finfo(t.dtype).eps) * max(abs(t.item()), abs(h)), h)
    later = t + step
    change = f(later, y, False) - (rate if differentiated else rate.detach())
    return change / (later - t)

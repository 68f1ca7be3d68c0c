"""The Jacobian df/dy of any callable field: a matrix if it is small, otherwise its products with vectors.

A complex number is treated as two real numbers, since f need not be holomorphic.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from odebench.ode.solution import Stats
from odebench.ode.transfer import read_time

# The largest state, in real numbers, whose Jacobian is computed as a matrix.
MAX_DENSE_SIZE = 256

FieldAtTime = Callable[[Tensor], Tensor]
"""The field f at a fixed time: a function from a state [N] to dy/dt [N]."""


@dataclass(frozen=True)
class JacobianBlock:
    """A square block on the diagonal of df/dy. It is zero if neither ``matrix`` nor ``jvp`` is given.

    size: the number n of rows of the block, counted in real numbers of the state.
    matrix: the block as a real matrix [n, n].
    jvp, vjp: functions from a real v [n] to the product of the block with v, and of its transpose with v.
    """

    size: int
    matrix: Tensor | None = None
    jvp: Callable[[Tensor], Tensor] | None = None
    vjp: Callable[[Tensor], Tensor] | None = None

    def negative_transpose(self) -> "JacobianBlock":
        """Return -(block)^T, for the adjoint equation."""
        if self.matrix is not None:
            return JacobianBlock(self.size, matrix=-self.matrix.t().contiguous())
        vjp = self.vjp
        assert vjp is not None
        return JacobianBlock(self.size, jvp=lambda v: -vjp(v))


def as_real(x: Tensor) -> Tensor:
    """Convert complex numbers [..., N] to real numbers [..., 2N]; return real numbers unchanged."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2) if x.is_complex() else x


def from_real(x: Tensor, y: Tensor) -> Tensor:
    """Invert ``as_real``; the result is complex if y is."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) if y.is_complex() else x


def real_size(y: Tensor) -> int:
    """Return the number of real numbers in y."""
    return 2 * y.numel() if y.is_complex() else y.numel()


@contextmanager
def autograd_enabled() -> Iterator[None]:
    """Enable autograd in a context, also in inference mode. Raises ValueError if f uses an inference tensor."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise ValueError(
            "the method differentiates f, which uses a tensor made in torch.inference_mode; use torch.no_grad instead"
        ) from error


def as_leaf(y: Tensor) -> Tensor:
    """Return a leaf tensor that has the values of y and requires grad."""
    return (y.clone() if y.is_inference() else y.detach()).requires_grad_()


def has_other_leaves(results: Iterable[Tensor], leaves: Sequence[Tensor]) -> bool:
    """Return whether the graph of the results has leaves that are not among ``leaves``."""
    seen, todo = set(), [get_gradient_edge(result).node for result in results if result.requires_grad]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and not any(variable is leaf for leaf in leaves):
            return True
        todo += [parent for parent, _ in node.next_functions if parent is not None]
    return False


def linearize(f: Any, t: Tensor, y: Tensor, stats: Stats) -> list[JacobianBlock]:
    """Compute df/dy at t and y [N] as diagonal blocks, accurate enough for Newton iterations to converge.

    A field can compute the blocks itself, in a method ``linearize(t, y, stats)``.
    """
    if hasattr(f, "linearize"):
        return f.linearize(t, y, stats)
    if t.is_inference():
        with torch.inference_mode(False):
            t = t.clone()
    return [jacobian_block(lambda state: f(t, state, False), y, stats)]


def jacobian_block(rate: FieldAtTime, y: Tensor, stats: Stats) -> JacobianBlock:
    """Compute the derivative of ``rate`` at y [N]. If autograd can compute it, this takes one evaluation."""
    with autograd_enabled():
        x = as_leaf(y)
        f = rate(x)
    with torch.no_grad():
        return _block(rate, x, f, stats)


def value_and_derivatives(f: Any, t: Tensor, y: Tensor, h: float, stats: Stats) -> tuple[Tensor, JacobianBlock, Tensor]:
    """Compute f [N], df/dy and df/dt [N] at t and y [N], with graphs if autograd is on.

    If autograd can compute the derivatives, this takes one evaluation. If the graph of f does not contain t, df/dt is a
    finite difference over a small part of h.

    f: a field; if its results have no graph, it has a method ``differentiable`` whose results have one.
    """
    evaluate: Callable[..., Tensor] = getattr(f, "differentiable", f)
    differentiated = torch.is_grad_enabled()
    with autograd_enabled():
        x = y if differentiated and y.requires_grad else as_leaf(y)
        time = as_leaf(t)
        time.__dict__.update(t.__dict__)  # the time on the host, if t keeps it
        # A field may convert t to a float; then autograd computes no derivative with respect to t.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True to a scalar")
            rate = evaluate(time, x, True)
    # A graph with only the leaves created here would be kept from step to step without use.
    differentiated = differentiated and (x is y or has_other_leaves([rate], (x, time)))
    if real_size(y) <= MAX_DENSE_SIZE and rate.requires_grad:
        stats.jacobians += 1
        matrix, f_t = jacobian_rows(rate, (x, time), create_graph=differentiated)
        block = JacobianBlock(real_size(y), matrix=_or_zero(matrix, y))
        f_t = None if f_t is None else from_real(f_t, y)
    else:
        block = _block(lambda state: evaluate(t, state, False), x, rate, stats)
        transposed = _transposed_product(rate, time)
        f_t = transposed and torch.autograd.grad(*transposed, torch.ones_like(time), allow_unused=True)[0]
    if f_t is None:
        step = math.copysign(math.sqrt(torch.finfo(t.dtype).eps) * max(abs(read_time(t)), abs(h)), h)
        t_later = t + step
        rate_later = f(t_later, y, False)
        # If the two are equal, use 0 without a graph: the gradient of the difference would be round-off divided by a
        # tiny number.
        f_t = torch.zeros_like(rate) if torch.equal(rate_later, rate) else (rate_later - rate) / (t_later - t)
    return (rate, block, f_t) if differentiated else (rate.detach(), block, f_t.detach())


def _transposed_product(f: Tensor, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return J^T u and u, with J the derivative of f [N] with respect to x; None if autograd cannot compute it.

    J^T u is linear in u, so that the derivative of J^T u with respect to u gives the product J v.
    """
    if not f.requires_grad:
        return None
    with autograd_enabled():
        u = torch.zeros_like(f).requires_grad_()
        try:
            (g,) = torch.autograd.grad(f, x, u, create_graph=True, materialize_grads=True)
        except RuntimeError:  # an operation that is differentiable only once, and raises an error
            return None
    return (g, u) if g.requires_grad else None


def _block(rate: FieldAtTime, y: Tensor, f: Tensor, stats: Stats) -> JacobianBlock:
    """Compute df/dy from the graph of f = rate(y) [N]."""
    stats.jacobians += 1
    size = real_size(y)
    if size > MAX_DENSE_SIZE:
        products = JacobianProducts(rate, y, f, stats)
        return JacobianBlock(size, jvp=products.jvp, vjp=products.vjp)
    if f.requires_grad:
        return JacobianBlock(size, matrix=dense_jacobian(f, y))
    units = torch.eye(size, dtype=y.real.dtype, device=y.device)
    columns = [difference_jvp(rate, y, unit) for unit in units]
    return JacobianBlock(size, matrix=torch.stack(columns, dim=1) if columns else units)


def dense_jacobian(f: Tensor, y: Tensor) -> Tensor:
    """Compute df/dy [n, n] from the graph of f [N]. The graph is retained."""
    return _or_zero(jacobian_rows(f, (y,))[0], y)


def _or_zero(matrix: Tensor | None, y: Tensor) -> Tensor:
    return y.real.new_zeros(real_size(y), real_size(y)) if matrix is None else matrix


def jacobian_rows(f: Tensor, inputs: Sequence[Tensor], create_graph: bool = False) -> list[Tensor | None]:
    """Compute the derivative [n, *] of f [N] with respect to each input; None for an input that f does not depend on.

    The graph of f is retained.
    """
    if f.numel() == 0:
        return [None] * len(inputs)
    units = from_real(torch.eye(real_size(f), dtype=f.real.dtype, device=f.device), f)
    options: dict[str, Any] = {"retain_graph": True, "create_graph": create_graph, "allow_unused": True}
    results: tuple[Tensor | None, ...]
    try:
        results = torch.autograd.grad(f, inputs, units, is_grads_batched=True, **options)
    except RuntimeError:  # an operation that cannot be batched
        one_by_one: list[tuple[Any, ...]] = [torch.autograd.grad(f, inputs, unit, **options) for unit in units]
        results = tuple(None if row[0] is None else torch.stack(row) for row in zip(*one_by_one, strict=True))
    return [None if result is None else as_real(result) for result in results]


def difference_jvp(rate: FieldAtTime, y: Tensor, v: Tensor) -> Tensor:
    """Compute (d rate/dy) v [n] at y [N] for a real v [n] by a central difference, where autograd cannot do it."""
    with torch.no_grad():
        x = as_real(y)
        norm, y_norm = torch.stack((torch.linalg.vector_norm(v), torch.linalg.vector_norm(x))).tolist()
        if norm == 0 or not math.isfinite(norm):
            return torch.zeros_like(v) * norm
        step = torch.finfo(v.dtype).eps ** (1 / 3) * (1 + y_norm / math.sqrt(max(len(x), 1))) / norm
        above, below = (as_real(rate(from_real(x + sign * step * v, y))) for sign in (1, -1))
        return (above - below) / (2 * step)


@dataclass
class JacobianProducts:
    """Products of J = d rate/dy, and of its transpose, with real vectors [n], from the graph of f = rate(y) [N]."""

    rate: FieldAtTime
    y: Tensor
    f: Tensor
    stats: Stats

    def __post_init__(self) -> None:
        transposed = _transposed_product(self.f, self.y)
        self._transposed = transposed if transposed and self._products_agree(*transposed) else None

    def _products_agree(self, g: Tensor, u: Tensor) -> bool:
        """Return whether <v, J v> = <J^T v, v>, with J^T u = g.

        The two differ if an operation without second derivatives has cut the graph of g.
        """
        v = as_real(self.f.detach())
        v = v + torch.linalg.vector_norm(v) / math.sqrt(max(len(v), 1))
        (product,) = torch.autograd.grad(g, u, from_real(v, g), retain_graph=True, allow_unused=True)
        if product is None:
            return False
        v_jvp, v_vjp = torch.stack((as_real(product), self.vjp(v))) @ v
        return bool((v_jvp - v_vjp).abs() <= 1e-3 * (v_jvp.abs() + v_vjp.abs()))

    def jvp(self, v: Tensor) -> Tensor:
        """Return J v."""
        self.stats.jacobian_products += 1
        if self._transposed is None:
            return difference_jvp(self.rate, self.y, v)
        g, u = self._transposed
        return as_real(torch.autograd.grad(g, u, from_real(v, g), retain_graph=True, materialize_grads=True)[0])

    def vjp(self, v: Tensor) -> Tensor:
        """Return J^T v. Raises RuntimeError if autograd cannot differentiate f."""
        self.stats.jacobian_products += 1
        options: dict[str, Any] = {"retain_graph": True, "materialize_grads": True}
        return as_real(torch.autograd.grad(self.f, self.y, from_real(v, self.f), **options)[0])

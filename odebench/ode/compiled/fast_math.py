"""Faster functions for small fields of float32: a rational tanh, and small matrix products without a library call.

Results differ from torch's in their last bits; the largest error of tanh is 4e-7.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Part of the key of inductor's caches: to be changed with the functions below.
CACHE_TAG = "odebench-fast-math-2"

# tanh(x) as x P(x^2) / Q(x^2) on [-LIMIT, LIMIT], from Eigen (MathFunctionsImpl.h, generic_fast_tanh_float), highest
# powers first.
LIMIT = 7.90531110763549805
P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)

# The most multiplications of a small product [m, k] @ [k, n].
MAX_MULTIPLICATIONS = 4096


def tanh(x: Tensor) -> Any:
    """tanh(x) of float32."""
    if x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-LIMIT, LIMIT)
    square = x * x
    return x * _polynomial(P, square) / _polynomial(Q, square)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Any:
    total: Any = coefficients[0]
    for coefficient in coefficients[1:]:
        total = x * total + coefficient
    return total


def mm(a: Tensor, b: Tensor) -> Any:
    """The matrix product [m, k] @ [k, n] of float32, if it is small."""
    sizes = (*a.shape, b.shape[1])
    # Sizes that vary are no integers.
    if a.dtype != torch.float32 or not all(isinstance(size, int) for size in sizes):
        return NotImplemented
    if math.prod(sizes) > MAX_MULTIPLICATIONS:
        return NotImplemented
    return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)


def addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Any:
    """bias + a @ b, if the product is small."""
    product = mm(a, b) if beta == 1 and alpha == 1 else NotImplemented
    return NotImplemented if product is NotImplemented else product + bias


def compile_with_fast_math(graph: Any, inputs: list[Any]) -> Any:
    """Compile a graph by inductor, with these functions in place of torch's: a backend for ``torch.compile``."""
    from torch._inductor.compile_fx import compile_fx

    config: Any = torch.compiler.config
    with _decompositions(), config.patch(cache_key_tag=CACHE_TAG):
        return compile_fx(graph, inputs, config_patches={"cpp_wrapper": True})


@contextmanager
def _decompositions() -> Iterator[None]:
    """Put the functions into inductor's own table: with another table, it does not use its caches."""
    from torch._inductor.decomposition import select_decomp_table

    aten, table = torch.ops.aten, select_decomp_table()
    ours: dict[Any, Any] = {aten.tanh.default: tanh, aten.mm.default: mm, aten.addmm.default: addmm}
    theirs = {op: table.get(op) for op in ours}
    table.update(ours)
    try:
        yield
    finally:
        for op, function in theirs.items():
            if function is None:
                del table[op]
            else:
                table[op] = function

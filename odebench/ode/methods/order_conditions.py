"""The order conditions of Runge-Kutta methods, one for each rooted tree. Imports no torch.

A method has order p when sum_i b_i u_i(t) = 1 / gamma(t) for every rooted tree t with at most p nodes. Its dense output
has order p when sum_i b_i(theta) u_i(t) = theta^|t| / gamma(t) for these trees. See Butcher, Numerical Methods for
Ordinary Differential Equations, section 31; Hairer, Norsett & Wanner, Solving ODEs I, sections II.2 and II.6.
"""

from collections.abc import Sequence
from functools import cache
from math import prod

Tree = tuple["Tree", ...]
"""A rooted tree, written as the tuple of the subtrees at its root, in a fixed order."""


@cache
def trees(order: int) -> list[Tree]:
    """Return the rooted trees with ``order`` nodes; there are 1, 1, 2, 4, 9, 20, 48, 115, 286, ... of them."""
    if order == 1:
        return [()]
    smaller = [tree for n in range(1, order) for tree in trees(n)]
    return _forests(order - 1, smaller, len(smaller))


def _forests(nodes: int, pool: list[Tree], end: int) -> list[Tree]:
    """Return all multisets of trees from ``pool[:end]`` that have ``nodes`` nodes together."""
    if nodes == 0:
        return [()]
    return [
        (pool[i], *rest)
        for i in range(end)
        if size(pool[i]) <= nodes
        for rest in _forests(nodes - size(pool[i]), pool, i + 1)
    ]


@cache
def size(tree: Tree) -> int:
    """Return |t|, the number of nodes of the tree."""
    return 1 + sum(map(size, tree))


@cache
def gamma(tree: Tree) -> int:
    """Return the density of the tree: the product of the sizes of all its subtrees."""
    return size(tree) * prod(map(gamma, tree))


@cache
def sigma(tree: Tree) -> int:
    """Return the symmetry of the tree: the number of its automorphisms."""
    return prod(tree[:i].count(child) + 1 for i, child in enumerate(tree)) * prod(map(sigma, tree))


def stage_weights(a: Sequence[Sequence[float]], order: int) -> dict[Tree, list[float]]:
    """Return u(t) [stages] for every tree t with at most ``order`` nodes.

    a: the rows of coefficients of the method, which form the matrix A.

    u(t) is the product of A u(t_m) over the subtrees t_m at the root of t. For the tree of one node it is 1.
    """
    weights: dict[Tree, list[float]] = {}
    slopes: dict[Tree, list[float]] = {}  # A u(t)
    for tree in (tree for n in range(1, order + 1) for tree in trees(n)):
        u = [prod(slopes[child][i] for child in tree) for i in range(len(a))]
        weights[tree] = u
        slopes[tree] = [sum(a_ij * u_j for a_ij, u_j in zip(row, u, strict=False)) for row in a]
    return weights

"""Derive the dense output of vern7 and dopri8: the numbers in odebench/ode/methods/explicit_high_order.py.

    python scripts/derive_dense_output.py vern7

For given stages the order conditions are linear in the weights. So the weights of an extra stage at node c are a
solution of the conditions for the stages before it, at theta = c. The weights b_i(theta) are polynomials that satisfy
the conditions of order p (Hairer, Norsett & Wanner, Solving ODEs I, section II.6). The remaining free parameters
minimise the error terms of order p + 1. The derivative of the dense output is continuous from step to step.
"""

import argparse

import numpy as np

from odebench.ode.methods.explicit_high_order import DOPRI8, VERN7
from odebench.ode.methods.order_conditions import gamma, sigma, size, stage_weights

METHODS = {"vern7": VERN7, "dopri8": DOPRI8}

# Node and order of the extra stages, which come after f at the end of the step. The nodes of vern7 and the last two of
# dopri8 are the pair of multiples of 1/10 with the smallest error terms. The stages of dopri8 violate the conditions of
# order 6 by a multiple of theta^2 (theta - 1)^2 (theta^2 - theta + 3/14), which is zero at its first node.
EXTRA_STAGES = {
    "vern7": [(0.6, 5), (0.4, 5)],
    "dopri8": [(0.5 + 7**0.5 / 14, 6), (0.5, 6), (0.3, 6)],
}
DAMPING = 1e-5  # factor of the weights' size in the sum that is minimised, beside the error terms


def conditions(rows, order, used):
    """The matrix and the right side of the order conditions.

    Returns the matrix [trees, used stages] that maps weights to elementary weights, and for each tree 1 / gamma, its
    size and 1 / sigma. 1 / sigma is the factor of the tree's elementary differential in the error.
    """
    weights = stage_weights(rows, order)
    tree_data = np.array([(1 / gamma(tree), size(tree), 1 / sigma(tree)) for tree in weights]).T
    return np.array(list(weights.values()))[:, used], *tree_data


def solutions(matrix, right):
    """The minimum-norm x with matrix x = right, for each column of ``right``, and the null space of the matrix."""
    u, s, v = np.linalg.svd(matrix)
    rank = int((s > 1e-10 * s[0]).sum())
    x = v[:rank].T @ (u[:, :rank].T @ right / s[:rank, None])
    if np.abs(matrix @ x - right).max() > 1e-12:
        raise ValueError("these stages do not allow this order: add one or move one")
    return x, v[rank:].T


def minimise(rows, x, null, basis, targets):
    """Return z = x + null y basis^T, with the y [free, k] that brings rows z powers as near as possible to each target.

    targets: pairs of powers of theta [degree] and a right side [number of rows].
    """
    matrix = np.vstack([np.kron(rows @ null, basis.T @ powers) for powers, _ in targets])
    residual = np.concatenate([target - rows @ x @ powers for powers, target in targets])
    y = np.linalg.lstsq(matrix, residual, rcond=None)[0]
    return x + null @ y.reshape(null.shape[1], -1) @ basis.T


def extra_stage(rows, used, node, order):
    """The weights [used stages] of an extra stage at ``node`` with the given order."""
    matrix, right, sizes, scale = conditions(rows, order + 1, used)
    satisfied = sizes <= order
    right = right * node**sizes
    x, null = solutions(matrix[satisfied], right[satisfied, None])
    weighted_rows = np.vstack([scale[~satisfied, None] * matrix[~satisfied], DAMPING * np.eye(len(used))])
    target = np.concatenate([scale[~satisfied] * right[~satisfied], np.zeros(len(used))])
    return minimise(weighted_rows, x, null, np.ones((1, 1)), [(np.ones(1), target)])[:, 0]


def polynomials(rows, used, b, end, order):
    """The coefficients [used stages, order] of the weights b_i(theta). end: the stage with f at the end of the step."""
    matrix, right, sizes, scale = conditions(rows, order + 1, used)
    satisfied = sizes <= order
    powers = np.arange(1, order + 1)
    x, null = solutions(matrix[satisfied], right[satisfied, None] * (sizes[satisfied, None] == powers))

    # b'(0) is 1 for the first stage and 0 for others; b(1) is b; b'(1) is 1 for stage ``end`` and 0 for others.
    stages = np.eye(len(rows))[used]
    ends = np.stack([powers == 1, powers**0, powers], axis=1)
    ends_right = np.stack([stages[:, 0], b[used], stages[:, end]], axis=1)
    x = x + null @ null.T @ (ends_right - x @ ends) @ np.linalg.pinv(ends)
    basis = np.linalg.svd(ends.T)[2][3:].T

    weighted_rows = np.vstack([scale[~satisfied, None] * matrix[~satisfied], DAMPING * np.eye(len(used))])
    target = np.concatenate([scale[~satisfied] * right[~satisfied], np.zeros(len(used))])
    thetas = (np.arange(10) + 0.5) / 10
    x = minimise(weighted_rows, x, null, basis, [(theta**powers, theta ** (order + 1) * target) for theta in thetas])
    x = x + (ends_right - x @ ends) @ np.linalg.pinv(ends)  # remove round-off
    x[:, 0] = stages[:, 0]
    return x


def derive(name):
    """Return the tableau rows of all stages, and the polynomials [stages, dense order]."""
    method = METHODS[name]
    rows = [*method.a] if method.fsal else [*method.a, method.b]
    end = len(rows) - 1
    # Stages after the first with b_i = 0 have a low order. A nonzero weight for them would lower the result's order.
    first = next(i for i in range(1, method.stages) if method.b[i] != 0)
    for node, order in EXTRA_STAGES[name]:
        used = [0, *range(first, len(rows))]
        row = np.zeros(len(rows))
        row[used] = extra_stage(rows, used, node, order)
        rows.append(tuple(row))
    used = [0, *range(first, len(rows))]
    b = np.array([*method.b, *[0.0] * (len(rows) - method.stages)])
    dense = np.zeros((len(rows), method.dense_order))
    dense[used] = polynomials(rows, used, b, end, method.dense_order)
    return rows, dense


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=METHODS)
    name = parser.parse_args().name
    rows, dense = derive(name)
    print("extra_a =", *(tuple(map(float, row)) for row in rows[METHODS[name].stages :]), sep="\n")
    print("dense =", *(tuple(map(float, row)) for row in dense), sep="\n")


if __name__ == "__main__":
    main()

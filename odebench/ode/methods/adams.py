"""Adams methods, and their coefficients for steps of any sizes. Imports no torch.

A step from t to t + h integrates the polynomial through past values of f, called slopes. In the scaled time
x = (time - t) / h, the step goes from 0 to 1. With equal steps, the slopes lie at the nodes x = 0, -1, -2, ... The
functions in this file give exact results if the nodes are of the type ``Fraction``.

Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, sections III.1 and III.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

HIGHEST_ORDER = 12


@dataclass(frozen=True)
class FixedOrderAdams:
    """An Adams method of fixed order for fixed steps; the coefficients adapt to an uneven grid.

    order: the order of a step, 1 to 12.
    implicit: True for Adams-Moulton, which is solved by functional iteration from the prediction of Adams-Bashforth;
        False for Adams-Bashforth.
    start: how the first slopes are computed. "accurate": by steps of the 3/8 rule up to order 5, and by extrapolated
        midpoint steps for higher orders, so that the whole solve has the order of the method. "growing": three slopes
        by the 3/8 rule, and then Adams methods whose order grows with every step, as in torchdiffeq; the error of the
        solve is of order 4.
    rtol, atol: the tolerance of the iteration, which ends when no component changes by more than atol + rtol |y|, or by
        more than round-off.
    max_iters: the largest number of iterations in a step.
    lenient: whether to warn and continue if the iteration does not converge; otherwise the solve ends with the status
        not_converged.
    """

    name: str
    source: str
    order: int
    implicit: bool
    start: Literal["accurate", "growing"] = "accurate"
    rtol: float = 1e-10
    atol: float = 1e-10
    max_iters: int = 20
    lenient: bool = False

    options = ("order",)
    adaptive = False
    stiff = False
    reversible = False

    def __post_init__(self) -> None:
        if not 1 <= self.order <= HIGHEST_ORDER:
            raise ValueError(f"method {self.name}: order must be 1 to {HIGHEST_ORDER}, got {self.order}")
        if self.max_iters < 1 or not (self.rtol >= 0 and self.atol >= 0):
            raise ValueError(f"method {self.name}: max_iters must be positive, rtol and atol must not be negative")

    @property
    def stages(self) -> int:
        """The number of evaluations in a step; an implicit step is counted with one iteration."""
        return 2 if self.implicit else 1

    @property
    def num_slopes(self) -> int:
        """The number of past slopes that a step of the full order uses."""
        return max(self.order - 1, 1) if self.implicit else self.order

    def for_fixed_steps(self) -> "FixedOrderAdams":
        """Return this method: it has no error estimate."""
        return self


@dataclass(frozen=True)
class VariableOrderAdams:
    """An Adams predictor-corrector method that chooses its step size and its order, from 1 to ``highest``.

    A step predicts the state with k slopes, evaluates f, corrects the state with k + 1 slopes (local extrapolation) and
    evaluates f again.
    """

    name: str
    source: str
    highest: int = HIGHEST_ORDER

    options = ("highest",)
    adaptive = True
    stiff = False
    reversible = False
    stages = 2

    def __post_init__(self) -> None:
        if not 1 <= self.highest <= HIGHEST_ORDER:
            raise ValueError(f"method {self.name}: highest must be 1 to {HIGHEST_ORDER}, got {self.highest}")

    @property
    def order(self) -> int:
        """The highest order of a step."""
        return self.highest + 1

    def for_fixed_steps(self) -> "VariableOrderAdams":
        """Return this method: it has no fixed steps, and ``find_conflict`` refuses them."""
        return self


EXPLICIT_ADAMS = FixedOrderAdams("explicit_adams", "Bashforth & Adams 1883", order=4, implicit=False)
IMPLICIT_ADAMS = FixedOrderAdams(
    "implicit_adams", "Moulton 1926, predicted by Bashforth & Adams 1883", order=4, implicit=True
)
ADAMS = VariableOrderAdams("adams", "Shampine & Gordon 1975, Computer Solution of Ordinary Differential Equations")


def integration_weights(nodes: Sequence[Any]) -> list[Any]:
    """Return, for each node, the integral of its Lagrange polynomial from 0 to 1."""
    integrals = [sum(row) for row in newton_integrals(nodes)]
    rows = divided_differences(nodes)
    return [sum(integrals[m] * rows[m][j] for m in range(j, len(nodes))) for j in range(len(nodes))]


def lagrange_integrals(nodes: Sequence[Any]) -> list[list[Any]]:
    """Return, for each node, the integral of its Lagrange polynomial from 0 to theta.

    The integral is given by its coefficients of theta, theta^2, ...
    """
    newton, rows, count = newton_integrals(nodes), divided_differences(nodes), len(nodes)
    # Row m of the integrals has the powers up to m + 1.
    return [
        [sum(newton[m][p] * rows[m][j] for m in range(max(j, p), count)) for p in range(count)] for j in range(count)
    ]


def divided_differences(nodes: Sequence[Any]) -> list[list[Any]]:
    """Return a table whose row m has the weights of the first m + 1 values in their divided difference."""
    rows: list[list[Any]] = [[nodes[0] ** 0]]
    for m in range(1, len(nodes)):
        gaps = [nodes[j] - nodes[m] for j in range(m)]
        last = nodes[0] ** 0
        for gap in gaps:
            last = last / -gap
        rows.append([*(weight / gap for weight, gap in zip(rows[-1], gaps, strict=True)), last])
    return rows


def newton_integrals(nodes: Sequence[Any]) -> list[list[Any]]:
    """Return a table whose row m gives the integral of (x - x_0) ... (x - x_(m-1)) from 0 to theta.

    The integral is given by its coefficients of theta, theta^2, ...
    """
    product = [nodes[0] ** 0]
    rows = []
    for node in nodes:
        rows.append([coefficient / (power + 1) for power, coefficient in enumerate(product)])
        shifted = [nodes[0] * 0, *product]
        for power, coefficient in enumerate(product):
            shifted[power] = shifted[power] - node * coefficient  # not in place: a tensor may have a graph
        product = shifted
    return rows

"""Tableaus of implicit Runge-Kutta methods, for stiff fields, with their sources. Imports no torch."""

from dataclasses import dataclass, replace
from math import sqrt

from odebench.ode.methods.tableau import ButcherTableau, error_weights


@dataclass(frozen=True)
class ImplicitTableau(ButcherTableau):
    """The Butcher tableau of an implicit Runge-Kutta method: ``a`` has s rows with s coefficients each.

    If ``a`` is lower triangular, the stages are solved one by one; otherwise all at once. If ``dense`` is None, dense
    output is cubic Hermite interpolation.

    error_start: the weight of f at the start of the step in the error estimate.
    error_order: the power of h that the error estimate is proportional to.
    smoothing: the number gamma of the matrix (I - h gamma df/dy)^-1, which multiplies the error estimate. Without it,
        the estimate would be far larger than the error on stiff fields. None if the method does not need it.
    """

    error_start: float = 0.0
    error_order: int | None = None
    smoothing: float | None = None

    stiff = True
    one_step = True

    def __post_init__(self) -> None:
        s = len(self.c)
        if [len(row) for row in (self.b, self.error or self.b, *self.a)] != [s] * (s + 2):
            raise ValueError(f"tableau {self.name}: b, error and the {s} rows of a need {s} entries")
        if (self.error is None) != (self.error_order is None) or (self.error is None) != (self.dense_order is None):
            raise ValueError(f"tableau {self.name}: an adaptive method needs error, error_order and dense_order")
        if self.dense is not None and len(self.dense) != s:
            raise ValueError(f"tableau {self.name}: dense needs {s} rows, one for each stage")

    @property
    def groups(self) -> list[slice]:
        """The groups of stages that are solved together: single stages if ``a`` is lower triangular, else one group."""
        if any(any(row[i + 1 :]) for i, row in enumerate(self.a)):
            return [slice(0, self.stages)]
        return [slice(i, i + 1) for i in range(self.stages)]

    @property
    def stiffly_accurate(self) -> bool:
        """Whether the last stage is the result of the step, so that k_s is the field at the end of the step."""
        return self.c[-1] == 1 and self.a[-1] == self.b

    def for_fixed_steps(self) -> "ImplicitTableau":
        """Return this method without its error estimate, for fixed steps."""
        nothing = {"error": None, "error_order": None, "smoothing": None, "dense": None, "dense_order": None}
        return replace(self, error_start=0.0, **nothing)  # type: ignore[arg-type]


def lagrange_weights(c: tuple[float, ...], theta: float) -> tuple[float, ...]:
    """Return the values [s] of the Lagrange polynomials of the nodes c at theta."""
    return tuple(sum(p * theta**j for j, p in enumerate(basis)) for basis in _lagrange_basis(c))


def _lagrange_basis(c: tuple[float, ...]) -> list[list[float]]:
    """Return the coefficients of the polynomials that are 1 at one node and 0 at the others, lowest power first."""
    polynomials = []
    for i, node in enumerate(c):
        polynomial = [1.0]
        for other in c[:i] + c[i + 1 :]:
            shifted, scaled = [0.0, *polynomial], [*(-other * p for p in polynomial), 0.0]
            polynomial = [(x + y) / (node - other) for x, y in zip(shifted, scaled, strict=True)]
        polynomials.append(polynomial)
    return polynomials


def _collocation(
    name: str, source: str, order: int, c: tuple[float, ...], gamma: float | None = None
) -> ImplicitTableau:
    """Make the collocation method with the nodes c.

    gamma: if it is given, the method has the error estimate of order s by Hairer & Wanner 1999, Stiff differential
        equations solved by Radau methods, equation (10).
    """
    # Row i: the coefficients of theta, theta^2, ... in the integral from 0 to theta of the i-th Lagrange polynomial.
    dense = tuple(tuple(p / (j + 1) for j, p in enumerate(basis)) for basis in _lagrange_basis(c))
    a = tuple(tuple(sum(p * node ** (j + 1) for j, p in enumerate(row)) for row in dense) for node in c)
    b = tuple(sum(row) for row in dense)
    if c[-1] == 1:
        a = (*a[:-1], b)
    method = ImplicitTableau(name, source, order, c, a, b)
    if gamma is None:
        return method
    # gamma h (f(t, y) - e), with e the extrapolation of f from the stages; zero for polynomials of degree s.
    error = tuple(-gamma * weight for weight in lagrange_weights(c, 0.0))
    s = len(c)
    return replace(
        method, error=error, error_start=gamma, error_order=s + 1, smoothing=gamma, dense=dense, dense_order=s
    )


IMPLICIT_MIDPOINT = _collocation("implicit_midpoint", "Gauss, 1 stage; A-stable", 2, (1 / 2,))

GL4 = _collocation(
    "gl4",
    "Hammer & Hollingsworth 1955; Kuntzmann 1961, Gauss, 2 stages; A-stable",
    4,
    (1 / 2 - sqrt(3) / 6, 1 / 2 + sqrt(3) / 6),
)

GL6 = _collocation(
    "gl6",
    "Kuntzmann 1961; Butcher 1964, Gauss, 3 stages; A-stable",
    6,
    (1 / 2 - sqrt(15) / 10, 1 / 2, 1 / 2 + sqrt(15) / 10),
)

# The error estimate is half the difference to the explicit Euler method: the error of both, to leading order.
IMPLICIT_EULER = ImplicitTableau(
    name="implicit_euler",
    source="Euler, backward; L-stable",
    order=1,
    c=(1.0,),
    a=((1.0,),),
    b=(1.0,),
    error=(-1 / 2,),
    error_start=1 / 2,
    error_order=2,
    smoothing=1.0,
    dense_order=1,
)

# gamma can be chosen freely; it is the geometric mean of the eigenvalues of ``a``.
RADAU_IIA3 = _collocation("radauIIA3", "Axelsson 1969; Ehle 1969, Radau, 2 stages; L-stable", 3, (1 / 3, 1.0), 6**-0.5)

# gamma is the real eigenvalue of ``a``.
RADAU_IIA5 = _collocation(
    "radauIIA5",
    "Axelsson 1969; Ehle 1969, Radau, 3 stages; error of Hairer & Wanner 1999; L-stable",
    5,
    ((4 - sqrt(6)) / 10, (4 + sqrt(6)) / 10, 1.0),
    1 / (3 + 3 ** (2 / 3) - 3 ** (1 / 3)),
)

TRAPEZOID = ImplicitTableau(
    name="trapezoid",
    source="the implicit trapezoidal rule; A-stable",
    order=2,
    c=(0.0, 1.0),
    a=((0.0, 0.0), (1 / 2, 1 / 2)),
    b=(1 / 2, 1 / 2),
)

_G2 = 1 - 1 / sqrt(2)
_TRBDF2_B = (sqrt(2) / 4, sqrt(2) / 4, _G2)

SDIRK2 = ImplicitTableau(
    name="sdirk2",
    source="Alexander 1977, Diagonally implicit Runge-Kutta methods for stiff o.d.e.'s, 2 stages; L-stable",
    order=2,
    c=(_G2, 1.0),
    a=((_G2, 0.0), (1 - _G2, _G2)),
    b=(1 - _G2, _G2),
)

# The embedded method has order 3, so that the estimate is the error of the step itself. If nothing damps the errors of
# the steps, their sum is proportional to the power 2/3 of the tolerance.
TRBDF2 = ImplicitTableau(
    name="trbdf2",
    source="Bank et al. 1985; Hosea & Shampine 1996, Analysis and implementation of TR-BDF2; L-stable",
    order=2,
    c=(0.0, 2 * _G2, 1.0),
    a=((0.0, 0.0, 0.0), (_G2, _G2, 0.0), _TRBDF2_B),
    b=_TRBDF2_B,
    error=error_weights(_TRBDF2_B, ((1 - sqrt(2) / 4) / 3, (3 * sqrt(2) / 4 + 1) / 3, _G2 / 3)),
    error_order=3,
    smoothing=_G2,
    dense_order=2,
)


def _kvaerno(
    name: str,
    source: str,
    order: int,
    gamma: float,
    rows: tuple[tuple[float, ...], ...],
    dense: tuple[tuple[float, ...], ...] | None = None,
) -> ImplicitTableau:
    """Make a pair of Kvaerno: the first stage is explicit, and the others have gamma on the diagonal.

    The last two stages are the embedded method and the result of the step.

    rows: the coefficients left of the diagonal.
    """
    s = len(rows) + 1
    a = ((0.0,) * s, *((*row, gamma, *(0.0,) * (s - 1 - len(row))) for row in rows))
    c = (0.0, *(sum(row) for row in a[1:-2]), 1.0, 1.0)
    error, dense_order = error_weights(a[-1], a[-2]), 4 if dense else 3
    return ImplicitTableau(
        name, source, order, c, a, b=a[-1], error=error, error_order=order, dense=dense, dense_order=dense_order
    )


# A root of 6 x^3 - 18 x^2 + 9 x - 1, for L-stability.
_G3 = 0.4358665215084589994

KVAERNO3 = _kvaerno(
    "kvaerno3",
    "Kvaerno 2004, Singly diagonally implicit Runge-Kutta methods with an explicit first stage, 3(2); L-stable",
    3,
    _G3,
    (
        (_G3,),
        ((-4 * _G3**2 + 6 * _G3 - 1) / (4 * _G3), (1 - 2 * _G3) / (4 * _G3)),
        (
            (6 * _G3 - 1) / (12 * _G3),
            -1 / ((24 * _G3 - 12) * _G3),
            (-6 * _G3**2 + 6 * _G3 - 1) / (6 * _G3 - 3),
        ),
    ),
)

KVAERNO5 = _kvaerno(
    "kvaerno5",
    "Kvaerno 2004, 5(4); L-stable",
    5,
    0.26,
    (
        (0.26,),
        (0.13, 0.84033320996790809),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
        (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
        (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676),
        (
            0.13659751177640291,
            0.0,
            -0.05496908796538376,
            -0.04118626728321046,
            0.62993304899016403,
            0.06962479448202728,
        ),
    ),
    # The dense output satisfies the order conditions of order 4 and has the values and slopes at both ends of the step.
    # The coefficients that are then still free minimise the error terms of order 5.
    (
        (1.0, -2.083640857206178, 1.7136717615179766, -0.49343339253539287),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 0.7685888792282114, -1.7570541103179553, 0.9334961431243606),
        (0.0, -1.0554729857981358, 1.946200902463425, -0.9319141839485021),
        (0.0, 3.3191401328062367, -4.11854806965182, 1.4293409858357438),
        (0.0, -0.3988182987431517, 1.0761357754144116, -0.6076926821892314),
        (0.0, -0.5497968702869669, 1.1395937405739398, -0.3297968702869708),
    ),
)

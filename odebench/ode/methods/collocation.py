"""Lagrange polynomials at the nodes of a collocation method. Imports no torch."""


def lagrange_weights(c: tuple[float, ...], theta: float) -> tuple[float, ...]:
    """The values [s] at theta of the Lagrange polynomials of the nodes c."""
    return tuple(sum(p * theta**j for j, p in enumerate(basis)) for basis in _basis(c))


def lagrange_integrals(c: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """s rows of coefficients p_i1, p_i2, ...: row i is the integral from 0 of the i-th Lagrange polynomial."""
    return tuple(tuple(p / (j + 1) for j, p in enumerate(basis)) for basis in _basis(c))


def _basis(c: tuple[float, ...]) -> list[list[float]]:
    """The coefficients, lowest power first, of the polynomials that are 1 at one node and 0 at the others."""
    polynomials = []
    for i, node in enumerate(c):
        polynomial = [1.0]
        for other in c[:i] + c[i + 1 :]:
            shifted, scaled = [0.0, *polynomial], [*(-other * p for p in polynomial), 0.0]
            polynomial = [(x + y) / (node - other) for x, y in zip(shifted, scaled, strict=True)]
        polynomials.append(polynomial)
    return polynomials

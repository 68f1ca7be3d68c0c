"""Every explicit Runge-Kutta method has the order that its tableau claims, by measured convergence in float64."""

import pytest
import torch
from convergence import convergence_order, pendulum

from odebench.ode import METHODS, Tableau, solve

TABLEAUS = [name for name, method in METHODS.items() if isinstance(method, Tableau)]
ADAPTIVE = [name for name in TABLEAUS if METHODS[name].adaptive]


@pytest.fixture(scope="module")
def reference():
    y0 = torch.tensor([1.0, 0.3], dtype=torch.float64)
    return y0, solve(pendulum, y0, [0.0, 2.0], method="dopri8", rtol=1e-14, atol=1e-14).y[-1]


@pytest.mark.parametrize("name", TABLEAUS)
def test_fixed_steps_converge_with_the_order_of_the_method(name, reference):
    y0, exact = reference
    # At higher order the error reaches round-off with fewer steps.
    steps = [20, 28, 40, 56] if METHODS[name].order <= 5 else [6, 8, 11, 14]
    errors = [float((solve(pendulum, y0, [0, 2], method=name, steps=n).y[-1] - exact).norm()) for n in steps]
    assert convergence_order(steps, errors) == pytest.approx(METHODS[name].order, abs=0.35)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_dense_output_converges_with_its_order(name):
    """One step of size h from an exact state: the local error of the interpolant is O(h^(order + 1))."""
    y0 = torch.tensor([1.0, 0.3], dtype=torch.float64)
    errors, sizes = [], [0.4, 0.2, 0.1] if METHODS[name].dense_order <= 4 else [0.8, 0.56, 0.4]
    for h in sizes:
        inside = [0.3 * h, 0.7 * h]
        exact = solve(pendulum, y0, [0.0, *inside], method="dopri8", rtol=1e-14, atol=1e-14, max_step=h / 8).y[1:]
        # A tolerance so loose that the first step, of the whole span, is accepted.
        loose = solve(pendulum, y0, [0.0, *inside, h], method=name, rtol=10, atol=10, first_step=h)
        assert loose.stats.accepted == 1
        errors.append(float((loose.y[1:3] - exact).norm()))
    measured = convergence_order([1 / h for h in sizes], errors)
    assert measured == pytest.approx(METHODS[name].dense_order + 1, abs=0.5)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_error_falls_with_the_tolerance(name, reference):
    y0, exact = reference
    errors = [
        float((solve(pendulum, y0, [0, 2], method=name, rtol=tol, atol=tol).y[-1] - exact).norm())
        for tol in (1e-3, 1e-5, 1e-7)
    ]
    # fehlberg2 divides its error estimate by 512 and is far off at any tolerance, with every library.
    assert errors[0] < (1 if name == "fehlberg2" else 1e-2)
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10


def test_a_tableau_of_the_wrong_shape_raises_an_error():
    with pytest.raises(ValueError, match=r"row i = 0, 1, \.\.\. of a needs i"):
        Tableau("odd", "nobody", 1, (0.0, 1.0), ((),), (0.5, 0.5))

"""The 25 problems of DETEST: evaluations and errors at the end of the span.

Errors are the largest absolute error of any component at t = 20, and their geometric mean over the problems.
"""

import functools
import math

import detest
import pytest
import torch

from odebench.ode import solve

CHEAP = ["A1", "A2", "A4", "A5", "C5", "E4", "E5"]
NAMES = [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow) for name in detest.PROBLEMS]


def geometric_mean(numbers):
    return math.exp(sum(map(math.log, numbers)) / len(numbers))


@functools.cache
def totals(method="dopri5", controller="integral", tol=1e-6):
    """(sum of the evaluations, geometric mean of the errors) over all problems, solved for the end only."""
    evaluations, errors = 0, []
    for name, problem in detest.PROBLEMS.items():
        with torch.no_grad():
            solution = solve(
                problem.f, problem.y0, [0.0, detest.END], method=method, rtol=tol, atol=tol, controller=controller
            )
        evaluations += solution.stats.nfe
        errors.append(float((solution.y[-1] - detest.reference(name)).abs().max()))
    return evaluations, geometric_mean(errors)


@functools.cache
def torchdiffeq_totals():
    """``totals`` of torchdiffeq's dopri5, counting evaluations inside the field."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    evaluations, errors = 0, []
    times = torch.tensor([0.0, detest.END], dtype=torch.float64)
    for name, problem in detest.PROBLEMS.items():

        def counted(t, y, f=problem.f):
            nonlocal evaluations
            evaluations += 1
            return f(t, y)

        with torch.no_grad():
            y = torchdiffeq.odeint(counted, problem.y0, times, rtol=1e-6, atol=1e-6, method="dopri5")
        errors.append(float((y[-1] - detest.reference(name)).abs().max()))
    return evaluations, geometric_mean(errors)


def test_there_are_five_problems_of_each_of_five_classes():
    assert list(detest.PROBLEMS) == [f"{letter}{i}" for letter in "ABCDE" for i in range(1, 6)]


@pytest.mark.parametrize("name", NAMES)
def test_the_accurate_solution_agrees_with_the_closed_form_or_scipy(name):
    problem = detest.PROBLEMS[name]
    exact = problem.exact
    if exact is None:
        integrate = pytest.importorskip("scipy.integrate")

        def f(t, y):
            return problem.f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

        scipy = integrate.solve_ivp(f, (0, detest.END), problem.y0.numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
        exact = torch.from_numpy(scipy.y[:, -1].copy())
    torch.testing.assert_close(detest.accurate_solution(name), exact, rtol=1e-9, atol=1e-9)


def test_the_rigid_body_solution_is_jacobis_elliptic_functions():
    special = pytest.importorskip("scipy.special")
    exact = torch.tensor(special.ellipj(detest.END, 0.51)[:3], dtype=torch.float64)
    problem = detest.PROBLEMS["B5"]
    with torch.no_grad():
        y = solve(problem.f, problem.y0, [0.0, detest.END], method="vern7", rtol=1e-9, atol=1e-9).y[-1]
    torch.testing.assert_close(y, exact, rtol=1e-7, atol=1e-7)


def test_the_outer_planets_move_on_their_known_orbits():
    """The semi-major axes in astronomical units, from position and velocity at the first time."""
    position, velocity = detest.PROBLEMS["C5"].y0.view(2, 5, 3)
    axes = 1 / (2 / position.norm(dim=1) - velocity.square().sum(1) / 2.95912208286)
    torch.testing.assert_close(axes, torch.tensor([5.20, 9.58, 19.2, 30.1, 39.5]).double(), rtol=0.01, atol=0)


@pytest.mark.parametrize("name", CHEAP)
def test_one_problem_ends_near_its_reference(name):
    problem = detest.PROBLEMS[name]
    with torch.no_grad():
        solution = solve(problem.f, problem.y0, [0.0, detest.END], rtol=1e-6, atol=1e-6)
    # The errors of C5 grow along the orbits; Jupiter's is the largest.
    assert float((solution.y[-1] - detest.reference(name)).abs().max()) < (1e-3 if name == "C5" else 3e-5)
    assert solution.stats.nfe < 160


@pytest.mark.slow
def test_dopri5_stays_within_its_budget():
    evaluations, error = totals()
    assert evaluations <= 1.02 * 10_580
    assert error <= 1.02 * 9.5e-6


@pytest.mark.slow
def test_dopri5_needs_no_more_evaluations_than_torchdiffeq_and_is_no_less_accurate():
    evaluations, error = totals()
    their_evaluations, their_error = torchdiffeq_totals()
    assert evaluations <= 1.02 * their_evaluations
    assert error <= 1.02 * their_error


@pytest.mark.slow
def test_pi_control_needs_no_more_evaluations_than_integral_control():
    evaluations, error = totals()
    pi_evaluations, pi_error = totals(controller="pi")
    assert pi_evaluations <= evaluations
    assert pi_error <= error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "budget", "bound"),
    [
        ("tsit5", 11_500, 6e-6),
        ("bosh3", 31_000, 3e-5),
        ("dopri8", 11_600, 7e-7),
        ("vern7", 11_900, 7e-7),
        ("adams", 7_000, 5e-5),
    ],
)
def test_other_methods_stay_within_their_budgets(method, budget, bound):
    evaluations, error = totals(method)
    assert evaluations <= budget
    assert error <= bound

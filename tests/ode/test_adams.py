"""Adams methods: exact coefficients, measured orders of convergence, and efficient variable order."""

import dataclasses
import itertools
import math
from fractions import Fraction

import detest
import pytest
import torch
from convergence import convergence_order, pendulum

from odebench.ode import METHODS, SolveError, Status, solve
from odebench.ode.methods.adams import VariableOrderAdams, integration_weights, lagrange_integrals
from odebench.ode.methods.adams_variable_stepper import VariableOrderAdamsStepper
from odebench.ode.methods.stepper import StepperOptions
from odebench.ode.problem import InitialValueProblem

EXPLICIT, IMPLICIT, ADAMS = (METHODS[name] for name in ("explicit_adams", "implicit_adams", "adams"))
Y0 = torch.tensor([1.0, 0.3], dtype=torch.float64)
UNEVEN = [Fraction(n, 7) for n in (7, 0, -5, -6, -17, -40)]


@pytest.fixture(scope="module")
def reference():
    return solve(pendulum, Y0, [0.0, 4.0], method="dopri5", rtol=1e-14, atol=1e-14).y[-1]


def of_order(method, order):
    """The method at that order, its iteration run to round-off."""
    return dataclasses.replace(method, order=order, rtol=0.0, atol=1e-15, max_iters=100)


# Coefficients.


def test_coefficients_are_those_of_the_literature():
    """Hairer, Norsett & Wanner 1993, section III.1, tables 1.1 and 1.2 and equations (1.5) and (1.9)."""
    bashforth = {order: integration_weights([Fraction(-j) for j in range(order)]) for order in (4, 6)}
    assert bashforth[4] == [Fraction(n, 24) for n in (55, -59, 37, -9)]
    assert bashforth[6] == [Fraction(n, 1440) for n in (4277, -7923, 9982, -7298, 2877, -475)]
    moulton = {order: integration_weights([Fraction(1 - j) for j in range(order)]) for order in (4, 5)}
    assert moulton[4] == [Fraction(n, 24) for n in (9, 19, -5, 1)]
    assert moulton[5] == [Fraction(n, 720) for n in (251, 646, -264, 106, -19)]


@pytest.mark.parametrize("count", range(1, 13))
def test_steps_integrate_polynomials_exactly(count):
    even = [Fraction(1 - j) for j in range(count)]
    for nodes in (even, [node - 1 for node in even], UNEVEN[:count]):
        found = integration_weights(nodes)
        for power in range(len(nodes)):
            assert sum(w * x**power for w, x in zip(found, nodes, strict=True)) == Fraction(1, power + 1)


def test_interpolants_integrate_polynomials_exactly_to_any_point():
    theta = Fraction(2, 3)
    at = [sum(p * theta ** (i + 1) for i, p in enumerate(row)) for row in lagrange_integrals(UNEVEN)]
    for power in range(len(UNEVEN)):
        assert sum(w * x**power for w, x in zip(at, UNEVEN, strict=True)) == theta ** (power + 1) / (power + 1)


@pytest.mark.parametrize("count", [4, 8, 13])
def test_floating_point_coefficients_are_accurate(count):
    nodes = [1.0] + [-sum(0.5 + (7 * i % 5) / 3 for i in range(j)) for j in range(count - 1)]
    exact = integration_weights([Fraction(node) for node in nodes])
    assert integration_weights(nodes) == pytest.approx([float(w) for w in exact], rel=1e-14)


# Fixed order.


@pytest.mark.parametrize("order", range(1, 9))
@pytest.mark.parametrize("method", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
def test_fixed_steps_have_the_order_of_the_method(method, order, reference):
    low, high = (40, 80) if order < 7 else (64, 104) if method is IMPLICIT else (110, 160)
    steps = [low, (low + high) // 2, high]
    errors = [
        float((solve(pendulum, Y0, [0, 4], method=of_order(method, order), steps=n).y[-1] - reference).norm())
        for n in steps
    ]
    # High orders are met from above: their last roots are small, and die away slowly.
    assert order - 0.25 < convergence_order(steps, errors) < order + 1.3


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("method", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
def test_uneven_grids_keep_the_order(method, order, reference):
    steps, errors = [60, 90, 120], []
    for n in steps:
        grid = [4 * (i / n) ** 1.5 for i in range(n + 1)]
        errors.append(
            float((solve(pendulum, Y0, grid, method=of_order(method, order), steps=1).y[-1] - reference).norm())
        )
    assert convergence_order(steps, errors) > order - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("grad", [True, False], ids=["autograd", "no_grad"])
@pytest.mark.parametrize("order", [1, 4, 7])
@pytest.mark.parametrize("method", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
def test_dense_output_lies_between_the_steps(method, order, grad):
    exact = solve(pendulum, Y0, [0.0, 4.0], rtol=1e-12, atol=1e-12, dense=True).dense
    times, errors = torch.linspace(0, 4, 57).tolist(), []
    with torch.set_grad_enabled(grad):
        for steps in (40, 80):
            adams = dataclasses.replace(method, order=order)
            found = solve(pendulum, Y0, [0.0, 4.0], method=adams, steps=steps, dense=True).dense
            errors.append(float((found(times) - exact(times)).abs().max()))
    # The steps of the start have cubic interpolants.
    assert math.log2(errors[0] / errors[1]) > min(order, 4) - 0.4


@pytest.mark.parametrize(("order", "start"), [(1, 0), (3, 2), (5, 4)])
def test_a_step_of_adams_bashforth_costs_one_evaluation(order, start):
    stats = solve(pendulum, Y0, [0.0, 4.0], method=of_order(EXPLICIT, order), steps=50).stats
    assert stats.nfe == 50 + 3 * start


@pytest.mark.parametrize("method", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
def test_solving_backward_in_time_returns_to_the_start(method):
    there = solve(pendulum, Y0, [0.0, 4.0], method=of_order(method, 6), steps=60)
    back = solve(pendulum, there.y[-1], [4.0, 0.0], method=of_order(method, 6), steps=60)
    torch.testing.assert_close(back.y[-1], Y0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "max_order"),
    [
        ("explicit_adams", 4),
        ("explicit_adams", 8),
        ("implicit_adams", 4),
        ("implicit_adams", 8),
        ("implicit_adams", 12),
    ],
)
def test_a_growing_start_gives_the_results_of_torchdiffeq(name, max_order):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    times = torch.linspace(0, 4, 81, dtype=torch.float64)
    method = METHODS[name]
    # torchdiffeq's max_order includes the slope that only an implicit step computes.
    order = max_order if method.implicit else max_order - 1
    method = dataclasses.replace(method, order=order, start="growing", rtol=1e-6, atol=1e-6, max_iters=50)
    options = {"max_order": max_order, "max_iters": 50}
    theirs = torchdiffeq.odeint(pendulum, Y0, times, method=name, rtol=1e-6, atol=1e-6, options=options)
    ours = solve(pendulum, Y0, times, method=method, steps=80)
    torch.testing.assert_close(ours.y, theirs, rtol=1e-11, atol=1e-11)


def test_an_iteration_that_does_not_converge_gives_not_converged():
    def stiff(t, y):
        return -100 * y

    with pytest.raises(SolveError, match="not_converged"):
        solve(stiff, Y0, [0.0, 1.0], method="implicit_adams", steps=20)
    lenient = dataclasses.replace(IMPLICIT, lenient=True, max_iters=2)
    with pytest.warns(UserWarning, match="implicit_adams: the iteration did not converge at t="):
        assert solve(stiff, Y0, [0.0, 0.2], method=lenient, steps=4).status is Status.success


@pytest.mark.parametrize("name", ["explicit_adams", "implicit_adams"])
def test_nan_in_a_fixed_step_gives_non_finite(name):
    with pytest.raises(SolveError, match="non_finite"):
        solve(lambda t, y: y / (t < 0.5), Y0, [0.0, 1.0], method=name, steps=20)


@pytest.mark.parametrize(("order", "message"), [(0, "order must be 1 to 12"), (13, "order must be 1 to 12")])
def test_invalid_orders_raise_an_error(order, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(EXPLICIT, order=order)


# Variable order.


PROBLEMS = {
    "orbit": detest.PROBLEMS["D2"],
    "predator_prey": detest.PROBLEMS["B1"],
    "heat": detest.PROBLEMS["C3"],
    "pendulum": detest.TestProblem(pendulum, Y0),
}
TOLERANCES = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10)


def solve_problem(name, method, tol, grad=False):
    problem = PROBLEMS[name]
    with torch.set_grad_enabled(grad):
        return solve(problem.f, problem.y0, [0.0, 10.0], method=method, rtol=tol, atol=tol)


@pytest.fixture(scope="module")
def ends():
    return {name: solve_problem(name, "dopri8", 1e-13).y[-1] for name in PROBLEMS}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_error_is_proportional_to_the_tolerance(name, ends):
    errors = [float((solve_problem(name, ADAMS, tol).y[-1] - ends[name]).norm()) for tol in TOLERANCES]
    assert convergence_order([1 / tol for tol in TOLERANCES], errors) == pytest.approx(1, abs=0.25)
    assert max(error / tol for error, tol in zip(errors, TOLERANCES, strict=True)) < 3000


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_needs_fewer_evaluations_than_dopri5(name):
    loose, tight = (
        solve_problem(name, "dopri5", tol).stats.nfe / solve_problem(name, ADAMS, tol).stats.nfe for tol in (1e-6, 1e-9)
    )
    assert loose > 1
    assert tight > 2


def test_high_orders_need_fewer_steps():
    """At order 4 and below the same method needs far more steps."""
    low = solve_problem("orbit", VariableOrderAdams("low", "", highest=4), 1e-9).stats
    assert low.accepted > 2.5 * solve_problem("orbit", ADAMS, 1e-9).stats.accepted


def test_evaluations_are_one_per_attempt_and_one_per_accepted_step():
    stats = solve_problem("orbit", ADAMS, 1e-6).stats
    assert stats.rejected > 0
    # One at the start and one for the first step size; none after the last step.
    assert stats.nfe == 2 + stats.rejected + 2 * stats.accepted - 1


def test_steps_grow_by_a_factor_of_two_at_most():
    sizes = solve_problem("pendulum", ADAMS, 1e-8).stats.step_sizes
    assert max(after / before for before, after in itertools.pairwise(sizes)) < 2.01


@pytest.mark.parametrize("times", [[0.0, 0.01, 0.02, 1.3, 2.0, 4.0], [4.0, 3.99, 2.0, 0.7, 0.0]], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["autograd", "no_grad"])
def test_outputs_between_steps_are_as_accurate_as_the_steps(times, grad):
    exact = solve(pendulum, Y0, times, rtol=1e-13, atol=1e-13).y
    with torch.set_grad_enabled(grad):
        found = solve(pendulum, Y0, times, method=ADAMS, rtol=1e-9, atol=1e-9)
        alone = solve(pendulum, Y0, [times[0], times[-1]], method=ADAMS, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.y, exact, rtol=1e-7, atol=1e-7)
    # All outputs but the last lie inside steps and need no evaluations.
    assert found.stats == alone.stats


def test_dense_output_is_continuous_and_accurate():
    exact = solve(pendulum, Y0, [0.0, 4.0], rtol=1e-13, atol=1e-13, dense=True).dense
    solution = solve(pendulum, Y0, [0.0, 4.0], method=ADAMS, rtol=1e-9, atol=1e-9, dense=True)
    times = torch.linspace(0, 4, 200).tolist()
    torch.testing.assert_close(solution.dense(times), exact(times), rtol=1e-7, atol=1e-7)
    for interpolant, after in itertools.pairwise(solution.dense.interpolants):
        torch.testing.assert_close(interpolant.evaluate([1.0])[0], after.y, rtol=1e-11, atol=1e-11)


def test_the_interpolant_has_an_order_more_than_the_predictor():
    """At every order k of the predictor the local error of the interpolant is O(h^(k + 2)), and so is the step's."""
    exact = solve(pendulum, Y0, [0.0, 2.0], rtol=1e-13, atol=1e-13, dense=True).dense
    for k in (1, 2, 4):
        errors = []
        for h in (0.1, 0.05):
            stepper = stepper_with_history(exact, k, h)
            y_next = stepper.attempt(1.0, h, exact(1.0), last=False)
            interpolant = stepper.interpolant(1.0, 1.0 + h, exact(1.0), y_next, "cubic")
            found = torch.stack((*interpolant.evaluate([0.3, 0.8]), y_next))
            errors.append(float((found - exact([1 + 0.3 * h, 1 + 0.8 * h, 1 + h])).abs().max()))
        assert math.log2(errors[0] / errors[1]) > k + 2 - 0.35


def stepper_with_history(solution, k, h):
    """A stepper of order k at t = 1 with exact past slopes at distance h."""
    problem = InitialValueProblem(pendulum, Y0, [0.0, 1.0], ())
    stepper = VariableOrderAdamsStepper(ADAMS, problem, Y0, StepperOptions())
    times = [1.0 - h * j for j in range(k)]
    slopes = [pendulum(torch.tensor(time, dtype=torch.float64), solution(time)) for time in times]
    stepper.start(times[-1], solution(times[-1]), slopes[-1])
    for time, slope_there in zip(times[-2::-1], slopes[-2::-1], strict=True):
        stepper._end = slope_there
        stepper.accept(time, solution(time), last=False)
    stepper._k = k
    return stepper


@pytest.mark.parametrize("grad", [True, False], ids=["autograd", "no_grad"])
def test_a_rejected_attempt_does_not_change_the_next(grad):
    exact = solve(pendulum, Y0, [0.0, 2.0], rtol=1e-12, atol=1e-12, dense=True).dense
    with torch.set_grad_enabled(grad):
        once, twice = (stepper_with_history(exact, 4, 0.1) for _ in range(2))
        twice.attempt(1.0, 0.8, exact(1.0), last=False)
        twice.error()
        # An order below is no better: the order stays.
        twice.choose_order(lambda error: 10.0, 9.0, accepted=False)
        found, expected = (s.attempt(1.0, 0.1, exact(1.0), last=False) for s in (twice, once))
    assert torch.equal(found, expected)


def test_steps_with_and_without_autograd_give_the_same_results():
    """At a tolerance far above round-off: at a tight one, round-off decides between equally good orders."""
    with_graph, without = (solve_problem("predator_prey", ADAMS, 1e-4, grad) for grad in (True, False))
    torch.testing.assert_close(with_graph.y, without.y, rtol=1e-5, atol=1e-5)
    assert with_graph.stats.nfe == without.stats.nfe


def test_it_restarts_at_jumps():
    def kicked(t, y):
        return -y + torch.where(t < 1.0, 0.0, 5.0)

    y0 = torch.ones(1, dtype=torch.float64)
    solution = solve(kicked, y0, [0.0, 2.0], method=ADAMS, jump_t=[1.0], rtol=1e-9, atol=1e-9)
    kick = 5 + (math.exp(-1) - 5) * math.exp(-1)
    assert float(solution.y[-1]) == pytest.approx(kick, abs=1e-7)
    without = solve(kicked, y0, [0.0, 2.0], method=ADAMS, rtol=1e-9, atol=1e-9)
    assert solution.stats.nfe < without.stats.nfe


def test_single_precision_is_enough_for_loose_tolerances():
    y0 = Y0.float()
    found = solve(pendulum, y0, [0.0, 4.0], method=ADAMS, rtol=1e-5, atol=1e-5)
    exact = solve(pendulum, Y0, [0.0, 4.0], rtol=1e-12, atol=1e-12)
    assert found.y.dtype == torch.float32
    torch.testing.assert_close(found.y.double(), exact.y, rtol=1e-3, atol=1e-3)


def test_complex_states():
    y0 = torch.tensor([1.0 + 0.5j], dtype=torch.complex128)
    with torch.no_grad():
        found = solve(lambda t, y: 1j * y, y0, [0.0, 3.0], method=ADAMS, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.y[-1], y0 * torch.exp(torch.tensor(3j)), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("gradient", ["backprop", "adjoint", "interpolated_adjoint"])
@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "adams"])
def test_gradients_are_those_of_the_ode(method, gradient):
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.0, 0.3], dtype=torch.float64, requires_grad=True)

    def f(t, y, rate):
        return torch.stack((y[1], -torch.sin(y[0]) * rate + 0.5 * torch.cos(t)))

    def gradients(**options):
        solution = solve(f, y0, [0.0, 0.7, 2.0], args=(rate,), **options)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad((solution.y**2).sum(), (y0, rate))])

    steps, bound = ({}, 2e-7) if method == "adams" else ({"steps": 60}, 1e-5)
    exact = gradients(method="dopri5", rtol=1e-11, atol=1e-11)
    found = gradients(method=method, gradient=gradient, rtol=1e-9, atol=1e-9, **steps)
    torch.testing.assert_close(found, exact, rtol=bound, atol=bound)


def test_nan_and_blow_up_have_their_status():
    with pytest.raises(SolveError, match="non_finite"):
        solve(lambda t, y: y / (t < 0.5), Y0, [0.0, 1.0], method=ADAMS)
    with pytest.raises(SolveError, match="step_underflow"):
        solve(lambda t, y: y * y, torch.ones(1, dtype=torch.float64), [0.0, 2.0], method=ADAMS)


def test_fixed_steps_raise_an_error():
    with pytest.raises(ValueError, match=r"adams chooses its steps by their error; .* choose method='implicit_adams'"):
        solve(pendulum, Y0, [0.0, 1.0], method=ADAMS, steps=10)

"""SciPy's solvers as methods: results, adjoint gradients, and unsupported options."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from odebench.ode import METHODS, Adjoint, SolveError, Status, solve
from odebench.ode.methods.scipy_methods import SCIPY_METHODS, SciPyMethod

NAMES = [name for name, method in METHODS.items() if isinstance(method, SciPyMethod)]
A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
Y0 = torch.tensor([2.0, 0.5], dtype=torch.float64)
TIMES = [0.0, 0.01, 0.02, 1.3, 3.0]


def rotate(t, y):
    return A @ y


def exact(times):
    return torch.stack([torch.matrix_exp(A * t) @ Y0 for t in times])


def test_every_solver_has_a_method():
    assert set(SCIPY_METHODS) == {"RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA", "vode_adams"}
    assert sorted(method.name for method in SCIPY_METHODS.values()) == sorted(NAMES)


@pytest.mark.parametrize("times", [TIMES, TIMES[::-1]], ids=["forward", "reversed"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_lie_on_the_exact_solution_in_both_directions(name, times):
    solution = solve(rotate, exact(times[:1])[0], times, method=name, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.y, exact(times), rtol=1e-5, atol=1e-5)
    assert solution.status is Status.success
    assert solution.outcome.reached == len(times)


@pytest.mark.parametrize("name", NAMES)
def test_the_error_falls_with_the_tolerance(name):
    errors = [
        float((solve(rotate, Y0, [0.0, 3.0], method=name, rtol=tol, atol=tol).y[-1] - exact([3.0])[0]).norm())
        for tol in (1e-4, 1e-8)
    ]
    assert errors[1] < errors[0] / 100


@pytest.mark.parametrize("solver", [solver for solver in SCIPY_METHODS if solver != "vode_adams"])
def test_results_equal_those_of_solve_ivp(solver):
    theirs = solve_ivp(lambda t, y: A.numpy() @ y, (0.0, 3.0), Y0.numpy(), solver, t_eval=TIMES, rtol=1e-6, atol=1e-7)
    ours = solve(rotate, Y0, TIMES, method=SCIPY_METHODS[solver], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ours.y.numpy(), theirs.y.T, rtol=1e-12, atol=1e-12)
    assert ours.stats.nfe == pytest.approx(theirs.nfev, abs=10)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_count_every_evaluation_and_accepted_step(name):
    calls = 0

    def counted(t, y):
        nonlocal calls
        calls += 1
        return rotate(t, y)

    stats = solve(counted, Y0, TIMES, method=name).stats
    assert stats.nfe == calls
    assert len(stats.step_sizes) == stats.accepted > 0
    assert sum(stats.step_sizes) == pytest.approx(3.0)
    assert stats.warm_step == stats.step_sizes[0]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_evaluated_beyond_the_end(name):
    seen = []

    def recorded(t, y):
        seen.append(float(t))
        return rotate(t, y)

    solve(recorded, Y0, TIMES, method=name, first_step=10.0)
    assert min(seen) >= 0
    assert max(seen) <= TIMES[-1]


@pytest.mark.parametrize("name", NAMES)
def test_step_size_bounds_are_respected(name):
    stats = solve(rotate, Y0, [0.0, 1.0], method=name, max_step=0.05, first_step=0.01).stats
    assert stats.step_sizes[0] <= 0.01 + 1e-12
    assert max(stats.step_sizes) <= 0.05 + 1e-12


@pytest.mark.parametrize("name", ["scipy_rk45", "scipy_lsoda", "vode_adams"])
def test_single_precision_is_solved_in_double(name):
    y0, seen = Y0.float(), set()

    def f(t, y):
        seen.add((t.dtype, y.dtype))
        return A.float() @ y

    solution = solve(f, y0, TIMES, method=name, rtol=1e-6, atol=1e-6)
    assert solution.y.dtype == torch.float32
    assert seen == {(torch.float32, torch.float32)}
    torch.testing.assert_close(solution.y.double(), exact(TIMES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_complex_states_are_solved(name):
    y0 = torch.tensor([1.0 + 0.5j, -2j], dtype=torch.complex128)
    solution = solve(lambda t, y: (1j - 0.1) * y, y0, [0.0, 1.0, 3.0], method=name, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(solution.y[-1], y0 * np.exp(3j - 0.3), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tolerances_may_differ_between_components(name):
    """Two copies of one equation: the one with the loose tolerance costs nothing."""
    tight, loose = torch.full((2,), 1e-9, dtype=torch.float64), torch.full((2,), 1e3, dtype=torch.float64)

    def twice(t, y):
        return {"a": rotate(t, y["a"]), "b": 30 * rotate(t, y["b"])}

    y0 = {"a": Y0, "b": 1e-9 * Y0}
    stats = solve(twice, y0, [0.0, 1.0], method=name, rtol=1e-6, atol={"a": tight, "b": loose}).stats
    strict = solve(twice, y0, [0.0, 1.0], method=name, rtol=1e-6, atol={"a": tight, "b": 1e-6 * tight}).stats
    assert stats.nfe < strict.nfe


def test_a_nested_state_of_several_shapes_and_an_empty_one():
    y0 = {"a": torch.ones(2, 3), "b": (torch.ones(4),)}
    solution = solve(lambda t, y: {"a": -y["a"], "b": (y["b"][0],)}, y0, [0.0, 1.0], method="vode_adams")
    torch.testing.assert_close(solution.y["a"][-1], torch.full((2, 3), math.exp(-1)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(solution.y["b"][0][-1], torch.full((4,), math.e), rtol=1e-3, atol=1e-3)
    for name in NAMES:
        assert solve(lambda t, y: y, torch.zeros(0, 3), [0.0, 1.0], method=name).y.shape == (2, 0, 3)


@pytest.mark.parametrize("name", ["scipy_radau", "scipy_bdf", "scipy_lsoda"])
def test_stiff_solvers_need_few_evaluations_on_a_stiff_field(name):
    def stiff(t, y):
        return -1000 * (y - torch.cos(t))

    y0 = torch.zeros(1, dtype=torch.float64)
    found = solve(stiff, y0, [0.0, 2.0], method=name, rtol=1e-6, atol=1e-6)
    # y' = -a (y - cos t): a (a cos t + sin t) / (a^2 + 1), after the transient.
    assert float(found.y[-1]) == pytest.approx(1e3 * (1e3 * math.cos(2) + math.sin(2)) / (1e6 + 1), abs=1e-5)
    assert found.stats.nfe < 400
    assert METHODS[name].stiff


# Gradients.


@pytest.fixture
def field():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


def loss_of(field, y0, **options):
    solution = solve(lambda t, y: field(y) * torch.cos(t), y0, [0.0, 0.6, 1.5], **options)
    return (solution.y**2).sum()


def gradient_of(field, y0, **options):
    y0 = y0.clone().requires_grad_()
    gradients = torch.autograd.grad(loss_of(field, y0, **options), (y0, *field.parameters()))
    return torch.cat([g.reshape(-1) for g in gradients])


@pytest.mark.parametrize("name", NAMES)
def test_adjoint_gradients_are_those_of_the_ode(name, field):
    tol = 1e-6 if name in ("scipy_rk23", "scipy_radau", "scipy_bdf") else 1e-8
    found = gradient_of(field, Y0, method=name, gradient="adjoint", rtol=tol, atol=tol)
    expected = gradient_of(field, Y0, method="dopri5", rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found, expected, rtol=300 * tol, atol=300 * tol)


@pytest.mark.parametrize("name", ["scipy_lsoda", "vode_adams"])
def test_adjoint_gradients_equal_finite_differences(name, field):
    how = {"method": name, "rtol": 1e-10, "atol": 1e-10}
    direction = torch.tensor([0.6, -0.8], dtype=torch.float64)
    eps = 1e-4
    with torch.no_grad():
        up, down = (float(loss_of(field, Y0 + sign * eps * direction, **how)) for sign in (1, -1))
    found = gradient_of(field, Y0, gradient="adjoint", **how)[:2]
    assert float(found @ direction) == pytest.approx((up - down) / (2 * eps), rel=1e-6)


def test_the_backward_solve_may_have_another_method(field):
    expected = gradient_of(field, Y0, method="dopri5", rtol=1e-11, atol=1e-11)
    for there, back in (("dopri5", "vode_adams"), ("scipy_bdf", "dopri5")):
        found = gradient_of(field, Y0, method=there, gradient=Adjoint(method=back), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "interpolated_adjoint", "reversible"])
def test_other_gradient_modes_raise_an_error(gradient, field):
    with pytest.raises(ValueError, match="scipy_rk45"):
        gradient_of(field, Y0, method="scipy_rk45", gradient=gradient)


@pytest.mark.parametrize("what", ["state", "parameters", "time"])
def test_backprop_raises_an_error_that_says_what_to_do(what, field):
    y0, times = Y0.clone().requires_grad_(what == "state"), torch.tensor([0.0, 1.0], dtype=torch.float64)
    field.requires_grad_(what == "parameters")
    times.requires_grad_(what == "time")
    for name in ("scipy_lsoda", "vode_adams"):
        with pytest.raises(ValueError, match=r"autograd cannot differentiate through SciPy.* gradient='adjoint'"):
            solve(lambda t, y: field(y), y0, times, method=name)
        with torch.no_grad():
            assert solve(lambda t, y: field(y), y0, times, method=name).status is Status.success
    field.requires_grad_(False)
    assert solve(lambda t, y: field(y), Y0, [0.0, 1.0], method="scipy_rk45").status is Status.success


# Failures.


@pytest.mark.parametrize("name", NAMES)
def test_nan_gives_non_finite(name):
    with pytest.raises(SolveError, match="non_finite: the vector field gave NaN or inf") as caught:
        solve(lambda t, y: y / (t < 0.5), Y0, [0.0, 0.1, 1.0], method=name)
    solution = caught.value.solution
    torch.testing.assert_close(solution.y[1], Y0 * math.exp(0.1), rtol=1e-3, atol=1e-3)
    assert solution.y[2].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_blow_up_ends_with_the_partial_solution(name):
    y0 = torch.ones(1, dtype=torch.float64)
    with torch.no_grad():
        solution = solve(lambda t, y: y * y, y0, [0.0, 0.5, 2.0], method=name, throw=False)
    assert solution.status is Status.step_underflow
    assert solution.outcome.time == pytest.approx(1.0, abs=2e-2)
    assert float(solution.y[1]) == pytest.approx(2.0, rel=1e-2)
    assert solution.y[2].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_max_steps_ends_the_solve(name):
    with pytest.raises(SolveError, match="max_steps: step limit reached") as caught:
        solve(rotate, Y0, [0.0, 100.0], method=name, max_steps=5)
    assert caught.value.solution.stats.accepted == 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt], ids=lambda error: error.__name__)
def test_exceptions_of_the_field_propagate(name, error):
    def f(t, y):
        if t > 0.3:
            raise error("of f")
        return rotate(t, y)

    with pytest.raises(error, match="of f"):
        solve(f, Y0, [0.0, 1.0], method=name)


# Unsupported options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense": True}, "dense: SciPy's scipy_dop853 has no dense output"),
        ({"event": lambda t, y: y[0]}, "event: SciPy's scipy_dop853 has no events"),
        ({"jump_t": [0.5]}, "step_t: SciPy's scipy_dop853 has no step_t"),
        ({"step_t": [0.5]}, "step_t: SciPy's scipy_dop853 has no step_t"),
        ({"min_step": 0.1}, "method scipy_dop853 has no min_step"),
        ({"steps": 10}, "steps: scipy_dop853 chooses its steps by their error; leave it out"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_unsupported_options_raise_an_error(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        solve(rotate, Y0, [0.0, 1.0], method="scipy_dop853", **options)


@pytest.mark.parametrize("name", ["scipy_radau", "scipy_bdf", "scipy_lsoda"])
def test_solvers_with_a_matrix_reject_large_states(name):
    y0 = torch.zeros(294_912)
    with pytest.raises(ValueError, match=r"648 GiB for this state of 294,912; at most 16,384 .* use vode_adams"):
        solve(lambda t, y: -y, y0, [0.0, 1.0], method=name)
    solution = solve(lambda t, y: 1 - y, y0, [0.0, 1.0], method="vode_adams")
    torch.testing.assert_close(solution.y[-1], torch.full_like(y0, 1 - math.exp(-1)), rtol=1e-3, atol=1e-3)

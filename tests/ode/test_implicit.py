"""Implicit methods: order, stability, Newton iterations by matrix and matrix-free, stiff problems."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from convergence import convergence_order, pendulum
from torch import nn

from odebench.ode import METHODS, SolveError, solve
from odebench.ode.methods import jacobian, newton, rosenbrock_stepper
from odebench.ode.methods.implicit import ImplicitTableau
from odebench.ode.methods.newton import gmres
from odebench.ode.methods.order_conditions import gamma, size, stage_weights
from odebench.ode.methods.rosenbrock import Rosenbrock

IMPLICIT = [name for name, method in METHODS.items() if isinstance(method, ImplicitTableau | Rosenbrock)]
TABLEAUS = [name for name in IMPLICIT if isinstance(METHODS[name], ImplicitTableau)]
ADAPTIVE = [name for name in IMPLICIT if METHODS[name].adaptive]
L_STABLE = [name for name in IMPLICIT if "L-stable" in METHODS[name].source]
# Methods that are tested without Jacobian matrices, as for large states.
MATRIX_FREE = ["kvaerno5", "radauIIA5", "rodas4"]
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


@pytest.fixture
def matrix_free(monkeypatch):
    for module in (jacobian, newton, rosenbrock_stepper):
        monkeypatch.setattr(module, "MAX_DENSE_SIZE", 1)


def van_der_pol(t, y):
    return torch.stack((y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]))


def robertson(t, y):
    a, b, c = y.unbind()
    slow, back, fast = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return torch.stack((back - slow, slow - back - fast, fast))


def prothero_robinson(t, y):
    """y approaches cos t at the rate 1e4: Prothero & Robinson 1974."""
    return -1e4 * (y - torch.cos(t)) - torch.sin(t)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def reference():
    return solve(pendulum, double(1.0, 0.3), [0.0, 2.0], rtol=1e-13, atol=1e-13).y[-1]


def stability_function(method, z):
    """The stability function R(z), z = h lambda, from the coefficients of the method."""
    s = method.stages
    if isinstance(method, Rosenbrock):
        u = np.zeros(s, dtype=complex)
        for i in range(s):
            right = z * method.gamma * (1 + np.dot(method.a[i], u[:i])) + method.gamma * np.dot(method.c[i], u[:i])
            u[i] = right / (1 - z * method.gamma)
        return 1 + np.dot(method.b, u)
    k = np.linalg.solve(np.eye(s) - z * np.array(method.a), np.ones(s))
    return 1 + z * np.dot(method.b, k)


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableau_satisfies_exactly_its_order_conditions(name):
    method = METHODS[name]
    weights = stage_weights(method.a, method.order + 1)
    residuals = {tree: abs(np.dot(method.b, u) - 1 / gamma(tree)) for tree, u in weights.items()}
    assert max(r for tree, r in residuals.items() if size(tree) <= method.order) < 1e-14
    assert max(r for tree, r in residuals.items() if size(tree) > method.order) > 1e-5
    assert np.allclose(np.sum(method.a, axis=1), method.c, atol=1e-14)


@pytest.mark.parametrize("name", TABLEAUS)
def test_dense_output_satisfies_its_order_conditions(name):
    method = METHODS[name]
    if method.dense is None:
        assert method.dense_order is None or method.dense_order <= 3
        return
    for theta in (0.3, 0.8, 1.0):
        b = [sum(p * theta ** (j + 1) for j, p in enumerate(row)) for row in method.dense]
        for tree, u in stage_weights(method.a, method.dense_order).items():
            assert np.dot(b, u) == pytest.approx(theta ** size(tree) / gamma(tree), abs=2e-14)
    assert b == pytest.approx(method.b, abs=1e-14)


@pytest.mark.parametrize("name", IMPLICIT)
def test_fixed_steps_converge_with_the_order_of_the_method(name, reference):
    order = METHODS[name].order
    steps = [4, 6, 8] if order >= 5 else [12, 17, 24]
    with torch.no_grad():
        errors = [
            float((solve(pendulum, double(1, 0.3), [0, 2], method=name, steps=n).y[-1] - reference).norm())
            for n in steps
        ]
    assert convergence_order(steps, errors) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_dense_output_converges_with_its_order(name):
    """One step of size h from an exact state: the local error of the interpolant is O(h^(order + 1))."""
    errors, sizes = [], [0.4, 0.2, 0.1]
    for h in sizes:
        inside = [0.3 * h, 0.7 * h]
        with torch.no_grad():
            exact = solve(pendulum, double(1, 0.3), [0.0, *inside], rtol=1e-13, atol=1e-13).y[1:]
            # The tolerance accepts the step, of the whole span, but does not end the Newton iterations early.
            loose = solve(
                pendulum, double(1, 0.3), [0.0, *inside, h], method=name, first_step=h, min_step=h, rtol=1e-9, atol=1e-9
            )
        assert loose.stats.accepted == 1
        errors.append(float((loose.y[1:3] - exact).norm()))
    assert convergence_order([1 / h for h in sizes], errors) == pytest.approx(METHODS[name].dense_order + 1, abs=0.5)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_error_estimate_has_its_order(name):
    ratios, sizes = [], [0.2, 0.1, 0.05]
    for h in sizes:
        with torch.no_grad():
            solution = solve(
                pendulum, double(1, 0.3), [0.0, h], method=name, first_step=h, min_step=h, rtol=1e-9, atol=1e-9
            )
        ratios.append(solution.stats.error_ratios[0])
    method = METHODS[name]
    expected = method.order if isinstance(method, Rosenbrock) else method.error_order
    assert convergence_order([1 / h for h in sizes], ratios) == pytest.approx(expected, abs=0.4)


@pytest.mark.parametrize("name", IMPLICIT)
def test_stiff_components_stay_bounded_and_decay_if_the_method_is_l_stable(name):
    method = METHODS[name]
    assert method.stiff
    # A-stable along the imaginary axis and on the negative real one.
    for z in (1j * 10.0 ** np.arange(-2, 4)).tolist() + (-(10.0 ** np.arange(-2, 4))).tolist():
        assert abs(stability_function(method, z)) < 1 + 1e-9
    far = abs(stability_function(method, -1e8))
    assert far < 1e-6 if name in L_STABLE else far > 0.99


def test_all_methods_but_these_are_l_stable():
    assert set(IMPLICIT) - set(L_STABLE) == {"implicit_midpoint", "trapezoid", "gl4", "gl6"}


@pytest.mark.parametrize("name", IMPLICIT)
def test_steps_far_above_the_stiff_time_scale_follow_the_slow_solution(name):
    """h |lambda| = 1000 from a point off the slow solution; only L-stable methods reach it immediately."""
    start = 1.5 if name in L_STABLE else 1.0
    with torch.no_grad():
        y = solve(prothero_robinson, double(start), [0.0, 2.0], method=name, steps=20).y[-1]
    assert float(y - math.cos(2.0)) == pytest.approx(0, abs=2e-3 if METHODS[name].order > 1 else 2e-5)


# By SciPy's Radau with exact Jacobians at rtol 1e-12, atol 1e-14 and 1e-16, where rtol 1e-10 gives the same 9 digits.
VAN_DER_POL_2000 = (1.7061677321704383, -0.0008928097010248463)
ROBERTSON = {
    1e5: (0.017865921142322477, 7.274751468528753e-08, 0.9821340061101634),
    1e8: (2.082417512177751e-05, 8.32984142990212e-11, 0.9999791757415798),
}


@pytest.mark.parametrize(("name", "steps"), [("kvaerno5", 150), ("rodas4", 250), ("radauIIA5", 250)])
def test_robertson(name, steps):
    with torch.no_grad():
        s = solve(robertson, double(1, 0, 0), [0, 1e5], method=name, rtol=1e-6, atol=1e-10)
    error = (s.y[-1] - double(*ROBERTSON[1e5])).abs() / (1e-10 + 1e-6 * s.y[-1].abs())
    assert float(error.max()) < 5
    assert s.stats.accepted + s.stats.rejected < steps
    assert float(s.y[-1].sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kvaerno5", "kvaerno3", "rodas4", "radauIIA5"])
def test_robertson_over_twelve_decades(name):
    """From steps of 1e-4 to steps of 1e7."""
    with torch.no_grad():
        s = solve(robertson, double(1, 0, 0), [0, 1e8], method=name, rtol=1e-7, atol=1e-13)
    assert torch.allclose(s.y[-1], double(*ROBERTSON[1e8]), rtol=1e-4, atol=0)
    assert max(s.stats.step_sizes) > 1e10 * min(s.stats.step_sizes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("kvaerno5", 500), pytest.param("rodas4", 900, marks=pytest.mark.slow)])
def test_van_der_pol(name, steps):
    with torch.no_grad():
        s = solve(van_der_pol, double(2, 0), [0, 2000.0], method=name, rtol=1e-6, atol=1e-6)
    # The phase's error after two fast passages is a few tolerances.
    error = (s.y[-1] - double(*VAN_DER_POL_2000)).abs() / (1e-6 + 1e-6 * s.y[-1].abs())
    assert float(error.max()) < 10
    assert s.stats.accepted + s.stats.rejected < steps


def brusselator(n):
    """u and v on n points inside (0, 1), diffusion 1/50: Hairer & Wanner 1996, section IV.10."""
    weight = (n + 1) ** 2 / 50

    def diffusion(u, edge):
        padded = torch.cat((torch.full_like(u[:1], edge), u, torch.full_like(u[:1], edge)))
        return weight * (padded[:-2] - 2 * u + padded[2:])

    def f(t, y):
        u, v = y
        return 1 + u * u * v - 4 * u + diffusion(u, 1.0), 3 * u - u * u * v + diffusion(v, 3.0)

    x = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)
    return f, (1 + torch.sin(2 * math.pi * x), torch.full_like(x, 3.0))


@pytest.mark.parametrize("name", MATRIX_FREE)
def test_matrix_free_steps_equal_those_with_the_matrix(name, request):
    f, y0 = brusselator(20)
    with torch.no_grad():
        dense = solve(f, y0, [0.0, 1.0], method=name, rtol=1e-5, atol=1e-5)
        request.getfixturevalue("matrix_free")
        free = solve(f, y0, [0.0, 1.0], method=name, rtol=1e-5, atol=1e-5)
    assert dense.stats.jacobian_products == 0 < free.stats.jacobian_products
    for a, b in zip(dense.y, free.y, strict=True):
        assert torch.allclose(a[-1], b[-1], rtol=2e-5, atol=2e-5)
    assert free.stats.accepted <= dense.stats.accepted + 2


@pytest.mark.slow
def test_hundreds_of_unknowns_are_solved_matrix_free():
    f, y0 = brusselator(250)
    with torch.no_grad():
        s = solve(f, y0, [0.0, 1.0], method="kvaerno5", rtol=1e-4, atol=1e-4)
        coarse_f, coarse_y0 = brusselator(62)
        coarse = solve(coarse_f, coarse_y0, [0.0, 1.0], method="kvaerno5", rtol=1e-6, atol=1e-6)
    # An explicit method would take 5,000 steps.
    assert s.stats.accepted + s.stats.rejected < 30
    middle, coarse_middle = s.y[0][-1, 124:126].mean(), coarse.y[0][-1, 30:32].mean()
    assert float(middle - coarse_middle) == pytest.approx(0, abs=1e-3)


def test_gmres_solves_to_its_tolerance_and_reports_failure():
    torch.manual_seed(0)
    matrix = torch.randn(150, 150, dtype=torch.float64) / 15 + 2 * torch.eye(150, dtype=torch.float64)
    b = torch.randn(150, dtype=torch.float64)
    for rtol in (1e-2, 1e-6, 1e-12):
        x, solved = gmres(lambda v: matrix @ v, b, rtol)
        assert solved
        assert float((matrix @ x - b).norm()) <= 2 * rtol * float(b.norm())
    assert gmres(lambda v: matrix @ v, torch.zeros_like(b), 1e-6)[0].count_nonzero() == 0
    assert not gmres(lambda v: v.roll(1) * 0, b, 1e-6)[1]


class Numpy(nn.Module):
    """Computed in NumPy, without autograd."""

    def forward(self, t, y):
        a, b = y.detach().numpy()
        return torch.from_numpy(np.array([b, -np.sin(a) + 0.5 * np.cos(float(t))]))


class Doubled(torch.autograd.Function):
    """Differentiable once, and not in batches."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        assert gradient.dim() == 1
        return 2 * gradient


@pytest.mark.slow
@pytest.mark.parametrize("free", [False, True], ids=["matrix", "matrix-free"])
@pytest.mark.parametrize("kind", ["numpy", "once differentiable", "in place", "branches"])
def test_any_callable_can_be_the_field(kind, free, request, reference):
    if free:
        request.getfixturevalue("matrix_free")

    def in_place(t, y):
        rate = torch.empty_like(y)
        rate[0], rate[1] = y[1], -torch.sin(y[0]) + 0.5 * torch.cos(t)
        return rate

    def branches(t, y):
        return pendulum(t, y) if y[0].item() > 0 else pendulum(t, y.clone())

    fields = {
        "numpy": Numpy(),
        "once differentiable": lambda t, y: pendulum(t, Doubled.apply(y) / 2),
        "in place": in_place,
        "branches": branches,
    }
    for name in ("kvaerno5", "rodas4"):
        with torch.no_grad():
            s = solve(fields[kind], double(1, 0.3), [0, 2], method=name, rtol=1e-6, atol=1e-6)
        assert float((s.y[-1] - reference).norm()) < 1e-5
        assert s.stats.accepted < 40


@pytest.mark.parametrize("name", IMPLICIT)
def test_under_no_grad_only_jacobians_use_autograd(name):
    with_gradients = 0

    def f(t, y):
        nonlocal with_gradients
        with_gradients += torch.is_grad_enabled()
        return pendulum(t, y)

    with torch.no_grad():
        stats = solve(f, double(1, 0.3), [0, 1], method=name, steps=5).stats
    assert 0 < with_gradients == stats.jacobians < stats.nfe


@pytest.mark.parametrize("name", IMPLICIT)
def test_inference_mode_gives_the_states_of_no_grad(name):
    """t times a function of y: its derivative needs t, which is made in inference mode, too."""
    y0 = double(1, 0.3)

    def states():
        return solve(
            lambda t, y, scale: t * torch.tanh(y @ TURN) * scale, y0, [0, 1], args=(2,), method=name, steps=5
        ).y

    with torch.no_grad():
        expected = states()
    with torch.inference_mode():
        assert torch.equal(states(), expected)


@pytest.mark.parametrize("name", ["radauIIA5", "rodas4"])
@pytest.mark.parametrize("size", [2, 300])
def test_a_field_that_uses_a_tensor_made_in_inference_mode_raises_one_line(name, size):
    with torch.inference_mode():
        scale = torch.ones(size, dtype=torch.float64)
        for f, args in (lambda t, y: scale * y.sin(), ()), (lambda t, y, scale: scale * y.sin(), (scale,)):
            with pytest.raises(
                ValueError, match=r"f, which uses a tensor made in torch\.inference_mode; use torch\.no_grad"
            ):
                solve(f, scale, [0, 1], args=args, method=name)


@pytest.mark.parametrize("name", IMPLICIT)
def test_all_evaluations_are_counted(name):
    calls = 0

    def counted(t, y):
        nonlocal calls
        calls += 1
        return pendulum(t, y)

    for options in ({"steps": 5}, {"rtol": 1e-4, "atol": 1e-4}):
        if METHODS[name].adaptive or "steps" in options:
            calls = 0
            s = solve(counted, double(1, 0.3), [0, 1, 2], method=name, **options)
            assert s.stats.nfe == calls
            assert 0 < s.stats.jacobians <= s.stats.accepted + s.stats.rejected
            assert s.stats.linear_solves >= s.stats.jacobians


@pytest.mark.parametrize("name", IMPLICIT)
def test_backward_in_time_undoes_forward_in_time(name):
    y0 = double(1, 0.3)
    options = {"rtol": 1e-5, "atol": 1e-5} if METHODS[name].adaptive and METHODS[name].order > 1 else {"steps": 40}
    with torch.no_grad():
        there = solve(pendulum, y0, [0, 1], method=name, **options).y[-1]
        back = solve(pendulum, there, [1, 0], method=name, **options).y[-1]
    # The step backward undoes it up to the error; for a symmetric method exactly.
    exactly = name in ("implicit_midpoint", "trapezoid", "gl4", "gl6")
    assert torch.allclose(back, y0, atol=1e-13 if exactly else 1e-3 if METHODS[name].order > 1 else 5e-2)


@pytest.mark.parametrize("name", ["kvaerno5", "radauIIA5", "rodas4", "trapezoid"])
def test_tuple_and_complex_states_equal_flat_real_ones(name, reference):
    options = {"steps": 40} if name == "trapezoid" else {"rtol": 1e-7, "atol": 1e-7}

    def pair(t, y):
        return pendulum(t, torch.stack(y)).unbind()

    def spinning(t, y):
        """Not holomorphic."""
        return (2j - 0.1) * y + 0.3 * y.conj() * torch.cos(t)

    def spinning_real(t, y):
        return torch.view_as_real(spinning(t, torch.view_as_complex(y)))

    z0 = torch.tensor([1 + 1j, 0.5 - 2j], dtype=torch.complex128)
    with torch.no_grad():
        flat = solve(pendulum, double(1, 0.3), [0, 2], method=name, **options).y[-1]
        parts = solve(pair, (double(1)[0], double(0.3)[0]), [0, 2], method=name, **options).y
        z = solve(spinning, z0, [0, 1], method=name, **options).y[-1]
        x = solve(spinning_real, torch.view_as_real(z0), [0, 1], method=name, **options).y[-1]
    assert torch.allclose(torch.stack([part[-1] for part in parts]), flat, atol=1e-12)
    assert torch.allclose(torch.view_as_real(z), x, atol=1e-6)


@pytest.mark.parametrize("name", IMPLICIT)
def test_float32_is_accurate_to_round_off(name, reference):
    with torch.no_grad():
        y0 = torch.tensor([1.0, 0.3])
        exact = solve(pendulum, double(1, 0.3), [0, 2], method=name, steps=16).y[-1]
        single = solve(pendulum, y0, [0, 2], method=name, steps=16).y[-1]
        assert float((single - exact).norm()) < 2e-5
        if METHODS[name].adaptive and METHODS[name].order > 2:
            s = solve(pendulum, y0, [0, 2], method=name, rtol=1e-5, atol=1e-5)
            assert float((s.y[-1] - reference).norm()) < 1e-4


@pytest.mark.parametrize("name", IMPLICIT)
def test_empty_and_constant_states_are_solved(name):
    with torch.no_grad():
        empty = solve(lambda t, y: y, torch.zeros(0), [0, 1], method=name, steps=3)
        assert empty.y.shape == (2, 0)
        still = solve(lambda t, y: torch.zeros_like(y), torch.zeros(2), [0, 1], method=name, steps=3)
        assert still.y.count_nonzero() == 0
        steady = solve(lambda t, y: torch.ones_like(y), torch.zeros(2), [0, 1], method=name, steps=3)
        assert torch.allclose(steady.y[-1], torch.ones(2))


def test_a_step_without_solution_gives_not_converged():
    """y' = y^2 + 1 with h = 2: the implicit Euler equation has none."""
    with pytest.raises(SolveError, match="not_converged"):
        solve(lambda t, y: y * y + 1, double(0.0), [0, 2], method="implicit_euler", steps=1)


def test_a_non_finite_field_gives_non_finite():
    for options in ({"steps": 4}, {"rtol": 1e-6, "atol": 1e-6, "first_step": 0.1}):
        s = solve(lambda t, y: y * math.nan, double(1.0), [0, 1], method="kvaerno5", throw=False, **options)
        assert s.status.name == "non_finite"


def test_failed_iterations_reduce_the_step_size():
    with torch.no_grad():
        s = solve(van_der_pol, double(2, 0), [0, 900], method="kvaerno5", first_step=500.0, rtol=1e-3, atol=1e-3)
    assert s.stats.rejected > 0
    assert all(math.isfinite(ratio) for ratio in s.stats.error_ratios)


def test_a_tableau_of_the_wrong_shape_raises_an_error():
    with pytest.raises(ValueError, match="need 1 entries"):
        ImplicitTableau("odd", "nobody", 1, (1.0,), ((1.0, 0.0),), (1.0,))
    with pytest.raises(ValueError, match="error_order"):
        dataclasses.replace(METHODS["sdirk2"], error=(0.5, -0.5))
    with pytest.raises(ValueError, match="row i"):
        dataclasses.replace(METHODS["rodas4"], a=((),) * 6)


@pytest.mark.parametrize(
    "name",
    [*("kvaerno5", "rodas4", "radauIIA5"), *(pytest.param(x, marks=pytest.mark.slow) for x in ("kvaerno3", "trbdf2"))],
)
def test_every_step_of_a_rotation_keeps_to_the_tolerance(name):
    """The error after many steps is larger: a rotation damps nothing, and the errors of its steps add up."""
    tol, y0 = 1e-6, double(1, 0)
    steps = solve(lambda t, y: TURN @ y, y0, [0.0, 20.0], method=name, rtol=tol, atol=tol).stats.step_sizes
    h = max(steps)
    one = solve(lambda t, y: TURN @ y, y0, [0.0, h], method=name, steps=1).y[-1]
    assert float((one - torch.linalg.matrix_exp(h * TURN) @ y0).norm()) < 2 * tol


@pytest.mark.parametrize(("name", "power"), [("trbdf2", 2 / 3), ("radauIIA3", 1)])
def test_the_error_of_a_rotation_decreases_with_a_power_of_the_tolerance(name, power):
    """The estimate of trbdf2 is the error of the step itself, of order 3: n = tol^(-1/3) of them add up to n tol."""
    y0, errors = double(1, 0), []
    for tol in (1e-3, 1e-5):
        y = solve(lambda t, y: TURN @ y, y0, [0.0, 4.0], method=name, rtol=tol, atol=tol).y[-1]
        errors.append(float((y - torch.matrix_exp(4 * TURN) @ y0).norm()))
    assert math.log(errors[0] / errors[1], 100) == pytest.approx(power, abs=0.05)

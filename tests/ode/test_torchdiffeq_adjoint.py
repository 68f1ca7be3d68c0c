"""odeint_adjoint against torchdiffeq's: gradients, evaluations, norms, tolerances."""

import pytest
import torch
from torchdiffeq_comparison import LIBRARIES, TIMES, Y0, Field, as_state, flat, gradients, largest, run_both

from odebench.ode import odeint, odeint_adjoint
from odebench.ode.methods import METHODS


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "how",
    [
        {"rtol": 1e-4, "atol": 1e-4},
        {"rtol": 1e-6, "atol": 1e-6},
        {"rtol": 1e-6, "atol": 1e-6, "adjoint_options": {"norm": "seminorm"}},
        {"rtol": 1e-6, "atol": 1e-6, "adjoint_rtol": 1e-4, "adjoint_atol": 1e-4},
        {"rtol": 1e-6, "atol": 1e-6, "adjoint_method": "bosh3", "adjoint_rtol": 1e-5, "adjoint_atol": 1e-5},
        {"method": "rk4", "options": {"step_size": 0.1}},
        {"method": "euler"},
        {"method": "implicit_adams", "options": {"step_size": 0.05}},
        {"method": "midpoint", "options": {"step_size": 0.1}, "adjoint_options": {"step_size": 0.05}},
    ],
    ids=["loose", "tight", "semi", "tolerance", "method", "rk4", "euler", "adams", "options"],
)
def test_adjoint_gradients(sign, how):
    field, t = Field(), sign * TIMES
    expected, *_ = gradients(odeint, field, Y0, t, rtol=1e-10, atol=1e-10)
    a, b = run_both(lambda _, adjoint: gradients(adjoint, field, Y0, t, **how))
    if "method" in how:
        assert largest(a[0] - b[0]) < 1e-8 * max(largest(expected), 1)
    assert largest(b[0] - expected) <= max(largest(a[0] - expected) * 1.01, 10 * how.get("rtol", 0) * largest(expected))
    assert b[1] <= a[1]
    assert b[2] <= a[2]


def gradient_of_times(integrate, **how):
    t = TIMES.clone().requires_grad_()
    y = integrate(Field(), Y0, t, rtol=1e-8, atol=1e-8, **how)
    return torch.autograd.grad((y**2).sum(), t)[0]


@pytest.mark.parametrize("kind", ["backprop", "adjoint"])
def test_gradient_of_times(kind):
    a, b = run_both(lambda *both: gradient_of_times(both[kind == "adjoint"]))
    assert largest(a - b) < 1e-5 * largest(a)


@pytest.mark.parametrize("integrate", LIBRARIES["odebench"])
@pytest.mark.parametrize("options", [{"step_size": 0.05}, {"step_size": 0.07}])
def test_gradient_of_times_at_fixed_steps(integrate, options):
    """The gradient of the true solution; torchdiffeq's is zero at times on the grid."""
    expected = gradient_of_times(odeint)
    error = gradient_of_times(integrate, method="rk4", options={**options, "interp": "cubic"}) - expected
    assert largest(error) < 1e-4 * largest(expected)


def test_gradient_of_tuples():
    field = Field()

    def call(_, adjoint):
        y0 = tuple(part.clone().requires_grad_() for part in as_state(Y0, "tuple"))
        y = adjoint(field, y0, TIMES, rtol=1e-8, atol=1e-8)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad((flat(y) ** 2).sum(), [*y0, *field.parameters()])])

    a, b = run_both(call)
    assert largest(a - b) < 1e-6 * largest(a)


@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_adjoint_norms_get_the_same_arguments(kind):
    def call(_, adjoint):
        field, seen = Field(), []

        def norm(parts):
            seen.append([tuple(part.shape) for part in parts])
            return max(part.abs().pow(2).mean().sqrt() for part in parts)

        y0 = as_state(Y0.clone().requires_grad_(), kind)
        y = adjoint(field, y0, TIMES[:2], rtol=1e-5, atol=1e-5, adjoint_options={"norm": norm})
        flat(y)[-1].sum().backward()
        return seen

    a, b = run_both(call)
    assert b[0] == a[0]
    assert len(b) <= len(a)


def test_adjoint_options_must_be_given_for_another_method():
    for _, adjoint in LIBRARIES.values():
        with pytest.raises(ValueError, match="adjoint_method != method"):
            adjoint(Field(), Y0, TIMES, method="dopri5", options={"first_step": 0.1}, adjoint_method="rk4")


def test_tolerances_of_the_backward_tuple():
    """One per entry of (t, y, adjoint, *parameters), or those of the forward solve, where torchdiffeq fails."""
    field, y0 = Field(), Y0.clone().requires_grad_()
    count = 3 + len(list(field.parameters()))
    expected, *_ = gradients(odeint, field, Y0, TIMES, rtol=1e-9, atol=1e-9)
    for how in ({"adjoint_rtol": [1e-6] * count, "adjoint_atol": [1e-6] * count}, {"rtol": torch.full_like(y0, 1e-6)}):
        gradient, *_ = gradients(odeint_adjoint, field, Y0, TIMES, **{"rtol": 1e-6, "atol": 1e-6, **how})
        assert largest(gradient - expected) < 1e-4 * largest(expected)
    with pytest.raises(ValueError, match="adjoint_rtol: got 2 tolerances"):
        odeint_adjoint(field, y0, TIMES, adjoint_rtol=(1e-6, 1e-6))


NEWER = ["implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "gl4", "radauIIA5", "gl6", "sdirk2", "trbdf2"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tsit5", *NEWER])
def test_methods_of_newer_releases(method):
    """The implicit ones take fixed steps, as in torchdiffeq."""
    field = Field()
    options = {"step_size": 0.05} if method in NEWER else {}
    expected, *_ = gradients(odeint, field, Y0[:1], TIMES)
    gradient, *_ = gradients(odeint_adjoint, field, Y0[:1], TIMES, method=method, options=options)
    assert largest(gradient - expected) < {1: 0.3, 2: 0.02}.get(METHODS[method].order, 1e-3) * largest(expected)


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")
@pytest.mark.parametrize("solver", ["LSODA", "RK45", "BDF"])
def test_scipy(solver):
    field = Field()
    how = {"method": "scipy_solver", "options": {"solver": solver}, "rtol": 1e-6, "atol": 1e-6}
    a, b = run_both(lambda integrate, _: integrate(field, Y0, TIMES, **how))
    assert largest(a - b) < 1e-5
    expected, *_ = gradients(odeint, field, Y0, TIMES)
    assert largest(gradients(odeint_adjoint, field, Y0, TIMES, **how)[0] - expected) < 1e-4 * largest(expected)


def test_without_gradients():
    field = Field()
    with torch.no_grad():
        y = odeint_adjoint(field, Y0, TIMES)
    assert not y.requires_grad
    assert not odeint(field, Y0.clone().requires_grad_(), TIMES, method="scipy_solver", rtol=1e-5).requires_grad

"""odeint_adjoint against torchdiffeq's: gradients, evaluations, norms, tolerances."""

import pytest
import torch
from torchdiffeq_comparison import LIBRARIES, TIMES, Y0, Field, as_state, flat, gradients, largest, run_both

from odebench.ode import Adjoint, odeint, odeint_adjoint, solve, torchdiffeq_api
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


@pytest.mark.parametrize("norm", ["full", "semi"])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_an_absolute_error_of_the_adjoint_is_that_of_the_drop_in(norm, scale):
    """A small gradient takes fewer evaluations, and more if errors are relative to it."""

    def drop_in(field, y0, t, **how):
        options = {"adjoint_options": {"norm": "seminorm"}} if norm == "semi" else {}
        return scale * odeint_adjoint(field, y0, t, method="dopri5", **how, **options)

    def ours(error):
        mode = Adjoint(norm=norm, error=error)
        return lambda field, y0, t, **how: scale * solve(field, y0, t, method="dopri5", gradient=mode, **how).y

    field, how = Field(), {"rtol": 1e-6, "atol": 1e-6}
    expected, *nfe = gradients(drop_in, field, Y0, TIMES, **how)
    found, *found_nfe = gradients(ours("absolute"), field, Y0, TIMES, **how)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert found_nfe == nfe
    if scale < 1:
        assert gradients(ours("relative"), field, Y0, TIMES, **how)[2] > nfe[1]


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


COMPONENTS = torch.tensor([1e-4, 1e-5], dtype=torch.float64)
COMPILED_CALLS = [
    pytest.param({}, id="full-norm"),
    pytest.param({"adjoint_options": {"norm": "seminorm"}}, id="seminorm"),
    pytest.param({"adjoint_method": "bosh3", "adjoint_options": {"norm": "seminorm"}}, id="method"),
    pytest.param({"adjoint_rtol": 1e-3, "adjoint_atol": 1e-4}, id="tolerance"),
    pytest.param({"rtol": COMPONENTS}, id="components"),
    pytest.param({"rtol": COMPONENTS, "adjoint_options": {"norm": "seminorm"}}, id="components-seminorm"),
    pytest.param({"options": {"first_step": 0.2, "safety": 0.8}}, id="cold"),
    pytest.param({"options": {"step_t": torch.tensor([0.3]), "jump_t": torch.tensor([0.7])}}, id="stops"),
    pytest.param({"method": "rk4"}, id="fixed"),
    pytest.param({"method": "midpoint", "options": {"step_size": 0.13, "perturb": True}}, id="step_size"),
    pytest.param({"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.1}}, id="fixed-backward"),
    pytest.param({"method": "rk4", "adjoint_method": "bosh3", "adjoint_options": {}}, id="adaptive-backward"),
]


@pytest.mark.parametrize("arguments", COMPILED_CALLS)
@pytest.mark.parametrize("is_module", [True, False], ids=["module", "function"])
def test_compiled_solves_take_the_eager_steps(uncompiled, monkeypatch, arguments, is_module):
    torch.manual_seed(0)
    net, found, stats = torch.nn.Linear(2, 2).double(), [], []
    count = torchdiffeq_api.finish
    monkeypatch.setattr(torchdiffeq_api, "finish", lambda *call: stats.append(call[0].stats) or count(*call))
    func = Sine(net) if is_module else lambda t, y: net(y).sin() * t
    for compile in (False, "solve"):
        y0 = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
        t = torch.linspace(0, 2, 5, dtype=torch.float64, requires_grad=True)
        options = {**arguments.get("options", {}), "compile": compile}
        y = odeint_adjoint(func, y0, t, **{"rtol": 1e-6, "atol": 1e-7, **arguments, "options": options})
        found.append(torch.autograd.grad(y.square().sum(), (y0, t, *net.parameters())))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    eager, compiled = (one.backward for one in stats)
    assert (compiled.nfe, compiled.accepted, compiled.rejected) == (eager.nfe, eager.accepted, eager.rejected)


@pytest.mark.parametrize("adjoint_options", [None, {"norm": "seminorm"}, "odeint"])
def test_compiled_solves_measure_each_tensor_of_a_tuple(uncompiled, monkeypatch, adjoint_options):
    rate, found, stats = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True), [], []
    count = torchdiffeq_api.finish
    monkeypatch.setattr(torchdiffeq_api, "finish", lambda *call: stats.append(call[0].stats) or count(*call))
    module = torch.nn.Module()
    module.rate = torch.nn.Parameter(rate.detach().clone())
    module.forward = lambda t, y: (-y[0] * module.rate, 100 * y[1].cos() * t)
    for compile in (False, "solve"):
        y0 = (torch.ones(3, 2, dtype=torch.float64, requires_grad=True), torch.zeros(3, 1, dtype=torch.float64))
        t, options = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64), {"compile": compile}
        if adjoint_options == "odeint":
            y = odeint(module, y0, t, rtol=1e-4, atol=1e-5, options=options)
        else:
            how = {"options": options, "adjoint_options": adjoint_options}
            y = odeint_adjoint(module, y0, t, rtol=1e-4, atol=1e-5, **how)
        loss = sum(x.square().sum() for x in y)
        found.append((*y, *torch.autograd.grad(loss, (y0[0], module.rate))))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)
    eager, compiled = stats
    assert (compiled.nfe, compiled.accepted, compiled.rejected) == (eager.nfe, eager.accepted, eager.rejected)
    if adjoint_options != "odeint":
        assert compiled.backward.nfe == eager.backward.nfe


def test_compiled_fixed_steps_that_are_not_finite(uncompiled):
    """The gradient is NaN, as with torchdiffeq."""
    found = []
    for compile in (False, "solve"):
        y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        t, options = torch.tensor([0.0, 0.3, 2.0, 3.0], dtype=torch.float64), {"step_size": 0.25, "compile": compile}
        y = odeint_adjoint(lambda t, y: t * y**3, y0, t, method="rk4", options=options, adjoint_params=())
        found.append((y, *torch.autograd.grad(y[-1].sum(), y0)))
        assert found[-1][1].isnan().all()
    torch.testing.assert_close(*found, equal_nan=True)


class Sine(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return self.net(y).sin() * t


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adjoint_options": {"compile": "solve"}}, "compiles the backward solve, too"),
        ({"options": {"compile": "step"}}, "'step' is for odeint; with the adjoint, choose 'solve'"),
        ({"adjoint_method": "implicit_adams", "adjoint_options": {}}, "only, not adjoint_method='implicit_adams'"),
        ({"adjoint_options": {"norm": lambda z: z[0].norm()}}, "no norm functions; leave adjoint_options"),
    ],
)
def test_choices_that_compiled_solves_refuse(arguments, message):
    y0, t = torch.ones(2), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=message):
        odeint_adjoint(Sine(torch.nn.Linear(2, 2)), y0, t, **{"options": {"compile": "solve"}, **arguments})

"""Tensors that f captures get their gradient from hand-written backward passes, or an error: never a silent zero."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from odebench.ode import METHODS, Adjoint, Checkpoint, odeint_adjoint, solve

FIXED = {"method": "rk4", "steps": 10}
CASES = {
    "checkpoint": {"gradient": "checkpoint", **FIXED},
    "checkpoint, keep graphs": {"gradient": Checkpoint(keep="graphs"), **FIXED},
    "checkpoint, by stage": {"gradient": Checkpoint(recompute="stage"), **FIXED},
    "checkpoint, outputs inside": {"gradient": "checkpoint", "method": "heun3", "steps": 10},
    "checkpoint, implicit": {"gradient": "checkpoint", "method": "gl4", "steps": 10},
    "checkpoint, rodas4": {"gradient": "checkpoint", "method": "rodas4", "steps": 10},
    "checkpoint, rows": {"gradient": "checkpoint", "stepping": "per_sample", **FIXED},
    "adjoint": {"gradient": "adjoint", **FIXED},
    "adjoint, full norm": {"gradient": Adjoint(norm="full"), **FIXED},
    "adjoint, implicit": {"gradient": "adjoint", "method": "gl4", "steps": 10},
    "adjoint, rodas4": {"gradient": "adjoint", "method": "rodas4", "steps": 10},
    "adjoint, multistep": {"gradient": "adjoint", "method": "implicit_adams", "steps": 10},
    "interpolated adjoint": {"gradient": "interpolated_adjoint", **FIXED},
    "reversible": {"gradient": "reversible", "method": "reversible_rk4", "steps": 10},
}
QUICK = ["checkpoint", "checkpoint, rows", "adjoint", "interpolated adjoint", "reversible"]
TIMES = [0.0, 0.33, 1.0]


@pytest.fixture
def y0():
    return torch.ones(2, 2, dtype=torch.float64, requires_grad=True)


class LateUse(nn.Module):
    """Uses a tensor that is not a parameter, and only in the second half."""

    def __init__(self, other):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.others = [other]

    def forward(self, t, y):
        return -self.weight * y * (1 if float(t.max()) < 0.55 else self.others[0])


@pytest.mark.parametrize("kind", ["module", "closure"])
@pytest.mark.parametrize("mode", CASES)
def test_a_tensor_that_f_uses_only_later_raises(mode, kind, y0):
    other = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    late_use = LateUse(other)
    y = solve(late_use if kind == "module" else lambda t, y: late_use(t, y), y0, TIMES, **CASES[mode]).y
    with pytest.raises(ValueError, match=r"f uses a tensor at t=.* make it a parameter of an nn.Module f"):
        y.sum().backward()
    assert y0.grad is None


@pytest.mark.parametrize("mode", CASES)
def test_a_module_parameter_that_f_uses_only_later_gets_its_gradient(mode, y0):
    late_use = LateUse(None)
    late_use.other = nn.Parameter(torch.full((2,), 0.5, dtype=torch.float64))
    late_use.others = [late_use.other]
    kwargs = CASES[mode]
    found = torch.autograd.grad(solve(late_use, y0, TIMES, **kwargs).y.sum(), late_use.other)
    exact = kwargs | {"gradient": "backprop"}
    (expected,) = torch.autograd.grad(solve(late_use, y0, TIMES, **exact).y.sum(), late_use.other)
    # The jump is inside a step, where the continuous adjoint is inaccurate.
    torch.testing.assert_close(found[0], expected, rtol=0.2 if "adjoint" in mode else 1e-6, atol=0)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("mode", [mode for mode in CASES if mode != "checkpoint, keep graphs"])
def test_a_solve_inside_functional_call_raises_in_the_backward_pass(mode, frozen, y0):
    """The module has its own parameters again by then: they would get the gradient."""

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = Field()

        def forward(self, y0):
            return solve(self.field, y0, TIMES, **CASES[mode]).y

    class Field(nn.Linear):
        def __init__(self):
            super().__init__(2, 2, dtype=torch.float64)
            self.requires_grad_(not frozen)

        def forward(self, t, y):
            return super().forward(y)

    weights = {"field.weight": torch.eye(2, dtype=torch.float64, requires_grad=True)}
    y = functional_call(Flow(), weights, (y0,))
    with pytest.raises(ValueError, match=r"used a parameter in the solve but no longer uses it.*functional_call"):
        y.sum().backward()


def test_weights_of_a_functional_call_inside_f_get_their_gradient(y0):
    layer, weight = nn.Linear(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64, requires_grad=True)

    def f(t, y):
        return functional_call(layer, {"weight": weight}, (y,))

    found = [
        torch.autograd.grad(solve(f, y0, TIMES, gradient=mode, **FIXED).y.sum(), weight)[0]
        for mode in ("backprop", "checkpoint")
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", CASES)
def test_leaves_that_f_creates_do_not_raise(mode, y0):
    """As in a Jacobian-vector product by two vjps, which differentiates with respect to an auxiliary vector."""
    weight = torch.tensor([[0.3, -0.8], [0.9, 0.2]], dtype=torch.float64, requires_grad=True)

    def f(t, y):
        with torch.enable_grad():
            x = y if y.requires_grad else y.detach().requires_grad_()
            rate = torch.tanh(x @ weight)
            v = torch.ones_like(rate).requires_grad_()
            (vjp,) = torch.autograd.grad(rate, x, v, create_graph=True)
            (jvp,) = torch.autograd.grad(vjp, v, rate.detach(), create_graph=True)
            return rate + 0.1 * jvp * v

    def gradients(kwargs):
        return torch.autograd.grad(solve(f, y0, TIMES, **kwargs).y.sum(), (y0, weight))

    kwargs = CASES[mode]
    exact = kwargs | {"gradient": "backprop"}
    for one, other in zip(gradients(kwargs), gradients(exact), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3 if "adjoint" in mode else 1e-6, atol=1e-4)


def test_a_parameter_that_was_frozen_for_the_solve_may_be_unfrozen_before_the_backward_pass(y0):
    """As where one of two networks is trained through the other."""
    late_use = LateUse(1)
    late_use.weight.requires_grad_(False)
    y = solve(late_use, y0, TIMES, gradient="adjoint", **FIXED).y
    late_use.weight.requires_grad_(True)
    y.sum().backward()
    assert y0.grad is not None
    assert late_use.weight.grad is None


def test_odeint_adjoint_says_to_use_adjoint_params(y0):
    other = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    late_use, t = LateUse(other), torch.tensor(TIMES, dtype=torch.float64)
    y = odeint_adjoint(late_use, y0, t, method="rk4", options={"step_size": 0.1})
    with pytest.raises(ValueError, match=r"name it in adjoint_params=\(...\), or use odeint"):
        y.sum().backward()
    with pytest.raises(ValueError, match=r"name it in adjoint_params=\(...\), or use odeint"):
        odeint_adjoint(late_use.requires_grad_(False), y0.detach(), t, method="rk4", options={"step_size": 0.1})
    late_use.requires_grad_(True)
    named = (*late_use.parameters(), other)
    odeint_adjoint(late_use, y0, t, method="rk4", options={"step_size": 0.1}, adjoint_params=named).sum().backward()
    assert other.grad.abs().min() > 0


# Fields that differentiate with respect to their inputs, as in continuous normalizing flows.


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t, state):
        z, _ = state
        with torch.enable_grad():
            z.requires_grad_()
            rate = self.net(z) * (1 + t).reshape(-1, 1)
            columns = [torch.autograd.grad(rate[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)]
        return rate, -sum(columns)


@pytest.fixture
def flow():
    torch.manual_seed(0)
    return Flow()


def flow_gradients(flow, time_gradient=False, **kwargs):
    z = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2).requires_grad_()
    t = torch.tensor(TIMES, dtype=torch.float64, requires_grad=time_gradient)
    z_later, trace = solve(flow, (z, torch.zeros(4, dtype=torch.float64)), t, **kwargs).y
    loss = (z_later[1:] ** 2).sum() + trace[1:].sin().sum()
    # The gradient of the last bias must not come from the trace alone.
    return torch.autograd.grad(loss, [z, *flow.parameters(), *([t] if time_gradient else [])])


@pytest.mark.parametrize(
    ("mode", "time_gradient"),
    [
        *((mode, False) for mode in CASES),
        *(pytest.param(mode, True, marks=[] if mode in QUICK else pytest.mark.slow) for mode in CASES),
    ],
)
def test_a_field_that_differentiates_with_respect_to_its_state(mode, time_gradient, flow):
    kwargs = CASES[mode]
    found = flow_gradients(flow, time_gradient, **kwargs)
    expected = flow_gradients(flow, time_gradient, **kwargs | {"gradient": "backprop"})
    # At fixed steps the gradient with respect to times is another in backprop: that of the discrete solve.
    bound = 1e-2 if "adjoint" in mode else 1e-4 if time_gradient else 1e-5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("method", ["dopri5", "rodas4", "kvaerno5", "adams", "alf", "scipy_rk45"])
def test_under_no_grad_such_a_field_accepts_a_state_that_requires_a_gradient(method, flow):
    assert METHODS[method].adaptive
    z = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        y, _ = solve(flow, (z, torch.zeros(4, dtype=torch.float64)), [0.0, 0.5], method=method).y
    assert not y.requires_grad


@pytest.mark.parametrize("size", [(), (2, 3)])
def test_under_no_grad_per_sample_stepping_accepts_such_a_state_too(size):
    def f(t, y):
        with torch.enable_grad():
            x = y if y.requires_grad else y.detach().requires_grad_()
            return torch.autograd.grad(torch.cos(x).sum(), x)[0]

    y0 = torch.ones(4, *size, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        y = solve(f, y0, TIMES, stepping="per_sample").y
    assert not y.requires_grad


@pytest.mark.parametrize("mode", ["checkpoint", "adjoint", "interpolated_adjoint", "reversible"])
def test_gradients_are_added_to_existing_ones(mode, y0):
    kwargs = CASES["reversible"] if mode == "reversible" else {"gradient": mode}
    layer = nn.Linear(2, 2).double()
    layer.weight.grad = torch.full_like(layer.weight, 3.0)
    y = solve(lambda t, y: layer(y), y0, TIMES, **kwargs).y
    (once,) = torch.autograd.grad(y.sum(), layer.weight, retain_graph=True)
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, 3 + 2 * once, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("created", ["leaf", "computed"])
@pytest.mark.parametrize("mode", CASES)
def test_a_tensor_that_f_uses_only_later_raises_where_nothing_else_requires_a_gradient(mode, created, y0):
    """Autograd runs no backward pass then, which could raise the error."""
    other = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    late_use = LateUse(other if created == "leaf" else other * 1.0).requires_grad_(False)
    with pytest.raises(ValueError, match=r"f uses a tensor at t=.* make it a parameter of an nn.Module f"):
        solve(lambda t, y: late_use(t, y), y0.detach(), TIMES, **CASES[mode])
    with torch.no_grad():
        assert solve(late_use, y0, TIMES, **CASES[mode]).y.isfinite().all()


@pytest.mark.parametrize("mode", CASES)
def test_leaves_that_f_creates_do_not_raise_where_nothing_requires_a_gradient(mode, y0):
    def f(t, y):
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            return torch.autograd.grad(torch.cos(y).sum(), y, create_graph=True)[0]

    y = solve(f, y0.detach(), TIMES, **CASES[mode]).y
    assert not y.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(y, solve(f, y0.detach(), TIMES, **CASES[mode]).y, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, FIXED], ids=["adaptive", "fixed"])
def test_the_compiled_adjoint_notices_a_tensor_that_f_uses_only_later(options, y0, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    options = options | {"gradient": "adjoint", "compile": True}
    other = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    y = solve(LateUse(other), y0, TIMES, **options).y
    with pytest.raises(ValueError, match=r"f uses a tensor at t=.* make it a parameter of an nn.Module f"):
        y.sum().backward()
    late_use = LateUse(other.detach())
    late_use.others = [nn.Parameter(other.detach(), requires_grad=False)]
    late_use.register_parameter("other", late_use.others[0])
    y = solve(late_use, y0, TIMES, **options).y
    late_use.other.requires_grad_(True)  # frozen for the solve
    y.sum().backward()
    assert late_use.weight.grad is not None
    assert late_use.other.grad is None

"""What the backward passes written by hand cannot reach: never a zero gradient in silence."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from odebench.ode import METHODS, Adjoint, Checkpoint, odeint_adjoint, solve

FIXED = {"method": "rk4", "steps": 10}
BY_HAND = {
    "checkpoint": {"gradient": "checkpoint", **FIXED},
    "checkpoint, graphs kept": {"gradient": Checkpoint(keep="graphs"), **FIXED},
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
TIMES = [0.0, 0.33, 1.0]


@pytest.fixture
def y0():
    return torch.ones(2, 2, dtype=torch.float64, requires_grad=True)


class Late(nn.Module):
    """Uses a tensor that is no parameter, and only in the second half."""

    def __init__(self, other):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.others = [other]

    def forward(self, t, y):
        return -self.weight * y * (1 if float(t.max()) < 0.55 else self.others[0])


@pytest.mark.parametrize("kind", ["module", "closure"])
@pytest.mark.parametrize("mode", BY_HAND)
def test_a_tensor_that_f_uses_later_only_is_refused(mode, kind, y0):
    other = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    late = Late(other)
    y = solve(late if kind == "module" else lambda t, y: late(t, y), y0, TIMES, **BY_HAND[mode]).y
    with pytest.raises(ValueError, match=r"f uses a tensor at t=.* make it a parameter of an nn.Module f"):
        y.sum().backward()
    assert y0.grad is None


@pytest.mark.parametrize("mode", BY_HAND)
def test_a_parameter_that_f_uses_later_only_is_found_in_a_module(mode, y0):
    late = Late(None)
    late.other = nn.Parameter(torch.full((2,), 0.5, dtype=torch.float64))
    late.others = [late.other]
    how = BY_HAND[mode]
    found = torch.autograd.grad(solve(late, y0, TIMES, **how).y.sum(), late.other)
    exact = how | {"gradient": "backprop"}
    (wanted,) = torch.autograd.grad(solve(late, y0, TIMES, **exact).y.sum(), late.other)
    # The jump lies inside a step, where the continuous adjoint is no more exact than that.
    torch.testing.assert_close(found[0], wanted, rtol=0.2 if "adjoint" in mode else 1e-6, atol=0)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("mode", [mode for mode in BY_HAND if mode != "checkpoint, graphs kept"])
def test_parameters_of_functional_call_are_gone_when_the_backward_pass_runs(mode, frozen, y0):
    """The module then has its own again: the gradient would be another's, or zero."""

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = Field()

        def forward(self, y0):
            return solve(self.field, y0, TIMES, **BY_HAND[mode]).y

    class Field(nn.Linear):
        def __init__(self):
            super().__init__(2, 2, dtype=torch.float64)
            self.requires_grad_(not frozen)

        def forward(self, t, y):
            return super().forward(y)

    weights = {"field.weight": torch.eye(2, dtype=torch.float64, requires_grad=True)}
    y = functional_call(Flow(), weights, (y0,))
    with pytest.raises(ValueError, match=r"no longer uses a parameter that it used in the solve.*functional_call"):
        y.sum().backward()


def test_weights_of_a_functional_call_inside_of_f_are_found(y0):
    layer, weight = nn.Linear(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64, requires_grad=True)

    def f(t, y):
        return functional_call(layer, {"weight": weight}, (y,))

    found = [
        torch.autograd.grad(solve(f, y0, TIMES, gradient=mode, **FIXED).y.sum(), weight)[0]
        for mode in ("backprop", "checkpoint")
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", BY_HAND)
def test_leaves_that_f_makes_for_itself_are_its_own_affair(mode, y0):
    """As for a product with a Jacobian: linear in a vector, by which it is differentiated."""
    weight = torch.tensor([[0.3, -0.8], [0.9, 0.2]], dtype=torch.float64, requires_grad=True)

    def f(t, y):
        with torch.enable_grad():
            x = y if y.requires_grad else y.detach().requires_grad_()
            rate = torch.tanh(x @ weight)
            v = torch.ones_like(rate).requires_grad_()
            (pulled,) = torch.autograd.grad(rate, x, v, create_graph=True)
            (pushed,) = torch.autograd.grad(pulled, v, rate.detach(), create_graph=True)
            return rate + 0.1 * pushed * v

    def gradients(how):
        return torch.autograd.grad(solve(f, y0, TIMES, **how).y.sum(), (y0, weight))

    how = BY_HAND[mode]
    exact = how | {"gradient": "backprop"}
    for one, other in zip(gradients(how), gradients(exact), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3 if "adjoint" in mode else 1e-6, atol=1e-4)


def test_a_parameter_that_was_frozen_for_the_solve_may_be_set_free_before_the_backward_pass(y0):
    """As where one of two networks is trained through the other."""
    late = Late(1)
    late.weight.requires_grad_(False)
    y = solve(late, y0, TIMES, gradient="adjoint", **FIXED).y
    late.weight.requires_grad_(True)
    y.sum().backward()
    assert y0.grad is not None
    assert late.weight.grad is None


def test_odeint_adjoint_names_its_own_way_out(y0):
    other = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    late, t = Late(other), torch.tensor(TIMES, dtype=torch.float64)
    y = odeint_adjoint(late, y0, t, method="rk4", options={"step_size": 0.1})
    with pytest.raises(ValueError, match=r"name it in adjoint_params=\(...\), or use odeint"):
        y.sum().backward()
    named = (*late.parameters(), other)
    odeint_adjoint(late, y0, t, method="rk4", options={"step_size": 0.1}, adjoint_params=named).sum().backward()
    assert other.grad.abs().min() > 0


# Fields that differentiate by what they get, as those of continuous normalizing flows.


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


def flow_gradients(flow, time_gradient=False, **how):
    z = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2).requires_grad_()
    t = torch.tensor(TIMES, dtype=torch.float64, requires_grad=time_gradient)
    z_later, trace = solve(flow, (z, torch.zeros(4, dtype=torch.float64)), t, **how).y
    loss = (z_later[1:] ** 2).sum() + trace[1:].sin().sum()
    # That of the last bias does not depend on the trace alone.
    return torch.autograd.grad(loss, [z, *flow.parameters(), *([t] if time_gradient else [])])


@pytest.mark.parametrize("time_gradient", [False, True], ids=["", "times too"])
@pytest.mark.parametrize("mode", BY_HAND)
def test_a_field_that_differentiates_by_its_state(mode, time_gradient, flow):
    how = BY_HAND[mode]
    found = flow_gradients(flow, time_gradient, **how)
    wanted = flow_gradients(flow, time_gradient, **how | {"gradient": "backprop"})
    bound = 1e-2 if "adjoint" in mode else 1e-5
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


@pytest.mark.parametrize("method", ["dopri5", "rodas4", "kvaerno5", "adams", "alf", "scipy_rk45"])
def test_without_gradients_such_a_field_may_start_from_a_state_that_wants_one(method, flow):
    assert METHODS[method].adaptive
    z = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        y, _ = solve(flow, (z, torch.zeros(4, dtype=torch.float64)), [0.0, 0.5], method=method).y
    assert not y.requires_grad


@pytest.mark.parametrize("mode", ["checkpoint", "adjoint", "interpolated_adjoint", "reversible"])
def test_gradients_are_added_to_those_that_are_there(mode, y0):
    how = BY_HAND["reversible"] if mode == "reversible" else {"gradient": mode}
    layer = nn.Linear(2, 2).double()
    layer.weight.grad = torch.full_like(layer.weight, 3.0)
    y = solve(lambda t, y: layer(y), y0, TIMES, **how).y
    (once,) = torch.autograd.grad(y.sum(), layer.weight, retain_graph=True)
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    torch.testing.assert_close(layer.weight.grad, 3 + 2 * once, rtol=1e-12, atol=1e-12)

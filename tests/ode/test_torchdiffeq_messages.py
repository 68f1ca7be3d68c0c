"""Callbacks, warnings, errors and inexact results of f in the drop-in functions, against torchdiffeq."""

import math
import warnings

import pytest
import torch
from torch import nn
from torchdiffeq_comparison import (
    CALLBACKS,
    LIBRARIES,
    TIMES,
    Y0,
    Field,
    LoggingField,
    as_state,
    flat,
    largest,
    run_both,
    torchdiffeq,
)

from odebench.ode import OdeintError, SolveError, odeint, odeint_adjoint


@pytest.mark.filterwarnings("ignore:Solver 'rk4'")
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("how", [{"options": {"first_step": 0.05}}, {"method": "rk4", "options": {"step_size": 0.2}}])
def test_callbacks(kind, sign, how):
    """The same calls in the same order, forward and backward, until shortly before the end of a solve."""

    def call(_, adjoint):
        field = LoggingField()
        y0 = as_state(Y0.clone().requires_grad_(), kind)
        y = adjoint(field, y0, sign * TIMES[::3], rtol=1e-6, atol=1e-6, **how)
        forward, field.calls = field.calls, []
        flat(y).sum().backward()
        return forward, field.calls

    for end, a, b in zip((1.5, 0.0), *run_both(call), strict=True):
        if "method" not in how:
            near_end = [abs(abs(t) - end) < 2.2 * dt for _, t, _, dt in a].index(True)
            a, b = a[:near_end], b[:near_end]
        assert len(a) >= 4
        assert [(name, shape) for name, _, shape, _ in a] == [(name, shape) for name, _, shape, _ in b]
        for (_, t, _, dt), (_, our_t, _, our_dt) in zip(a, b, strict=True):
            # torchdiffeq negates the time in the backward pass of a solve that runs backward in time.
            assert abs(our_t) == pytest.approx(abs(t), rel=1e-3)
            assert our_t * sign >= 0
            assert our_dt == pytest.approx(dt, rel=1e-2)


def test_rejections_call_the_callback():
    field = LoggingField()
    odeint(field, Y0, TIMES, options={"first_step": 1.0})
    names = [name for name, *_ in field.calls]
    assert names[:2] == ["callback_step", "callback_reject_step"]
    assert names.count("callback_step") == len(names) / 2


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"options": {"step_size": 0.1}}, "Unexpected arguments {'step_size': 0.1}"),
        ({"method": "rk4", "options": {"first_step": 0.1}}, "Unexpected arguments {'first_step': 0.1}"),
        ({"method": "scipy_solver", "options": {"safety": 0.8}}, "Unexpected arguments {'safety': 0.8}"),
        ({"method": "implicit_adams", "options": {"max_order": 3}}, "max_order is below 4"),
    ],
)
def test_warnings_of_options(how, text):
    for integrate, _ in LIBRARIES.values():
        with pytest.warns(UserWarning, match=text.replace("{", r"\{")):
            integrate(Field(), Y0, TIMES[:2], rtol=1e-3, atol=1e-3, **how)


@pytest.mark.parametrize(("method", "missing"), [("rk4", CALLBACKS[1:]), ("scipy_solver", CALLBACKS)])
def test_warnings_of_callbacks(method, missing):
    for integrate, _ in LIBRARIES.values():
        with pytest.warns(UserWarning, match="does not support callbacks") as caught:
            integrate(LoggingField(), Y0, TIMES[:2], method=method, rtol=1e-3, atol=1e-3)
        assert [name for name in CALLBACKS if name in str(caught[0].message)] == missing


def test_valid_options_cause_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"min_step": 0.0, "max_step": 0.5, "safety": 0.9, "ifactor": 5.0, "dfactor": 0.3}
        options |= {"dtype": torch.float64, "norm": lambda y: y.abs().max(), "max_num_steps": 1000}
        odeint(Field(), Y0, TIMES, options=options)


@pytest.mark.parametrize(("integrate", "error"), [(torchdiffeq.odeint, ValueError), (odeint, ValueError)])
def test_errors_are_those_of_torchdiffeq(integrate, error):
    field = Field()
    with pytest.raises(error, match='Invalid method "dopri6"'):
        integrate(field, Y0, TIMES, method="dopri6")
    with pytest.raises(error, match="mutually exclusive"):
        integrate(field, Y0, TIMES, method="rk4", options={"step_size": 0.1, "grid_constructor": lambda f, y, t: t})
    with pytest.raises(error, match="Unknown interpolation"):
        integrate(field, Y0, TIMES, method="rk4", options={"step_size": 0.4, "interp": "quintic"})
    with pytest.raises(error, match="repeated"):
        integrate(field, Y0, TIMES, options={"step_t": TIMES[1:2], "jump_t": TIMES[1:2]})
    with pytest.raises(error, match=r"len\(t\) == 2"):
        integrate(field, Y0, TIMES, event_fn=lambda t, y: y.sum())
    with pytest.raises(TypeError, match="floating point"):
        integrate(field, Y0, torch.arange(3))
    with pytest.raises((AssertionError, ValueError), match="strictly increasing or"):
        integrate(field, Y0, torch.tensor([0.0, 1.0, 1.0]))


@pytest.mark.parametrize("integrate", [odeint, odeint_adjoint])
def test_a_failed_solve_is_an_assertion_error_too(integrate):
    """Code that catches torchdiffeq's errors catches these too."""
    blowing_up = {"adjoint_params": ()} if integrate is odeint_adjoint else {}
    with pytest.raises(AssertionError, match=r"step_underflow|non_finite") as caught:
        integrate(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 2.0]), **blowing_up)
    assert isinstance(caught.value, OdeintError | SolveError)
    assert caught.value.outcome.time == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(AssertionError, match="max_steps"):
        integrate(Field(), Y0, TIMES[:2], options={"max_num_steps": 2})
    with pytest.raises(AssertionError, match="non_finite"):
        integrate(lambda t, y: y / 0, Y0, TIMES, **blowing_up)


def test_fixed_steps_return_nan():
    def call(_, adjoint):
        y0 = torch.tensor([3.0], requires_grad=True)
        y = adjoint(lambda t, y: y**3, y0, torch.linspace(0, 9, 10), method="euler", adjoint_params=())
        y.sum().backward()
        return y.detach(), y0.grad

    for a, b in zip(*run_both(call), strict=True):
        assert not a.isfinite().all()
        assert torch.equal(a.isfinite(), b.isfinite())


class TestInexactFields:
    """What f may return, and which tensors it may use, as in torchdiffeq."""

    def test_another_dtype(self):
        y = odeint(lambda t, y: -y.double(), torch.ones(2), torch.tensor([0.0, 1.0]))
        assert y.dtype == torch.float32
        assert y[-1, 0].item() == pytest.approx(math.exp(-1), rel=1e-5)

    def test_other_shapes(self):
        y = odeint(lambda t, y: -y.reshape(1), torch.tensor(1.0), torch.tensor([0.0, 1.0]))
        assert y.shape == (2,)
        y = odeint(lambda t, y: torch.ones(1), torch.ones(2, 3), torch.tensor([0.0, 1.0]))
        assert largest(y[-1] - 2) < 1e-6
        y = odeint(lambda t, y: [-y[0].flatten(), y[1]], (torch.ones(2, 2), torch.ones(1)), torch.tensor([0.0, 1.0]))
        assert y[0].shape == (2, 2, 2)

    @pytest.mark.parametrize(
        ("y0", "rate"),
        [
            ((torch.ones(3),), (torch.ones(1),)),
            ((torch.ones(2, 2),), (torch.tensor(0.5),)),
            (torch.ones(3), torch.tensor([[1.0, 2.0, 3.0]])),
            (torch.ones(3), torch.ones(1, 1)),
            (torch.ones(2, 3), torch.ones(1, 1, 3)),
        ],
    )
    def test_shapes_that_broadcast(self, y0, rate):
        a, b = run_both(lambda integrate, _: integrate(lambda t, y: rate, y0, torch.tensor([0.0, 1.0]), method="euler"))
        torch.testing.assert_close(b, a)

    def test_a_tuple_of_two_dtypes(self):
        y = odeint(lambda t, y: (-y[0], -y[1]), (torch.ones(2), torch.ones(1).double()), torch.tensor([0.0, 1.0]))
        assert y[0].dtype == y[1].dtype == torch.float64

    @pytest.mark.parametrize("rate", [lambda y: y.T, lambda y: y[:, :1].repeat(1, 5), lambda y: (y, y)])
    def test_shapes_that_do_not_fit(self, rate):
        with pytest.raises(ValueError, match="must return"):
            odeint(lambda t, y: rate(y), torch.ones(2, 3), torch.tensor([0.0, 1.0]))

    def test_parameters_in_a_closure(self):
        """torchdiffeq requires a module; odebench finds the parameters that a function uses."""
        weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        y = odeint_adjoint(lambda t, y: -weight * y, torch.ones(1, dtype=torch.float64), TIMES, rtol=1e-8, atol=1e-8)
        y[-1].backward()
        assert weight.grad.item() == pytest.approx(-1.5 * math.exp(-0.75), rel=1e-6)

    def test_parameters_that_are_named(self):
        """Only these get gradients, leaves or not."""
        source = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
        other = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        weight = 2 * source

        def call(_, adjoint):
            y0 = torch.ones(1, dtype=torch.float64)
            y = adjoint(lambda t, y: -weight * other * y, y0, TIMES, adjoint_params=(weight,), rtol=1e-8, atol=1e-8)
            return torch.autograd.grad(y[-1], (source, other), allow_unused=True, retain_graph=True)

        (a, a_other), (b, b_other) = run_both(call)
        assert a_other is b_other is None
        assert b.item() == pytest.approx(a.item(), rel=1e-6)

    def test_a_gradient_that_would_be_lost(self):
        """A module that uses a tensor made elsewhere: a silent zero in torchdiffeq."""
        field, source = Field(), torch.ones(2, dtype=torch.float64, requires_grad=True)
        field.context = 2 * source
        field.forward = lambda t, y: field.layers(torch.cat([y * field.context, t.expand(3, 1)], -1))
        with pytest.warns(UserWarning, match="adjoint_params"):
            y = odeint_adjoint(field, Y0.clone().requires_grad_(), TIMES)
        y.sum().backward()
        assert source.grad is None
        with pytest.raises(ValueError, match="adjoint_params"):
            odeint_adjoint(field.forward, Y0, TIMES)

    def test_parameters_that_require_no_gradient(self):
        for _, adjoint in LIBRARIES.values():
            field = Field()
            field.layers[0].weight.requires_grad_(False)
            with pytest.warns(UserWarning, match="An adjoint parameter was passed without requiring gradient"):
                y = adjoint(field, Y0, TIMES, adjoint_options={"norm": lambda parts: parts[1].abs().max()})
            y.sum().backward()
            assert field.layers[0].weight.grad is None
            assert field.layers[0].bias.grad is not None

    def test_hooks_of_parameters(self):
        field = Field()
        field.layers[0].weight.register_hook(lambda gradient: gradient)
        odeint_adjoint(field, Y0, TIMES).sum().backward()
        assert field.layers[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.Dropout(0.5)])
def test_layers_in_training_mode_cause_a_warning(layer):
    """Such code still runs; ``solve`` raises an error."""
    field = nn.Sequential(layer, nn.Linear(2, 2))
    field.forward = lambda t, y: field[1](field[0](y))
    with pytest.warns(UserWarning, match="in training mode"):
        odeint(field, torch.randn(4, 2), torch.tensor([0.0, 1.0]), method="euler")

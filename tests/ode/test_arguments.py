"""Invalid arguments raise an error of one line that names the argument."""

import math

import numpy as np
import pytest
import torch

from odebench.ode import Adjoint, Checkpoint, odeint, odeint_adjoint, odeint_event, solve

Y0 = torch.ones(2, dtype=torch.float64)
T = torch.tensor([0.0, 1.0], dtype=torch.float64)


def decay(t, y):
    return -y


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("method", 5, "method must be a name, such as 'dopri5', or a description.* got 5"),
        ("method", None, "method must be a name.* got None"),
        ("method", torch.nn.Linear, "method must be a name.* got <class"),
        ("first_step", "warm", "first_step must be a number, got 'warm'"),
        ("first_step", True, "first_step must be a number, got True"),
        ("first_step", -1, "first_step must be positive, got -1"),
        ("first_step", math.nan, "first_step must be positive, got nan"),
        ("min_step", None, "min_step must be a number, got None"),
        ("max_step", "1", "max_step must be a number, got '1'"),
        ("max_step", 0.0, "max_step must be positive, got 0"),
        ("max_steps", 10.5, "max_steps must be a whole number, got 10.5"),
        ("max_steps", None, "max_steps must be a number, got None"),
        ("max_steps", math.inf, "max_steps must be a whole number, got inf"),
        ("steps", "3", "steps must be a number, got '3'"),
        ("steps", 2.5, "steps must be a whole number, got 2.5"),
        ("step_size", math.nan, "step_size must be positive, got nan"),
        ("step_size", 1e-300, r"1e\+300 steps are more than max_steps=100000"),
        ("rtol", "1e-3", "rtol must be a number, got '1e-3'"),
        ("rtol", True, "rtol must be a number"),
        ("atol", None, "atol must be a number, got None"),
        ("rtol", torch.ones(3), r"rtol has shape \(3,\), which does not broadcast to y0's, "),
        ("step_t", 0.5, "step_t must be a list of times, got 0.5"),
        ("step_t", None, "step_t must be a list of times, got None"),
        ("jump_t", "ab", "jump_t must be a list of times, got 'ab'"),
        ("jump_t", [math.nan], "jump_t must be finite"),
        ("controller", [], r"unknown controller \[\]; the controllers are integral, pi, pid"),
        ("controller", 3, "unknown controller 3; the controllers are integral, pi, pid"),
        ("group", 3, "group"),
        ("compile", "anything", "compile must be True or False, 'step' or 'solve', got 'anything'"),
        ("compile_math", "quick", "unknown compile_math 'quick'; choose 'exact' or 'fast'"),
        ("dense", 1, "dense must be True or False, got 1"),
        ("throw", None, "throw must be True or False, got None"),
    ],
    ids=str,
)
def test_an_argument_of_solve(stepping, name, value, message):
    start = Y0 if stepping == "shared" else torch.ones(4, 2, dtype=torch.float64)
    with pytest.raises((TypeError, ValueError), match=message):
        solve(decay, start, T, stepping=stepping, **{name: value})


@pytest.mark.parametrize("make", [lambda jump: jump, list], ids=["tensor", "list"])
def test_jumps_that_require_a_gradient(make):
    """The solution depends on them, and no gradient mode computes how."""
    jump = torch.tensor([0.5], requires_grad=True)
    with pytest.raises(ValueError, match=r"jump_t requires a gradient.*pass jump_t.detach\(\)"):
        solve(decay, Y0, T, jump_t=make(jump))
    with pytest.raises(ValueError, match="jump_t requires a gradient"):
        odeint(decay, Y0, T, options={"jump_t": make(jump)})
    with torch.no_grad():
        assert solve(decay, Y0, T, jump_t=jump).stats.start == 0


@pytest.mark.parametrize("value", [3, None, Checkpoint], ids=str)
def test_an_invalid_gradient_mode(value):
    with pytest.raises(TypeError, match=r"gradient must be a name, or a mode with its options, such as Checkpoint\("):
        solve(decay, Y0, T, gradient=value)


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
@pytest.mark.parametrize(
    "t",
    [["a", "b"], [0.0, None], [0j, 1j], [[0.0], [1.0, 2.0]], {0.0: 0, 1.0: 1}, {0.0, 1.0}, T.bool(), T + 0j],
    ids=str,
)
def test_times_of_other_kinds(t, stepping):
    with pytest.raises(TypeError, match=r"t must (be a tensor or a list|hold real times)"):
        solve(decay, Y0[:, None], t, stepping=stepping)


def test_numbers_and_times_of_other_libraries_are_accepted():
    y = solve(decay, Y0, np.linspace(0, 1, 3), first_step=torch.tensor(0.1), rtol=np.float32(1e-6)).y
    assert y[-1].tolist() == pytest.approx([math.exp(-1)] * 2, rel=1e-5)
    assert solve(decay, Y0, (time for time in (0.0, 1.0)), method="rk4", steps=torch.tensor(4)).stats.accepted == 4
    for rtol in (np.float32(1e-6), torch.tensor(1e-6)):
        pair = solve(lambda t, y: (-y[0], -y[1]), (Y0, Y0[:1]), T, rtol=rtol).y
        assert pair[1][-1].tolist() == pytest.approx([math.exp(-1)], rel=1e-5)


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
def test_a_component_may_have_no_absolute_tolerance(stepping):
    start = torch.tensor([[0.0, 1.0]])
    found = [
        solve(decay, start, T, rtol=1e-3, atol=atol, stepping=stepping).y[-1]
        for atol in (0.0, torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1e-9]))
    ]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], rtol=1e-3, atol=0)


def test_an_empty_list_of_events_raises():
    with pytest.raises(ValueError, match="event must be an Event or several, got an empty list"):
        solve(decay, Y0, T, event=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": "3"}, "checkpoints must be a number, got '3'"),
        ({"checkpoints": 2.5}, "checkpoints must be a whole number"),
        ({"rtol": -1.0}, "rtol must not be negative, got -1"),
        ({"rtol": 0, "atol": 0}, "rtol and atol must not both be zero"),
        ({"atol": "x"}, "atol must be a number, got 'x'"),
        ({"norm": "all"}, "norm must be 'semi' or 'full', got 'all'"),
        ({"error": "small"}, "error must be 'relative' or 'absolute', got 'small'"),
        ({"steps": 0}, "steps must be positive, got 0"),
    ],
    ids=str,
)
def test_an_option_of_a_gradient_mode(options, message):
    mode = Checkpoint if "checkpoints" in options else Adjoint
    with pytest.raises((TypeError, ValueError), match=message):
        mode(**options)


@pytest.mark.parametrize("method", [5, "rk5"])
def test_the_method_of_a_backward_solve(method):
    with pytest.raises((TypeError, ValueError), match=r"method must be a name|unknown method 'rk5'"):
        solve(decay, Y0.clone().requires_grad_(), T, gradient=Adjoint(method=method))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"func": None}, "func must be callable"),
        ({"y0": (Y0, None)}, "y0 must be a tensor"),
        ({"method": 5}, 'Invalid method "5"'),
        ({"options": 3}, "options must be a dictionary"),
        ({"options": {"norm": 3}}, r"options\['norm'\] must be a function"),
        ({"options": {"first_step": "a"}}, "first_step must be a number"),
        ({"options": {"max_num_steps": 0}}, "max_num_steps must be positive"),
        ({"options": {"step_t": 0.5}}, "step_t must be a list of times"),
        ({"method": "rk4", "options": {"step_size": 0}}, "step_size must be positive"),
        ({"method": "rk4", "options": {"grid_constructor": 3}}, "grid_constructor must be a function"),
        ({"rtol": "a"}, "rtol must be a number"),
        pytest.param(
            {"t": 3.0, "event_fn": lambda t, y: y[0]}, "`t` must be a floating point Tensor but is a float", id="time"
        ),
        pytest.param(
            {"y0": (Y0, Y0), "func": lambda t, y: None}, r"f\(t, y\) must return the structure of y", id="no result"
        ),
        pytest.param(
            {"y0": (Y0, Y0), "func": lambda t, y: (1.0, 2.0)},
            r"must return tensors of y's shape: \(2,\) expected, got float",
            id="numbers",
        ),
        ({"adjoint_options": 3}, "adjoint_options must be a dictionary"),
        ({"adjoint_options": {"norm": "semi"}}, r"adjoint_options\['norm'\] must be a function"),
        ({"adjoint_params": 3}, "adjoint_params must be a tuple of tensors, got 3"),
        ({"adjoint_params": (None,)}, "adjoint_params must be a tuple of tensors"),
        ({"adjoint_rtol": "x"}, "adjoint_rtol must be a number"),
    ],
    ids=str,
)
def test_an_argument_of_odeint(change, message):
    given = {"func": decay, "y0": Y0.clone().requires_grad_(), "t": T} | change
    call = odeint_adjoint if any(name.startswith("adjoint") for name in change) else odeint
    with pytest.raises((TypeError, ValueError), match=message):
        call(**given)


def test_the_start_of_odeint_event():
    with pytest.raises(TypeError, match=r"t0 must be a tensor of one time, got 0\.0"):
        odeint_event(decay, Y0, 0.0, event_fn=lambda t, y: y[0] - 0.5)

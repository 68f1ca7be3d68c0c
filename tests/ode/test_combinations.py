"""Every combination of choices: the table of conflicts tells which of them run, and with the right gradient."""

import itertools

import pytest
import torch

from odebench.ode import METHODS, Adjoint, Checkpoint, solve
from odebench.ode.combinations import Combination, find_conflict
from odebench.ode.gradients import GRADIENTS

T = (0.0, 0.1, 0.2)
Y0 = torch.tensor([[1.0, 0.5], [0.8, -0.3]], dtype=torch.float64)
# One method of each family; kvaerno5 has stages after the end of its step.
FAMILIES = ["dopri5", "adams", "gl4", "alf", "scipy_rk45", "implicit_adams", "kvaerno5", "rodas4", "reversible_bosh3"]
QUICK = [("dopri5", 1), ("dopri5", 2), ("adams", 1), ("gl4", 1), ("alf", 1), ("scipy_rk45", 1)]
MODES = {
    **{name: mode() for name, mode in GRADIENTS.items()},
    "checkpoints": Checkpoint(checkpoints=2),
    "recompute": Checkpoint(recompute="stage"),
    "keep": Checkpoint(keep="graphs"),
    "keep recompute": Checkpoint(keep="graphs", recompute="stage"),
    "adjoint by rk4": Adjoint(method="rk4"),
    "adjoint by steps of rk4": Adjoint(method="rk4", steps=8),
    "adjoint by steps of adams": Adjoint(method="adams", steps=8),
}
# Further choices, as arguments of ``solve``.
ARGUMENTS = {
    "event": None,
    "dense": True,
    "step_t": [0.15],
    "jump_t": [0.15],
    "compile": True,
    "compile=solve": "solve",
}


def combination(method, mode, fixed, stepping, choices=()):
    options = {
        name: getattr(mode, name) for name in ("checkpoints", "recompute", "keep", "norm") if hasattr(mode, name)
    }
    if isinstance(mode, Adjoint):
        options["adjoint_method"] = None if mode.method is None else METHODS[mode.method]
        options["adjoint_steps"] = mode.steps
    whole = "compile=solve" in choices
    choices = dict.fromkeys((choice for choice in choices if choice != "compile=solve"), True)
    if "jump_t" in choices:
        choices["step_t"] = True
    if whole:
        choices["compile"] = "solve"
    return Combination(METHODS[method], gradient=mode.name, fixed=fixed, stepping=stepping, **options, **choices)


def gradient(method, mode, fixed, stepping, choices=()):
    """d(sum of the last state) / d(rate, y0) of dy/dt = -rate y^2."""
    rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y0 = Y0.clone().requires_grad_()
    options = {"steps": 8} if fixed else {"rtol": 1e-4, "atol": 1e-4}
    options |= {name.partition("=")[0]: ARGUMENTS[name] for name in choices}
    if "event" in choices:  # never reached
        dim = -1 if stepping == "per_sample" else None
        options["event"] = lambda t, y, rate: y.mean(dim) - 10
    solution = solve(
        lambda t, y, rate: -rate * y * y,
        y0,
        T,
        args=(rate,),
        method=method,
        gradient=mode,
        stepping=stepping,
        **options,
    )
    return torch.cat([x.flatten() for x in torch.autograd.grad(solution.y[-1].sum(), (rate, y0))])


def check(tolerance, *choice):
    conflict = find_conflict(combination(*choice))
    if conflict is not None:
        with pytest.raises(ValueError, match=r"; ") as caught:
            gradient(*choice)
        assert conflict.reason.split("=")[0] in str(caught.value)
        return
    end = T[-1]
    expected = torch.stack([-(Y0 / (1 + end * Y0)).square().sum() * end, *(1 + end * Y0).flatten() ** -2])
    torch.testing.assert_close(gradient(*choice), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.slow) for name in METHODS]
)
def test_a_method_with_each_gradient_mode(method):
    # Eight steps of Euler are off by some percent.
    tolerance = 1e-3 if METHODS[method].order > 2 else 3e-2
    for mode, fixed, stepping in itertools.product(MODES.values(), (False, True), ("shared", "per_sample")):
        check(tolerance, method, mode, fixed, stepping)


@pytest.mark.parametrize(
    ("method", "number"),
    [
        pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow)
        for pair in itertools.product(FAMILIES, (1, 2))
    ],
)
def test_one_or_two_further_choices(method, number, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    for mode, choices in itertools.product(MODES.values(), itertools.combinations(ARGUMENTS, number)):
        for fixed, stepping in itertools.product((False, True), ("shared", "per_sample")):
            check(1e-3, method, mode, fixed, stepping, choices)


def test_a_conflict_blames_arguments_that_exist():
    known = {*Combination._fields, "steps", "step_size", "rtol"}
    for method, mode, fixed, stepping in itertools.product(METHODS, MODES, (False, True), ("shared", "per_sample")):
        for choices in ((), ("group",), ("compile=solve",), ("compile=solve", "group")):
            conflict = find_conflict(combination(method, MODES[mode], fixed, stepping, choices))
            assert conflict is None or known.issuperset(conflict.arguments)

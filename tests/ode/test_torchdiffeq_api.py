"""odeint against torchdiffeq's: the same calls, the same states, no more evaluations."""

import inspect
import math

import pytest
import torch
from torchdiffeq_comparison import (
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

from odebench.ode import odeint, odeint_adjoint, odeint_event
from odebench.ode.methods import METHODS

FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams"]
ADAPTIVE = ["dopri5", "bosh3", "dopri8", "fehlberg2", "adaptive_heun"]
# torchdiffeq starts these steps from a slope that is not that of the step's start: one evaluation less, a larger error.
STALE_SLOPE = ("fehlberg2", "adaptive_heun")
GRIDS = {
    "step": {"step_size": 0.125},
    "cubic": {"step_size": 0.125, "interp": "cubic"},
    "uneven": {"step_size": 0.07, "interp": "linear"},
    "perturb": {"step_size": 0.25, "perturb": True},
    "repeated": {
        "grid_constructor": lambda f, y, t: torch.linspace(
            t[0].item(), t[-1].item(), 7, dtype=t.dtype
        ).repeat_interleave(2)
    },
    "constructed": {"grid_constructor": lambda f, y, t: torch.linspace(t[0].item(), t[-1].item(), 13, dtype=t.dtype)},
    "times": {},
}


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (odeint, torchdiffeq.odeint),
        (odeint_adjoint, torchdiffeq.odeint_adjoint),
        (odeint_event, torchdiffeq.odeint_event),
    ],
    ids=["odeint", "odeint_adjoint", "odeint_event"],
)
def test_signatures(own, other):
    def plain(function):
        return [(p.name, p.kind, getattr(p.default, "__name__", p.default)) for p in parameters(function)]

    def parameters(function):
        return inspect.signature(function).parameters.values()

    assert plain(own) == plain(other)


def reference(field, y0, t):
    return flat(odeint(field, y0, t, rtol=1e-11, atol=1e-11)).detach()


def test_names_can_be_imported_from_the_package():
    import odebench

    assert (odebench.odeint, odebench.odeint_adjoint, odebench.odeint_event) == (odeint, odeint_adjoint, odeint_event)


def test_all_methods_of_torchdiffeq_are_available():
    from torchdiffeq._impl.odeint import SOLVERS

    y0 = torch.ones(2, dtype=torch.float64)
    for name in SOLVERS:
        options = {"step_size": 0.1} if name in FIXED else None
        y = odeint(lambda t, y: -y, y0, TIMES[:2], method=name, options=options, rtol=1e-4, atol=1e-4)
        assert y[-1, 0].item() == pytest.approx(math.exp(-0.5), abs=0.02), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_adaptive_states(method, sign, kind):
    """No more evaluations than torchdiffeq, and no larger error unless both are near the tolerance."""
    field, y0, t = Field(), as_state(Y0, kind), sign * TIMES
    expected = reference(field, y0, t)
    tol = 1e-3 if METHODS[method].order == 2 else 1e-6
    nfe, errors = [], []
    for integrate, _ in LIBRARIES.values():
        field.nfe = 0
        y = integrate(field, y0, t, rtol=tol, atol=tol, method=method)
        assert isinstance(y, tuple) == (kind == "tuple")
        nfe.append(field.nfe)
        errors.append(largest(flat(y) - expected))
    assert errors[1] <= max(errors[0], 10 * tol)
    if method == "dopri8":  # Three per step with outputs inside, which torchdiffeq interpolates with order 4.
        nfe[1] -= 3 * (len(t) - 2)
    if method not in STALE_SLOPE:
        assert nfe[1] <= nfe[0]


@pytest.mark.filterwarnings("ignore:(Functional|implicit_adams. the) iteration did not converge")
@pytest.mark.parametrize(
    ("method", "name"),
    [
        (method, name)
        for method in FIXED
        for name in GRIDS
        # torchdiffeq assumes even steps in multistep methods, and has another interpolant there.
        if not method.endswith("adams") or name not in ("uneven", "cubic")
    ],
)
def test_fixed_steps(method, name):
    """Equal to round-off, with as many evaluations or fewer, in both directions."""
    # Round-off grows with the order.
    options = {**GRIDS[name], "max_order": 6} if method.endswith("adams") else GRIDS[name]
    field = Field()
    for t in (TIMES, -TIMES):
        states, nfe = [], []
        for integrate, _ in LIBRARIES.values():
            field.nfe = 0
            with torch.no_grad():
                states.append(integrate(field, Y0, t, method=method, options=options, rtol=1e-5, atol=1e-5))
            nfe.append(field.nfe)
        assert largest(states[0] - states[1]) < 1e-12
        assert nfe[1] <= nfe[0]


@pytest.mark.parametrize("kind", ["tensor", "tuple"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_dtypes(kind, dtype, time_dtype, method):
    """f gets the times in the dtype of the state, and the states keep it."""
    field, y0, seen = Field(dtype), as_state(Y0.to(dtype), kind), []

    def recorded(t, y):
        seen.append((t.dtype, t.dim()))
        return field(t, y)

    def call(integrate, _):
        return integrate(recorded, y0, TIMES.to(time_dtype), method=method, rtol=1e-5, atol=1e-5)

    a, b = map(flat, run_both(call))
    assert a.dtype == b.dtype == dtype
    assert set(seen) == {(dtype, 0)}
    assert largest(a - b) < (1e-3 if method == "dopri5" else 1e-5)


@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_norms(kind):
    """The norm sees the structure of the state, and a stricter one costs evaluations."""
    field, seen = Field(), set()

    def norm(y):
        seen.add(tuple(part.shape for part in y) if isinstance(y, tuple) else y.shape)
        return 100 * max(part.abs().max() for part in (y if isinstance(y, tuple) else (y,)))

    nfe = []
    for options in ({}, {"norm": norm}):
        field.nfe = 0
        odeint(field, as_state(Y0, kind), TIMES, rtol=1e-5, atol=1e-5, options=options)
        nfe.append(field.nfe)
    assert nfe[1] > nfe[0]
    assert seen == {((3, 1), (3,)) if kind == "tuple" else (3, 2)}


def test_norm_of_a_tuple_is_the_largest_of_its_parts():
    """A large part that is easy does not hide the error of a small one."""

    def f(t, y):
        return torch.zeros_like(y[0]), torch.cos(20 * t).expand(1)

    y0 = (torch.ones(10_000, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    counts = []
    for state in (y0, y0[1:]):
        count = 0

        def counted(t, y):
            nonlocal count
            count += 1
            return f(t, y)[-len(y) :]

        odeint(counted, state, TIMES[:2], rtol=1e-6, atol=1e-6, options={"first_step": 0.01})
        counts.append(count)
    assert counts[0] == counts[1]


def test_a_norm_that_is_not_homogeneous():
    """The root mean square of x^2 is not a norm: it still gets errors in units of the tolerance."""

    def call(integrate, _):
        field = Field()
        integrate(field, Y0, TIMES[:2], rtol=1e-6, atol=1e-6, options={"norm": lambda x: (x**4).mean() ** 0.5})
        return field.nfe

    a, b = run_both(call)
    assert b <= a


@pytest.mark.parametrize("name", ["min_step", "max_step", "first_step", "safety"])
def test_step_sizes(name):
    """Options of the step size have the same effect as in torchdiffeq."""
    value = {"min_step": 0.3, "max_step": 0.05, "first_step": 0.02, "safety": 0.5}[name]

    def call(integrate, _):
        field = LoggingField()
        integrate(
            field, Y0, TIMES, rtol=1e-6, atol=1e-6, options={name: torch.tensor(value) if name == "max_step" else value}
        )
        return [dt for kind, _, _, dt in field.calls if kind == "callback_accept_step"]

    a, b = run_both(call)
    assert len(b) <= len(a) + 1
    assert b[0] == pytest.approx(a[0], rel=1e-6)
    if name == "max_step":
        assert max(b) <= value * (1 + 1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_jumps(sign):
    """With the time of a jump given, the solver needs fewer evaluations."""

    def call(integrate, _, **options):
        count = 0

        def f(t, y):
            nonlocal count
            count += 1
            return torch.where(t < 0.7, 1.0, -3.0).to(y) * y

        t = TIMES[:3] if sign > 0 else TIMES[:3].flip(0)
        y = integrate(f, torch.ones(2, dtype=torch.float64), t, rtol=1e-9, atol=1e-9, options=options)
        return y, count

    exact = math.exp(sign * (0.7 - 3 * 0.3))
    unknown = run_both(call)
    known = run_both(lambda *both: call(*both, jump_t=torch.tensor([0.7], dtype=torch.float64)))
    assert known[1][0][-1, 0].item() == pytest.approx(exact, rel=1e-7)
    assert known[1][1] <= known[0][1] < unknown[1][1]


def test_one_time_is_the_start():
    assert torch.equal(odeint(Field(), Y0, TIMES[:1]), Y0[None])
    y = odeint_adjoint(Field(), (Y0, Y0[0]), TIMES[:1])
    assert [part.shape for part in y] == [(1, 3, 2), (1, 2)]


@pytest.mark.parametrize(
    "tol", [(1e-5, 1e-3), [1e-5, torch.tensor(1e-3)], torch.tensor([1e-5, 1e-3]), torch.tensor(1e-4)]
)
def test_tolerances_of_tuples(tol):
    field = Field()

    def call(integrate, _):
        field.nfe = 0
        y = integrate(field, as_state(Y0, "tuple"), TIMES, rtol=tol, atol=1e-6)
        return flat(y).detach(), field.nfe

    (a, a_nfe), (b, b_nfe) = run_both(call)
    assert largest(a - b) < 1e-2
    assert b_nfe <= a_nfe


def test_tolerances_of_tensors():
    field = Field()

    def nfe(tol):
        field.nfe = 0
        odeint(field, Y0, TIMES, rtol=tol, atol=tol)
        return field.nfe

    assert nfe(1e-4) <= nfe(torch.tensor([1e-4, 1e-8])) <= nfe(1e-8)
    assert nfe(torch.tensor(1e-4)) == nfe(torch.tensor([1e-4])) == nfe(1e-4)


COMPILED_OPTIONS = [
    pytest.param("rk4", {}, id="grid-of-t"),
    pytest.param("midpoint", {"perturb": True}, id="perturb"),
    pytest.param("heun3", {"step_size": 0.37}, id="step_size"),
    pytest.param("euler", {"grid_constructor": lambda f, y0, t: torch.linspace(t[0], t[-1], 8)}, id="grid"),
    pytest.param("dopri5", {"first_step": 0.1}, id="adaptive"),
]


@pytest.mark.parametrize(("method", "options"), COMPILED_OPTIONS)
@pytest.mark.parametrize("moves", [False, True], ids=["", "t"])
def test_compiled_solves(uncompiled, method, options, moves):
    """Interpolated outputs and moving grids, too."""
    torch.manual_seed(0)
    net, results = torch.nn.Linear(3, 3).double(), []
    for times in (torch.tensor([0.0, 0.3, 0.74, 1.9]), torch.tensor([2.0, 1.1, 0.2])):
        results.clear()
        for compile in (False, "solve"):
            y0, t = torch.ones(3, dtype=torch.float64, requires_grad=True), times.double().requires_grad_(moves)
            y = odeint(lambda t, y: net(y).sin() * t, y0, t, method=method, options={**options, "compile": compile})
            inputs = [y0, *net.parameters(), *([t] if moves else [])]
            results.append((y, *torch.autograd.grad(y.square().sum() + y[1].sum(), inputs)))
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("moves", [False, True], ids=["", "t"])
def test_a_compiled_solve_whose_states_are_not_finite(uncompiled, moves):
    results = []
    for compile in (False, "solve"):
        y0 = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.0, 0.3, 0.9, 2.0, 3.0], dtype=torch.float64, requires_grad=moves)
        y = odeint(lambda t, y: t * y**3, y0, t, method="rk4", options={"step_size": 0.25, "compile": compile})
        assert not y[-1].isfinite().all()
        results.append((y.isfinite(), y[:2], *torch.autograd.grad(y[1].sum(), [y0, t] if moves else [y0])))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    assert all(gradient.isfinite().all() for gradient in results[1][2:])


def test_compiled_solves_find_their_graphs_again(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    net, y0 = torch.nn.Linear(2, 2), torch.ones(2)

    def func(t, y):
        return net(y)

    for _ in range(3):
        odeint(func, y0, torch.tensor([0.0, 1.0]), method="rk4", options={"compile": "solve"})
    assert len(compiled) == 1


def test_choices_that_compiled_solves_refuse():
    y0, t, options = torch.ones(2), torch.tensor([0.0, 1.0]), {"compile": "solve"}

    def func(t, y):
        return -y

    with pytest.raises(ValueError, match=r"options\['compile'\]='solve' has no interp='cubic'"):
        odeint(func, y0, t, method="rk4", options={**options, "step_size": 0.3, "interp": "cubic"})
    with pytest.raises(ValueError, match="knows no norm functions; leave options"):
        odeint(func, y0, t, options={**options, "norm": torch.linalg.norm})
    with pytest.raises(ValueError, match="a compiled solve has no event"):
        odeint(func, y0, t, options=options, event_fn=lambda t, y: y[0] - 0.5)
    func.callback_step = lambda t, y, dt: None
    with pytest.raises(ValueError, match=r"options\['compile'\]='solve' calls no callbacks"):
        odeint(func, y0, t, options=options)

"""odeint, odeint_adjoint and odeint_event beside torchdiffeq's own: the same calls, answers, warnings and errors."""

import inspect
import math
import warnings

import pytest
import torch
from torch import nn

from odebench.ode import OdeintError, SolveError, odeint, odeint_adjoint, odeint_event
from odebench.ode.methods import METHODS

theirs = pytest.importorskip("torchdiffeq")

LIBRARIES = {"theirs": (theirs.odeint, theirs.odeint_adjoint), "ours": (odeint, odeint_adjoint)}
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams"]
ADAPTIVE = ["dopri5", "bosh3", "dopri8", "fehlberg2", "adaptive_heun"]
# Their own steps of these start from a slope that is not that of the step's start: one evaluation less, a larger error.
STALE_SLOPE = ("fehlberg2", "adaptive_heun")
GRIDS = {
    "step": {"step_size": 0.125},
    "cubic": {"step_size": 0.125, "interp": "cubic"},
    "uneven": {"step_size": 0.07, "interp": "linear"},
    "perturb": {"step_size": 0.25, "perturb": True},
    "constructed": {"grid_constructor": lambda f, y, t: torch.linspace(t[0].item(), t[-1].item(), 13, dtype=t.dtype)},
    "times": {},
}
TIMES = torch.linspace(0, 1.5, 4, dtype=torch.float64)
Y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8], [-1.2, 0.1]], dtype=torch.float64)


class Field(nn.Module):
    """A small network of t and y that counts its evaluations; of a tuple where y0 is one."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.mul_(2)
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        if isinstance(y, tuple):
            both = torch.cat([y[0], y[1].unsqueeze(1)], 1)
            rate = self.layers(torch.cat([both, t.expand(len(both), 1)], 1))
            return rate[:, :1], rate[:, 1]
        return self.layers(torch.cat([y, t.expand(*y.shape[:-1], 1)], -1))


def as_state(y, kind):
    return (y[:, :1], y[:, 1]) if kind == "tuple" else y


def flat(y):
    return torch.cat([part.reshape(len(part), -1) for part in y], 1) if isinstance(y, tuple) else y.flatten(1)


def pair(call):
    """What ``call(odeint, odeint_adjoint)`` gives with their functions and with ours."""
    return call(*LIBRARIES["theirs"]), call(*LIBRARIES["ours"])


def largest(x):
    return x.detach().abs().max().item()


def truth(field, y0, t):
    return flat(odeint(field, y0, t, rtol=1e-11, atol=1e-11)).detach()


@pytest.mark.parametrize(
    ("own", "other"),
    [(odeint, theirs.odeint), (odeint_adjoint, theirs.odeint_adjoint), (odeint_event, theirs.odeint_event)],
    ids=["odeint", "odeint_adjoint", "odeint_event"],
)
def test_signatures(own, other):
    def plain(function):
        return [(p.name, p.kind, getattr(p.default, "__name__", p.default)) for p in parameters(function)]

    def parameters(function):
        return inspect.signature(function).parameters.values()

    assert plain(own) == plain(other)


def test_names_can_be_had_from_the_package():
    import odebench

    assert (odebench.odeint, odebench.odeint_adjoint, odebench.odeint_event) == (odeint, odeint_adjoint, odeint_event)


def test_their_methods_are_ours():
    from torchdiffeq._impl.odeint import SOLVERS

    y0 = torch.ones(2, dtype=torch.float64)
    for name in SOLVERS:
        options = {"step_size": 0.1} if name in FIXED else None
        y = odeint(lambda t, y: -y, y0, TIMES[:2], method=name, options=options, rtol=1e-4, atol=1e-4)
        assert y[-1, 0].item() == pytest.approx(math.exp(-0.5), abs=0.02), name


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_adaptive_states(method, sign, kind):
    """No evaluation more than theirs, and no larger error, where that is above the tolerance."""
    field, y0, t = Field(), as_state(Y0, kind), sign * TIMES
    expected = truth(field, y0, t)
    tol = 1e-3 if METHODS[method].order == 2 else 1e-6
    nfe, errors = [], []
    for integrate, _ in LIBRARIES.values():
        field.nfe = 0
        y = integrate(field, y0, t, rtol=tol, atol=tol, method=method)
        assert isinstance(y, tuple) == (kind == "tuple")
        nfe.append(field.nfe)
        errors.append(largest(flat(y) - expected))
    assert errors[1] <= max(errors[0], 10 * tol)
    if method == "dopri8":  # Three a step for outputs inside of it, which in theirs are of order 4.
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
        # Theirs takes uneven steps for even ones in multistep methods, and has another interpolant there.
        if not method.endswith("adams") or name not in ("uneven", "cubic")
    ],
)
def test_fixed_steps(method, name):
    """Equal to round-off, with as many evaluations or fewer, in both directions."""
    # Of higher orders round-off grows.
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

    def watched(t, y):
        seen.append((t.dtype, t.dim()))
        return field(t, y)

    def call(integrate, _):
        return integrate(watched, y0, TIMES.to(time_dtype), method=method, rtol=1e-5, atol=1e-5)

    a, b = map(flat, pair(call))
    assert a.dtype == b.dtype == dtype
    assert set(seen) == {(dtype, 0)}
    assert largest(a - b) < (1e-3 if method == "dopri5" else 1e-5)


def gradients(integrate, field, y0, t, **how):
    y0 = y0.clone().requires_grad_()
    field.nfe = 0
    y = integrate(field, y0, t, **how)
    forward = field.nfe
    gradient = torch.autograd.grad((y[1:] ** 2).mean() + y[1].sin().sum(), [y0, *field.parameters()])
    return torch.cat([g.reshape(-1) for g in gradient]), forward, field.nfe - forward


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
    a, b = pair(lambda _, adjoint: gradients(adjoint, field, Y0, t, **how))
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
    a, b = pair(lambda *both: gradient_of_times(both[kind == "adjoint"]))
    assert largest(a - b) < 1e-5 * largest(a)


@pytest.mark.parametrize("integrate", LIBRARIES["ours"])
@pytest.mark.parametrize("options", [{"step_size": 0.05}, {"step_size": 0.07}])
def test_gradient_of_times_at_fixed_steps(integrate, options):
    """That of the true solution; theirs is zero at times that the grid hits."""
    expected = gradient_of_times(odeint)
    error = gradient_of_times(integrate, method="rk4", options={**options, "interp": "cubic"}) - expected
    assert largest(error) < 1e-4 * largest(expected)


def test_gradient_of_tuples():
    field = Field()

    def call(_, adjoint):
        y0 = tuple(part.clone().requires_grad_() for part in as_state(Y0, "tuple"))
        y = adjoint(field, y0, TIMES, rtol=1e-8, atol=1e-8)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad((flat(y) ** 2).sum(), [*y0, *field.parameters()])])

    a, b = pair(call)
    assert largest(a - b) < 1e-6 * largest(a)


class Told(Field):
    """Writes down what its callbacks are told.

    It is the same at all times: their backward solve has an equation for the gradient of t, whose error bounds its
    steps.
    """

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, t, y):
        return super().forward(torch.zeros_like(t), y)


def tell(name):
    def callback(self, t, y, dt):
        shape = tuple(part.shape for part in y) if isinstance(y, tuple) else y.shape
        assert t.dim() == dt.dim() == 0
        assert dt > 0
        self.told.append((name, t.item(), shape, dt.item()))

    return callback


NAMES = ["callback_step", "callback_accept_step", "callback_reject_step"]
for name in [*NAMES, *(name + "_adjoint" for name in NAMES)]:
    setattr(Told, name, tell(name))


@pytest.mark.filterwarnings("ignore:Solver 'rk4'")
@pytest.mark.parametrize("kind", ["tensor", "tuple"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("how", [{"options": {"first_step": 0.05}}, {"method": "rk4", "options": {"step_size": 0.2}}])
def test_callbacks(kind, sign, how):
    """The same calls in the same order, forward and backward, until the end of a solve comes into view."""

    def call(_, adjoint):
        field = Told()
        y0 = as_state(Y0.clone().requires_grad_(), kind)
        y = adjoint(field, y0, sign * TIMES[::3], rtol=1e-6, atol=1e-6, **how)
        forward, field.told = field.told, []
        flat(y).sum().backward()
        return forward, field.told

    for end, a, b in zip((1.5, 0.0), *pair(call), strict=True):
        if "method" not in how:
            in_view = [abs(abs(t) - end) < 2.2 * dt for _, t, _, dt in a].index(True)
            a, b = a[:in_view], b[:in_view]
        assert len(a) >= 4
        assert [(name, shape) for name, _, shape, _ in a] == [(name, shape) for name, _, shape, _ in b]
        for (_, t, _, dt), (_, own_t, _, own_dt) in zip(a, b, strict=True):
            # Theirs negates the time in the backward pass of a solve that runs backward in time.
            assert abs(own_t) == pytest.approx(abs(t), rel=1e-3)
            assert own_t * sign >= 0
            assert own_dt == pytest.approx(dt, rel=1e-2)


def test_rejections_are_told():
    field = Told()
    odeint(field, Y0, TIMES, options={"first_step": 1.0})
    names = [name for name, *_ in field.told]
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


@pytest.mark.parametrize(("method", "missing"), [("rk4", NAMES[1:]), ("scipy_solver", NAMES)])
def test_warnings_of_callbacks(method, missing):
    for integrate, _ in LIBRARIES.values():
        with pytest.warns(UserWarning, match="does not support callbacks") as caught:
            integrate(Told(), Y0, TIMES[:2], method=method, rtol=1e-3, atol=1e-3)
        assert [name for name in NAMES if name in str(caught[0].message)] == missing


def test_nothing_is_told_of_what_is_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {
            "min_step": 0.0,
            "max_step": 0.5,
            "safety": 0.9,
            "ifactor": 5.0,
            "dfactor": 0.3,
            "dtype": torch.float64,
        }
        odeint(Field(), Y0, TIMES, options={**options, "norm": lambda y: y.abs().max(), "max_num_steps": 1000})


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


@pytest.mark.parametrize("kind", ["tensor", "tuple"])
def test_adjoint_norms_see_what_theirs_see(kind):
    def call(_, adjoint):
        field, seen = Field(), []

        def norm(parts):
            seen.append([tuple(part.shape) for part in parts])
            return max(part.abs().pow(2).mean().sqrt() for part in parts)

        y0 = as_state(Y0.clone().requires_grad_(), kind)
        y = adjoint(field, y0, TIMES[:2], rtol=1e-5, atol=1e-5, adjoint_options={"norm": norm})
        flat(y)[-1].sum().backward()
        return seen

    a, b = pair(call)
    assert b[0] == a[0]
    assert len(b) <= len(a)


def test_a_norm_that_is_none_counts_as_it_stands():
    """The largest of |x| and x^2 is no norm: errors are still measured in units of the tolerance."""

    def call(integrate, _):
        field = Field()
        integrate(field, Y0, TIMES[:2], rtol=1e-6, atol=1e-6, options={"norm": lambda x: (x**4).mean() ** 0.5})
        return field.nfe

    a, b = pair(call)
    assert b <= a


@pytest.mark.parametrize("name", ["min_step", "max_step", "first_step", "safety"])
def test_step_sizes(name):
    """Options of the step size do what theirs do."""
    value = {"min_step": 0.3, "max_step": 0.05, "first_step": 0.02, "safety": 0.5}[name]

    def call(integrate, _):
        field = Told()
        integrate(
            field, Y0, TIMES, rtol=1e-6, atol=1e-6, options={name: torch.tensor(value) if name == "max_step" else value}
        )
        return [dt for kind, _, _, dt in field.told if kind == "callback_accept_step"]

    a, b = pair(call)
    assert len(b) <= len(a) + 1
    assert b[0] == pytest.approx(a[0], rel=1e-6)
    if name == "max_step":
        assert max(b) <= value * (1 + 1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_jumps(sign):
    """Told of a jump, the solver does not search for it."""

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
    blind = pair(call)
    told = pair(lambda *both: call(*both, jump_t=torch.tensor([0.7], dtype=torch.float64)))
    assert told[1][0][-1, 0].item() == pytest.approx(exact, rel=1e-7)
    assert told[1][1] <= told[0][1] < blind[1][1]


@pytest.mark.parametrize(("integrate", "error"), [(theirs.odeint, ValueError), (odeint, ValueError)])
def test_errors_of_their_kind(integrate, error):
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


def test_adjoint_options_cannot_be_guessed():
    for _, adjoint in LIBRARIES.values():
        with pytest.raises(ValueError, match="adjoint_method != method"):
            adjoint(Field(), Y0, TIMES, method="dopri5", options={"first_step": 0.1}, adjoint_method="rk4")


@pytest.mark.parametrize("integrate", [odeint, odeint_adjoint])
def test_a_failed_solve_is_an_assertion_error_too(integrate):
    """Code that caught torchdiffeq's catches ours."""
    blowing_up = {"adjoint_params": ()} if integrate is odeint_adjoint else {}
    with pytest.raises(AssertionError, match=r"step_underflow|non_finite") as caught:
        integrate(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 2.0]), **blowing_up)
    assert isinstance(caught.value, OdeintError | SolveError)
    assert caught.value.outcome.time == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(AssertionError, match="max_steps"):
        integrate(Field(), Y0, TIMES[:2], options={"max_num_steps": 2})


def test_fixed_steps_give_nan_back():
    def call(_, adjoint):
        y0 = torch.tensor([3.0], requires_grad=True)
        y = adjoint(lambda t, y: y**3, y0, torch.linspace(0, 9, 10), method="euler", adjoint_params=())
        y.sum().backward()
        return y.detach(), y0.grad

    for a, b in zip(*pair(call), strict=True):
        assert not a.isfinite().all()
        assert torch.equal(a.isfinite(), b.isfinite())


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

    (a, a_nfe), (b, b_nfe) = pair(call)
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


def test_tolerances_of_the_backward_tuple():
    """One an entry of (t, y, adjoint, *parameters), or the forward solve's taken over, where theirs fails."""
    field, y0 = Field(), Y0.clone().requires_grad_()
    count = 3 + len(list(field.parameters()))
    expected, *_ = gradients(odeint, field, Y0, TIMES, rtol=1e-9, atol=1e-9)
    for how in ({"adjoint_rtol": [1e-6] * count, "adjoint_atol": [1e-6] * count}, {"rtol": torch.full_like(y0, 1e-6)}):
        gradient, *_ = gradients(odeint_adjoint, field, Y0, TIMES, **{"rtol": 1e-6, "atol": 1e-6, **how})
        assert largest(gradient - expected) < 1e-4 * largest(expected)
    with pytest.raises(ValueError, match="adjoint_rtol: 2 tolerances"):
        odeint_adjoint(field, y0, TIMES, adjoint_rtol=(1e-6, 1e-6))


class TestForgiving:
    """What f may return, and what it may reach, as with theirs."""

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

    def test_a_tuple_of_two_dtypes(self):
        y = odeint(lambda t, y: (-y[0], -y[1]), (torch.ones(2), torch.ones(1).double()), torch.tensor([0.0, 1.0]))
        assert y[0].dtype == y[1].dtype == torch.float64

    @pytest.mark.parametrize("rate", [lambda y: y.T, lambda y: y[:, :1].repeat(1, 5), lambda y: (y, y)])
    def test_shapes_that_cannot_be_meant(self, rate):
        with pytest.raises(ValueError, match="must return"):
            odeint(lambda t, y: rate(y), torch.ones(2, 3), torch.tensor([0.0, 1.0]))

    def test_parameters_in_a_closure(self):
        """torchdiffeq refuses a function that is no module; ours finds what it reaches."""
        weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        y = odeint_adjoint(lambda t, y: -weight * y, torch.ones(1, dtype=torch.float64), TIMES, rtol=1e-8, atol=1e-8)
        y[-1].backward()
        assert weight.grad.item() == pytest.approx(-1.5 * math.exp(-0.75), rel=1e-6)

    def test_parameters_that_are_named(self):
        """Those alone get gradients, be they leaves or not."""
        source = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
        other = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        weight = 2 * source

        def call(_, adjoint):
            y0 = torch.ones(1, dtype=torch.float64)
            y = adjoint(lambda t, y: -weight * other * y, y0, TIMES, adjoint_params=(weight,), rtol=1e-8, atol=1e-8)
            return torch.autograd.grad(y[-1], (source, other), allow_unused=True, retain_graph=True)

        (a, a_other), (b, b_other) = pair(call)
        assert a_other is b_other is None
        assert b.item() == pytest.approx(a.item(), rel=1e-6)

    def test_a_gradient_that_would_be_lost(self):
        """A module that uses a tensor made elsewhere: a silent zero in theirs."""
        field, source = Field(), torch.ones(2, dtype=torch.float64, requires_grad=True)
        field.context = 2 * source
        field.forward = lambda t, y: field.layers(torch.cat([y * field.context, t.expand(3, 1)], -1))
        with pytest.warns(UserWarning, match="adjoint_params"):
            y = odeint_adjoint(field, Y0.clone().requires_grad_(), TIMES)
        y.sum().backward()
        assert source.grad is None
        with pytest.raises(ValueError, match="adjoint_params"):
            odeint_adjoint(field.forward, Y0, TIMES)

    def test_parameters_that_want_no_gradient(self):
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
def test_noisy_layers_are_told(layer):
    """Code with them runs on; ``solve`` refuses them."""
    field = nn.Sequential(layer, nn.Linear(2, 2))
    field.forward = lambda t, y: field[1](field[0](y))
    with pytest.warns(UserWarning, match="in training mode"):
        odeint(field, torch.randn(4, 2), torch.tensor([0.0, 1.0]), method="euler")


def test_no_gradient_is_wanted():
    field = Field()
    with torch.no_grad():
        y = odeint_adjoint(field, Y0, TIMES)
    assert not y.requires_grad
    assert not odeint(field, Y0.clone().requires_grad_(), TIMES, method="scipy_solver", rtol=1e-5).requires_grad


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")
@pytest.mark.parametrize("solver", ["LSODA", "RK45", "BDF"])
def test_scipy(solver):
    field = Field()
    how = {"method": "scipy_solver", "options": {"solver": solver}, "rtol": 1e-6, "atol": 1e-6}
    a, b = pair(lambda integrate, _: integrate(field, Y0, TIMES, **how))
    assert largest(a - b) < 1e-5
    expected, *_ = gradients(odeint, field, Y0, TIMES)
    assert largest(gradients(odeint_adjoint, field, Y0, TIMES, **how)[0] - expected) < 1e-4 * largest(expected)


NEWER = ["implicit_euler", "implicit_midpoint", "trapezoid", "radauIIA3", "gl4", "radauIIA5", "gl6", "sdirk2", "trbdf2"]


@pytest.mark.parametrize("method", ["tsit5", *NEWER])
def test_methods_of_newer_releases(method):
    """The implicit ones go through a grid, as theirs do."""
    field = Field()
    options = {"step_size": 0.05} if method in NEWER else {}
    expected, *_ = gradients(odeint, field, Y0[:1], TIMES)
    gradient, *_ = gradients(odeint_adjoint, field, Y0[:1], TIMES, method=method, options=options)
    assert largest(gradient - expected) < {1: 0.3, 2: 0.02}.get(METHODS[method].order, 1e-3) * largest(expected)


class TestEvents:
    """A ball thrown upward, y = (height, speed), falls back to the ground at 2 v / g."""

    @staticmethod
    def fall(t, y):
        return torch.stack([y[1], torch.full_like(y[1], -10.0)])

    @staticmethod
    def fall_tuple(t, y):
        return y[1], torch.full_like(y[1], -10.0)

    @pytest.mark.parametrize("method", ["dopri5", "bosh3", "tsit5", "rk4", "midpoint", "heun3"])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_time_and_state(self, method, reverse):
        y0 = torch.tensor([1.0, 4.0], dtype=torch.float64)
        how = {
            "method": method,
            "options": {"step_size": 1e-2, "interp": "cubic"} if not METHODS[method].adaptive else None,
        }
        t0 = torch.tensor(0.5, dtype=torch.float64)
        t, y = odeint_event(
            self.fall, y0, t0, event_fn=lambda t, y: y[0], reverse_time=reverse, atol=1e-8, rtol=1e-8, **how
        )
        root = math.sqrt(16 + 20)
        assert t.item() == pytest.approx(0.5 + (4 - root if reverse else 4 + root) / 10, abs=1e-6)
        assert y.shape == (2, 2)
        assert torch.equal(y[0], y0)
        assert y[1].tolist() == pytest.approx([0, root if reverse else -root], abs=1e-5)

    @pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
    @pytest.mark.parametrize("kind", ["tensor", "tuple"])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_gradients(self, interface, kind, reverse):
        """With respect to the state, the time, and a parameter of the event, which gets none from theirs."""
        is_tuple = kind == "tuple"
        height, speed, t0, ground = wanted = [
            torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.0, 4.0, 0.5, 0.2)
        ]
        t, y = odeint_event(
            self.fall_tuple if is_tuple else self.fall,
            (height, speed) if is_tuple else torch.stack([height, speed]),
            t0,
            event_fn=lambda t, y: y[0] - ground,
            reverse_time=reverse,
            odeint_interface=odeint if interface == "odeint" else odeint_adjoint,
            **({"adjoint_params": ()} if interface == "odeint_adjoint" else {}),
        )
        last = y[1][-1] if is_tuple else y[-1, 1]
        root = (-1.0 if reverse else 1.0) * torch.sqrt(speed**2 + 20 * (height - ground))
        exact_t, exact_last = t0 + (speed + root) / 10, -root
        got, expected = (
            torch.stack(torch.autograd.grad(time + time**2 + 3 * end, wanted))
            for time, end in ((t, last), (exact_t, exact_last))
        )
        assert largest(got - expected) < 1e-5 * largest(expected)

    def test_several_functions(self):
        """The first of them that changes its sign ends the solve."""

        def event(t, y):
            return torch.stack([y[0] + 100, 1.3 - y[0], y[0]])

        t0, y0 = torch.tensor(0.0, dtype=torch.float64), torch.tensor([1.0, 4.0], dtype=torch.float64)
        (a, _), (b, _) = (run(self.fall, y0, t0, event_fn=event) for run in (theirs.odeint_event, odeint_event))
        assert b.item() == pytest.approx(a.item(), abs=1e-7)
        assert b.item() == pytest.approx((4 - math.sqrt(16 - 6)) / 10, abs=1e-7)

    def test_a_late_event(self):
        """The second time says the direction only, and no step is bound by it."""
        counts = []
        for integrate, _ in LIBRARIES.values():
            count = 0

            def f(t, y):
                nonlocal count
                count += 1
                return -0.01 * y

            t, _ = integrate(
                f, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0]).double(), event_fn=lambda t, y: y - 0.1
            )
            assert t.item() == pytest.approx(100 * math.log(10), rel=1e-6)
            counts.append(count)
        assert counts[1] <= counts[0]

    def test_no_event(self, monkeypatch):
        monkeypatch.setattr("odebench.ode.drop_in.MAX_EVENT_STEPS", 100)
        y0, t = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0]).double()
        with pytest.raises(RuntimeError, match="max_steps"):
            odeint(lambda t, y: -y, y0, t, method="rk4", options={"step_size": 1e-3}, event_fn=lambda t, y: y + 1)
        with pytest.raises(RuntimeError, match="max_steps"):
            odeint(lambda t, y: -y, y0, t, options={"max_num_steps": 50}, event_fn=lambda t, y: y + 1)
        with pytest.raises(ValueError, match="step_size"):
            odeint(lambda t, y: -y, y0, t, method="rk4", event_fn=lambda t, y: y + 1)

"""Per-sample stepping: each row is solved as if alone, at no higher cost."""

import math

import pytest
import torch
from torch import nn

from odebench.ode import METHODS, Checkpoint, SolveError, Status, Tableau, solve
from odebench.ode.events import Event
from odebench.ode.gradients.step_history import CheckpointStore
from odebench.ode.per_sample import Rows

ADAPTIVE = sorted(name for name, method in METHODS.items() if isinstance(method, Tableau) and method.adaptive)
MU = torch.tensor([0.5, 8.0, 2.0, 4.0], dtype=torch.float64)
Y0 = torch.tensor([[2.0, 0.0], [1.5, -0.5], [0.3, 0.1], [-1.0, 1.0]], dtype=torch.float64)


def van_der_pol(t, y, mu):
    x, v = y.unbind(-1)
    return torch.stack((v, mu * (1 - x * x) * v - x), -1)


def solve_rows(f, y0, t, args=(), **kwargs):
    return solve(f, y0, t, args=args, stepping="per_sample", **kwargs)


def costs(solution):
    """Evaluations, accepted and rejected steps of a solve, or of each of its rows."""
    if solution.rows is None:
        return solution.stats.nfe, solution.stats.accepted, solution.stats.rejected
    return torch.stack((solution.rows.nfe, solution.rows.accepted, solution.rows.rejected), 1).tolist()


class Field(nn.Module):
    """Accepts one state with a scalar time, and rows of states with their times."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.mul_(2)

    def forward(self, t, y, speed, scale):
        return speed.unsqueeze(-1) * scale * self.layers(torch.cat((y, t.unsqueeze(-1)), -1))


# Equal to solving one by one.


@pytest.mark.parametrize("times", [[0.0, 3.0], [0.0, 0.1, 0.11, 2.0, 3.0], [3.0, 2.9, 0.0]], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["autograd", "no_grad"])
@pytest.mark.parametrize(
    "method", [m if m in ("adaptive_heun", "dopri5") else pytest.param(m, marks=pytest.mark.slow) for m in ADAPTIVE]
)
def test_each_row_takes_the_steps_it_takes_alone(method, grad, times):
    tol = {2: 1e-3, 3: 1e-5}.get(METHODS[method].order, 1e-7)
    kwargs = {"method": method, "rtol": tol, "atol": tol}
    mu = 0.2 * MU if times[0] > times[-1] else MU  # it diverges backward in time
    with torch.set_grad_enabled(grad):
        together = solve_rows(van_der_pol, Y0, times, (Rows(mu),), **kwargs)
        alone = [solve(van_der_pol, y, times, args=(m,), **kwargs) for y, m in zip(Y0, mu, strict=True)]
    torch.testing.assert_close(together.y, torch.stack([a.y for a in alone], 1), rtol=1e-9, atol=1e-9)
    assert costs(together) == [list(costs(a)) for a in alone]
    assert together.stats.row_evaluations == sum(a.stats.nfe for a in alone)
    assert together.stats.nfe < together.stats.row_evaluations
    assert together.status is Status.success


def test_states_agree_to_round_off():
    together = solve_rows(van_der_pol, Y0, [0.0, 0.5, 1.0], (Rows(MU),), rtol=1e-6, atol=1e-6)
    alone = [
        solve(van_der_pol, y, [0.0, 0.5, 1.0], args=(m,), rtol=1e-6, atol=1e-6).y for y, m in zip(Y0, MU, strict=True)
    ]
    torch.testing.assert_close(together.y, torch.stack(alone, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"controller": "integral"},
        {"controller": "pi"},
        {"controller": "pid"},
        {"first_step": 0.01},
        {"max_step": 0.05},
        {"min_step": 0.02},
        {"rtol": 1e-4, "atol": torch.tensor([1e-8, 1e-3], dtype=torch.float64)},
        {"method": "rk4", "steps": 17},
        {"method": "dopri5", "step_size": 0.07},
    ],
    ids=str,
)
def test_step_size_options_apply_to_each_row_as_if_alone(kwargs):
    spans = torch.tensor([[0.0, 0.2, 1.0], [0.0, 1.5, 2.0], [1.0, 0.7, -0.5], [0.5, 1.0, 1.6]], dtype=torch.float64)
    together = solve_rows(van_der_pol, Y0, spans, (Rows(MU),), **kwargs)
    alone = [solve(van_der_pol, y, t, args=(m,), **kwargs) for y, t, m in zip(Y0, spans, MU, strict=True)]
    torch.testing.assert_close(together.y, torch.stack([a.y for a in alone], 1), rtol=1e-9, atol=1e-9)
    assert costs(together) == [list(costs(a)) for a in alone]
    assert torch.equal(together.t, spans)
    assert torch.equal(together.rows.time, spans[:, -1])


@pytest.mark.parametrize(
    ("f", "end", "kwargs"),
    [
        # The last step is shorter than min_step, although a step of min_step was not proposed.
        pytest.param(lambda t, y: -y * (1 + 1000.0 * (t > 0.97)), 1.0, {"first_step": 0.1, "min_step": 0.1}, id="min"),
        # A first step that is small beside the last time, but not beside the first.
        pytest.param(lambda t, y: -1e-7 * y, 1e6, {"first_step": 1e-10}, id="underflow"),
    ],
)
def test_the_bounds_of_step_sizes_are_those_of_shared_steps(f, end, kwargs):
    t, y0 = torch.tensor([0.0, end], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)

    def by_row(t, y):
        return f(t.unsqueeze(-1), y)

    alone, row = solve(f, y0, t, **kwargs), solve_rows(by_row, y0.unsqueeze(0), t, **kwargs)
    assert costs(row) == [list(costs(alone))]
    torch.testing.assert_close(row.y[:, 0], alone.y, rtol=1e-9, atol=1e-9)


def test_a_nested_state_gives_the_solution_of_the_flat_state():
    def nested(t, y, mu):
        rate = van_der_pol(t, torch.stack((y["x"], y["v"][0].squeeze(-1)), -1), mu)
        return {"x": rate[:, 0], "v": (rate[:, 1:],)}

    times = [0.0, 1.0, 3.0]
    flat = solve_rows(van_der_pol, Y0, times, (Rows(MU),))
    solution = solve_rows(nested, {"x": Y0[:, 0], "v": (Y0[:, 1:],)}, times, ({"mu": Rows(MU)}["mu"],))
    assert solution.y["x"].shape == (3, 4)
    assert solution.y["v"][0].shape == (3, 4, 1)
    torch.testing.assert_close(torch.cat((solution.y["x"].unsqueeze(-1), solution.y["v"][0]), -1), flat.y)
    assert costs(solution) == costs(flat)


def test_other_arguments_are_unchanged_and_shared_stepping_unwraps_rows():
    weight = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)

    def f(t, y, options):
        assert options["weight"] is weight
        assert len(options["mu"]) == len(y)
        return options["mu"].unsqueeze(-1) * y @ weight

    args = ({"weight": weight, "mu": Rows(MU), "name": "kept"},)
    per_row = solve_rows(f, Y0, [0.0, 1.0], args, rtol=1e-9, atol=1e-9)
    shared = solve(f, Y0, [0.0, 1.0], args=args, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(per_row.y, shared.y, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex128], ids=str)
def test_other_dtypes(dtype):
    seen = set()
    rate = torch.tensor([1.0, 2.0, 3.0])

    def f(t, y):
        seen.add((t.dtype, y.dtype))
        return -y

    tol = 1e-2 if dtype is torch.bfloat16 else 1e-5
    solution = solve_rows(f, rate.to(dtype).unsqueeze(-1), [0.0, 0.5, 1.0], rtol=tol, atol=tol)
    assert solution.y.dtype is dtype
    assert seen == {(torch.float64 if dtype is torch.complex128 else torch.float32, dtype)}
    torch.testing.assert_close(solution.y[-1].squeeze(-1), (rate * math.exp(-1)).to(dtype), rtol=tol, atol=tol)


def test_a_field_may_reuse_its_output_buffer():
    buffer = torch.empty_like(Y0)

    def f(t, y, mu):
        return buffer[: len(y)].copy_(van_der_pol(t, y, mu))

    with torch.no_grad():
        reused = solve_rows(f, Y0, [0.0, 0.5, 2.0], (Rows(MU),))
        new = solve_rows(van_der_pol, Y0, [0.0, 0.5, 2.0], (Rows(MU),))
    assert torch.equal(reused.y, new.y)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_one_row_and_no_rows(gradient):
    one = solve_rows(van_der_pol, Y0[:1], [0.0, 1.0, 2.0], (Rows(MU[:1]),), gradient=gradient)
    torch.testing.assert_close(one.y[:, 0], solve(van_der_pol, Y0[0], [0.0, 1.0, 2.0], args=(MU[0],)).y)
    empty = solve_rows(van_der_pol, Y0[:0], [0.0, 1.0, 2.0], (Rows(MU[:0]),), gradient=gradient)
    assert (empty.y.shape, empty.status, empty.stats.nfe) == ((3, 0, 2), Status.success, 0)


# Cost.


def test_finished_rows_are_no_longer_evaluated():
    seen = []

    def f(t, y):
        seen.append(len(y))
        assert t.shape == (len(y),)
        return -y

    ends = torch.tensor([[0.0, 1.0], [0.0, 30.0], [0.0, 5.0]], dtype=torch.float64)
    solution = solve_rows(f, Y0[:3], ends)
    assert (seen[0], seen[-1]) == (3, 1)
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == solution.stats.nfe
    assert sum(seen) == solution.stats.row_evaluations == int(solution.rows.nfe.sum())


def test_outputs_inside_steps_cost_no_evaluations():
    few = solve_rows(van_der_pol, Y0, [0.0, 5.0], (Rows(MU),))
    many = solve_rows(van_der_pol, Y0, torch.linspace(0, 5, 101), (Rows(MU),))
    assert many.stats == few.stats
    assert torch.equal(many.y[-1], few.y[-1])


# Failures of single rows.


@pytest.mark.parametrize("grad", [True, False], ids=["autograd", "no_grad"])
def test_a_row_that_fails_does_not_stop_the_others(grad):
    """y' = y^2 from 1 blows up at t = 1, from 0.1 at t = 10; the last row is not a number from the start."""
    y0 = torch.tensor([[0.1], [1.0], [0.2], [math.nan]], dtype=torch.float64)
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(SolveError, match=r"non_finite.*\[1 of 4 rows, first row 3\]") as caught,
    ):
        solve_rows(lambda t, y: y * y, y0, [0.0, 0.5, 2.0], rtol=1e-5, atol=1e-5)
    solution = caught.value.solution
    assert solution.rows.status == (Status.success, Status.step_underflow, Status.success, Status.non_finite)
    assert solution.rows.time.tolist() == pytest.approx([2, 1, 2, 0], abs=1e-3)
    assert solution.y[2, [0, 2], 0].tolist() == pytest.approx([1 / 8, 1 / 3], rel=1e-3)
    assert float(solution.y[1, 1]) == pytest.approx(2.0, rel=1e-3)
    assert solution.y[2, [1, 3]].isnan().all()
    assert solution.outcome.reached == 1


def test_max_steps_counts_for_each_row():
    solution = solve_rows(van_der_pol, Y0, [0.0, 10.0], (Rows(MU),), max_steps=80, throw=False)
    alone = [
        solve(van_der_pol, y, [0.0, 10.0], args=(m,), max_steps=80, throw=False) for y, m in zip(Y0, MU, strict=True)
    ]
    assert {Status.success, Status.max_steps} == set(solution.rows.status)
    assert solution.rows.status == tuple(a.status for a in alone)
    assert costs(solution) == [list(costs(a)) for a in alone]


def test_fixed_steps_report_the_row_that_is_not_finite():
    y0 = torch.tensor([[1.0], [math.inf]], dtype=torch.float64)
    solution = solve_rows(lambda t, y: -y, y0, [0.0, 1.0], method="rk4", steps=5, throw=False)
    assert solution.rows.status == (Status.success, Status.non_finite)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gradient": "adjoint"}, "has no gradient='adjoint'; choose gradient='backprop' or gradient='checkpoint'"),
        ({"dense": True}, "has no dense output"),
        ({"jump_t": [0.5]}, "has no step_t"),
        ({"event": [Event(lambda t, y: y[:, 0], terminal=False)]}, "one event, and it must be terminal"),
        ({"event": lambda t, y, mu: y}, "one value per row"),
        ({"t": [0.0, 1.0, 1.0]}, "strictly"),
        ({"t": torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])}, "unlike row 1"),
        ({"t": torch.zeros(3, 2)}, r"\[4, T\]"),
        ({"y0": torch.tensor(1.0)}, r"must be \[B, ...\]"),
        ({"y0": (torch.zeros(2), torch.zeros(3))}, "with one B"),
        ({"args": (Rows(MU[:2]),)}, "one entry per row"),
        ({"f": lambda t, y, mu: Y0, "max_step": 0.5}, "finished rows are removed"),
        ({"f": lambda t, y, mu: y.mul_(2)}, "changed y in place"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_invalid_arguments_raise(kwargs, message):
    call = {
        "f": van_der_pol,
        "y0": Y0.clone(),
        "t": torch.tensor([[0.0, 1.0 + i] for i in range(4)]),
        "args": (Rows(MU),),
    }
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        solve(**(call | kwargs), stepping="per_sample")


# Gradients.


def gradient_inputs():
    y0 = Y0.clone().requires_grad_()
    speed = torch.tensor([0.3, 3.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    times = torch.tensor([[0, 0.2, 0.3, 1], [0, 1, 1.5, 4], [1, 0.5, 0.4, -0.5], [0.5, 0.6, 2, 3]], dtype=torch.float64)
    return y0, speed, scale, times.requires_grad_()


def loss_of(y):
    """Nonlinear, with a weight for every output time."""
    return (y[1:] ** 2).sum() + torch.sin(y[1]).sum()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"method": "dopri5", "first_step": 3.0},
        {"method": "bosh3", "controller": "pi"},
        {"method": "adaptive_heun", "rtol": 1e-3, "atol": 1e-3, "first_step": 1.0},
        {"method": "rk4", "steps": 12},
    ],
    ids=str,
)
def test_gradients_are_those_of_solving_one_by_one(kwargs):
    field = Field()
    inputs = (*gradient_inputs(), *field.parameters())
    y0, speed, scale, times = inputs[:4]
    alone = sum(loss_of(solve(field, y0[i], times[i], args=(speed[i], scale), **kwargs).y) for i in range(4))
    expected = torch.autograd.grad(alone, inputs)
    for gradient in ("backprop", Checkpoint(checkpoints=3), "checkpoint"):
        solution = solve_rows(field, y0, times, (Rows(speed), scale), gradient=gradient, **kwargs)
        found = torch.autograd.grad(loss_of(solution.y), inputs)
        for tensor, one, other in zip(inputs, found, expected, strict=True):
            if tensor is times and "steps" in kwargs:
                continue  # Alone it is that of the discrete solve.
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert "steps" in kwargs or solution.stats.rejected > 0
    assert 0 < solution.stats.backward.row_evaluations < solution.stats.row_evaluations


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_more_states_of_all_rows_are_stored_than_checkpoints(limit, monkeypatch):
    """The gradient stays the same, to round-off, with more evaluations."""
    largest, real_save = 0, CheckpointStore.save_if_due

    def save_if_due(store, n, y):
        nonlocal largest
        real_save(store, n, y)
        assert y.shape == Y0.shape
        largest = max(largest, len(store))

    monkeypatch.setattr(CheckpointStore, "save_if_due", save_if_due)
    found, work = [], []
    for gradient in (Checkpoint(), Checkpoint(checkpoints=limit)):
        y0, mu = Y0.clone().requires_grad_(), MU.clone().requires_grad_()
        solution = solve_rows(van_der_pol, y0, [0.0, 0.7, 3.0], (Rows(mu),), gradient=gradient)
        found.append(torch.autograd.grad((solution.y[1:] ** 2).sum(), (y0, mu)))
        work.append(solution.stats.backward.row_evaluations)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert 1 <= largest <= limit
    assert work[1] > work[0]


def test_backprop_is_differentiable_twice():
    y0 = torch.tensor([[0.5], [1.0]], dtype=torch.float64, requires_grad=True)
    end = solve_rows(lambda t, y: -y * y, y0, [0.0, 1.0], rtol=1e-10, atol=1e-10).y[-1]
    (first,) = torch.autograd.grad(end.sum(), y0, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y0)
    torch.testing.assert_close(first, (1 + y0) ** -2)  # y(1) = y0 / (1 + y0)
    torch.testing.assert_close(second, -2 * (1 + y0) ** -3)


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_non_finite_rows_do_not_affect_the_gradient_of_others(gradient, method):
    """sqrt(y) is NaN where a trial step of a row leaves the domain, and where the last row starts."""
    weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0], [100.0], [-1.0]], dtype=torch.float64, requires_grad=True)

    def f(t, y):
        return -torch.sqrt(weight * y)

    tol = 1e-6 if method == "dopri5" else 1e-4
    kwargs = {"first_step": 1.9, "rtol": tol, "atol": tol, "gradient": gradient, "method": method, "throw": False}
    solution = solve_rows(f, y0, [0.0, 1.9], **kwargs)
    assert solution.rows.status == (Status.success, Status.success, Status.non_finite)
    assert int(solution.rows.rejected[0]) > 0
    found = torch.autograd.grad(solution.y[-1, :2].sum(), (y0, weight))
    root = y0.detach()[:2, 0].sqrt()
    # y = (sqrt(y0) - sqrt(weight) t / 2)^2
    expected = -(root - 0.95).sum() * 0.95
    torch.testing.assert_close(found[0][:2, 0], (root - 0.95) / root, rtol=1e-3, atol=1e-3)
    assert float(found[0][2]) == 0
    assert float(found[1]) == pytest.approx(float(expected), rel=1e-3)


def test_checkpoint_raises_for_lost_gradients_and_unsupported_options():
    outside = torch.ones(1, dtype=torch.float64, requires_grad=True) * 2
    with pytest.raises(ValueError, match="computed outside"):
        solve_rows(lambda t, y: outside * y, Y0, [0.0, 1.0], gradient="checkpoint")
    with pytest.raises(ValueError, match="has no events"):
        solve_rows(lambda t, y: y, Y0, [0.0, 1.0], gradient="checkpoint", event=lambda t, y: y[:, 0])
    for mode in (Checkpoint(recompute="stage"), Checkpoint(keep="graphs")):
        with pytest.raises(ValueError, match="checkpoint then has neither recompute nor keep"):
            solve_rows(lambda t, y: y, Y0, [0.0, 1.0], gradient=mode)


# Events.


@pytest.mark.parametrize("kwargs", [{"method": "dopri5"}, {"method": "bosh3"}, {"method": "rk4", "steps": 7}], ids=str)
def test_each_row_ends_at_its_own_event(kwargs):
    """A stone falls from a height; the last one does not arrive before the last time."""
    g = 9.81
    height = torch.tensor([1.0, 3.0, 2.0, 100.0], dtype=torch.float64, requires_grad=True)
    y0 = torch.stack((height, torch.zeros_like(height)), 1)
    solution = solve_rows(
        lambda t, y: torch.stack((y[:, 1], torch.full_like(y[:, 1], -g)), 1),
        y0,
        torch.linspace(0, 2, 9, dtype=torch.float64),
        event=lambda t, y: y[:, 0],
        rtol=1e-6,
        atol=1e-6,
        **kwargs,
    )
    assert solution.rows.status == (Status.event,) * 3 + (Status.success,)
    assert solution.status is Status.event
    hit, fell = solution.events[0], (2 * height / g).sqrt()[:3]
    torch.testing.assert_close(hit.t[:3], fell, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(solution.rows.time[:3], hit.t[:3].detach(), rtol=0, atol=0)
    torch.testing.assert_close(hit.y[:3, 1], -g * fell, rtol=1e-5, atol=1e-5)
    assert hit.y[:3, 0].abs().max() < 1e-9
    assert hit.t[3].isnan()
    assert hit.y[3].isnan().all()
    before = solution.t[:, None] <= torch.cat((fell, fell.new_full((1,), 9)))
    assert torch.equal(before, ~solution.y[..., 0].isnan())
    (found,) = torch.autograd.grad(hit.t[:3].sum() + hit.y[:3, 1].sum(), height)
    torch.testing.assert_close(found[:3], (1 - g) * fell / (2 * height[:3]), rtol=1e-4, atol=1e-4)
    assert float(found[3]) == 0


@torch.no_grad()
@pytest.mark.parametrize("direction", [-1, 0, 1])
def test_an_event_that_starts_at_zero_detects_its_next_zero_in_the_given_direction(direction):
    """sin(w t), as a rotation."""
    speed = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    y0 = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(3, 2)
    solution = solve_rows(
        lambda t, y, w: torch.stack((w * y[:, 1], -w * y[:, 0]), 1),
        y0,
        [0.0, 10.0],
        (Rows(speed),),
        event=Event(lambda t, y, w: y[:, 0], direction=direction),
        rtol=1e-9,
        atol=1e-9,
    )
    period = 2 if direction == 1 else 1
    torch.testing.assert_close(solution.events[0].t, period * math.pi / speed, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["dopri5", "vern7", "dopri8", "adaptive_heun"])
def test_the_gradient_with_an_event_that_starts_at_zero(method):
    speed = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    gradients = []
    for stepping in ("shared", "per_sample"):
        solution = solve(
            lambda t, y: torch.stack((y[..., 1] * speed, -y[..., 0] * speed), -1),
            torch.tensor([[1.0, 0.0]], dtype=torch.float64),
            [0.0, 1.0, 20.0],
            event=lambda t, y, shared=stepping == "shared": y[:, 1].sum() if shared else y[:, 1],
            method=method,
            stepping=stepping,
            rtol=1e-6,
            atol=1e-6,
        )
        gradients += torch.autograd.grad(solution.y[1].sum(), speed)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
@pytest.mark.parametrize("value", [1.0, math.nan], ids=["f", "y0"])
def test_f_is_not_called_for_no_rows(gradient, value):
    """Where no row can start."""
    sizes = []

    def f(t, y):
        sizes.append(len(y))
        return y * math.nan

    t = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    solution = solve_rows(f, torch.full((3, 2), value, requires_grad=True), t, gradient=gradient, throw=False)
    solution.y[0].sum().backward()
    assert solution.rows.status == (Status.non_finite,) * 3
    assert 0 not in sizes
    assert solution.rows.nfe.tolist() == [len(sizes)] * 3

"""``solve``: exact solutions, outputs, statistics, statuses, and clear errors."""

import functools
import math
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.multiprocessing  # teaches the pickler of multiprocessing about tensors
from torch.distributed import ProcessGroup

from odebench.ode import METHODS, Event, SolveError, Status, Tableau, odeint, solve

A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
Y0 = torch.tensor([2.0, 0.5], dtype=torch.float64)


def rotate(t, y):
    return A @ y


def exact(times):
    return torch.stack([torch.matrix_exp(A * t) @ Y0 for t in times])


@pytest.mark.parametrize("times", [[0.0, 0.01, 0.02, 1.3, 5.0], [5.0, 4.99, 2.0, 0.0], [0.0, 5.0]], ids=str)
@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
def test_outputs_lie_on_the_exact_solution_in_both_directions(method, times):
    start = torch.linalg.solve(torch.matrix_exp(-A * times[0]), Y0)
    solution = solve(rotate, start, times, method=method, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.y, exact(times), rtol=1e-6, atol=1e-6)
    assert solution.status is Status.success


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("how", [{"method": "rk4", "steps": 50}, {"method": "dopri5"}], ids=["rk4", "dopri5"])
def test_states_are_the_same_with_and_without_gradients(how, grad):
    times = [0.0, 0.3, 0.31, 2.0]
    with torch.set_grad_enabled(grad):
        solution = solve(rotate, Y0, times, **how)
    with torch.set_grad_enabled(not grad):
        other = solve(rotate, Y0, times, **how)
    torch.testing.assert_close(solution.y, other.y, rtol=1e-13, atol=1e-13)
    assert solution.stats.nfe == other.stats.nfe
    assert solution.stats.step_sizes == pytest.approx(other.stats.step_sizes, rel=1e-9)


def test_a_nested_state_equals_the_flat_one():
    def nested(t, y):
        rate = A @ torch.stack((y["a"][0], y["b"]))
        return {"a": (rate[0],), "b": rate[1]}

    solution = solve(nested, {"a": (Y0[0],), "b": Y0[1]}, [0.0, 1.0, 2.0])
    flat = solve(rotate, Y0, [0.0, 1.0, 2.0])
    torch.testing.assert_close(torch.stack((solution.y["a"][0], solution.y["b"]), 1), flat.y)


def test_every_evaluation_is_counted_and_no_other():
    calls = 0

    def counted(t, y):
        nonlocal calls
        calls += 1
        return rotate(t, y)

    solution = solve(counted, Y0, [0.0, 3.0], rtol=1e-6, atol=1e-6)
    stats = solution.stats
    # The first evaluation, one for the first step size, then six an attempt: the seventh is the next one's first.
    assert calls == stats.nfe == 2 + 6 * (stats.accepted + stats.rejected)
    assert sum(stats.step_sizes) == pytest.approx(3.0)
    assert len(stats.step_sizes) == stats.accepted
    assert stats.backward is None


@pytest.mark.parametrize(
    ("method", "evaluations"), [("euler", 1), ("midpoint", 2), ("rk4", 4), ("dopri5", 6), ("bosh3", 3)]
)
def test_fixed_steps_cost_what_the_tableau_says(method, evaluations):
    solution = solve(rotate, Y0, [0.0, 0.5, 1.0], method=method, steps=10)
    assert solution.stats.nfe == 10 * evaluations
    assert solution.stats.step_sizes == pytest.approx([0.1] * 10)


def test_the_end_is_reached_without_a_tiny_last_step():
    for end in torch.linspace(0.5, 5, 40).tolist():
        sizes = solve(rotate, Y0, [0.0, end], rtol=1e-6, atol=1e-6).stats.step_sizes
        assert sizes[-1] > 0.3 * max(sizes[1:])


def test_outputs_inside_steps_cost_no_evaluations():
    few = solve(rotate, Y0, [0.0, 5.0])
    many = solve(rotate, Y0, torch.linspace(0, 5, 101))
    assert many.stats == few.stats
    torch.testing.assert_close(many.y[-1], few.y[-1], rtol=0, atol=0)


def test_a_given_first_step_saves_the_evaluation_for_it():
    searched = solve(rotate, Y0, [0.0, 3.0])
    given = solve(rotate, Y0, [0.0, 3.0], first_step=searched.stats.step_sizes[0])
    assert given.stats.nfe == searched.stats.nfe - 1
    assert given.stats.step_sizes == searched.stats.step_sizes


def test_a_warm_first_step_saves_steps():
    cold = solve(rotate, Y0, [0.0, 3.0], rtol=1e-4, atol=1e-4)
    warm = solve(rotate, Y0, [0.0, 3.0], rtol=1e-4, atol=1e-4, first_step=cold.stats.warm_step)
    assert cold.stats.step_sizes[0] < cold.stats.warm_step
    assert warm.stats.rejected == 0
    assert warm.stats.nfe < cold.stats.nfe - 1
    torch.testing.assert_close(warm.y, cold.y, rtol=1e-3, atol=1e-3)


def test_float32_states_stay_float32_and_get_time_in_float32():
    seen = []

    def f(t, y):
        seen.append((t.dtype, t.shape))
        return -y

    solution = solve(f, torch.ones(3), [0.0, 1.0])
    assert solution.y.dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.Size([]))}
    torch.testing.assert_close(solution.y[-1], torch.full((3,), math.exp(-1)), rtol=1e-4, atol=1e-5)


def test_bfloat16_states_get_time_in_float32():
    dtypes = set()

    def f(t, y):
        dtypes.add(t.dtype)
        return -y

    solution = solve(f, torch.ones(3, dtype=torch.bfloat16), [0.0, 1.0], rtol=1e-1, atol=1e-1)
    assert (solution.y.dtype, dtypes) == (torch.bfloat16, {torch.float32})


def test_a_method_may_be_a_tableau():
    heun = Tableau("heun", "Heun 1900", 2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
    errors = [float((solve(rotate, Y0, [0, 1], method=heun, steps=n).y[-1] - exact([1])[0]).norm()) for n in (50, 100)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_an_empty_state_is_solved():
    assert solve(lambda t, y: y, torch.zeros(0, 3), [0.0, 1.0]).y.shape == (2, 0, 3)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_field_may_write_to_one_buffer_of_its_own(grad):
    buffer = torch.empty_like(Y0)
    with torch.set_grad_enabled(grad):
        solution = solve(lambda t, y: torch.mv(A, y, out=buffer), Y0, [0.0, 1.0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solution.y[-1], exact([1.0])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
@pytest.mark.parametrize("without_grad", [torch.no_grad, torch.inference_mode])
def test_a_field_that_changes_its_input_is_refused_and_y0_is_kept(stepping, without_grad):
    y0 = torch.tensor([[1.0, -2.0]])
    with without_grad(), pytest.raises(ValueError, match="changed y in place"):
        solve(lambda t, y: y.relu_(), y0, [0.0, 1.0], stepping=stepping)
    assert y0.tolist() == [[1.0, -2.0]]


def test_the_first_step_is_estimated_inside_the_span():
    seen = []

    def slow(t, y):
        seen.append(float(t))
        return 1e-6 * y

    solve(slow, Y0, [0.0, 1.0])
    assert max(seen) <= 1.0


def test_a_zero_atol_works_with_zeros_in_the_state():
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    solution = solve(lambda t, y: -y, y0, [0.0, 1.0], rtol=1e-6, atol=0)
    torch.testing.assert_close(solution.y[-1], y0 * math.exp(-1), rtol=1e-5, atol=0)


# Failed solves: the status, its message, and the states that were reached.


def test_blow_up_ends_as_step_underflow_with_the_partial_solution():
    with pytest.raises(SolveError, match="step_underflow") as caught:
        solve(lambda t, y: y * y, torch.ones(1, dtype=torch.float64), [0.0, 0.5, 2.0])
    solution = caught.value.solution
    assert caught.value.outcome.time == pytest.approx(1.0, abs=1e-3)
    assert float(solution.y[1]) == pytest.approx(2.0, rel=1e-4)
    assert solution.y[2].isnan().all()


@pytest.mark.parametrize(
    "how", [{}, {"method": "rk4", "steps": 10}, {"first_step": 0.1}], ids=["search", "fixed", "given"]
)
def test_nan_has_its_own_status(how):
    with pytest.raises(SolveError, match="non_finite: the vector field gave NaN or inf"):
        solve(lambda t, y: y * math.nan, Y0, [0.0, 1.0], **how)


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
@pytest.mark.parametrize(
    ("y0", "times", "how", "cause"),
    [
        (0.0, [0.0, 1.0], {"rtol": 1e-6, "atol": 0.0}, "overflows when divided by the error scale .*give atol > 0"),
        (
            1.0,
            [1.0, 2.0],
            {"first_step": 1e-17},
            "too small to change t at t=1.*give a larger first_step",
        ),
        (1.0, [1e15, 1e15 + 10], {}, r"too small to change t at t=1e\+15.*replace t by t - t0"),
    ],
    ids=["zero scale", "first_step", "large t"],
)
def test_a_first_step_that_underflows_names_its_cause(stepping, y0, times, how, cause):
    """Under torchdiffeq's words, which people search for."""
    start = torch.tensor([[y0, 1.0]], dtype=torch.float64)
    with pytest.raises(SolveError, match=r"step_underflow \(underflow in dt\): .*" + cause) as caught:
        solve(lambda t, y: 2 - y, start, times, stepping=stepping, **how)
    assert "NaN" not in str(caught.value)


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
@pytest.mark.parametrize("method", ["bosh3", "dopri5", "dopri8"])
def test_a_first_step_that_underflows_at_a_zero_state_names_atol(stepping, method):
    """One component: dy/dt is finite in units of the scale, and the step is tiny but not 0."""
    start = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(SolveError, match=r"step_underflow \(underflow in dt\): .*atol > 0"):
        solve(lambda t, y: 1 - y, start, [0.0, 1.0], method=method, stepping=stepping, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("stepping", ["shared", "per_sample"])
@pytest.mark.parametrize("y0", [0.0, 1.0])
@pytest.mark.parametrize("late", [False, True], ids=["at the start", "after the start"])
def test_a_first_step_from_a_field_that_is_infinite_is_not_an_underflow(stepping, y0, late):
    def field(t, y):
        return y + (math.inf if bool((t > 0).any()) or not late else 1.0)

    with pytest.raises(SolveError, match="non_finite: the vector field gave NaN or inf"):
        solve(field, torch.full((1, 2), y0, dtype=torch.float64), [0.0, 1.0], stepping=stepping)


@pytest.mark.parametrize("times", [[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]], ids=["forward", "backward"])
def test_fixed_steps_end_at_step_t_and_at_output_times(times):
    solution = solve(lambda t, y: -y, torch.ones(1, dtype=torch.float64), times, method="rk4", steps=4, step_t=[0.3, 5])
    ends = times[0] + torch.tensor(solution.stats.step_sizes, dtype=torch.float64).cumsum(0)
    for time in (0.3, *times[1:]):
        assert (ends - time).abs().min() < 1e-15
    assert len(ends) < 8


JUMPS = {
    **{name: {"steps": 4} for name in ("rk4", "bosh3", "explicit_adams", "trapezoid", "kvaerno3")},
    **{name: {"rtol": 1e-9, "atol": 1e-9} for name in ("dopri5", "tsit5", "adams", "radauIIA5", "rodas4")},
}


@pytest.mark.parametrize("mode", ["backprop", "checkpoint", "adjoint", "interpolated_adjoint"])
@pytest.mark.parametrize("method", JUMPS)
def test_f_is_evaluated_on_both_sides_of_a_jump(method, mode):
    """y' = a before t = 0.3 and 3 a after it: every method and every gradient is exact, unless a step or a stage
    evaluates f on the wrong side of the jump."""
    if mode == "checkpoint" and "adams" in method:
        pytest.skip("a step of Adams needs more than the state it starts from")
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(1, dtype=torch.float64)

    def f(t, y, a):
        return torch.where(t < 0.3, a, 3 * a).expand(1)

    y = solve(f, y0, [0.0, 1.0], args=(a,), method=method, jump_t=[0.3], gradient=mode, **JUMPS[method]).y[-1]
    assert y.item() == pytest.approx(2 * 0.3 + 6 * 0.7, rel=1e-8)
    (slope,) = torch.autograd.grad(y.sum(), a)
    assert slope.item() == pytest.approx(0.3 + 3 * 0.7, rel=1e-8)


def test_outputs_next_to_a_jump_are_interpolated_from_one_side():
    def f(t, y):
        return torch.where(t < 0.3, 1.0, 3.0).double().expand(1)

    solution = solve(
        f, torch.zeros(1, dtype=torch.float64), [0.0, 1.0], method="rk4", steps=3, jump_t=[0.3], dense=True
    )
    torch.testing.assert_close(solution.dense([0.15, 0.28, 0.35]).flatten(), torch.tensor([0.15, 0.28, 0.45]).double())


def test_a_jump_with_a_stage_after_the_step_raises_an_error():
    with pytest.raises(ValueError, match="jump_t: a stage of kvaerno5 is later than the end"):
        solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], method="kvaerno5", jump_t=[0.3])


def test_a_field_that_is_nan_beyond_a_step_too_long_is_still_solved():
    """sqrt(y) is NaN where an attempted step leaves the domain; a smaller one does not."""
    y0 = torch.ones(1, dtype=torch.float64)
    solution = solve(lambda t, y: -torch.sqrt(y), y0, [0.0, 1.9], first_step=1.9, rtol=1e-8, atol=1e-8)
    assert solution.stats.rejected == len(solution.stats.rejected_steps) > 0
    assert solution.stats.rejected_steps[0] == (0.0, 1.9)
    assert float(solution.y[-1]) == pytest.approx((1 - 1.9 / 2) ** 2, abs=1e-6)


def test_max_steps_is_a_status_not_only_an_error():
    solution = solve(rotate, Y0, [0.0, 1.0, 100.0], max_steps=20, throw=False)
    assert solution.status is Status.max_steps
    assert solution.stats.accepted + solution.stats.rejected == 20
    torch.testing.assert_close(solution.y[1], exact([1.0])[0], rtol=1e-3, atol=1e-3)
    assert "raise max_steps" in solution.outcome.message()


def solve_error(call, **how):
    """The error of a solve that blows up before its end."""
    start = torch.ones(1, dtype=torch.float64, requires_grad=True) * 1
    times = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    with pytest.raises(SolveError) as caught:
        call(lambda t, y: y**2, start, times, **how)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        lambda: solve_error(solve, max_steps=40),
        lambda: solve_error(solve, max_steps=40, dense=True, event=Event(lambda t, y: y[0] + t - 2, terminal=False)),
        lambda: solve_error(solve, method="rk4", steps=40),
        lambda: solve_error(odeint, options={"max_num_steps": 20}),
        lambda: SolveError(solve_error(solve, max_steps=40).outcome, during="backward solve of the adjoint"),
    ],
    ids=["solve", "dense and event", "fixed steps", "odeint", "backward"],
)
def test_the_error_of_a_failed_solve_can_be_pickled(error):
    """Pickled as by multiprocessing, which refuses tensors with a graph, and lambdas."""
    error = error()
    copy = pickle.loads(bytes(ForkingPickler.dumps(error)))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert repr(copy.outcome) == repr(error.outcome)
    if error.solution is None:
        assert copy.solution is None
        return
    assert copy.solution.status is error.solution.status
    assert copy.solution.stats == error.solution.stats
    torch.testing.assert_close(copy.solution.y, error.solution.y.detach(), rtol=0, atol=0, equal_nan=True)
    if error.solution.dense is not None:
        torch.testing.assert_close(copy.solution.dense(0.3), error.solution.dense(0.3).detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": [0.0]}, "two or more times"),
        ({"t": [0.0, 1.0, 1.0]}, "strictly increasing"),
        ({"t": [0.0, 2.0, 1.0]}, "strictly increasing"),
        ({"t": [0.0, math.inf]}, "finite"),
        ({"y0": torch.ones(2, dtype=torch.int64)}, "floating-point"),
        ({"y0": (torch.ones(2), torch.ones(2, dtype=torch.float64))}, "one dtype"),
        ({"method": "dopri"}, r"unknown method 'dopri'; did you mean dopri5 or dopri8\?"),
        ({"method": "xyz"}, "unknown method 'xyz'; the methods are euler, midpoint"),
        ({"method": "rk4"}, "steps: rk4 has no error estimate .* give steps=20"),
        ({"steps": 3, "step_size": 0.1}, "not both"),
        ({"steps": 0}, "steps must be positive"),
        ({"rtol": -1}, "must not be negative"),
        ({"rtol": 0, "atol": 0}, "and not both zero"),
        ({"rtol": math.nan}, "and not both zero"),
        ({"max_steps": 0}, "max_steps must be positive"),
        ({"group": ProcessGroup(0, 1), "method": "kvaerno5"}, "no explicit Runge-Kutta method"),
        ({"group": ProcessGroup(0, 1), "stepping": "per_sample"}, "gives each process its own steps"),
        ({"gradient": "magic"}, "unknown gradient mode 'magic'"),
        ({"f": lambda t, y: y[:1]}, "tensors of y's shape"),
        ({"f": lambda t, y: (y, y)}, "structure of y"),
        ({"f": lambda t, y: y.float()}, "y's dtype"),
    ],
    ids=lambda value: None if isinstance(value, str) else ",".join(value),
)
def test_invalid_arguments_raise(change, message):
    arguments = {"f": rotate, "y0": Y0, "t": [0.0, 1.0]} | change
    with pytest.raises(ValueError, match=message):
        solve(arguments.pop("f"), arguments.pop("y0"), arguments.pop("t"), **arguments)


def test_arguments_of_wrong_types_raise():
    with pytest.raises(TypeError, match="y0 must be a tensor"):
        solve(rotate, [1.0, 2.0], [0.0, 1.0])
    with pytest.raises(TypeError, match="f must be callable"):
        solve("f", Y0, [0.0, 1.0])
    with pytest.raises(TypeError, match="args must be a tuple"):
        solve(rotate, Y0, [0.0, 1.0], args=Y0)


def test_methods_are_listed_by_name():
    assert set(METHODS) == {method.name for method in METHODS.values()}


def test_layers_that_a_method_does_not_use_are_ignored():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.net = torch.nn.Dropout(0.5), torch.nn.Linear(3, 3)

        def rate(self, t, y):
            return self.changed(y)

        def changed(self, y):
            return self.net(y)

    model = Model().train()
    assert solve(model.rate, torch.ones(4, 3), [0.0, 1.0]).status is Status.success
    model.net = torch.nn.Sequential(model.net, torch.nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"1 \(Dropout\) in training mode"):
        solve(model.rate, torch.ones(4, 3), [0.0, 1.0])


GLOBAL_FIELD = None  # of the test below


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)], ids=["batch norm", "dropout"])
@pytest.mark.parametrize("wrap", ["module", "closure", "method", "object's method", "object", "global", "partial"])
def test_layers_that_change_at_every_evaluation_are_refused(layer, wrap, monkeypatch):
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, t, y):
            return self.layer(y)

    class Holder:
        def __init__(self, field):
            self.field = field

        def __call__(self, t, y):
            return self.field(t, y)

    field = Field().train()
    monkeypatch.setitem(globals(), "GLOBAL_FIELD", field)
    f = {
        "module": field,
        "closure": lambda t, y: field(t, y),
        "method": field.forward,
        "object's method": Holder(field).__call__,
        "object": Holder(field),
        "global": lambda t, y: GLOBAL_FIELD(t, y),
        "partial": functools.partial(lambda field, t, y: field(t, y), field),
    }[wrap]
    with pytest.raises(ValueError, match=r"layer \(.*\) in training mode.*call .eval\(\)"):
        solve(f, torch.ones(4, 3), [0.0, 1.0])
    field.eval()
    assert solve(f, torch.ones(4, 3), [0.0, 1.0]).status is Status.success

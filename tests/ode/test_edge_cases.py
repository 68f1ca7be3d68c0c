"""Edge cases in every gradient mode: empty states, unusual fields and times, errors that say what to do."""

import gc
import math

import pytest
import torch

from odebench.ode import GRADIENTS, Checkpoint, SolveError, solve

W = torch.tensor([[0.3, -0.8], [0.9, 0.2]], dtype=torch.float64)


def how(mode, adaptive=False):
    if adaptive:
        return {"method": "reversible_dopri5" if mode == "reversible" else "dopri5", "gradient": mode}
    return {"method": "reversible_rk4" if mode == "reversible" else "rk4", "steps": 10, "gradient": mode}


@pytest.fixture
def weight():
    return W.clone().requires_grad_()


@pytest.fixture
def y0():
    return torch.tensor([0.5, -0.4], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("mode", GRADIENTS)
def test_an_empty_batch_has_a_zero_gradient(mode, adaptive, weight):
    start = torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
    y = solve(lambda t, y: torch.tanh(y @ weight), start, [0.0, 0.5, 1.0], **how(mode, adaptive)).y
    assert y.shape == (3, 0, 2)
    by_start, by_weight = torch.autograd.grad(y.sum(), (start, weight))
    assert by_start.shape == start.shape
    assert torch.equal(by_weight, torch.zeros_like(weight))


@pytest.mark.parametrize("mode", GRADIENTS)
def test_a_state_without_dimensions_is_solved(mode):
    start = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y = solve(lambda t, y: -y, start, [0, 1], **how(mode)).y
    assert y.shape == (2,)
    assert float(torch.autograd.grad(y[-1], start)[0]) == pytest.approx(math.exp(-1), rel=1e-5)


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda t, y: y, math.e),  # the very tensor that it was given
        (lambda t, y: torch.ones_like(y), 1.0),  # without any graph
        (lambda t, y: torch.ones(2, dtype=y.dtype) * t, 1.0),  # of time alone
        (lambda t, y: y.flip(0).flip(0), math.e),
        (lambda t, y: y.sum().expand(2), (math.exp(2) + 1) / 2 + (math.exp(2) - 1) / 2),  # one number in memory
    ],
    ids=["identity", "constant", "time", "flipped", "expanded"],
)
@pytest.mark.parametrize("mode", GRADIENTS)
def test_fields_with_unusual_graphs_have_the_right_gradients(mode, f, slope, y0):
    y = solve(f, y0, [0.0, 1.0], **how(mode)).y
    (gradient,) = torch.autograd.grad(y[-1].sum(), y0)
    assert gradient.tolist() == pytest.approx([slope, slope], rel=1e-4)


@pytest.mark.parametrize("mode", GRADIENTS)
def test_a_start_that_shares_memory_gets_the_sum_of_its_gradients(mode, y0, weight):
    y = solve(lambda t, y: torch.tanh(y @ weight), y0.expand(3, 2), [0.0, 1.0], **how(mode)).y
    one = solve(lambda t, y: torch.tanh(y @ weight), y0, [0.0, 1.0], **how(mode)).y
    shared, single = torch.autograd.grad(y.sum(), y0)[0], torch.autograd.grad(one.sum(), y0)[0]
    torch.testing.assert_close(shared, 3 * single, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", GRADIENTS)
def test_a_loss_of_the_first_time_only_has_a_gradient_for_the_start_only(mode, y0, weight):
    y = solve(lambda t, y: torch.tanh(weight @ y), y0, [0.0, 1.0], **how(mode)).y
    by_start, by_weight = torch.autograd.grad(y[0].sum(), (y0, weight))
    assert torch.equal(by_start, torch.ones_like(y0))
    assert torch.equal(by_weight, torch.zeros_like(weight))


@pytest.mark.parametrize("mode", GRADIENTS)
def test_a_solve_without_anything_to_differentiate_has_no_graph(mode, y0):
    assert not solve(lambda t, y: -y, y0.detach(), [0.0, 1.0], **how(mode)).y.requires_grad


@pytest.mark.parametrize("mode", GRADIENTS)
def test_the_weight_gets_its_gradient_if_the_start_requires_none(mode, y0, weight):
    found = {}
    for name in ("backprop", mode):
        y = solve(lambda t, y: torch.tanh(weight @ y), y0.detach(), [0.0, 1.0], **how(mode) | {"gradient": name}).y
        (found[name],) = torch.autograd.grad(y.sum(), weight)
    torch.testing.assert_close(found[mode], found["backprop"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda t, y: y[:1], "tensors of y's shape"),
        (lambda t, y: y.float(), "y's dtype"),
        (lambda t, y: (y,), r"f\(t, y\) must return"),
        (lambda t, y: None, "tensors of y's shape"),
    ],
    ids=["shape", "dtype", "structure", "nothing"],
)
@pytest.mark.parametrize("mode", GRADIENTS)
def test_invalid_results_of_f_raise_in_every_mode(mode, f, message, y0):
    with pytest.raises(ValueError, match=message):
        solve(f, y0, [0.0, 1.0], **how(mode))


@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("mode", GRADIENTS)
def test_nan_has_its_own_status_in_every_mode(mode, adaptive, y0, weight):
    with pytest.raises(SolveError, match="non_finite"):
        solve(lambda t, y: weight @ y * math.nan, y0, [0.0, 1.0], **how(mode, adaptive))


@pytest.mark.parametrize(
    "times",
    [[1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 2.0, 1.0], [0.0], [], torch.tensor(1.0), torch.tensor([[0.0, 1.0]])],
    ids=["equal", "twice", "back and forth", "one", "none", "a number", "two-dimensional"],
)
def test_times_without_a_span_raise(times, y0):
    with pytest.raises(ValueError, match=r"t must (hold two or more times|be strictly increasing)"):
        solve(lambda t, y: -y, y0, times)


@pytest.mark.parametrize("times", [None, 0.5, "ab"], ids=str)
def test_times_of_wrong_types_raise(times, y0):
    with pytest.raises(TypeError, match="t must be a tensor or a list"):
        solve(lambda t, y: -y, y0, times)


@pytest.mark.parametrize("start", [None, {}, (), [1.0]], ids=str)
def test_a_state_without_tensors_is_refused(start):
    with pytest.raises(TypeError, match="y0 must be a tensor"):
        solve(lambda t, y: y, start, [0.0, 1.0])


def test_an_error_inside_f_is_passed_on(y0):
    with pytest.raises(ZeroDivisionError):
        solve(lambda t, y: y * (1 / 0), y0, [0.0, 1.0])


@pytest.mark.parametrize(
    "how", [{"method": "kvaerno5"}, {"method": "rodas4"}, {"method": "vode_adams"}, {"stepping": "per_sample"}]
)
def test_conjugate_views_may_be_states(how):
    start = torch.tensor([[1 + 2j], [0.5 - 1j]]).conj()
    assert start.is_conj()
    for y0 in (start, start.imag):
        assert torch.allclose(solve(lambda t, y: -y, y0, [0.0, 1.0], **how).y[-1], y0 * math.exp(-1), rtol=1e-3)
    # f gives a conjugate: its real part grows, its imaginary part falls.
    end = solve(lambda t, y: y.conj(), start.resolve_conj(), [0.0, 1.0], **how).y[-1]
    assert torch.allclose(end, torch.complex(start.real * math.e, start.imag / math.e), rtol=1e-3)


OPTIONS = {
    **{f"{mode}, {adaptive}": how(mode, adaptive) for mode in GRADIENTS for adaptive in (True, False)},
    "scipy": {"method": "scipy_rk45", "gradient": "adjoint"},
    "event": {"event": lambda t, y: y.sum() - 9.0},
    "dense": {"dense": True, "jump_t": [0.3]},
    "rows": {"stepping": "per_sample"},
    "rows, fixed": {"stepping": "per_sample", "method": "rk4", "steps": 3},
    "rows, checkpoint": {"stepping": "per_sample", "gradient": "checkpoint"},
    "rows, event": {"stepping": "per_sample", "event": lambda t, y: y.sum(1) - 3.0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_default_device_may_be_another_one_than_that_of_the_state(name):
    y0 = torch.ones(3, 2, requires_grad=True)
    times = torch.tensor([0.0, 0.5, 1.0])
    with torch.device("meta"):  # such as torch.set_default_device("cuda")
        y = solve(lambda t, y: torch.cos(t).reshape(-1, 1) * y, y0, times, **OPTIONS[name]).y
        y.nansum().backward()
    assert y.device == y0.grad.device == y0.device


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        *(how(mode) for mode in GRADIENTS),
        {"stepping": "per_sample"},
        {"stepping": "per_sample", "gradient": "checkpoint"},
        {"stepping": "per_sample", "gradient": Checkpoint(checkpoints=2)},
    ],
    ids=str,
)
def test_a_solve_leaves_no_tensors_to_the_garbage_collector(options, backward, y0, weight):
    def num_tensors_after_a_solve():
        times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad="stepping" not in options)
        y = solve(lambda t, y: torch.tanh(y @ weight), y0.expand(3, 2), times, **options).y
        if backward:
            y.sum().backward()
        del y, times
        return sum(type(x) is torch.Tensor for x in gc.get_objects())

    num_tensors_after_a_solve()
    gc.collect()
    gc.disable()
    try:
        assert num_tensors_after_a_solve() == num_tensors_after_a_solve()
    finally:
        gc.enable()


@pytest.mark.parametrize("empty", [{}, (), [{}]])
def test_arguments_without_tensors_are_passed_to_f(empty):
    given = []
    solve(lambda t, y, p: given.append(p) or -y, torch.ones(2), [0.0, 1.0], args=(empty,))
    assert given[0] == empty

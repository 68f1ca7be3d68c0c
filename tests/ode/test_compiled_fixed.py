"""Compiled fixed steps give the states, statistics and gradients of the eager ones.

Most tests run the compiled loops as plain Python, which takes milliseconds instead of half a minute.
"""

import logging
import warnings

import pytest
import torch
from compiled_solves import (
    Network,
    assert_equal,
    assert_sizes_share_a_graph,
    both,
    both_with_structures,
    each_with_few_times,
    few,
    needs_compiler,
    start,
)
from torch import nn

from odebench.ode import METHODS, Status, Tableau, solve
from odebench.ode.compiled import fixed_run

EXPLICIT = [name for name, method in METHODS.items() if isinstance(method, Tableau)]
# Warnings of torch while its compiler starts.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch"
)
TIMES = [(0.0, 2.0), (0.0, 0.1, 0.15, 1.0, 2.0), (2.0, 1.5, 0.0)]


def compare(times=TIMES[0], moves=False, dtype=torch.float64, tolerance=1e-9, **options):
    """Compare solves of a network with their gradients; return the eager and the compiled solution."""
    field, (y0, scale), t = Network(dtype), start(dtype=dtype), torch.tensor(times, requires_grad=moves)
    inputs = [*field.parameters(), *([t] if moves else [])]
    eager, compiled = both(field, y0, t.double() if moves else t, (scale,), inputs, **{"steps": 9, **options})
    assert_equal(eager, compiled, tolerance)
    return eager[0], compiled[0]


@pytest.mark.parametrize(("method", "times"), each_with_few_times(EXPLICIT, TIMES, "dopri5", "rk4"))
def test_every_method_takes_the_eager_steps(uncompiled, method, times):
    compare(times, method=method)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
@pytest.mark.parametrize("moves", [False, True], ids=["", "t"])
@pytest.mark.parametrize("times", TIMES, ids=["ends", "inside", "back"])
@pytest.mark.parametrize("method", few(["euler", "dopri5"], "dopri5"))
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id=""),
        pytest.param({"steps": None, "step_size": 0.3}, id="step_size"),
        pytest.param({"step_t": [0.7]}, id="step_t"),
        pytest.param({"jump_t": [0.1, 0.7, 1.0, 5.0]}, id="jump_t"),
        pytest.param({"step_t": [0.7, 0.8], "max_steps": 10}, id="max_steps"),
    ],
)
def test_gradients_of_all_inputs(uncompiled, gradient, method, times, moves, options):
    eager, compiled = compare(times, moves, gradient=gradient, method=method, **options)
    if gradient == "checkpoint" and eager.status is Status.success:
        assert compiled.stats.backward.nfe == eager.stats.backward.nfe


def test_a_field_with_jumps(uncompiled):
    def f(t, y, scale):
        return torch.where(t < 0.5, scale * y, -y)

    for times in ((0.0, 1.0), (1.0, 0.7, 0.0)):
        y0, scale = start()
        assert_equal(*both(f, y0, times, (scale,), method="rk4", steps=3, jump_t=[0.5]))


@pytest.mark.parametrize("times", [(0.0, 9.0), (9.0, *(9 - 0.07 * i for i in range(1, 100)), 0.0)], ids=["ends", "in"])
def test_a_solve_longer_than_its_buffers_continues(uncompiled, monkeypatch, times):
    monkeypatch.setattr(fixed_run, "MAX_ROWS", 7)
    for moves in (False, True):
        _, compiled = compare(times, moves, method="heun3", steps=30)
        assert compiled.stats.accepted > 28
    monkeypatch.setattr(fixed_run, "BUFFER_BYTES", 1)
    compare(times, method="heun3", steps=30)


@pytest.mark.parametrize("gradient", ["backprop", "adjoint", None])
@pytest.mark.parametrize("times", TIMES, ids=["ends", "inside", "back"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id=""),
        pytest.param({"method": "dopri5", "jump_t": [0.1, 0.7, 1.0, 5.0]}, id="jump_t"),
        pytest.param({"method": "euler", "step_t": [0.7, 0.8], "max_steps": 10}, id="max_steps"),
    ],
)
def test_dense_output(uncompiled, monkeypatch, gradient, times, options):
    """It interpolates between the slopes at both ends of a step, on both sides of a jump."""
    monkeypatch.setattr(fixed_run, "MAX_ROWS", 4)

    class Jumping(Network):
        def forward(self, t, y, scale):
            return super().forward(t, y, scale) * torch.where(t < 0.7, 1.0, -2.0)

    field, (y0, scale) = Jumping(), start(requires_grad=gradient is not None)
    options = {"method": "rk4", "steps": 9, "dense": True, "gradient": gradient or "backprop", **options}
    parameters = field.parameters() if gradient else ()
    with torch.set_grad_enabled(gradient is not None):
        eager, compiled = both(field, y0, times, (scale,), parameters, **options)
    assert_equal(eager, compiled)
    dense, expected = compiled[0].dense, eager[0].dense
    assert dense.span == expected.span
    at = torch.linspace(*dense.span, 101, dtype=torch.float64)
    torch.testing.assert_close(dense(at), expected(at), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dense.derivative(at), expected.derivative(at), rtol=1e-7, atol=1e-7)
    if gradient:
        with pytest.raises(RuntimeError, match="and without compile='solve'"):
            dense(at).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_structures_of_tensors(uncompiled, dtype):
    both_with_structures(dtype, method="rk4", steps=5)


def test_without_a_gradient(uncompiled):
    field, (y0, scale) = Network(), start(requires_grad=False)
    for context in (torch.no_grad, torch.inference_mode):
        for times in TIMES:
            with context():
                eager, compiled = both(field, y0, times, (scale,), method="rk4", steps=4)
            assert not compiled[0].y.requires_grad
            assert_equal(eager, compiled)
    assert_equal(*both(lambda t, y: -y, y0, (0.0, 2.0), method="euler", steps=4))
    assert_equal(*both(lambda t, y: -y, y0[:0], (0.0, 1.0, 2.0), method="euler", steps=4))


@pytest.mark.parametrize("times", [(0.0, 1.0, 2.0, 3.0), (0.0, 0.5, 3.0), (0.0, 3.0)])
def test_states_that_are_not_finite(uncompiled, times):
    y0 = torch.tensor([1.0, 9.0], dtype=torch.float64, requires_grad=True)
    eager, compiled = both(lambda t, y: y**3, y0, times, method="rk4", step_size=0.25)
    assert compiled[0].status is Status.non_finite
    assert_equal(eager, compiled)
    assert compiled[1][0].isfinite().all()
    assert_equal(*both(lambda t, y: -y, y0.detach() * torch.inf, times, method="rk4", step_size=0.25))


def test_parameters_inside_functional_call(uncompiled):
    """The module has other parameters when the gradient is computed."""
    field, (y0, scale) = Network(), start()
    parameters = {name: (2 * p).detach().requires_grad_() for name, p in field.named_parameters()}

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = field

        def forward(self, compile):
            y = solve(self.field, y0, (0.0, 1.0), args=(scale,), method="rk4", steps=4, compile=compile).y
            return y[-1].sum()

    leaves = list(parameters.values())
    named = {f"field.{name}": p for name, p in parameters.items()}
    eager, compiled = (
        torch.autograd.grad(torch.func.functional_call(Loss(), named, (compile,)), leaves, allow_unused=True)
        for compile in (False, "solve")
    )
    torch.testing.assert_close(compiled, eager)


def test_derivatives_that_would_be_lost_raise_an_error(uncompiled):
    field, (y0, scale) = Network(), start()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    y = solve(field, y0, t, args=(scale,), method="rk4", steps=4, compile="solve").y[-1]
    for gradient in torch.autograd.grad(y.sum(), (y0, t), create_graph=True):
        with pytest.raises(RuntimeError, match="is differentiable once; leave compile out"):
            gradient.sum().backward(retain_graph=True)


def test_a_graph_is_used_twice_only_if_retained(uncompiled):
    field, (y0, scale) = Network(), start()
    options = {"args": (scale,), "method": "rk4", "steps": 4, "compile": "solve"}
    loss = solve(field, y0, (0.0, 0.1, 1.0), **options).y.square().sum()
    (first,) = torch.autograd.grad(loss, y0, retain_graph=True)
    solve(field, y0 + 1, (0.0, 0.1, 1.0), **options)
    (second,) = torch.autograd.grad(loss, y0)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, y0)


def test_noise_and_errors_of_f(uncompiled):
    options = {"method": "rk4", "steps": 4, "compile": "solve"}
    for requires_grad in (False, True):
        y0 = torch.ones(2, requires_grad=requires_grad)
        with pytest.raises(ValueError, match="draws random numbers"):
            solve(lambda t, y: -y + torch.randn(2), y0, (0.0, 1.0), **options)
        with pytest.raises(ValueError, match="y's shape"):
            solve(lambda t, y: y[:1], y0, (0.0, 1.0), **options)


def test_events_are_refused():
    options = {"event": lambda t, y: y[0], "method": "rk4", "steps": 4, "compile": "solve"}
    with pytest.raises(ValueError, match="a compiled solve has no event"):
        solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0), **options)


WEIGHT = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        pytest.param(lambda t, y: -y if y.sum() > 1 else y, "torch cannot compile it: ", id="branch"),
        pytest.param(lambda t, y: -y * WEIGHT, "is no parameter of a module; pass it through args", id="tensor"),
        pytest.param(lambda t, y: -y * (WEIGHT * 2).detach(), "", id="constant"),
    ],
)
def test_a_field_that_cannot_be_compiled_runs_eagerly_after_one_warning(captured, f, reason):
    y0, options = torch.full((2,), 1.5, requires_grad=True), {"method": "rk4", "steps": 4}
    t = torch.tensor([0.0, 0.4, 1.0], requires_grad=True)
    expected = solve(f, y0, t, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for _ in range(2):
            solution = solve(f, y0, t, compile="solve", **options)
    messages = [text for warning in caught if "compile='solve'" in (text := str(warning.message))]
    assert [reason in text for text in messages] == ([True] if reason else [])
    torch.testing.assert_close(solution.y, expected.y)
    assert solution.stats == expected.stats
    gradients = [torch.autograd.grad(x.y.sum(), (y0, t)) for x in (solution, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_the_loops_are_captured_once(captured, caplog):
    """For any number of steps and output times, with and without a gradient."""
    field, (y0, scale) = Network(), start()
    caplog.set_level(logging.INFO, "odebench")
    with torch._dynamo.config.patch(recompile_limit=1), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for steps in (3, 8, 200):
            options = {"args": (scale,), "method": "bosh3", "steps": steps, "compile": "solve"}
            for times in ((0.0, 0.2, 1.0), (0.0, 0.4, 0.5, 1.0), (1.0, 0.7, 0.0)):
                solve(field, y0, times, **options).y.sum().backward()
                with torch.no_grad():
                    solve(field, y0, times[::2], **options)
    logged = [record.message.split(",")[0] for record in caplog.records]
    assert [line for line in logged if "compiled in" not in line] == ["compiling the solve", "compiling the gradient"]


@pytest.mark.slow
def test_states_of_any_size_share_a_graph(captured, caplog):
    assert_sizes_share_a_graph(assert_equal, caplog, TIMES[:2], method="euler", steps=9)


@needs_compiler
@pytest.mark.compiler
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"method": "euler", "steps": 200}, id="euler"),
        pytest.param({"method": "rk4", "moves": True, "jump_t": [0.7], "times": (2.0, 1.9, 1.0, 0.0)}, id="times"),
    ],
)
def test_compiled_by_inductor(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="torch")
        compare(**options)
        with torch.inference_mode():
            solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0), method="euler", steps=4, compile="solve")

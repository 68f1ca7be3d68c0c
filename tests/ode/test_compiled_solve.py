"""A compiled solve takes the steps of the eager one, with its states, statistics and gradients.

Most tests run the compiled loops as plain Python, which takes milliseconds instead of half a minute.
"""

import logging
import math
import re
import sys
import warnings

import detest
import pytest
import torch
from compiled_solves import (
    Network,
    assert_equal,
    both,
    both_with_structures,
    each_with_few_times,
    few,
    needs_compiler,
    start,
)
from torch import nn

from odebench.ode import METHODS, Status, Tableau, solve
from odebench.ode.compiled import graph
from odebench.ode.compiled import run as compiled_run
from odebench.ode.compiled.graph import CompiledGraph, loop

ADAPTIVE = [name for name, method in METHODS.items() if isinstance(method, Tableau) and method.adaptive]
# Warnings of torch while its compiler starts.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch"
)


@pytest.mark.parametrize(
    ("method", "times"),
    each_with_few_times(ADAPTIVE, [(0.0, 2.0), (0.0, 0.1, 0.15, 1.0, 2.0), (2.0, 1.5, 0.0)], "dopri5", "vern7"),
)
def test_every_method_takes_the_eager_steps(uncompiled, method, times):
    field, (y0, scale) = Network(), start()
    options = {"method": method, "rtol": 1e-4, "atol": 1e-5}
    assert_equal(*both(field, y0, times, (scale,), field.parameters(), **options))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"controller": "pi"}, id="pi"),
        pytest.param({"controller": "pid"}, id="pid"),
        pytest.param({"first_step": 1.9}, id="rejected"),
        pytest.param({"first_step": 1e-4}, id="warm"),
        pytest.param({"min_step": 0.3}, id="min_step"),
        pytest.param({"max_step": 0.11}, id="max_step"),
        pytest.param({"max_steps": 3}, id="max_steps"),
        pytest.param({"atol": 0.0}, id="relative"),
        pytest.param({"rtol": 0.0}, id="absolute"),
        pytest.param({"first_step": 1e-30}, id="underflow"),
    ],
)
@pytest.mark.parametrize("times", [(0.0, 2.0), (2.0, 1.9, 0.5)], ids=["ends", "inside"])
def test_step_control_is_the_eager_one(uncompiled, options, times):
    field, (y0, scale) = Network(), start()
    y0 = (y0 + 2).detach().requires_grad_()
    assert_equal(*both(field, y0, times, (scale,), field.parameters(), **{"rtol": 1e-6, "atol": 1e-7, **options}))


@pytest.mark.parametrize("times", [(0.0, 9.0), (9.0, *(9 - 0.07 * i for i in range(1, 100)), 0.0)], ids=["ends", "in"])
def test_a_solve_longer_than_its_buffers_continues(uncompiled, monkeypatch, times):
    monkeypatch.setattr(compiled_run, "MAX_ROWS", 7)
    compiled_run._compiled_solve.cache_clear()
    field, (y0, scale) = Network(), start()
    eager, compiled = both(field, y0, times, (scale,), field.parameters(), controller="pid", rtol=1e-7, max_step=0.3)
    assert compiled[0].stats.accepted > 28
    assert_equal(eager, compiled)
    assert_equal(*both(field, y0, times, (scale,), field.parameters(), rtol=1e-7, max_steps=20))
    compiled_run._compiled_solve.cache_clear()


def test_the_gradient_of_checkpoint_is_the_same_and_both_count_their_evaluations(uncompiled):
    field, (y0, scale) = Network(), start()
    for times in ((0.0, 2.0), (0.0, 0.3, 2.0)):
        eager, compiled = both(field, y0, times, (scale,), field.parameters(), gradient="checkpoint")
        assert_equal(eager, compiled)
        _, backprop = both(field, y0, times, (scale,), field.parameters())
        for one, other in zip(backprop[1], compiled[1], strict=True):
            assert one is None or torch.equal(one, other)  # None: no part of f
        accepted, stages = compiled[0].stats.accepted, METHODS["dopri5"].stages
        assert compiled[0].stats.backward.nfe == backprop[0].stats.backward.nfe == accepted * (stages - 1) + 1


@pytest.mark.parametrize("method", ["dopri5", "vern7"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_structures_of_tensors(uncompiled, method, dtype):
    both_with_structures(dtype, method=method, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("times", [(0.0, 2.0), (0.0, 0.4, 2.0)])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_a_tolerance_for_each_component(uncompiled, name, times):
    field, (y0, scale) = Network(), start()
    options = {"rtol": 1e-5, "atol": 1e-6, name: torch.tensor([[1e-4, 1e-6], [1e3, 0.0], [1e-5, 1e-5]])}
    assert_equal(*both(field, y0, times, (scale,), field.parameters(), **options))


def test_without_a_gradient(uncompiled):
    field, (y0, scale) = Network(), start(requires_grad=False)
    for context in (torch.no_grad, torch.inference_mode):
        for times in ((0.0, 2.0), (0.0, 0.2, 2.0)):
            with context():
                eager, compiled = both(field, y0, times, (scale,))
            assert not compiled[0].y.requires_grad
            assert_equal(eager, compiled)
    assert_equal(*both(lambda t, y: -y, y0, (0.0, 2.0)))
    assert_equal(*both(lambda t, y: -y, y0[:0], (0.0, 1.0, 2.0)))


@pytest.mark.parametrize("name", few(detest.PROBLEMS, "A1", "B1", "C1", "D1", "E1"))
def test_detest_problems_take_the_eager_steps(uncompiled, name):
    problem = detest.PROBLEMS[name]
    times = torch.linspace(0.0, detest.END, 5, dtype=torch.float64)
    eager, compiled = (
        solve(problem.f, problem.y0, times, rtol=1e-6, atol=1e-6, max_step=2.0, compile=c) for c in (False, "solve")
    )
    assert (compiled.stats.accepted, compiled.stats.rejected) == (eager.stats.accepted, eager.stats.rejected)
    assert compiled.stats.nfe == eager.stats.nfe
    assert compiled.stats.step_sizes == pytest.approx(eager.stats.step_sizes, rel=1e-6)
    torch.testing.assert_close(compiled.y, eager.y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("times", [(0.0, 2.0), (2.0, 1.9, 1.5, 0.0)], ids=["ends", "inside"])
@pytest.mark.parametrize("method", few(["dopri5", "adaptive_heun", "vern7"], "vern7"))
@pytest.mark.parametrize(
    "stops",
    [
        pytest.param({"step_t": [0.25, 1.5, 7.0]}, id="step_t"),
        pytest.param({"jump_t": [0.3, 1.0, 2.0]}, id="jump_t"),
        pytest.param({"step_t": [0.6], "jump_t": [1.0], "max_steps": 20, "rtol": 1e-7, "controller": "pi"}, id="few"),
    ],
)
def test_times_that_a_step_must_end_at(uncompiled, stops, method, times):
    class Jumping(Network):
        def forward(self, t, y, scale):
            return super().forward(t, y, scale) * torch.where(t < 1.0, 1.0, -2.0)

    field, (y0, scale) = Jumping(), start()
    options = {"method": method, "rtol": 1e-4, **stops}
    assert_equal(*both(field, y0, times, (scale,), field.parameters(), **options))


@pytest.mark.parametrize("method", few(["dopri5", "tsit5", "vern7"], "vern7"))
@pytest.mark.parametrize("times", [(0.0, 2.0), (2.0, 1.9, 0.0)], ids=["ends", "inside"])
def test_dense_output_and_its_gradient_that_would_be_lost(uncompiled, method, times):
    field, (y0, scale) = Network(), start()
    options = {"dense": True, "method": method, "controller": "pi"}
    eager, compiled = both(field, y0, times, (scale,), field.parameters(), **options)
    assert_equal(eager, compiled)
    at = torch.linspace(0.0, 2.0, 23, dtype=torch.float64)
    torch.testing.assert_close(compiled[0].dense(at), eager[0].dense(at), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compiled[0].dense.derivative(at), eager[0].dense.derivative(at), rtol=1e-7, atol=1e-7)
    with pytest.raises(RuntimeError, match="and without compile='solve'"):
        compiled[0].dense(at).sum().backward()


def test_tolerances_of_components(uncompiled):
    field, (y0, scale) = Network(), start()
    for rtol in (torch.tensor([1e-3, 1e-7]), 0.0):
        atol = torch.full((3, 1), 1e-6)
        for times in ((0.0, 2.0), (0.0, 0.1, 2.0)):
            assert_equal(*both(field, y0, times, (scale,), field.parameters(), rtol=rtol, atol=atol))


def test_large_states_have_few_rows(uncompiled, monkeypatch):
    monkeypatch.setattr(compiled_run, "BUFFER_BYTES", 1000)
    compiled_run._compiled_solve.cache_clear()
    field, (y0, scale) = Network(), start()
    assert_equal(*both(field, y0, (0.0, 0.5, 2.0), (scale,), field.parameters()))
    compiled_run._compiled_solve.cache_clear()


@needs_compiler
def test_under_the_stance_that_forces_eager_code():
    field, (y0, scale) = Network(), start()
    with torch.compiler.set_stance("force_eager"):
        assert_equal(*both(field, y0, (0.0, 0.5, 2.0), (scale,), field.parameters()))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            assert_equal(*both(field, y0, (0.0, 2.0), (scale,), field.parameters()))


def test_parameters_of_modules_that_a_function_uses(uncompiled):
    field, (y0, scale) = Network(), start()
    assert_equal(*both(lambda t, y, scale: field(t, y, scale) - y, y0, (0.0, 1.0), (scale,), field.parameters()))
    field.net[0].requires_grad_(False)
    assert_equal(*both(field, y0.detach(), (0.0, 1.0), (scale.detach(),), field.net[2].parameters()))


@pytest.mark.slow
def test_parameters_that_begin_to_require_a_gradient(captured):
    """f is not evaluated eagerly in every solve, but its parameters are those of the last moment."""
    field = Network(torch.float32)
    field.other = None
    field.net[2].requires_grad_(False)

    def f(t, y):
        rate = field.net(y)
        return rate if field.other is None else rate * field.other

    y0 = torch.ones(2, requires_grad=True)

    def gradients():
        parameters = [p for p in field.parameters() if p.requires_grad]
        results = [solve(f, y0, (0.0, 1.0), method="bosh3", compile=c).y.square().sum() for c in (False, "solve")]
        eager, compiled = (torch.autograd.grad(x, [y0, *parameters], allow_unused=True) for x in results)
        torch.testing.assert_close(compiled, eager)
        return sum(x is not None for x in compiled)

    assert gradients() == gradients() == 3
    field.net[2].requires_grad_()
    assert gradients() == gradients() == 5
    field.net[0].weight = nn.Parameter(0.5 * field.net[0].weight.detach())
    assert gradients() == 5
    field.other = nn.Parameter(torch.tensor(2.0))
    assert gradients() == gradients() == 6


class Layers(nn.Module):
    """The layer number ``index``, minus the other one where ``both`` is set."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2, dtype=torch.float64) for _ in range(2))
        self.index, self.both = 0, False

    def forward(self, t, y):
        rate = torch.tanh(self.layers[self.index](y))
        return rate - torch.sin(self.layers[1 - self.index](y)) if self.both else rate


def assert_equal_gradients(f, change=lambda: None, **options):
    """The gradients of a compiled and of an eager solve are equal; change() is called before the backward pass."""
    found = []
    for compile in (False, "solve"):
        f.requires_grad_(True).zero_grad(set_to_none=True)
        y0 = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
        loss = solve(f, y0, (0.0, 1.0), compile=compile, **options).y[-1].square().sum()
        change()
        loss.backward()
        found.append([y0.grad, *(p.grad for p in f.parameters())])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("options", [{}, {"method": "rk4", "steps": 4}, {"gradient": "checkpoint"}], ids=str)
def test_a_layer_that_is_replaced(uncompiled, options):
    f = Layers()
    for _ in range(3):
        assert_equal_gradients(f, **options)
        f.layers[0] = nn.Linear(2, 2, dtype=torch.float64)


@pytest.mark.parametrize("options", [{"method": "bosh3"}, {"method": "euler", "steps": 2}], ids=str)
def test_an_f_that_changes_its_layer_and_changes_back(captured, options):
    f = Layers()
    for index in (0, 0, 1, 0, 0, 1):
        f.index = index
        assert_equal_gradients(f, **options)


@pytest.mark.parametrize("between", ["checkpoint", "no gradient"])
def test_an_f_that_changes_its_layer_in_a_solve_of_another_kind(captured, between):
    f, fixed = Layers(), {"method": "euler", "steps": 2}
    assert_equal_gradients(f, **fixed)
    f.index = 1
    if between == "checkpoint":
        assert_equal_gradients(f, gradient="checkpoint", **fixed)
    else:
        with torch.no_grad():
            solve(f, torch.ones(1, 2, dtype=torch.float64), (0.0, 1.0), compile="solve", **fixed)
    for index in (1, 0, 1):
        f.index = index
        assert_equal_gradients(f, **fixed)


@pytest.mark.parametrize("options", [{}, {"method": "rk4", "steps": 4}, {"gradient": "checkpoint"}], ids=str)
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_parameter_that_is_frozen_before_the_backward_pass(uncompiled, frozen, options):
    f = Layers()
    f.both = True
    assert_equal_gradients(f, lambda: f.layers[frozen].weight.requires_grad_(False), **options)


def test_parameters_of_modules_whose_methods_a_field_holds(uncompiled):
    class Scaled(nn.Module):
        def __init__(self, *functions):
            super().__init__()
            self.functions = functions

        def forward(self, t, y, scale):
            return sum(function(t, y, scale) for function in self.functions)

    field, (y0, scale) = Network(), start()
    for f in (Scaled(field.twice), field.twice):
        for gradient in ("backprop", "backprop", "adjoint"):
            assert_equal(*both(f, y0, (0.0, 1.0), (scale,), field.parameters(), gradient=gradient))


def test_layers_and_parameters_with_several_names(uncompiled):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.again = Network()
            self.other = Network()
            self.other.net[0].weight = self.one.net[0].weight

        def forward(self, t, y, scale):
            return self.one(t, y, scale) + self.again(2 * t, y, scale) + self.other(t, y, scale)

    field, (y0, scale) = Twice(), start()
    before = [*field.parameters()]
    for gradient in ("backprop", "backprop", "adjoint"):
        assert_equal(*both(field, y0, (0.0, 1.0), (scale,), before, gradient=gradient))
        assert all(one is other for one, other in zip(before, field.parameters(), strict=True))


def test_the_gradient_of_times(uncompiled):
    field, (y0, scale) = Network(), start()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    assert_equal(*both(field, y0, t, (scale,), [t]))


@pytest.mark.parametrize(
    ("f", "y0", "status"),
    [
        pytest.param(lambda t, y: y * math.nan, 1.0, Status.non_finite, id="at-once"),
        pytest.param(lambda t, y: y, math.inf, Status.non_finite, id="start"),
        pytest.param(lambda t, y: y + 1e308, 1.0, Status.step_underflow, id="overflow"),
        pytest.param(lambda t, y: 0 * y, 1.0, Status.success, id="constant"),
    ],
)
def test_failures_are_the_eager_ones(uncompiled, f, y0, status):
    y0 = torch.full((2,), y0, dtype=torch.float64)
    eager, compiled = both(f, y0, [0.0, 0.3, 2.0])
    assert compiled[0].status is status
    assert_equal(eager, compiled)


@pytest.mark.parametrize(
    ("f", "status"),
    [
        pytest.param(lambda t, y: y / (1 - t), Status.step_underflow, id="pole"),
        pytest.param(lambda t, y: torch.where(t < 1, y, math.nan), Status.non_finite, id="nan"),
    ],
)
def test_a_solve_that_gets_stuck(uncompiled, f, status):
    """Near such a point, the number of steps depends on rounding errors."""
    (eager, _), (compiled, _) = both(f, torch.ones(2, dtype=torch.float64), [0.0, 0.3, 2.0])
    assert compiled.status is eager.status is status
    assert compiled.outcome.reached == eager.outcome.reached == 2
    assert compiled.outcome.time == pytest.approx(eager.outcome.time)


def test_derivatives_that_would_be_lost_raise_an_error(uncompiled):
    field, (y0, scale) = Network(), start()
    y = solve(field, y0, (0.0, 1.0), args=(scale,), compile="solve").y[-1]
    (gradient,) = torch.autograd.grad(y.sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="is differentiable once; leave compile out"):
        gradient.sum().backward()
    with pytest.raises(ValueError, match=r"compile='solve' does not support torch\.func"):
        torch.func.grad(lambda y0: solve(lambda t, y: -y, y0, (0.0, 1.0), compile="solve").y.sum())(y0.detach())


def test_a_graph_is_used_twice_only_if_retained(uncompiled):
    field, (y0, scale) = Network(), start()
    loss = solve(field, y0, (0.0, 0.1, 1.0), args=(scale,), compile="solve").y.square().sum()
    (first,) = torch.autograd.grad(loss, y0, retain_graph=True)
    solve(field, y0 + 1, (0.0, 0.1, 1.0), args=(scale,), compile="solve")  # takes no buffers in use
    (second,) = torch.autograd.grad(loss, y0)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, y0)


class NoisyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, t, y):
        return self.dropout(y)


@pytest.mark.parametrize("first_step", [None, 0.1])
def test_noise_is_refused(uncompiled, first_step):
    with pytest.raises(ValueError, match="draws random numbers"):
        solve(lambda t, y: -y + torch.randn(2), torch.ones(2), (0.0, 1.0), first_step=first_step, compile="solve")
    with pytest.raises(ValueError, match="Dropout"):
        solve(NoisyNetwork(), torch.ones(2), (0.0, 1.0), compile="solve", first_step=first_step)


def test_errors_of_f_and_arguments(uncompiled):
    with pytest.raises(ValueError, match="y's shape"):
        solve(lambda t, y: y[:1], torch.ones(2), (0.0, 1.0), compile="solve")
    with pytest.raises(ValueError, match="changed y in place"):
        solve(lambda t, y: y.mul_(2), torch.ones(2), (0.0, 1.0), compile="solve")
    with pytest.raises(ValueError, match="must be hashable"):
        solve(lambda t, y, c: -y, torch.ones(2), (0.0, 1.0), args=({1, 2},), compile="solve")


class ChangesBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, t, y):
        self.calls += 1
        return -y


class Counts:
    """Would count while it is captured, and not in the compiled loop."""

    calls = 0

    def __call__(self, t, y):
        self.calls += 1
        return -y


def branches(t, y):
    return -y if y.sum() > 2.5 else -0.5 * y


def prints(t, y):
    print(end="")
    return -y


WEIGHT = torch.ones(2, requires_grad=True)
PRODUCT = WEIGHT * 2


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        pytest.param(
            branches,
            r"torch cannot compile it: Data-dependent branching, at test_compiled_solve.py:\d+: "
            r"return -y if y.sum\(\) > 2.5 else -0.5 \* y$",
            id="branch",
        ),
        pytest.param(
            prints, r"torch cannot compile it: .*, at test_compiled_solve.py:\d+: print\(end=\"\"\)$", id="print"
        ),
        pytest.param(
            Counts(), "f changes calls in each evaluation; a compiled solve evaluates no Python", id="counter"
        ),
        pytest.param(ChangesBuffer(), "torch cannot compile it: .*[Ss]ide effect", id="buffer"),
        pytest.param(lambda t, y: -y * WEIGHT, "is no parameter of a module; pass it through args", id="tensor"),
        pytest.param(lambda t, y: -y * PRODUCT, "computed outside of it; pass it through args", id="computed"),
    ],
)
def test_a_field_that_cannot_be_compiled_runs_eagerly_after_one_warning(captured, f, reason):
    y0 = torch.full((2,), 1.5, requires_grad=True)
    expected = solve(f, y0, (0.0, 1.0))
    with pytest.warns(UserWarning, match=f"compile='solve' has no effect on this solve: .*{reason}"):
        first = solve(f, y0, (0.0, 1.0), compile="solve")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = solve(f, y0, (0.0, 1.0), compile="solve")
    for solution in (first, second):
        assert torch.equal(solution.y, expected.y)
        assert solution.stats == expected.stats
    second.y.sum().backward()
    assert y0.grad is not None


def test_a_number_that_changes_from_solve_to_solve(captured):
    field = Network(torch.float32)
    field.rate = 1.0

    def f(t, y):
        return -field.rate * field.net(y)

    y0 = torch.ones(2)
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        for rate, warns in ((1.0, False), (2.0, True), (3.0, False)):
            field.rate = rate
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                compiled = solve(f, y0, (0.0, 1.0), method="bosh3", compile="solve").y
            assert any("reads numbers in Python" in str(warning.message) for warning in caught) is warns
            torch.testing.assert_close(compiled, solve(f, y0, (0.0, 1.0), method="bosh3").y)


RATE = 1.0


class Decay(nn.Module):
    """Linear decay whose rate is read in several places."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, t, y, default_rate=1.0):
        return -RATE * default_rate * self.net(y)


@pytest.mark.slow
def test_f_may_change_between_two_solves(captured, monkeypatch):
    f, y0 = Decay(), torch.ones(2)
    changes = [
        lambda: monkeypatch.setattr(sys.modules[__name__], "RATE", 0.5),
        lambda: monkeypatch.setattr(Decay.forward, "__defaults__", (0.8,)),
        lambda: monkeypatch.setattr(f, "net", nn.Sequential(nn.Linear(2, 2), nn.Tanh())),
    ]
    for change in (lambda: None, *changes):
        change()
        results = []
        for compile in (False, "solve"):
            y = solve(f, y0, (0.0, 1.0), method="euler", steps=2, compile=compile).y
            results.append([y.detach(), *torch.autograd.grad(y.sum(), list(f.parameters()))])
        torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("compiler", "no C.. compiler found"),
        ("function", "import of torch._higher_order_ops.while_loop halted"),
        ("version", "torch .* is older than 99"),
    ],
)
def test_without_a_compiler_or_torchs_private_functions_it_runs_eagerly(monkeypatch, broken, reason):
    def fail(*_, **__):
        raise RuntimeError("no C++ compiler found")

    if broken == "compiler":
        monkeypatch.setattr(torch, "compile", fail)
    elif broken == "version":
        monkeypatch.setattr(graph, "OLDEST_TORCH", "99")
    else:
        monkeypatch.setitem(sys.modules, "torch._higher_order_ops.while_loop", None)
    field, (y0, scale) = Network(), start()
    with pytest.warns(UserWarning, match=f"has no effect on this solve: torch cannot compile it: {reason}"):
        eager, compiled = both(field, y0, (0.0, 1.0), (scale,))
    assert torch.equal(eager[0].y, compiled[0].y)


def test_without_a_compiler_torch_is_asked_once(monkeypatch):
    asked = []

    def compile(function, **_):
        asked.append(function)
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(CompiledGraph, "without_compiler", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            field, (y0, scale) = Network(), start()
            assert_equal(*both(field, y0, (0.0, 1.0), (scale,), field.parameters()))
    assert len(asked) == len(caught) == 1


def test_a_gradient_that_cannot_be_compiled_is_that_of_the_loop(only_forward):
    field, (y0, scale) = Network(), start()
    with pytest.warns(UserWarning, match="compile='solve' has no effect on this gradient: torch cannot compile it: no"):
        eager, compiled = both(field, y0, (0.0, 0.4, 1.0), (scale,), field.parameters())
    assert_equal(eager, compiled)


def test_under_autocast_it_runs_eagerly(uncompiled):
    field, (y0, scale) = Network(torch.float32), start(dtype=torch.float32)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.warns(UserWarning, match="autocast is on"),
    ):
        eager, compiled = both(field, y0, (0.0, 1.0), (scale,), rtol=1e-2, atol=1e-2)
    assert torch.equal(eager[0].y, compiled[0].y)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16])
def test_states_of_other_dtypes_run_eagerly(uncompiled, dtype):
    y0 = torch.ones(2, dtype=dtype)
    with pytest.warns(UserWarning, match="its state must be of float32 or float64"):
        solution = solve(lambda t, y: -y, y0, (0.0, 1.0), compile="solve")
    assert torch.equal(solution.y, solve(lambda t, y: -y, y0, (0.0, 1.0)).y)


@pytest.mark.slow
def test_the_loops_are_captured_whole(captured, caplog):
    class Counting(Network):
        calls = 0

        def forward(self, t, y, scale):
            Counting.calls += not torch.compiler.is_compiling()
            return super().forward(t, y, scale)

    field, (y0, scale) = Counting(), start()
    caplog.set_level(logging.INFO, "odebench")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        eager, compiled = both(field, y0, (0.0, 0.2, 1.0), (scale,), field.parameters(), method="bosh3", rtol=1e-3)
    assert_equal(eager, compiled)
    # Counted from the attempts: the captured loop runs no Python.
    assert Counting.calls < eager[0].stats.nfe + 5
    assert [re.sub("in [0-9]+ s", "in 9 s", record.message) for record in caplog.records] == [
        "compiling the solve, once; this takes half a minute or more",
        "compiled in 9 s",
        "compiling the gradient, once; this takes half a minute or more",
        "compiled in 9 s",
    ]


torch_compile = torch.compile


@pytest.mark.slow
def test_a_field_that_cannot_be_compiled_leaves_no_transforms_behind(monkeypatch):
    def f(t, y):
        return torch.func.vmap(lambda v: torch.func.jvp(lambda y: -y * y, (y,), (v,))[1])(torch.eye(2)).sum(0)

    monkeypatch.setattr(torch, "compile", lambda f, **_: torch_compile(f, fullgraph=True, backend="aot_eager"))
    y0 = torch.ones(2)
    with pytest.warns(UserWarning, match="compile='solve' has no effect on this solve"):
        eager, compiled = both(f, y0, (0.0, 1.0), method="bosh3")
    assert_equal(eager, compiled)
    assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0
    assert torch.func.jvp(torch.sin, (y0,), (y0,))[1].equal(y0.cos())


def test_a_loop_whose_tensors_change_their_strides_is_captured(captured):
    def count(x):
        return loop(lambda n, x: n < 3, lambda n, x: (n + 1, ((x + 1).t() * 1).t()), (torch.tensor(0), x))[1]

    assert torch.equal(torch.compile(count)(torch.zeros(2, 1)), torch.full((2, 1), 3.0))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "options"),
    [
        pytest.param((0.0, 9.0), {"rtol": 1e-8}, id="ends", marks=pytest.mark.compiler),
        pytest.param((2.0, 1.9, 1.0, 0.0), {"controller": "pid"}, id="inside"),
        pytest.param((0.0, 2.0), {"method": "vern7", "first_step": 0.1}, id="not-fsal", marks=pytest.mark.compiler),
        pytest.param(
            (0.0, 1.0, 2.0),
            {"method": "adaptive_heun", "rtol": 1e-3, "function": True},
            id="function",
            marks=pytest.mark.compiler,
        ),
    ],
)
def test_compiled_by_inductor(times, options):
    network, (y0, scale) = Network(), start()
    field = (lambda t, y, scale: network(t, y, scale)) if options.pop("function", False) else network
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="torch")
        assert_equal(*both(field, y0, times, (scale,), network.parameters(), **options))
        with torch.no_grad():
            assert_equal(*both(field, y0.detach(), times, (scale.detach(),), **options))

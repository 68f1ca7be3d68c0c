"""A compiled backward solve of the adjoint takes the steps of the eager one."""

import logging
import warnings

import pytest
import torch
from compiled_solves import (
    Network,
    assert_equal_backward,
    both,
    both_with_structures,
    each_with_few_times,
    few,
    needs_compiler,
    start,
)
from torch import nn

from odebench.ode import METHODS, Adjoint, InterpolatedAdjoint, SolveError, Tableau, solve
from odebench.ode.compiled import adjoint as compiled_adjoint
from odebench.ode.compiled import run as compiled_run

ADAPTIVE = [name for name, method in METHODS.items() if isinstance(method, Tableau) and method.adaptive]
# Warnings of torch while its compiler starts.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch"
)
TIGHT = Adjoint(rtol=0.0, atol=1e-17)
TIMES = [(0.0, 2.0), (0.0, 0.1, 0.15, 1.0, 2.0), (2.0, 1.5, 0.0)]


@pytest.mark.parametrize(("method", "times"), each_with_few_times(ADAPTIVE, TIMES, "dopri5"))
@pytest.mark.parametrize("mode", ["adjoint", "interpolated_adjoint"])
def test_every_method_takes_the_eager_steps(uncompiled, mode, method, times):
    field, (y0, scale) = Network(), start()
    options = {"method": method, "rtol": 1e-4, "atol": 1e-5, "gradient": mode}
    assert_equal_backward(*both(field, y0, times, (scale,), field.parameters(), **options))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"controller": "pi"}, id="pi"),
        pytest.param({"controller": "pid"}, id="pid"),
        pytest.param({"min_step": 0.3, "max_step": 0.3}, id="min_step"),
        pytest.param({"max_step": 0.11}, id="max_step"),
        pytest.param({"atol": 0.0}, id="relative"),
        pytest.param({"rtol": 0.0}, id="absolute"),
        pytest.param({"step_t": [0.12, 1.1, 1.7], "controller": "pi"}, id="step_t"),
        pytest.param({"jump_t": [0.12, 1.0, 1.1, 1.7]}, id="jump_t"),
    ],
)
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(Adjoint(), id="adjoint"),
        pytest.param(Adjoint(rtol=1e-4, atol=1e-8), id="tolerance", marks=pytest.mark.slow),
        pytest.param(Adjoint(method="bosh3"), id="method", marks=pytest.mark.slow),
        pytest.param(Adjoint(norm="full"), id="full", marks=pytest.mark.slow),
        pytest.param(InterpolatedAdjoint(method="vern7"), id="interpolated", marks=pytest.mark.slow),
    ],
)
def test_step_control_is_the_eager_one(uncompiled, options, mode):
    field, (y0, scale) = Network(), start()
    options = {"rtol": 1e-6, "atol": 1e-7, "gradient": mode, **options}
    for times in TIMES[1:]:
        assert_equal_backward(*both(field, y0, times, (scale,), field.parameters(), **options))


MODES = [Adjoint(), Adjoint(norm="full"), InterpolatedAdjoint(), InterpolatedAdjoint(norm="full")]
MODE_IDS = ["semi", "full", "interpolated", "interpolated_full"]


@pytest.mark.parametrize("mode", MODES, ids=MODE_IDS)
def test_a_solve_longer_than_its_tables_continues(uncompiled, monkeypatch, mode):
    monkeypatch.setattr(compiled_adjoint, "STORED_STEPS", 5)
    monkeypatch.setattr(compiled_run, "MAX_ROWS", 7)
    compiled_run._compiled_solve.cache_clear()
    field, (y0, scale) = Network(), start()
    for times in ((0.0, 9.0), (9.0, *(9 - 0.3 * i for i in range(1, 28)), 0.0)):
        options = {"controller": "pid", "rtol": 1e-7, "max_step": 0.3, "gradient": mode}
        eager, compiled = both(field, y0, times, (scale,), field.parameters(), **options)
        assert compiled[0].stats.backward.accepted > 28
        assert_equal_backward(eager, compiled)
    compiled_run._compiled_solve.cache_clear()


@pytest.mark.parametrize("mode", MODES, ids=MODE_IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_structures_of_tensors(uncompiled, mode, dtype):
    eager, compiled = both_with_structures(dtype, rtol=1e-3, atol=1e-3, gradient=mode)
    assert compiled.stats.backward.nfe == eager.stats.backward.nfe


@pytest.mark.parametrize("mode", [*MODES, Adjoint(atol=1e-3)], ids=[*MODE_IDS, "atol"])
def test_tolerances_of_each_component(uncompiled, mode):
    field, (y0, scale) = Network(), start()
    rtol = torch.tensor([1e-5, 1e-3], dtype=torch.float64)
    options = {"rtol": rtol, "atol": 1e-6, "gradient": mode}
    assert_equal_backward(*both(field, y0, TIMES[1], (scale,), field.parameters(), **options))


@pytest.mark.parametrize("factor", [1e-30, 1e200, 0.0, float("nan")])
def test_the_error_is_relative_to_the_gradient(uncompiled, factor):
    y0, scale = start()
    found = []
    for compile in (False, "solve"):
        options = {"args": (scale,), "gradient": "adjoint", "compile": compile}
        solution = solve(lambda t, y, scale: scale * y * torch.cos(t), y0, (0.0, 0.5, 2.0), **options)
        try:
            found.append(torch.autograd.grad((factor * solution.y.square()).sum(), (y0, scale)))
        except SolveError as error:
            found.append(str(error))
    if isinstance(found[0], str):
        assert found[0] == found[1]
    else:
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=0.0, equal_nan=True)


def test_the_gradients_of_times_and_unreached_times(uncompiled):
    field, (y0, scale) = Network(), start()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    assert_equal_backward(*both(field, y0, t, (scale,), [t], gradient="adjoint"))
    options = {"gradient": "adjoint", "rtol": 1e-8, "max_steps": 20}
    eager, compiled = both(field, y0, (0.0, 0.1, 0.3, 9.0), (scale,), field.parameters(), **options)
    assert compiled[0].outcome.reached == 3
    assert_equal_backward(eager, compiled)


@pytest.mark.parametrize(
    ("f", "options"),
    [
        pytest.param(
            lambda t, y, r: -r * y, {"max_steps": 25, "gradient": Adjoint(rtol=0, atol=1e-12)}, id="max_steps"
        ),
        # NaN where y is larger than at the start.
        pytest.param(lambda t, y, r: -r * y * (1 + 0 * (1 + 1e-12 - y).sqrt()), {}, id="non_finite"),
        pytest.param(lambda t, y, r: r * torch.floor(8 * t) * y, {"atol": 1.0, "gradient": TIGHT}, id="underflow"),
    ],
)
def test_a_failed_backward_solve_raises_the_eager_error(uncompiled, f, options):
    """The fields are such that the forward solve succeeds."""
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    errors = []
    for compile in (False, "solve"):
        times = (1.0, 1.5, 2.0)
        solution = solve(f, y0, times, args=(rate,), compile=compile, **{"gradient": "adjoint", **options})
        with pytest.raises(SolveError) as caught:
            torch.autograd.grad(solution.y[-1].sum(), (y0, rate))
        errors.append(caught.value)
    assert errors[0].during == errors[1].during
    eager, compiled = (error.outcome for error in errors)
    assert (compiled.status, compiled.nfe, compiled.attempted) == (eager.status, eager.nfe, eager.attempted)
    ends = [(x.time, x.step_size, x.error_ratio) for x in (eager, compiled)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4, nan_ok=True)


@pytest.mark.parametrize(("mode", "num_buffers"), [("adjoint", 1), ("interpolated_adjoint", 5)])
def test_memory_of_the_adjoint_does_not_grow_with_the_steps(uncompiled, monkeypatch, mode, num_buffers):
    made, make = [], compiled_run.StepBuffers
    monkeypatch.setattr(compiled_run, "StepBuffers", lambda *size: made.append(size) or make(*size))
    monkeypatch.setattr(compiled_run, "MAX_ROWS", 7)
    compiled_run._compiled_solve.cache_clear()
    field, (y0, scale) = Network(), start()
    solution = solve(field, y0, (0.0, 3.0, 9.0), args=(scale,), max_step=0.3, gradient=mode, compile="solve")
    assert 28 < solution.stats.accepted <= 35
    assert len(made) == num_buffers
    compiled_run._compiled_solve.cache_clear()


def test_a_graph_is_used_twice_only_if_retained(uncompiled):
    field, (y0, scale) = Network(), start()
    found = []
    for compile in (False, "solve"):
        solution = solve(field, y0, (0.0, 0.1, 1.0), args=(scale,), gradient="adjoint", compile=compile)
        loss = solution.y.square().sum()
        first = torch.autograd.grad(loss, (y0, scale), retain_graph=True)
        nfe = solution.stats.backward.nfe
        second = torch.autograd.grad(loss, (y0, scale))
        assert all(map(torch.equal, first, second))
        assert solution.stats.backward.nfe == 2 * nfe
        with pytest.raises(RuntimeError, match="a second time"):
            torch.autograd.grad(loss, y0)
        found.append(solution.stats.backward)
    assert found[0].accepted == found[1].accepted


def test_second_derivatives_raise_an_error(uncompiled):
    field, (y0, scale) = Network(), start()
    y = solve(field, y0, (0.0, 1.0), args=(scale,), gradient="adjoint", compile="solve").y[-1]
    (gradient,) = torch.autograd.grad(y.sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        gradient.sum().backward()


class Tensors(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, t, y):
        return -y * self.weight


def test_tensors_that_f_captures(uncompiled):
    weight, y0 = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    module = Tensors()
    assert_equal_backward(*both(lambda t, y: module(t, y) - y, y0, (0.0, 1.0), (), [module.weight], gradient="adjoint"))
    module.weight.requires_grad_(False)
    assert_equal_backward(*both(module, y0, (0.0, 1.0), gradient="adjoint"))
    with pytest.warns(UserWarning, match="f uses a tensor that requires a gradient and is no parameter of a module"):
        eager, compiled = both(lambda t, y: -y * weight, y0, (0.0, 1.0), (), [weight], gradient="adjoint")
    assert all(map(torch.equal, eager[1], compiled[1]))
    product = weight * 2
    with pytest.raises(ValueError, match="computed outside of it"):
        solve(lambda t, y: -y * product, y0, (0.0, 1.0), gradient="adjoint", compile="solve")


def test_hooks_of_saved_tensors(uncompiled):
    """torch.func supports none, so that the backward solve is eager."""
    field, (y0, scale) = Network(), start()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert_equal_backward(*both(field, y0, (0.0, 1.0), (scale,), gradient="adjoint"))


def test_a_backward_solve_that_cannot_be_compiled_is_eager(only_forward):
    field, (y0, scale) = Network(), start()
    with pytest.warns(UserWarning, match="compile='solve' has no effect on this gradient: torch cannot compile it: no"):
        eager, compiled = both(field, y0, (0.0, 0.4, 1.0), (scale,), field.parameters(), gradient="adjoint")
    assert_equal_backward(eager, compiled)


def test_complex_parameters_have_no_full_norm(uncompiled):
    rate, (y0, _) = torch.tensor(1.0 + 2.0j, dtype=torch.complex128, requires_grad=True), start()

    def f(t, y, rate):
        return -y * (rate * rate).real

    assert_equal_backward(*both(f, y0, (0.0, 0.3, 1.0), (rate,), gradient="adjoint"))
    with pytest.warns(UserWarning, match="norm='full' needs real parameters and arguments"):
        eager, compiled = both(f, y0, (0.0, 0.3, 1.0), (rate,), gradient=Adjoint(norm="full"))
    assert_equal_backward(eager, compiled)


@pytest.mark.parametrize("mode", few(["adjoint", "interpolated_adjoint"], "adjoint"))
@pytest.mark.slow
def test_the_loop_is_captured_whole_and_once(captured, caplog, mode):
    field, (y0, scale) = Network(), start()
    caplog.set_level(logging.INFO, "odebench")
    compiled_run._compiled_solve.cache_clear()
    with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=1):
        warnings.simplefilter("error", UserWarning)
        for times in ((0.0, 0.2, 1.0), (0.0, 0.3, 0.4, 1.0), (0.0, 0.1, 0.9)):
            options = {"method": "bosh3", "rtol": 1e-3, "gradient": mode}
            assert_equal_backward(*both(field, y0, times, (scale,), field.parameters(), **options))
    logged = [record.message.split(",")[0] for record in caplog.records]
    # The numbers of times 3 and 4 share a graph.
    assert logged.count("compiling the gradient") == 1


@pytest.mark.compiler
def test_batches_of_any_size_share_one_graph(captured, caplog):
    field = Network()
    caplog.set_level(logging.INFO, "odebench")
    compiled_run._compiled_solve.cache_clear()
    for rows in (3, 4, 5, 2, 7, 5):
        y0 = torch.rand(rows, 2, dtype=torch.float64, requires_grad=True)
        options = {"method": "bosh3", "rtol": 1e-3, "gradient": "adjoint"}
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        assert_equal_backward(*both(field, y0, (0.0, 0.3, 1.0), (scale,), field.parameters(), **options))
    logged = [record.message.split(",")[0] for record in caplog.records]
    assert sum("compiling the gradient" in line for line in logged) == 3


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("case", ["network", pytest.param("tuple", marks=pytest.mark.compiler)])
@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(Adjoint(), id="adjoint"),
        pytest.param(Adjoint(norm="full"), id="full", marks=pytest.mark.compiler),
        pytest.param(InterpolatedAdjoint(), id="interpolated", marks=pytest.mark.compiler),
    ],
)
def test_compiled_by_inductor(case, mode):
    if case == "network":
        field, (y0, scale) = Network(), start()
        arguments = field, y0, (0.0, 0.1, 0.2, 2.0), (scale,), field.parameters()
        options = {"controller": "pid"}
    else:
        y0 = (torch.ones(2, 3, dtype=torch.float64, requires_grad=True), torch.ones(4, dtype=torch.float64))
        rate = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
        arguments = lambda t, y, r: (y[0] * r, y[1] * r + y[0].sum() * t), y0, (1.0, 0.0), (rate,)
        options = {"method": "tsit5"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="torch")
        assert_equal_backward(*both(*arguments, gradient=mode, **options))

"""A compiled backward solve of the adjoint by fixed steps takes those of the eager one."""

import logging
import math
import warnings

import pytest
import torch
from compiled_solves import (
    Network,
    assert_equal_backward,
    assert_sizes_share_a_graph,
    both,
    both_with_structures,
    each_with_few_times,
    few,
    needs_compiler,
    start,
)

from odebench.ode import METHODS, Adjoint, InterpolatedAdjoint, SolveError, Tableau, solve
from odebench.ode.compiled import fixed_adjoint
from odebench.ode.gradients import backward_solve

EXPLICIT = [name for name, method in METHODS.items() if isinstance(method, Tableau)]
# Warnings of torch while its compiler starts.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch"
)
TIMES = [(0.0, 2.0), (0.0, 0.1, 0.15, 1.0, 2.0), (2.0, 1.5, 0.0)]
TIME_IDS = ["ends", "inside", "back"]
# Forward and backward steps; without steps, the forward solve is adaptive.
MODES = [
    pytest.param({"gradient": "adjoint", "steps": 9}, id="same"),
    pytest.param({"gradient": Adjoint(steps=13), "steps": 9}, id="steps"),
    pytest.param({"gradient": Adjoint(method="bosh3"), "steps": 9}, id="method", marks=pytest.mark.slow),
    pytest.param({"gradient": Adjoint(norm="full"), "steps": 9}, id="full", marks=pytest.mark.slow),
    pytest.param({"gradient": Adjoint(steps=13)}, id="adaptive"),
    pytest.param({"gradient": InterpolatedAdjoint(steps=13)}, id="interpolated"),
    pytest.param({"gradient": InterpolatedAdjoint(method="rk4", steps=13)}, id="interpolated_method"),
    pytest.param({"gradient": "interpolated_adjoint", "steps": 9}, id="interpolated_same"),
    pytest.param(
        {"gradient": InterpolatedAdjoint(method="rk4", steps=13, norm="full"), "method": "euler", "steps": 9},
        id="interpolated_both",
    ),
]


@pytest.fixture(autouse=True)
def compiled_runs(monkeypatch):
    """The backward solves that the compiled loop has finished."""
    runs, run = [], backward_solve.run_fixed_adjoint
    monkeypatch.setattr(backward_solve, "run_fixed_adjoint", lambda *inputs: runs.append(run(*inputs)) or runs[-1])
    return runs


def compare(times, dtype=torch.float64, tolerance=1e-9, **options):
    field, (y0, scale) = Network(dtype), start(dtype=dtype)
    eager, compiled = both(field, y0, times, (scale,), field.parameters(), **options)
    assert_equal_backward(eager, compiled, tolerance)
    return compiled[0]


@pytest.mark.parametrize(("method", "times"), each_with_few_times(EXPLICIT, TIMES, "dopri5", "rk4"))
@pytest.mark.parametrize("mode", ["adjoint", "interpolated_adjoint"])
def test_every_method_takes_the_eager_steps(uncompiled, compiled_runs, mode, method, times):
    compare(times, method=method, steps=9, gradient=mode)
    assert len(compiled_runs) == 1


@pytest.mark.parametrize(
    "stops", [{}, {"step_t": [0.7]}, {"jump_t": [0.1, 0.7, 1.0, 5.0]}], ids=["", "step_t", "jump_t"]
)
@pytest.mark.parametrize("times", TIMES, ids=TIME_IDS)
@pytest.mark.parametrize("options", MODES)
def test_forward_and_backward_steps(uncompiled, compiled_runs, options, times, stops):
    compare(times, **options, **stops)
    assert len(compiled_runs) == 1


def test_gradients_of_times(uncompiled):
    field, (y0, scale) = Network(), start()
    t = torch.tensor(TIMES[1], dtype=torch.float64, requires_grad=True)
    options = {"method": "rk4", "steps": 9, "gradient": "adjoint"}
    assert_equal_backward(*both(field, y0, t, (scale,), [t, *field.parameters()], **options))


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_structures_of_tensors(uncompiled, compiled_runs, options, dtype):
    eager, compiled = both_with_structures(dtype, rtol=1e-3, atol=1e-3, **options)
    assert compiled.stats.backward.nfe == eager.stats.backward.nfe
    assert len(compiled_runs) == 1


def test_a_field_with_jumps(uncompiled):
    def f(t, y, scale):
        return torch.where(t < 0.5, scale * y, -y)

    for times in ((0.0, 1.0), (1.0, 0.7, 0.0)):
        y0, scale = start()
        options = {"method": "rk4", "steps": 3, "jump_t": [0.5], "gradient": "adjoint"}
        assert_equal_backward(*both(f, y0, times, (scale,), **options))


@pytest.mark.parametrize("mode", [Adjoint(steps=30), InterpolatedAdjoint(steps=30)], ids=["", "interpolated"])
def test_a_solve_longer_than_its_table_continues(uncompiled, monkeypatch, compiled_runs, mode):
    monkeypatch.setattr(fixed_adjoint, "MAX_ROWS", 7)
    for times in ((0.0, 9.0), (9.0, *(9 - 0.3 * i for i in range(1, 28)), 0.0)):
        assert compare(times, gradient=mode).stats.backward.accepted > 28
    assert len(compiled_runs) == 2


@pytest.mark.parametrize(
    ("f", "options"),
    [
        # NaN where y is smaller than at the start, as in a stage of a large backward step.
        pytest.param(
            lambda t, y, r: r * y * (1 + 0 * (y - 1 + 1e-12).sqrt()), {"gradient": Adjoint(steps=2)}, id="non_finite"
        ),
        pytest.param(lambda t, y, r: -r * y, {"gradient": Adjoint(steps=60), "max_steps": 25}, id="max_steps"),
        pytest.param(lambda t, y, r: -r * y, {"factor": math.nan}, id="gradient"),
    ],
)
def test_a_failed_backward_solve_raises_the_eager_error(uncompiled, f, options):
    """The fields are such that the forward solve succeeds."""
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    options = {"gradient": "adjoint", "method": "rk4", "steps": 20, **options}
    factor, errors = options.pop("factor", 1.0), []
    for compile in (False, "solve"):
        solution = solve(f, y0, (1.0, 1.5, 2.0), args=(rate,), compile=compile, **options)
        with pytest.raises(SolveError) as caught:
            torch.autograd.grad((factor * solution.y[-1]).sum(), (y0, rate))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_a_forward_solve_that_ends_early(uncompiled, compiled_runs):
    options = {"method": "euler", "steps": 40, "gradient": "adjoint", "throw": False}
    found = []
    for compile in (False, "solve"):
        y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
        solution = solve(lambda t, y: t * y**3, y0, (0.0, 0.3, 0.9, 9.0, 10.0), compile=compile, **options)
        assert solution.outcome.reached == 3
        found.append(torch.autograd.grad(solution.y[:3].sum(), y0))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    assert len(compiled_runs) == 1


def test_a_graph_is_used_twice_only_if_retained(uncompiled):
    field, (y0, scale) = Network(), start()
    options = {"args": (scale,), "method": "rk4", "steps": 4, "gradient": "adjoint", "compile": "solve"}
    loss = (solution := solve(field, y0, (0.0, 0.1, 1.0), **options)).y.square().sum()
    first = torch.autograd.grad(loss, (y0, scale), retain_graph=True)
    nfe = solution.stats.backward.nfe
    second = torch.autograd.grad(loss, (y0, scale))
    assert all(map(torch.equal, first, second))
    assert solution.stats.backward.nfe == 2 * nfe
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, y0)


WEIGHT = torch.ones(2, dtype=torch.float64, requires_grad=True)


def test_tensors_that_f_captures_run_eagerly(uncompiled, compiled_runs):
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    options = {"method": "rk4", "steps": 4, "gradient": "adjoint"}
    with pytest.warns(UserWarning, match="f uses a tensor that requires a gradient and is no parameter of a module"):
        eager, compiled = both(lambda t, y: -y * WEIGHT, y0, (0.0, 1.0), (), [WEIGHT], **options)
    assert all(map(torch.equal, eager[1], compiled[1]))
    assert not compiled_runs


def test_a_backward_solve_that_cannot_be_compiled_is_eager(only_forward, compiled_runs):
    with pytest.warns(UserWarning, match="compile='solve' has no effect on this gradient: torch cannot compile it: no"):
        compare((0.0, 0.4, 1.0), method="rk4", steps=9, gradient="adjoint")
    assert not compiled_runs


@pytest.mark.parametrize("mode", few([Adjoint, InterpolatedAdjoint], Adjoint))
@pytest.mark.slow
def test_the_loop_is_captured_whole_and_once(captured, caplog, mode):
    """For any number of steps and three or four output times."""
    field, (y0, scale) = Network(), start()
    caplog.set_level(logging.INFO, "odebench")
    with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=1):
        warnings.simplefilter("error", UserWarning)
        for steps, times in ((4, (0.0, 0.2, 1.0)), (9, (0.0, 0.3, 0.4, 1.0)), (200, (1.0, 0.9, 0.1))):
            options = {"method": "bosh3", "rtol": 1e-3, "gradient": mode(steps=steps)}
            if mode is Adjoint:
                options["steps"] = steps
            assert_equal_backward(*both(field, y0, times, (scale,), field.parameters(), **options))
    logged = [record.message.split(",")[0] for record in caplog.records]
    assert logged.count("compiling the gradient") == 1


@pytest.mark.compiler
@pytest.mark.parametrize("options", [MODES[0], MODES[-2]])
def test_states_of_any_size_share_a_graph(captured, caplog, options):
    assert_sizes_share_a_graph(assert_equal_backward, caplog, TIMES[:2], rtol=1e-3, **options)


@needs_compiler
@pytest.mark.compiler
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"gradient": "adjoint", "method": "rk4", "steps": 200, "jump_t": [0.7]}, id="fixed"),
        pytest.param({"gradient": InterpolatedAdjoint(steps=9)}, id="interpolated"),
        pytest.param({"gradient": "interpolated_adjoint", "method": "rk4", "steps": 9}, id="interpolated_fixed"),
    ],
)
def test_compiled_by_inductor(compiled_runs, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="torch")
        for times in TIMES[:2]:
            compare(times, **options)
    assert len(compiled_runs) == 2

"""Every library solves the same problem: each agrees with the reference solution to tolerance, in all its modes."""

import contextlib
import dataclasses
import warnings

import pytest

from odebench import ode
from odebench.bench.cases import CASES, build_problem
from odebench.bench.comparison import BenchmarkPlan, BenchmarkResults, measure_all
from odebench.bench.diffrax_client import DiffraxClient
from odebench.bench.libraries import LIBRARIES
from odebench.bench.measure import CountingField, TooManyEvaluations
from odebench.bench.preparation import LibraryConfig, prepare
from odebench.bench.reference import relative_error, solve_reference

QUICK = ("forward", "backprop")
VARIANTS = [
    pytest.param(name, mode, variant, id=f"{name} {variant} {mode}", marks=[pytest.mark.slow] * (mode not in QUICK))
    for name, library in LIBRARIES.items()
    if library.make_solve is not None
    for mode in library.modes
    for variant, only in [("", ""), *library.variants]
    if only in ("", mode)
]


@pytest.fixture(scope="module")
def tiny():
    problem = build_problem(CASES["tiny"])
    return problem, solve_reference(problem, gradients=True)


def method_for(mode):
    return "reversible_dopri5" if mode == "reversible" else "dopri5"


@pytest.mark.parametrize(("name", "mode", "variant"), VARIANTS)
def test_a_library_agrees_with_the_reference_and_counts(tiny, name, mode, variant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the library's import
        pytest.importorskip(name)
    problem, reference = tiny
    prepared = prepare(problem, LibraryConfig(name, method_for(mode), mode, variant), 1e-5)
    output, costs = prepared.output, prepared.costs
    assert relative_error(output.states, reference.states) < 1e-3
    assert costs.nfe_forward > 6
    assert (costs.nfe_backward == 0) == (mode in ("forward", "backprop"))
    if mode == "forward":
        assert output.gradients is None
    else:
        assert relative_error(output.gradients, reference.gradients) < 1e-3
    if costs.accepted and name == "odebench" and mode != "reversible":
        # six evaluations per step, one at the start, one for the first step size
        assert costs.nfe_forward == 6 * (costs.accepted + costs.rejected) + 2
    assert (costs.peak_mib is None) == (name == "scipy")


def test_counted_evaluations_equal_those_that_the_solver_reports(tiny):
    problem, _ = tiny
    counted = CountingField(problem.field)
    stats = ode.solve(counted, problem.state, problem.times, rtol=1e-5, atol=1e-5, controller="integral").stats
    costs = prepare(problem, LibraryConfig("odebench", "dopri5", "forward", ""), 1e-5).costs
    assert counted.calls == stats.nfe == costs.nfe_forward
    assert costs.rows_forward == 20 * stats.nfe


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_the_gradients_error_shrinks_with_the_tolerance(mode):
    problem = build_problem(dataclasses.replace(CASES["tiny"], dtype=CASES["vdp"].dtype))
    reference = solve_reference(problem, gradients=True)
    errors = []
    for tol in (1e-3, 1e-5, 1e-7):
        output = prepare(problem, LibraryConfig("odebench", "dopri5", mode, ""), tol).output
        errors.append(relative_error(output.gradients, reference.gradients))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_operations_per_step_leave_out_those_once_per_solve(tiny):
    problem, _ = tiny
    costs = prepare(problem, LibraryConfig("odebench", "dopri5", "forward", ""), 1e-6).costs
    assert costs.synchronisations_per_step == 1
    assert 6 <= costs.operations_per_step <= 30


def test_a_solve_with_too_many_evaluations_is_stopped(tiny, monkeypatch):
    problem, _ = tiny
    monkeypatch.setattr("odebench.bench.preparation.MAX_EVALUATIONS", 20)
    with pytest.raises(TooManyEvaluations, match="more than 20 evaluations"):
        prepare(problem, LibraryConfig("odebench", "dopri5", "forward", ""), 1e-6)


def plan(**changes):
    return BenchmarkPlan((CASES["tiny"],), ("forward", "adjoint"), ("odebench", "torchdiffeq"), repeats=2, **changes)


def test_an_absent_library_and_a_failing_one_are_left_out_by_name(monkeypatch):
    monkeypatch.setattr(
        "odebench.bench.comparison.installed_version", lambda name: None if name == "torchdiffeq" else "1.0"
    )

    def fail(problem, config, tol):
        if config.mode == "adjoint":
            raise RuntimeError("underflow\nin dt")
        return prepare(problem, config, tol)

    monkeypatch.setattr("odebench.bench.comparison.prepare", fail)
    results = BenchmarkResults()
    messages = []
    assert [case.name for case in measure_all(plan(), results, messages.append)] == ["tiny"]
    assert results.left_out == ["torchdiffeq: not installed", "tiny, adjoint, tol 1e-05: odebench dopri5: underflow"]
    (row,) = results.rows
    assert (row["library"], row["family"], row["runs"]) == ("odebench", "forward", 2)
    assert row["time_min_ms"] > 0
    assert row["bare_ms"] > 0
    assert 0 < row["state_error"] < 1e-3
    assert messages[0] == "tiny: reference"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnf"])
def test_diffrax_in_its_own_process_agrees_with_the_reference(name):
    pytest.importorskip("diffrax")
    problem = build_problem(CASES[name])
    reference = solve_reference(problem, gradients=True)
    with contextlib.closing(DiffraxClient(problem)) as client:
        for mode in LIBRARIES["diffrax"].modes:
            reply = client.prepare(mode, "Dopri5", 1e-5)
            assert relative_error(reply["states"], reference.states) < 1e-3
            if mode != "forward":
                assert relative_error(reply["gradients"], reference.gradients) < 3e-3
            assert (reply["nfe_backward"] == 0) == (mode == "forward")
            assert 0 < client.seconds(reply["index"]) < 10
        assert 0 < client.field_seconds(True) < 1
        with pytest.raises(RuntimeError, match="AttributeError"):
            client.prepare("forward", "Dopri6", 1e-5)

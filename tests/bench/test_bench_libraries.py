"""Every library solves the same problem: it agrees with the truth to tolerance, in every mode it has."""

import dataclasses
import warnings

import pytest

from odebench import ode
from odebench.bench.cases import WORKS, build
from odebench.bench.comparison import BenchmarkPlan, BenchmarkResults, measure_all
from odebench.bench.diffrax_client import DiffraxClient
from odebench.bench.libraries import LIBRARIES
from odebench.bench.measure import CountingField
from odebench.bench.preparation import LibraryConfig, TooManyEvaluations, prepare
from odebench.bench.reference import relative_error, solve_reference

QUICK = ("forward", "backprop")
CASES = [
    pytest.param(name, mode, variant, id=f"{name} {variant} {mode}", marks=[pytest.mark.slow] * (mode not in QUICK))
    for name, library in LIBRARIES.items()
    if library.adapt is not None
    for mode in library.modes
    for variant, only in [("", ""), *library.variants]
    if only in ("", mode)
]


@pytest.fixture(scope="module")
def tiny():
    problem = build(WORKS["tiny"])
    return problem, solve_reference(problem, gradients=True)


def method_for(mode):
    return "reversible_dopri5" if mode == "reversible" else "dopri5"


@pytest.mark.parametrize(("name", "mode", "variant"), CASES)
def test_an_adapter_agrees_with_the_truth_and_counts(tiny, name, mode, variant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library says while it is imported
        pytest.importorskip(LIBRARIES[name].package)
    problem, truth = tiny
    entry = prepare(problem, LibraryConfig(name, method_for(mode), mode, variant), 1e-5)
    answer, costs = entry.answer, entry.costs
    assert relative_error(answer.states, truth.states) < 1e-3
    assert costs.nfe_forward > 6
    assert (costs.nfe_backward == 0) == (mode in ("forward", "backprop"))
    if mode == "forward":
        assert answer.gradients is None
    else:
        assert relative_error(answer.gradients, truth.gradients) < 1e-3
    if costs.steps and name == "odebench" and mode != "reversible":
        # six evaluations a step, one at the start, one for the first step's size
        assert costs.nfe_forward == 6 * (costs.steps.accepted + costs.steps.rejected) + 2
    assert (costs.peak_mib is None) == (name == "scipy")


def test_counted_evaluations_are_the_solvers_own(tiny):
    problem, _ = tiny
    counted = CountingField(problem.field)
    stats = ode.solve(counted, problem.state, problem.times, rtol=1e-5, atol=1e-5, controller="integral").stats
    costs = prepare(problem, LibraryConfig("odebench", "dopri5", "forward", ""), 1e-5).costs
    assert counted.calls == stats.nfe == costs.nfe_forward
    assert costs.rows_forward == 20 * stats.nfe


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["backprop", "adjoint"])
def test_the_gradients_error_shrinks_with_the_tolerance(mode):
    problem = build(dataclasses.replace(WORKS["tiny"], dtype=WORKS["vdp"].dtype))
    truth = solve_reference(problem, gradients=True)
    errors = []
    for tol in (1e-3, 1e-5, 1e-7):
        answer = prepare(problem, LibraryConfig("odebench", "dopri5", mode, ""), tol).answer
        errors.append(relative_error(answer.gradients, truth.gradients))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_operations_a_step_leave_out_what_happens_once(tiny):
    problem, _ = tiny
    costs = prepare(problem, LibraryConfig("odebench", "dopri5", "forward", ""), 1e-6).costs
    assert costs.synchronisations == 1
    assert 6 <= costs.operations <= 30


def test_a_solve_that_never_ends_is_given_up(tiny, monkeypatch):
    problem, _ = tiny
    monkeypatch.setattr("odebench.bench.preparation.MAX_EVALUATIONS", 20)
    with pytest.raises(TooManyEvaluations, match="more than 20 evaluations"):
        prepare(problem, LibraryConfig("odebench", "dopri5", "forward", ""), 1e-6)


def plan(**changes):
    return BenchmarkPlan((WORKS["tiny"],), ("forward", "adjoint"), ("odebench", "torchdiffeq"), repeats=2, **changes)


def test_an_absent_library_and_a_failing_one_are_left_out_by_name(monkeypatch):
    monkeypatch.setattr(
        "odebench.bench.comparison.installed_version", lambda name: None if name == "torchdiffeq" else "1.0"
    )

    def fail(problem, contestant, tol):
        if contestant.mode == "adjoint":
            raise RuntimeError("underflow\nin dt")
        return prepare(problem, contestant, tol)

    monkeypatch.setattr("odebench.bench.comparison.prepare", fail)
    outcome = BenchmarkResults()
    told = []
    assert [work.name for work in measure_all(plan(), outcome, told.append)] == ["tiny"]
    assert outcome.left_out == ["torchdiffeq: not installed", "tiny, adjoint, tol 1e-05: odebench dopri5: underflow"]
    (row,) = outcome.rows
    assert (row["library"], row["family"], row["runs"]) == ("odebench", "forward", 2)
    assert row["time_min_ms"] > 0
    assert row["bare_ms"] > 0
    assert 0 < row["state_error"] < 1e-3
    assert told[0] == "tiny: reference"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnf"])
def test_diffrax_in_its_own_process_agrees_with_the_truth(name):
    pytest.importorskip("diffrax")
    problem = build(WORKS[name])
    truth = solve_reference(problem, gradients=True)
    with DiffraxClient(problem) as remote:
        for mode in LIBRARIES["diffrax"].modes:
            reply = remote.prepare(mode, "Dopri5", 1e-5)
            assert relative_error(reply["states"], truth.states) < 1e-3
            if mode != "forward":
                assert relative_error(reply["gradients"], truth.gradients) < 3e-3
            assert (reply["nfe_backward"] == 0) == (mode == "forward")
            assert 0 < remote.seconds(reply["job"]) < 10
        assert 0 < remote.bare_seconds(True) < 1
        with pytest.raises(RuntimeError, match="AttributeError"):
            remote.prepare("forward", "Dopri6", 1e-5)

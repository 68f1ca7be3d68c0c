"""The known reproductions are consistent with the experiments and the published values."""

import re

import pytest

from odebench.cli.command import build_parser
from odebench.config.compose import parse_overrides
from odebench.record import layout
from odebench.reporting.figures import FIGURES
from odebench.reporting.published import NFE_GROWTH, NFE_RATIO, read_published
from odebench.reproduce.catalogue import find_reproduction, reproductions
from odebench.sweep.expand import expand
from odebench.sweep.validate import validate_jobs

KNOWN = reproductions()
EVALUATION_TAGS = (
    "nfe",
    "batch_ms",
    "output_error",
    "nfe_forward",
    "nfe_backward",
    "peak_mib",
    "step_ms",
    "gradient_error",
    "gradient_error_discrete",
    "reversal_error",
)


@pytest.mark.parametrize("name", KNOWN)
def test_rows_figures_and_tags_are_valid(name):
    one = KNOWN[name]
    names = [row.name for row in one.rows]
    assert len(set(names)) == len(names)
    for row in one.rows:
        assert not re.search(r"[{}]", " ".join([row.name, *row.job]))
        assert {*row.compared_with, row.within_time_of or row.name} <= set(names)
        assert all(other.tags[0] in row.tags for other in one.rows if other.name in row.compared_with)
        for tag in row.tags:
            assert (
                layout.is_summary_tag(tag)
                or tag in ("parameters", NFE_RATIO, NFE_GROWTH)
                or (row.evaluation and tag in EVALUATION_TAGS)
            )
    assert set(one.figures) <= set(FIGURES)
    assert set(one.margin) <= {tag for row in one.rows for tag in row.tags}


@pytest.mark.parametrize("name", KNOWN)
def test_every_published_value_has_a_row(name):
    shown = {(row.published_row, tag) for row in KNOWN[name].rows for tag in row.tags}
    for one in read_published():
        assert one.of != name or not one.tag or (one.row, one.tag) in shown, one


@pytest.mark.parametrize("budget", ["small", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KNOWN)
def test_each_kind_of_job_is_valid(name, budget):
    one = KNOWN[name]
    keys = ("experiment", "model", "gradient", "solver")
    kinds = {tuple(override for override in row.job if override.split("=")[0] in keys): row.job for row in one.rows}
    own = one.budgets or {budget: (f"budget={budget}",)}
    validate_jobs([[*job, *own[budget]] for job in kinds.values()])


def test_the_evaluation_of_a_row_is_among_the_planned_ones():
    for one in KNOWN.values():
        evaluations = [
            [argument for argument in evaluation if not argument.startswith("--")] for evaluation in one.evaluations
        ]
        planned = [
            dict(override.split("=") for override in job) for evaluation in evaluations for job in expand([evaluation])
        ]
        planned = [job | ({"tol": float(job["tol"])} if "tol" in job else {}) for job in planned]
        for row in one.rows:
            wanted = row.evaluation | ({"tol": float(row.evaluation["tol"])} if "tol" in row.evaluation else {})
            assert not wanted or any(wanted.items() <= job.items() for job in planned), row.name


def test_evaluation_arguments_are_valid_for_the_command_line():
    for one in KNOWN.values():
        for evaluation in one.evaluations:
            arguments, rest = build_parser().parse_known_args(["eval", "RUN", *evaluation])
            assert not rest
            assert parse_overrides(arguments.overrides)


def test_values_expand_to_every_combination():
    rows = {row.name: row for row in find_reproduction("figure4").rows}
    assert len(rows) == 40
    row = rows["target 3: CNF, M = 8"]
    assert row.job == ("experiment=paper/cnf_density_matching", "data=potential_3", "model.width=8")
    planar = "target 3: planar flow, K = 8"
    assert row.compared_with == (planar,)
    assert rows[f"{planar}, in the CNF's time"].within_time_of == row.name
    assert rows[f"{planar}, in the CNF's time"].job == rows[planar].job


def test_each_gradient_mode_is_trained_and_evaluated_at_each_tolerance():
    one = find_reproduction("gradients")
    modes = {"adjoint", "interpolated_adjoint", "checkpoint", "backprop", "reversible"}
    trained = {row.job for row in one.rows if not row.evaluation}
    studied = {(row.job, row.evaluation["tol"]) for row in one.rows if row.evaluation}
    assert {(job[0], job[-1]) for job in trained} == {
        (f"model={model}", f"gradient={mode}") for model in ("odenet", "cnf", "latent_ode") for mode in modes
    }
    assert studied == {(job, tol) for job in trained for tol in ("1e-2", "1e-3", "1e-5")}
    # Error, memory, time and NFE of the trainings; of their evaluations, both errors of the gradient.
    for row in one.rows:
        costs = {"peak_mib", "step_ms", "nfe_forward", "nfe_backward"}
        errors = {"output_error", "gradient_error", "gradient_error_discrete"}
        tags = {tag.removeprefix("final/") for tag in row.tags}
        assert tags >= costs | (errors if row.evaluation else set())
        assert row.evaluation or any(tag.startswith("final/test_") for tag in row.tags)

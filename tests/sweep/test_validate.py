import pytest

from odebench.errors import UsageError
from odebench.sweep.expand import expand
from odebench.sweep.validate import Job, job_labels, validate_jobs


def test_jobs_are_numbered_and_named():
    jobs, outputs = validate_jobs([["model=mlp", "outputs=here"], ["solver=rk4"]])
    assert jobs == [
        Job(0, "0000_model=mlp_outputs=here", ("model=mlp", "outputs=here")),
        Job(1, "0001_solver=rk4", ("solver=rk4",)),
    ]
    assert outputs == "outputs"
    assert [job.name for job in validate_jobs([["model=mlp", "seed=3"]])[0]] == ["0000_mlp"]


def test_every_error_is_reported_once_with_its_jobs():
    jobs = expand([["model=mlp", "model.hidden=10,0", "seed=1,2"], ["model.hiden=3"], ["tol=-1"], ["device=cuda:0"]])
    with pytest.raises(UsageError) as caught:
        validate_jobs(jobs)
    assert str(caught.value).splitlines() == [
        "5 of 7 jobs are invalid; none was started",
        "job 2 (model=mlp model.hidden=0 seed=1) and 1 more: model.hidden=0: must be at least 1",
        "job 4 (model.hiden=3): unknown setting model.hiden; did you mean model.hidden?",
        "job 5 (tol=-1): tol=-1: must be greater than 0",
        "job 6 (device=cuda:0): device=cuda:0: a sweep assigns devices to jobs; leave it out, "
        "or give cluster.devices=[0,1]",
    ]


def test_init_from_must_be_a_run_before_a_job_starts():
    with pytest.raises(UsageError) as caught:
        validate_jobs([["model=mlp"], ["model=mlp", "init_from=/nope"]])
    assert str(caught.value).splitlines() == [
        "1 of 2 jobs are invalid; none was started",
        "job 1 (model=mlp init_from=/nope): init_from=/nope: /nope is not a run's folder: it does not exist",
    ]


def test_all_errors_of_a_job_are_reported():
    jobs = expand([["model.hiden=3", "model.hidden=8", "tol=-1", "seed=1,a"], ["gradient=reversible", "tol=-1"]])
    with pytest.raises(UsageError) as caught:
        validate_jobs(jobs)
    first, *lines = str(caught.value).splitlines()
    assert first == "3 of 3 jobs are invalid; none was started"
    assert [line.split("; ")[0].split(": ", 1)[1] for line in lines] == [
        "unknown setting model.hiden",
        "model.hidden: the chosen model has no such setting",
        "tol=-1: must be greater than 0",
        "seed=a: a whole number is needed, such as seed=0",
        "gradient=reversible: the steps of dopri5 cannot be undone",
    ]


def test_after_an_error_of_several_settings_the_other_errors_are_reported():
    both = ["solver.steps=2", "solver.step_size=0.1"]
    with pytest.raises(UsageError) as caught:
        validate_jobs([["model.width=10", *both, "data=mnist5k", "data.train_limit=3", "optim.lr=0.1"]])
    assert [line.split(": ", 1)[1].split(": ")[0] for line in str(caught.value).splitlines()[1:]] == [
        "solver.steps=2 and solver.step_size=0.1",
        "model.width=10",
        "data.train_limit=3",
    ]


def test_a_label_contains_the_overrides_that_not_all_jobs_share():
    jobs = [Job(n, f"{n}_x", ("tol=1", *more)) for n, more in enumerate([("seed=0",), ("seed=1", "model=mlp"), ()])]
    assert job_labels(jobs) == ["seed=0", "seed=1 model=mlp", ""]
    assert job_labels(jobs[:1]) == ["tol=1 seed=0"]

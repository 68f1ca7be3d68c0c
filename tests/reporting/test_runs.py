import json
import math
import os

import numpy as np
import pytest

from odebench.errors import UsageError
from odebench.record.differences import differing_columns, distinguishing_keys
from odebench.reporting import notes
from odebench.reporting.runs import collect_runs, read_evaluations, read_rows


def test_varying_options_are_shown_without_settings_that_follow_from_them():
    odenet = {"model.name": "odenet", "model.width": 64.0, "gradient.name": "adjoint", "optim.lr": 0.1, "seed": 0.0}
    rknet = {**odenet, "model.name": "rknet", "model.width": 32.0, "gradient.name": "backprop", "seed": 1.0}
    assert distinguishing_keys(differing_columns([odenet, rknet])) == ["model.name", "gradient.name"]
    assert distinguishing_keys(differing_columns([odenet, rknet, {**rknet, "optim.lr": 0.2}])) == [
        "model.name",
        "gradient.name",
        "optim.lr",
    ]
    assert distinguishing_keys(differing_columns([odenet, {**odenet, "seed": 3.0}])) == []
    assert distinguishing_keys(differing_columns([])) == []


def test_the_shown_keys_distinguish_all_groups():
    rng = np.random.default_rng(0)
    settings = [{f"group.key{k}": float(rng.integers(2)) for k in range(8)} for _ in range(40)]
    shown = distinguishing_keys(differing_columns(settings))
    assert len({tuple(one[key] for key in shown) for one in settings}) == len({repr(one) for one in settings})


def test_an_experiment_replaces_its_settings_which_are_listed_as_differing(record, runs):
    record(experiment="paper/mnist_odenet", optim__lr=0.1, trainer__epochs=160)
    record()
    collection = collect_runs([runs])
    assert (collection.varying_keys, sorted(collection.other_differing_keys)) == (
        ["experiment"],
        ["optim.lr", "trainer.epochs"],
    )


def test_overridden_settings_are_shown_if_they_differ(record, runs):
    record(solver__steps=8, arguments=["solver.steps=8", "trainer.batch_size=64"])
    record(
        tol=1e-3,
        trainer__iterations=20,
        trainer__epochs=7,
        data__train_limit=640,
        optim__name="sgd",
        arguments=["trainer.iterations=20", "+data.train_limit=640", "optim=sgd"],
    )
    collection = collect_runs([runs])
    assert collection.varying_keys == [*("tol", "solver.steps", "optim.name", "data.train_limit", "trainer.iterations")]
    assert collection.other_differing_keys == ["trainer.epochs"]
    assert [run.settings["trainer.epochs"] for run in collection.runs] == [9, None]  # replaced by iterations


def test_settings_that_follow_from_their_own_option_are_not_listed_as_differing(record, runs):
    record(model__name="odenet", model__width=64)
    record(model__name="rknet", model__width=32, optim__lr=0.5, budgets={"full": {"epochs": 160}})
    collection = collect_runs([runs])
    assert (collection.varying_keys, collection.other_differing_keys) == (["model.name"], ["optim.lr"])


def test_runs_that_differ_in_the_seed_are_one_group_with_mean_and_std(record, runs):
    accuracies = [0.91, 0.95, 0.96]
    for seed, accuracy in enumerate(accuracies):
        record(seed=seed, summary={"best/accuracy": accuracy})
    (group,) = collect_runs([runs]).groups
    assert group.mean("best/accuracy") == pytest.approx(np.mean(accuracies))
    assert group.std("best/accuracy") == pytest.approx(np.std(accuracies, ddof=1))
    assert np.isnan(group.mean("final/kl_nats"))


def test_the_mean_omits_failed_runs_and_is_nan_if_a_value_is_not_finite(record, runs):
    record(seed=0)
    record(seed=1, summary={"best/loss": None})  # as NaN and infinities are written
    path = record(seed=2, summary={"best/accuracy": 0.1})
    (path / "status.json").write_text('{"status": "failed"}')
    collection = collect_runs([runs])
    (group,) = collection.groups
    assert (len(group.runs), len(group.done_runs), group.mean("best/accuracy")) == (3, 2, 0.95)
    assert math.isnan(group.mean("best/loss"))
    assert math.isnan(group.std("best/loss"))


def test_the_mean_is_nan_if_one_run_lacks_the_value(record, runs):
    record(seed=0, summary={"final/flops": 1.5})
    record(seed=1)
    (group,) = collect_runs([runs]).groups
    assert math.isnan(group.mean("final/flops"))
    assert group.values("final/kl_nats") == []


def test_equal_rtol_and_atol_are_shown_once(record, runs):
    record(tol=1e-2)
    record(tol=1e-3)
    record(solver__rtol=1e-2, solver__atol=1e-5)
    record(solver__rtol=None, solver__atol=None)
    collection = collect_runs([runs])
    assert collection.varying_keys == ["tol"]
    assert [group.varying_settings["tol"] for group in collection.groups] == [None, 1e-3, 1e-2, "0.01/1e-05"]


def test_fixed_steps_have_no_tolerance(record, runs):
    record(tol=1e-2, solver__steps=20)
    record(tol=1e-3, solver__steps=20, seed=1)  # which changes nothing
    record(tol=1e-2, solver__step_size=0.1)
    collection = collect_runs([runs])
    assert [run.settings["tol"] for run in collection.runs] == [None] * 3
    assert [(group.varying_settings, len(group.runs)) for group in collection.groups] == [
        ({"solver.steps": None, "solver.step_size": 0.1}, 1),
        ({"solver.steps": 20, "solver.step_size": None}, 2),
    ]


def test_groups_are_sorted_by_their_values(record, runs):
    for epochs in (10, 9, 100):
        record(trainer__epochs=epochs)
    record(trainer__epochs=9.0, seed=1)  # the same setting, written otherwise
    groups = collect_runs([runs]).groups
    assert [(group.varying_settings["trainer.epochs"], len(group.runs)) for group in groups] == [
        (9, 2),
        (10, 1),
        (100, 1),
    ]


def test_a_run_in_two_of_the_folders_counts_once(record, runs):
    path = record()
    assert len(collect_runs([runs, path, runs / ".." / "runs"]).runs) == 1


def test_queued_and_damaged_runs_are_kept_apart(record, runs):
    record()
    (record() / "manifest.json").write_text("{")
    (runs / "job").mkdir()
    (runs / "job" / "status.json").write_text('{"status": "queued"}')
    collection = collect_runs([runs])
    assert (len(collection.runs), len(collection.queued)) == (1, 1)
    assert "damaged" in collection.damaged[0]
    with pytest.raises(UsageError, match="not a folder"):
        collect_runs([runs / "missing"])


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"settings": 1}', '{"status": 3}', '"text"'])
@pytest.mark.parametrize("name", ["manifest.json", "status.json", "summary.json", "overrides.txt"])
def test_a_damaged_file_affects_only_its_run(record, runs, name, content):
    record(seed=1)
    (record(seed=2) / name).write_text(content)
    collection = collect_runs([runs])
    assert len(collection.runs) + len(collection.queued) + len(collection.damaged) == 2
    assert collection.groups[0].mean("best/accuracy") == pytest.approx(0.95)
    assert notes.status_counts(collection)
    assert all(reason for reason, _ in notes.failure_reasons(collection))


def test_evaluations_have_solver_and_tolerance_and_incomplete_lines_are_skipped(record, runs, caplog):
    path = record(tol=1e-3, eval_solver="tsit5")
    rows = [
        {"overrides": [], "nfe": 5},
        {"overrides": ["tol=1e-5", "solver=rk4"]},
        {"overrides": [], "tol": 0.1, "solver": "heun2"},
    ]
    shapeless = [{"overrides": [], name: {}} for name in ("solver", "gradient", "tol")]
    not_ours = [*shapeless, {"overrides": [1]}, {"overrides": ["tol"]}, {"overrides": ["tol=abc"]}, {"overrides": None}]
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, *not_ours])
    (path / "evaluations.jsonl").write_text(lines + '{"overr')
    (run,) = collect_runs([runs]).runs
    assert [(row["solver"], row["tol"]) for row in read_evaluations(run)] == [
        ("tsit5", 1e-3),
        ("rk4", 1e-5),
        ("heun2", 0.1),
    ]
    assert caplog.messages == [f"{path / 'evaluations.jsonl'}: 8 damaged or incomplete lines are left out"]


def test_evaluations_of_earlier_weights_are_omitted(record, runs, caplog):
    path = record(summary={"best/step": 200})
    rows = [{"overrides": [], "tol": tol, "weights_step": step} for tol, step in ((0.1, 20), (0.2, None), (0.3, 200))]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = collect_runs([runs]).runs
    assert [row["tol"] for row in read_evaluations(run)] == [0.2, 0.3]
    assert caplog.messages == [f"{path}: omitted the evaluations of weights that it no longer has (1)"]


def test_evaluations_of_other_samples_are_labelled(record, runs):
    path = record()
    of = [{}, {"split": "validation", "limit": None}, {"split": "test"}, {"split": "validation", "limit": 1000}]
    rows = [{"overrides": ["tol=1e-3", "trainer.batch_size=8"]} | more for more in of]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = collect_runs([runs]).runs
    own = "trainer.batch_size=8"
    assert [row["others"] for row in read_evaluations(run)] == [own, own, f"{own}, split=test", f"{own}, first 1,000"]


@pytest.mark.parametrize("name", ["summary.json", "status.json", "settings.yaml"])
def test_a_run_without_a_required_file_is_damaged(name, record, runs):
    record(seed=0)
    path = record(seed=1, summary={"best/accuracy": 0.1})
    (path / name).unlink()
    if name == "settings.yaml":
        (path / "manifest.json").unlink()
    collection = collect_runs([runs])
    assert collection.damaged == [f"{path} is damaged: {name} is missing"]
    (group,) = collection.groups
    assert (len(group.runs), group.mean("best/accuracy"), collection.queued) == (1, 0.95, [])


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "status.json", "evaluations.jsonl", "metrics.jsonl"])
def test_an_unreadable_file_affects_only_its_run(name, record, runs):
    record(seed=0)
    path = record(seed=1)
    (path / name).unlink(missing_ok=True)
    (path / name).mkdir()
    collection = collect_runs([runs])
    if name in ("evaluations.jsonl", "metrics.jsonl"):  # which are read where they are wanted
        read = {"evaluations.jsonl": read_evaluations, "metrics.jsonl": read_rows}[name]
        with pytest.raises(UsageError, match=f"{name} cannot be read: Is a directory"):
            [read(run) for run in collection.runs]
    else:
        (message,) = collection.damaged
        assert len(collection.runs) == 1
        # A folder without the file status.json is not a run; other missing files are not reported.
        assert (
            "status.json is missing" if name == "status.json" else f"{name} cannot be read: Is a directory"
        ) in message


def test_linked_runs_are_found_once(record, runs, tmp_path):
    path = record()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one").symlink_to(path)
    (runs / "loop").symlink_to(tmp_path)
    assert [run.path.resolve() for run in collect_runs([tmp_path / "links"]).runs] == [path.resolve()]
    assert len(collect_runs([runs, tmp_path / "links"]).runs) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_an_unreadable_folder_is_reported(record, runs):
    record()
    closed = runs / "closed"
    closed.mkdir(mode=0)
    assert collect_runs([runs]).damaged == [f"{closed} cannot be read: Permission denied"]

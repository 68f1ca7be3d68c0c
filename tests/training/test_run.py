"""A training from settings to record, on real images: its files, how it ends, how it resumes."""

import gzip
import json
import math
import os
import re
import shutil
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import odebench.training.loop as loop
import odebench.training.run as run_module
from odebench.cli import main
from odebench.errors import Diverged, UsageError
from odebench.ode import SolveError
from odebench.ode.solution import SolveOutcome, Status
from odebench.record import layout
from odebench.record.reader import read_overview, read_run
from odebench.tasks.classification import ClassificationTask
from odebench.training.checkpoint import load_weights
from odebench.training.run import resume_run
from odebench.training.trained_run import load_run

SLOW = pytest.mark.slow


def weights(folder, name="last"):
    content = torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)
    return content["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stop_at(monkeypatch, step, how):
    """Call how() once, right after the optimiser step of that number."""
    train_step = loop.train_step

    def train_and_stop(training, *rest):
        metrics = train_step(training, *rest)
        if training.progress.step + 1 == step:
            how()
        return metrics

    monkeypatch.setattr(loop, "train_step", train_and_stop)


def losses(folder):
    return dict(zip(*read_run(folder).series("train/loss"), strict=True))


@pytest.mark.parametrize("model", ["odenet", "rknet", pytest.param("resnet", marks=SLOW), "mlp"])
def test_every_model_trains_tests_once_and_writes_a_complete_record(model, train, without_figures, capsys, monkeypatch):
    without_figures.undo()
    splits = []
    evaluate = ClassificationTask.evaluate
    recorded = lambda self, split, *model: splits.append(split) or evaluate(self, split, *model)  # noqa: E731
    monkeypatch.setattr(ClassificationTask, "evaluate", recorded)
    result = train(f"model={model}")
    run = read_run(result.folder)
    assert (result.exit_code, run.status["status"], run.status["step"]) == (0, "done", 8)
    assert splits == ["validation", "validation", "test"]
    names = {path.name for path in result.folder.iterdir()}
    files = {"settings.yaml", "overrides.txt", "manifest.json", "status.json", "metrics.jsonl", "summary.json"}
    assert names >= files
    figures = {"curves.png", "confusion.png"} | (
        {"step_sizes.png", "features.png"} if model in ("odenet", "rknet") else set()
    )
    assert {path.name for path in (result.folder / "figures").iterdir()} == figures
    steps, values = run.series("train/loss")
    assert steps == list(range(1, 9))
    assert all(map(math.isfinite, values))
    assert run.summary["test"]["images"] == 1000
    assert run.summary["final/test_accuracy"] == run.series("test/accuracy")[1][-1]
    assert run.summary["best/accuracy"] == max(run.series("val/accuracy")[1]) == result.objective
    has_ode = model in ("odenet", "rknet")
    assert ("nfe/forward" in {tag for row in run.metrics for tag in row}) == has_ode
    if has_ode:
        assert (run.summary["final/nfe_backward"] > 0) == (model == "odenet")
    table = capsys.readouterr().out
    assert f"{100 * run.summary['final/test_accuracy']:.2f} %  (95 % interval" in table
    assert f"odebench tensorboard {result.folder}" in table


def test_name_tags_and_notes_are_in_the_record_the_list_and_the_results(train, capsys):
    folder = train("model=mlp", "trainer.iterations=1", "name=my first", "tags=[a,b]", "notes='why, and how'").folder
    table = capsys.readouterr().out
    assert main(["list", "runs", str(folder)]) == 0
    listed = re.split("  +", capsys.readouterr().out.splitlines()[1])
    run = read_run(folder)
    assert [run.summary[key] for key in layout.LABELS] == ["my first", ["a", "b"], "why, and how"]
    for name, text in (("name", "my first"), ("tags", "a, b"), ("notes", "why, and how")):
        assert re.search(rf"^{name} +{text}$", table, re.MULTILINE)
        assert text in listed
    assert (run.settings.name, run.manifest["settings"]["tags"]) == ("my first", ["a", "b"])


def test_kept_checkpoints_are_those_of_a_shorter_training_and_figures_can_be_left_out(train, without_figures):
    without_figures.undo()
    common = ["model=mlp", "schedule=constant", "trainer.figures=false"]
    short = train(*common, "trainer.epochs=2").folder
    folder = train(*common, "trainer.epochs=5", "trainer.keep_every=2").folder
    names = {path.name for path in (folder / layout.CHECKPOINTS).iterdir()}
    assert names == {"last.pt", "previous.pt", "best.pt", "epoch_2.pt", "epoch_4.pt"}
    assert same(weights(folder, "epoch_2"), weights(short))
    assert list((folder / layout.FIGURES).iterdir()) == []


def test_figures_during_training_are_for_tensorboard_and_change_no_result(
    train, without_figures, odenet_run, monkeypatch
):
    without_figures.undo()
    monkeypatch.setattr(loop, "NUM_DRAWINGS", 3)
    monkeypatch.setattr(loop, "MAX_DRAWING_SHARE", math.inf)
    folder = train("trainer.average=0.9").folder
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    images = events.Images("figures/features")
    assert [image.step for image in images] == [3, 6, 8]
    assert images[-1].encoded_image_string == (folder / "figures/features.png").read_bytes()
    assert images[0].encoded_image_string != images[-1].encoded_image_string
    assert losses(folder) == losses(odenet_run)
    assert same(weights(folder), weights(odenet_run))


@pytest.mark.parametrize(("num", "recorded"), [(2, {1, 2}), (100, set(range(1, 9)))])
@pytest.mark.slow
def test_a_profile_is_of_the_steps_after_the_first_and_changes_no_result(num, recorded, odenet_run, train):
    folder = train(f"trainer.profile={num}").folder
    with gzip.open(folder / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{number}" for number in recorded}
    header, *rows = (folder / "profile" / "operations.txt").read_text().splitlines()
    assert header.split() == ["operation", "calls", "CPU", "ms", "share"]
    assert any(row.startswith("aten::mkldnn_convolution ") for row in rows)
    shares = [float(row.split()[-1].rstrip("%")) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert losses(folder) == losses(odenet_run)
    assert same(weights(folder), weights(odenet_run))
    timed = read_run(folder).series("time/step_ms")[0]
    assert timed == list(range(2 + num, 9))  # the profiler makes steps slower


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(odenet_run, train):
    again, other = train().folder, train("seed=1").folder
    assert same(weights(odenet_run), weights(again))
    assert losses(odenet_run) == losses(again)
    assert not same(weights(odenet_run), weights(other))


OTHER = ("optim=sgd", "trainer.average=0.9", "solver.first_step=warm")
RESNET = ("model=resnet", "schedule=cosine")


@pytest.mark.parametrize(
    ("step", "overrides"),
    [(3, ()), pytest.param(4, (), marks=SLOW), pytest.param(6, (), marks=SLOW), (3, OTHER), (6, RESNET)],
    ids=["mid-epoch", "at an epoch's end", "in the second epoch", "sgd, average, warm first step", "resnet"],
)
def test_resuming_equals_an_undisturbed_run_to_the_last_bit(step, overrides, odenet_run, train, monkeypatch):
    uninterrupted = train(*overrides).folder if overrides else odenet_run
    with monkeypatch.context() as patch:
        stop_at(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = train(*overrides)
    assert stopped.exit_code == 75
    status = read_run(stopped.folder).status
    assert (status["status"], status["step"]) == ("interrupted", step)
    assert "SIGTERM" in status["message"]

    torch.manual_seed(99)  # any random state in between
    resumed = resume_run(stopped.folder)
    assert resumed.exit_code == 0
    for name in ("last", "best"):
        assert same(weights(resumed.folder, name), weights(uninterrupted, name))
    assert losses(resumed.folder) == losses(uninterrupted)
    assert read_run(resumed.folder).summary["test"] == read_run(uninterrupted).summary["test"]


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGUSR1,
        pytest.param(signal.SIGTERM, marks=SLOW),
        pytest.param(signal.SIGHUP, marks=SLOW),
        pytest.param(signal.SIGUSR2, marks=SLOW),
    ],
    ids=["SIGINT", "SIGUSR1", "SIGTERM", "SIGHUP", "SIGUSR2"],
)
def test_each_signal_saves_and_exits_with_75(number, train, monkeypatch):
    before = signal.getsignal(number)
    stop_at(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
    result = train()
    assert result.exit_code == 75
    assert torch.load(result.folder / "checkpoints" / "last.pt", weights_only=True)["progress"]["step"] == 2
    assert signal.getsignal(number) == before


def test_a_run_killed_between_checkpoints_resumes_from_the_last_one(train, tmp_path, monkeypatch):
    uninterrupted = train("model=mlp").folder

    class Killed(BaseException):
        """Not handled by any code, like SIGKILL."""

    def kill():
        raise Killed

    with monkeypatch.context() as patch:
        stop_at(patch, 7, kill)
        with pytest.raises(Killed):
            train("model=mlp", f"run_dir={tmp_path / 'killed'}")
    folder = tmp_path / "killed"
    assert read_run(folder).status["status"] == "running"
    assert resume_run(folder).exit_code == 0
    assert losses(folder) == losses(uninterrupted)
    assert same(weights(folder), weights(uninterrupted))


def test_resuming_a_finished_run_prints_its_result_and_changes_nothing(train, capsys):
    result = train()
    first = capsys.readouterr().out
    before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}
    again = resume_run(result.folder)
    assert again == result
    assert capsys.readouterr().out == first
    assert before == {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("schedule", ["schedule=constant", "schedule=cosine"])
def test_a_finished_run_trained_longer(schedule, train, tmp_path, caplog):
    """With a schedule that does not depend on the length, it equals a run that was this long from the start."""
    overrides = ["model=mlp", schedule, "trainer.patience=9"]
    folder = train(*overrides).folder
    assert main(["resume", str(folder), "trainer.epochs=4", "name=longer"]) == 0
    run, whole = read_run(folder), read_run(train(*overrides, "trainer.epochs=4").folder)
    assert (run.status["status"], run.status["step"]) == ("done", 16)
    assert (run.settings.trainer.epochs, read_overview(folder).setting("trainer.epochs")) == (4, 4)
    assert run.summary["name"] == "longer"
    assert (folder / "overrides.txt").read_text().splitlines()[-2:] == ["trainer.epochs=4", "name=longer"]
    assert [row["step"] for row in run.metrics if "test/accuracy" in row] == [16]
    assert (losses(folder) == losses(whole.path)) == (schedule == "schedule=constant")
    if schedule == "schedule=constant":
        assert same(weights(folder), weights(whole.path))
        assert run.summary["test"] == whole.summary["test"]
        line = (
            "schedule=constant goes on, as it does not depend on the length; learning rate 0.003 at step 8, then 0.003"
        )
    else:
        line = "schedule=cosine is now spread over 4 epochs, as in a run of this length"
        line += "; learning rate 0.000114 at step 8, then 0.0015"
    assert line in caplog.messages
    assert line in (folder / layout.LOG).read_text()
    events = EventAccumulator(str(folder)).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["trainer.epochs"].number_value == 4


def test_a_run_trained_longer_goes_on_after_a_kill(train, monkeypatch):
    class Killed(BaseException):
        """Not handled by any code, like SIGKILL."""

    def kill():
        raise Killed

    folder = train("model=mlp", "schedule=constant").folder
    with monkeypatch.context() as patch:
        stop_at(patch, 10, kill)
        with pytest.raises(Killed):
            resume_run(folder, ["trainer.epochs=3"])
    assert resume_run(folder).exit_code == 0
    assert read_run(folder).status["step"] == 12
    assert same(weights(folder), weights(train("model=mlp", "schedule=constant", "trainer.epochs=3").folder))


CANNOT_CHANGE = (
    "cannot change when a run resumes (trainer.epochs, trainer.iterations, trainer.max_minutes, trainer.patience, "
    "trainer.checkpoint_minutes, trainer.keep_every, trainer.figures, trainer.profile, name, tags, notes can); "
    "train another from its weights: odebench train KEY=VALUE init_from=RUN"
)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trainer.epochs=2", "trainer.epochs=2: 2 epochs are done; give more"),
        ("trainer.epochs=1", "trainer.epochs=1: 2 epochs are done; give more"),
        ("trainer.iterations=5", "trainer.iterations=5: 8 steps are done; give more"),
        ("trainer.epochs=0", "trainer.epochs=0: must be at least 1"),
        ("trainer.epochs=3,4", "trainer.epochs=3,4: give one value only"),
        ("trainer.epoch=3", "unknown setting trainer.epoch; did you mean trainer.epochs?"),
        ("optim.lr=1", f"optim.lr=1: {CANNOT_CHANGE}"),
        ("model=mlp", f"model=mlp: {CANNOT_CHANGE}"),
        ("tags=[a b]", "tags=[a b]: 'a b' is no tag; a tag is one word of letters, digits and _ . : / + -, "
         "such as tags=[baseline,lr_0.1]"),
        ("trainer.checkpoint_minutes=1", "trainer.checkpoint_minutes=1: has no effect on a finished run; "
         "trainer.epochs=N trains it longer"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_change_is_refused_and_nothing_is_written(override, line, odenet_run, capsys):
    before = {path: path.read_bytes() for path in odenet_run.rglob("*") if path.is_file()}
    assert main(["resume", str(odenet_run), override]) == 2
    assert capsys.readouterr() == ("", f"odebench resume: {line.replace('RUN', str(odenet_run))}\n")
    assert before == {path: path.read_bytes() for path in odenet_run.rglob("*") if path.is_file()}


def test_limits_that_ended_a_run_must_change_too(train, capsys, monkeypatch):
    monkeypatch.setattr(loop, "is_better", lambda objective, value, best: best is None)
    run = train("model=mlp", "trainer.epochs=9", "trainer.patience=1").folder
    assert main(["resume", str(run), "trainer.epochs=20"]) == 2
    line = "trainer.patience=1: no better result for 1 epochs; give more, or trainer.patience=null"
    assert line in capsys.readouterr().err
    assert main(["resume", str(run), "trainer.patience=3"]) == 0
    assert read_run(run).status["step"] == 4 * 4


def test_new_labels_of_a_finished_run_train_nothing(train, capsys):
    folder = train("model=mlp", "trainer.iterations=1").folder
    checkpoint = (folder / "checkpoints" / "last.pt").read_bytes()
    assert main(["resume", str(folder), "tags=[best]", "name=ours"]) == 0
    assert re.search(r"^tags +best$", capsys.readouterr().out, re.MULTILINE)
    assert main(["list", "runs", str(folder), "tag=best", "name=ours"]) == 0
    assert read_run(folder).settings.tags == ["best"]
    assert (folder / "checkpoints" / "last.pt").read_bytes() == checkpoint


def test_a_nan_ends_the_run_as_diverged_with_the_last_good_checkpoint(train, monkeypatch, caplog):
    evaluate = ClassificationTask.loss

    def loss(self, batch):
        found = evaluate(self, batch)
        late = self.optimizer_steps = getattr(self, "optimizer_steps", 0) + 1
        return found._replace(value=found.value * math.nan) if late > 6 else found

    monkeypatch.setattr(ClassificationTask, "loss", loss)
    result = train()
    status = read_run(result.folder).status
    assert (result.exit_code, status["status"], status["step"]) == (3, "diverged", 6)
    assert "the loss is nan" in status["message"]
    assert f"test the best weights with: odebench eval {result.folder} split=test" in caplog.text
    saved = weights(result.folder)
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_a_failed_solve_and_too_many_evaluations_diverge(train):
    for override, message in (("solver.max_steps=1", "max_steps"), ("trainer.max_nfe=3", "trainer.max_nfe=3")):
        result = train(override)
        status = read_run(result.folder).status
        assert (result.exit_code, status["status"]) == (3, "diverged")
        assert message in status["message"]


def test_a_field_made_infinite_by_a_large_step_gives_a_hint_at_the_learning_rate(train):
    result = train("optim.lr=1e10", "schedule=constant")
    message = read_run(result.folder).status["message"]
    assert "solve failed: non_finite" in message
    assert message.endswith("; a smaller optim.lr may help")


def test_an_error_is_a_failed_run_with_its_traceback_in_the_record(train, monkeypatch):
    def broken(self, batch):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ClassificationTask, "loss", broken)
    result = train()
    status = read_run(result.folder).status
    assert (result.exit_code, status["status"]) == (1, "failed")
    assert "No space left on device" in status["message"]
    assert "in broken" in status["traceback"]
    assert "in broken" in (result.folder / "log.txt").read_text()


@pytest.mark.slow
def test_early_stopping_ends_a_training_that_no_longer_improves(train, monkeypatch):
    monkeypatch.setattr(loop, "is_better", lambda objective, value, best: best is None)
    result = train("trainer.epochs=9", "trainer.patience=2")
    assert read_run(result.folder).status["step"] == 4 * (1 + 2)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_early_stopping_ends_a_training_whose_objective_is_not_finite(train, monkeypatch, value):
    evaluate = ClassificationTask.evaluate
    monkeypatch.setattr(
        ClassificationTask, "evaluate", lambda self, *given: evaluate(self, *given) | {"accuracy": value}
    )
    result = train("model=mlp", "trainer.epochs=9", "trainer.patience=2")
    assert read_run(result.folder).status["step"] == 4 * 2


def test_validations_that_only_tie_are_no_progress_but_the_longest_trained_weights_are_kept(train):
    run = read_run(train("model=mlp", "optim.lr=1e-12", "trainer.epochs=9", "trainer.patience=2").folder)
    steps, accuracies = run.series("val/accuracy")
    assert len(set(accuracies)) == 1
    assert len(steps) == 3
    assert run.summary["best/step"] == steps[-1]


@pytest.mark.parametrize(
    "limit",
    ["trainer.patience=1", *(pytest.param(x, marks=SLOW) for x in ("trainer.max_minutes=1e-6", "trainer.epochs=2"))],
)
def test_a_run_that_fails_in_its_test_is_finished_by_a_resume_without_more_training(limit, train, monkeypatch):
    monkeypatch.setattr(loop, "is_better", lambda objective, value, best: best is None)

    def broken(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "figures", broken)
        failed = train("model=mlp", limit)
    assert failed.exit_code == 1
    before = weights(failed.folder)
    step = read_run(failed.folder).status["step"]
    assert resume_run(failed.folder).exit_code == 0
    run = read_run(failed.folder)
    assert (run.status["status"], run.status["step"]) == ("done", step)
    assert run.series("test/accuracy")[0] == [step]
    assert same(weights(failed.folder), before)


def test_a_missing_init_run_raises_an_error_before_data_are_loaded(train, monkeypatch):
    monkeypatch.setattr(run_module, "build_task", lambda *_: pytest.fail("built"))
    with pytest.raises(UsageError, match=r"^init_from=nosuch: nosuch is not a run's folder: it does not exist$"):
        train("init_from=nosuch")


def test_a_signal_is_logged_at_once(train, monkeypatch, caplog):
    evaluate, answers = ClassificationTask.evaluate, []

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        answers.append(caplog.messages[-1])
        return evaluate(self, *arguments)

    monkeypatch.setattr(ClassificationTask, "evaluate", interrupted)
    result = train("model=mlp")
    answer = "SIGINT: finishing the current operation, then saving and exiting; a second one stops at once"
    assert answers == [answer]
    assert answer in (result.folder / layout.LOG).read_text()
    assert result.exit_code == 75


def test_a_run_without_checkpoints_restarts_with_a_warning(train, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        stop_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        folder = train("model=mlp").folder
    for checkpoint in (folder / layout.CHECKPOINTS).iterdir():
        checkpoint.unlink()
    assert resume_run(folder).exit_code == 0
    assert f"no checkpoint in {folder / layout.CHECKPOINTS}: starting from the beginning" in caplog.messages
    assert not any(line.startswith("resuming") for line in caplog.messages)


def test_the_resume_command_can_be_copied_into_a_shell(train, tmp_path, monkeypatch, caplog, capsys):
    folder = tmp_path / "my run" / "c d"
    quoted = f"'{folder}'"
    with monkeypatch.context() as patch:
        stop_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train("model=mlp", f"run_dir='{folder}'")
    assert caplog.messages[-1].endswith(f"resume with: odebench resume {quoted}")
    with pytest.raises(UsageError, match=f"resume it with: odebench resume {quoted}$"):
        load_run(folder)
    with pytest.raises(UsageError, match=rf"is not empty; resume that run \(odebench resume {quoted}\) or give"):
        train("model=mlp", "seed=1", f"run_dir='{folder}'")
    resume_run(folder)
    assert f"odebench tensorboard {quoted}" in capsys.readouterr().out


def test_missing_weights_raise_an_error_with_a_hint(tmp_path):
    with pytest.raises(UsageError, match=r"^no checkpoint .*best\.pt: restore the file, or train the run again$"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "best.pt", "mlp")


def test_overrides_without_effect_give_warnings(train, caplog):
    train("model=mlp", "trainer.iterations=2")
    assert caplog.messages[0] == "trainer.epochs=2 has no effect: trainer.iterations=2 is set"


def test_a_signal_during_the_test_waits_for_its_end(train, monkeypatch):
    figures = ClassificationTask.figures

    def slow(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return figures(self)

    monkeypatch.setattr(ClassificationTask, "figures", slow)
    result = train("model=mlp")
    assert (result.exit_code, read_run(result.folder).status["status"]) == (0, "done")


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again_from_the_same_weights(train, monkeypatch):
    source = train()
    uninterrupted = train(f"init_from={source.folder}")

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    folder = uninterrupted.folder.parent / "killed"
    with monkeypatch.context() as patch:
        stop_at(patch, 2, kill)
        with pytest.raises(Killed):
            train(f"init_from={source.folder}", f"run_dir={folder}")
    assert resume_run(folder).exit_code == 0
    assert losses(folder) == losses(uninterrupted.folder)


def test_a_validation_of_nan_is_replaced_as_the_best():
    assert loop.is_better("val/loss", 0.5, math.nan)
    assert not loop.is_better("val/loss", math.nan, 0.5)
    assert loop.is_better("val/accuracy", 0.6, 0.5)
    assert not loop.is_better("val/loss", 0.6, 0.5)


def test_max_minutes_ends_a_training_with_its_test(train):
    result = train("trainer.max_minutes=1e-6", "trainer.epochs=50")
    run = read_run(result.folder)
    assert (run.status["status"], run.status["step"]) == ("done", 1)
    assert run.summary["test"]["images"] == 1000


def test_a_training_starts_from_another_runs_weights(odenet_run, train):
    result = train(f"init_from={odenet_run}", "optim.lr=1e-12")
    for key, tensor in weights(result.folder).items():
        torch.testing.assert_close(tensor, weights(odenet_run, "best")[key], rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match=rf"^model.width=16: the weights of {odenet_run} fit model.width=8$"):
        train(f"init_from={odenet_run}", "model.width=16")


def test_a_run_resumes_without_the_run_of_its_initial_weights(train, monkeypatch):
    source = train("model=mlp")
    start = ("model=mlp", f"init_from={source.folder}")
    uninterrupted = train(*start)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = train(*start)
    shutil.rmtree(source.folder)
    last = stopped.folder / "checkpoints" / "last.pt"
    last.rename(last.with_name("previous.pt"))  # the previous checkpoint is enough
    assert resume_run(stopped.folder).exit_code == 0
    assert same(weights(stopped.folder), weights(uninterrupted.folder))
    with pytest.raises(UsageError, match="does not exist"):
        train(*start)


def test_the_time_since_the_last_row_counts_after_a_resume(train, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        stopped = train("model=mlp", "trainer.log_every=1000")
    last = stopped.folder / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    assert 0 < content["progress"]["elapsed_s"] < 60
    content["progress"]["elapsed_s"] += 600
    torch.save(content, last)
    assert resume_run(stopped.folder).exit_code == 0
    assert 10 < read_run(stopped.folder).summary["final/minutes"] < 11


def test_a_training_on_images_that_its_initial_weights_may_have_seen_gives_a_warning(train, caplog):
    source = train("model=mlp")
    train("model=mlp", f"init_from={source.folder}")
    assert "may include" not in caplog.text
    manifest = source.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "mnist5k"', '"name": "mnist"'))
    train("model=mlp", f"init_from={source.folder}")
    assert "its training samples may include some of this one" in caplog.text


def test_the_weight_average_is_what_is_evaluated(train):
    result = train("model=mlp", "trainer.average=0.5")
    assert not same(weights(result.folder, "best"), weights(result.folder, "last"))
    last = torch.load(result.folder / "checkpoints" / "last.pt", weights_only=True)
    averaged = {key.removeprefix("module."): x for key, x in last["average"].items() if key != "n_averaged"}
    best_step = read_run(result.folder).summary["best/step"]
    assert same(weights(result.folder, "best"), averaged) == (best_step == 8)


@pytest.mark.slow
def test_gradients_are_clipped_and_logged_before_clipping(train):
    free, clipped = train(), train("trainer.clip_grad_norm=0.01")
    first = [read_run(result.folder).series("optim/grad_norm")[1][0] for result in (free, clipped)]
    assert first[0] == pytest.approx(first[1])
    assert first[0] > 0.01
    assert not same(weights(free.folder), weights(clipped.folder))


def test_bf16_keeps_the_state_in_float32_and_learns(train, monkeypatch):
    from odebench.models.convolution import ConvField

    dtypes = set()
    forward = ConvField.forward

    def watched(self, t, y):
        rate = forward(self, t, y)
        dtypes.add((y.dtype, self.conv1(t, y).dtype))
        return rate

    monkeypatch.setattr(ConvField, "forward", watched)
    result = train("trainer.precision=bf16", "trainer.iterations=2")
    assert result.exit_code == 0
    assert dtypes == {(torch.float32, torch.bfloat16)}


def test_training_and_evaluation_can_use_different_solvers(train):
    result = train("solver=rk4", "solver.steps=3", "eval_solver=euler", "eval_tol=1e-2")
    run = read_run(result.folder)
    assert set(run.series("nfe/forward")[1]) == {12}
    assert set(run.series("val/nfe")[1]) == {20}


def test_validations_may_be_epochs_apart_and_the_last_step_has_one(train, monkeypatch):
    apart = ["model=mlp", "trainer.validate_every=2"]
    result = train(*apart, "trainer.epochs=5")
    assert read_run(result.folder).series("val/accuracy")[0] == [8, 16, 20]
    # Patience counts epochs: the best after 2 epochs, the end after 4 more.
    monkeypatch.setattr(loop, "is_better", lambda objective, value, best: best is None)
    result = train(*apart, "trainer.epochs=9", "trainer.patience=3")
    assert read_run(result.folder).series("val/accuracy")[0] == [8, 16, 24]


@pytest.mark.slow
def test_measuring_does_not_change_the_training(train):
    often, never = train("trainer.measure_every=1"), train()
    assert same(weights(often.folder), weights(never.folder))
    assert read_run(often.folder).series("memory/peak_mib")[0] == [4, 8]
    assert read_run(never.folder).series("memory/peak_mib")[0] == [8]


FAILED = SolveOutcome(Status.max_steps, reached=0, time=0.5, step_size=1e-3, error_ratio=1.0, nfe=40)


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise SolveError(FAILED, during="backward solve")


def failed_solve(self, batch):
    raise Diverged("solve failed: max_steps")


def failed_backward_solve(self, batch, loss=ClassificationTask.loss):
    found = loss(self, batch)
    return found._replace(value=FailsBackward.apply(found.value))


@pytest.mark.parametrize("broken", [failed_solve, failed_backward_solve])
def test_a_step_that_fails_where_it_is_only_measured_costs_the_measurement_alone(broken, train, monkeypatch, caplog):
    uninterrupted = train("model=mlp")
    measure_step = loop.measure_step

    def measured(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(ClassificationTask, "loss", broken)
            return measure_step(*arguments)

    monkeypatch.setattr(loop, "measure_step", measured)
    result = train("model=mlp", "trainer.measure_every=1")
    assert result.exit_code == 0
    messages = [text for text in caplog.messages if "not measured" in text]
    what = "memory, FLOPs and step sizes were not measured after step"
    assert [text.partition(": ")[0] for text in messages] == [f"{what} 4", f"{what} 8"]
    assert all("solve failed: max_steps" in text for text in messages)
    run = read_run(result.folder)
    assert not any("memory/peak_mib" in row for row in run.metrics)
    assert run.summary["test"] == read_run(uninterrupted.folder).summary["test"]
    assert same(weights(result.folder), weights(uninterrupted.folder))


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(train, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        train(f"run_dir={tmp_path / 'taken'}")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_built(train, tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("years of work")
    finished = train("model=mlp", f"run_dir={tmp_path / 'finished'}").folder
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    monkeypatch.setattr(run_module, "build_task", lambda *_: pytest.fail("built"))
    for location, message in {
        "thesis.txt": "is a file; give another run_dir",
        "finished": "holds a finished run; give another run_dir",
    }.items():
        with pytest.raises(UsageError, match=message):
            train("model=mlp", "seed=1", f"run_dir={tmp_path / location}")
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_below_a_file_is_refused_by_the_setting_before_anything_is_built(train, tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").touch()
    monkeypatch.setattr(run_module, "build_task", lambda *_: pytest.fail("built"))
    for setting in ("run_dir", "outputs"):
        with pytest.raises(UsageError, match=rf"^{setting}=.*thesis.txt/x cannot be made \(Not a directory\)"):
            train("model=mlp", f"{setting}={tmp_path / 'thesis.txt' / 'x'}")


def test_a_relative_root_of_the_data_is_kept_as_an_absolute_one(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match=re.escape(f"{tmp_path / 'mine'}")):  # the folder is empty
        train("data=mnist", "data.root=mine", "data.download=false")


def test_nothing_is_written_for_invalid_settings(train, tmp_path):
    for override, message in (
        ("trainer.batch_size=3501", "data.train_limit=64"),
        (f"data=mnist data.download=false data.root={tmp_path / 'nothing'}", "nothing"),
        ("device=cuda:77", "device=cuda:77"),
        (f"init_from={tmp_path}", f"^init_from={tmp_path}: .* is not a run's folder"),
        (
            "model=mlp trainer.objective=val/nfe",
            r"val/nfe: .* does not measure it .*\(it measures val/loss, val/accuracy\)",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            train(*override.split())
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other model"])
def test_a_damaged_checkpoint_is_refused_by_name(damage, train, monkeypatch):
    stop_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    path = train().folder / "checkpoints" / "last.pt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "foreign":
        torch.save({"epoch": 3}, path)
    else:
        content = torch.load(path, weights_only=True)
        content["model"] = {"layers.1.weight": torch.ones(3)}
        content["model_name"] = "mlp"
        torch.save(content, path)
    reason = {"truncated": "readable", "foreign": "not a checkpoint", "other model": "model mlp"}[damage]
    with pytest.raises(UsageError, match=rf"last\.pt.*{reason}"):
        resume_run(path.parent.parent)


def test_checkpoints_execute_nothing(odenet_run, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "executed"),))

    folder = shutil.copytree(odenet_run, tmp_path / "run")
    path = folder / "checkpoints" / "best.pt"
    path.write_bytes(pickle.dumps(Evil()))
    from odebench import load_run

    with pytest.raises(UsageError, match="not a readable checkpoint"):
        load_run(folder)
    assert not (folder / "executed").exists()


def test_the_steps_of_a_training_step_are_kept(train):
    run = read_run(train("tol=1e-2").folder)
    kept = json.loads((run.path / layout.STEP_SIZES).read_text())
    assert kept["step"] == run.metrics[-1]["step"]
    assert [sum(sizes) for sizes in kept["solves"]] == pytest.approx([1.0])
    assert len(kept["rejected"]) == 1


def test_the_manifest_holds_the_provenance_of_the_numbers(train):
    manifest = json.loads((train("seed=3", "trainer.iterations=1").folder / "manifest.json").read_text())
    assert manifest["seeds"] == {"seed": 3}
    assert manifest["settings"]["solver"]["rtol"] == 1e-3
    assert manifest["data"]["splits"]["train"]["images"] == 64
    assert manifest["versions"]["torch"] == torch.__version__

"""Runs in the trackers' own stores: MLflow with SQLite, trackio's local store, W&B offline. Each is sent in pieces."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from odebench.cli import main
from odebench.config.compose import compose, resolved
from odebench.record.reader import read_run
from odebench.record.writer import RunWriter
from odebench.reporting import export

pytestmark = pytest.mark.filterwarnings("default")  # of the trackers' own code


@pytest.fixture(scope="module", autouse=True)
def stores(tmp_path_factory):
    """The working directory of the tests, where all trackers keep what they get. They read their variables once."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.setenv("WANDB_MODE", "offline")
        yield folder


def require(tracker):
    return pytest.importorskip(tracker, reason=f'no {tracker} (pip install -e ".[{tracker}]")')


@pytest.fixture
def run(tmp_path):
    """The folder of a run; `writer` opens it."""
    return tmp_path / "run"


def writer(run):
    """Start a run elsewhere, where its process may still live."""
    config = compose(["tol=1e-2", "model.width=8", "name=mine", "tags=[small,first]", "notes=a note"])
    manifest = {
        "started": "2026-11-24T14:03:22Z",
        "settings": resolved(config),
        "machine": {"host": "elsewhere", "pid": 1, "began": str(run)},
    }
    return RunWriter.create(run, config, [], manifest)


def finish(writing, step):
    """End a run with a figure and a summary."""
    writing.write_figure("curves", Figure(figsize=(1, 1)), step)
    writing.log(step, {"test/loss": 1 / 4})
    writing.write_summary({"parameters": 3642, "final/test_loss": 1 / 4})
    writing.write_status("done")
    writing.close()


def send(run, tracker, capsys):
    """Send the run; return the line about it."""
    assert main(["export", str(run), "--to", tracker, "--project", run.parent.name]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return line.removeprefix(f"{run}: ")


def in_mlflow(project):
    """(values of each step by tag with repetitions, times in seconds by step, settings, names of figures)."""
    import mlflow

    client = mlflow.MlflowClient()
    (sent,) = client.search_runs([client.get_experiment_by_name(project).experiment_id])
    assert (sent.info.run_name, sent.data.tags["tags"]) == ("mine", "small, first")
    assert sent.data.tags["mlflow.note.content"] == "a note"
    metrics = [one for tag in sent.data.metrics for one in client.get_metric_history(sent.info.run_id, tag)]
    values = sorted((one.step, one.key, one.value) for one in metrics)
    figures = [Path(one.path).name for one in client.list_artifacts(sent.info.run_id, "figures")]
    return values, {one.step: one.timestamp / 1000 for one in metrics}, sent.data.params, figures


def in_trackio(project):
    from datetime import datetime

    from trackio.sqlite_storage import SQLiteStorage

    ((name,), values, times, figures) = SQLiteStorage.get_runs(project), [], {}, []
    assert name == "mine"
    for row in SQLiteStorage.get_logs(project, name):
        step = row.pop("step")
        times[step] = datetime.fromisoformat(row.pop("timestamp")).timestamp()
        figures += [Path(value["file_path"]) for value in row.values() if isinstance(value, dict)]
        values += [(step, tag, value) for tag, value in row.items() if not isinstance(value, dict)]
    assert all((Path(os.environ["TRACKIO_DIR"]) / "media" / path).is_file() for path in figures)
    settings = SQLiteStorage.get_run_config(project, name)
    return sorted(values), times, {key: str(value) for key, value in settings.items()}, ["curves.png"] * len(figures)


def in_wandb(project):
    """All parts of the run, in the order in which `wandb sync` uploads them."""
    values, times, settings, figures = [], {}, {}, []
    for path in sorted(Path("wandb").glob("offline-run-*")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        lines = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()
        records = [(record["type"], record[record["type"]]) for record in map(json.loads, lines)]
        (sent,) = [record for kind, record in records if kind == "run"]
        if sent["project"] != project:
            continue
        assert (sent["display_name"], sent["tags"], sent["notes"]) == ("mine", ["small", "first"], "a note")
        config = sent["config"]["update"]
        settings |= {"tol": str(config["tol"]), "model.width": str(config["model"]["width"])}
        for item in (record["item"] for kind, record in records if kind == "history"):
            step, times[step] = item["_step"], item["_timestamp"]
            values += [(step, tag, x) for tag, x in item.items() if not tag.startswith(("_", "figures/"))]
            figures += [f"{tag.split('/')[1].split('.')[0]}.png" for tag in item if tag.endswith(".sha256")]
    return sorted(values), times, settings, figures


STORED = {"mlflow": in_mlflow, "trackio": in_trackio, "wandb": in_wandb}


@pytest.mark.slow
@pytest.mark.parametrize("tracker", STORED)
def test_each_call_adds_what_is_new(tracker, run, capsys):
    require(tracker)
    writing = writer(run)
    writing.log(1, {"train/loss": 4.0})
    writing.log(2, {"train/loss": 3.0})
    writing.flush()
    assert send(run, tracker, capsys) == "1 steps sent"  # validation may follow at step 2
    writing.log(2, {"val/loss": 3.5})
    writing.log(3, {"train/loss": float("nan")})
    writing.flush()
    assert send(run, tracker, capsys) == "1 steps sent"
    finish(writing, 3)
    assert send(run, tracker, capsys) == "1 steps sent"
    assert send(run, tracker, capsys) == "no new steps"
    check_stored(tracker, run, last=3)

    writing = RunWriter.reopen(run, 3)
    writing.log(4, {"train/loss": 2.0})
    finish(writing, 4)
    assert send(run, tracker, capsys) == "1 steps sent"
    assert send(run, tracker, capsys) == "no new steps"
    values = STORED[tracker](run.parent.name)[0]
    assert [step for step, tag, _ in values if tag == "final/test_loss"] == [3, 4]
    assert [step for step, tag, _ in values if tag == "train/loss"] == [1, 2, 3, 4]


def check_stored(tracker, run, last):
    """Check that the tracker has all values of the run once, with their times, and its settings and figures."""
    values, times, settings, figures = STORED[tracker](run.parent.name)
    rows = read_run(run).metrics
    expected = [(row["step"], tag, x) for row in rows for tag, x in row.items() if tag not in ("step", "elapsed_s")]
    expected.append((last, "parameters", 3642))
    without_nan = [one for one in values if one[2] == one[2] and one[2] != "NaN"]
    assert without_nan == sorted(one for one in expected if one[2] == one[2])
    assert len(values) == len(expected)
    assert sorted(times) == [1, 2, 3]
    assert all(abs(times[step] - run.stat().st_mtime) < 300 for step in times)  # not the time in the manifest
    assert (settings["tol"], settings["model.width"]) == ("0.01", "8")
    assert figures == ["curves.png"]


def kill_at_the_end(tracker, patch):
    """Let the next call end by Ctrl-C after it has sent everything, before it notes that."""

    def interrupted(call, is_last):
        def replaced(*arguments, **options):
            if is_last(*arguments, **options):
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return replaced

    if tracker == "mlflow":
        import mlflow

        log = interrupted(mlflow.MlflowClient.log_batch, lambda *_, tags=(), **__: bool(tags))
        patch.setattr(mlflow.MlflowClient, "log_batch", log)
    elif tracker == "trackio":
        from trackio.sqlite_storage import SQLiteStorage

        patch.setattr(SQLiteStorage, "bulk_log", interrupted(None, lambda *_, **__: True))
    else:
        patch.setattr(
            export, "write_json", interrupted(export.write_json, lambda path, note: [*note.values()] == [(3, None)])
        )


@pytest.mark.slow
@pytest.mark.parametrize("tracker", STORED)
def test_a_call_that_was_killed_before_it_noted_what_it_sent_is_made_up_for(tracker, run, capsys, monkeypatch):
    require(tracker)
    finish(writer(run), 3)
    with monkeypatch.context() as patch:
        kill_at_the_end(tracker, patch)
        assert main(["export", str(run), "--to", tracker, "--project", run.parent.name]) == 130
    assert send(run, tracker, capsys) == "1 steps sent"
    values, *_, figures = STORED[tracker](run.parent.name)
    assert values == [(3, "final/test_loss", 0.25), (3, "parameters", 3642), (3, "test/loss", 0.25)]
    assert figures == ["curves.png"]


@pytest.mark.slow
def test_mlflow_gets_changed_tags_and_a_line_says_that_parameters_stay(run, capsys):
    mlflow = require("mlflow")
    finish(writer(run), 3)
    assert send(run, "mlflow", capsys) == "1 steps sent"
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["settings"] |= {"tags": ["best"], "tol": 0.5}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert main(["export", str(run), "--to", "mlflow", "--project", run.parent.name]) == 0
    assert "MLflow cannot change parameters; it keeps the first value of tol\n" in capsys.readouterr().err
    client = mlflow.MlflowClient()
    (sent,) = client.search_runs([client.get_experiment_by_name(run.parent.name).experiment_id])
    assert (sent.data.tags["tags"], sent.data.params["tol"]) == ("best", "0.01")
    assert send(run, "mlflow", capsys) == "no new steps"


def test_a_run_that_was_resumed_before_what_a_tracker_has_is_told(caplog):
    sent = export.SentRun(SimpleNamespace(path="outputs/run"), "id", {}, {10: {}, 20: {}}, {}, [])
    assert sent.steps_after(10) == [20]
    assert not caplog.messages
    assert sent.steps_after(100) == []
    assert caplog.messages[0].startswith("outputs/run was resumed before step 100, which the tracker has; delete")


def test_a_tracker_that_is_missing_or_unknown_or_gets_no_runs_gives_one_line(run, capsys, monkeypatch, tmp_path):
    finish(writer(run), 3)
    for name in STORED:
        monkeypatch.setitem(sys.modules, name, None)
    for words, code, line in [
        ([run, "--to", "mlflow"], 2, 'mlflow is not installed; from the checkout, pip install -e ".[mlflow]"'),
        ([run, "--to", "mlflo"], 2, "unknown tracker mlflo; did you mean mlflow? (trackers: wandb, mlflow, trackio)"),
        ([run], 2, "the following arguments are required: --to"),
        (["--to", "wandb"], 2, "name runs, or a folder of runs"),
        ([tmp_path / "nowhere", "--to", "wandb"], 2, "nowhere is not a folder"),
        ([run / "figures", "--to", "wandb"], 1, "no runs in"),
    ]:
        assert main(["export", *map(str, words)]) == code
        err = capsys.readouterr().err
        assert line in err
        assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tracker", "variables"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}),
        ("mlflow", {"MLFLOW_TRACKING_URI": "mlruns"}),
        ("wandb", {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": 40 * "a"}),
        ("trackio", {"TRACKIO_SERVER_URL": "http://127.0.0.1:9"}),
    ],
)
def test_a_server_that_does_not_answer_gives_one_line_and_nothing_is_noted(tracker, variables, run):
    require(tracker)
    finish(writer(run), 3)
    before = sorted(run.rglob("*"))
    command = [sys.executable, "-m", "odebench", "export", str(run), "--to", tracker]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert [
        line for line in done.stderr.splitlines() if line.startswith("odebench export: ")
    ] == done.stderr.splitlines()
    assert sorted(run.rglob("*")) == before


def test_a_damaged_run_is_left_out_with_a_line(run, capsys):
    require("trackio")
    finish(writer(run), 3)
    (run / "manifest.json").unlink()
    assert main(["export", str(run), "--to", "trackio", "--project", run.parent.name]) == 0
    assert "manifest.json is damaged or missing" in capsys.readouterr().err

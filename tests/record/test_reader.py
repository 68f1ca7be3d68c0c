import json
import math
import os
import socket
import subprocess
import sys

import pytest

from odebench.errors import UsageError
from odebench.record import layout, reader
from odebench.record.manifest import process_start
from odebench.record.reader import find_runs, read_metrics, read_overview, read_run


def test_a_truncated_last_line_is_dropped_and_null_is_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    complete = b'{"step": 1, "train/loss": null}\n{"step": 2, "train/loss": 0.5}\n'
    for truncated in (b"", b'{"step": 3, "tr', b'{"step": 3}', b"\x00\x00\x00\n", b'{"step": 3, "\xc3'):
        path.write_bytes(complete + truncated)
        rows = read_metrics(path)
        assert [row["step"] for row in rows] == [1, 2]
        assert math.isnan(rows[0]["train/loss"])


@pytest.mark.parametrize(
    ("end", "number"),
    [
        (b"", ""),
        (b'{"step": 3, "tr', "1 damaged or incomplete line is"),
        (b"\x00\n{}\n[", "3 damaged or incomplete lines are"),
    ],
)
def test_dropped_lines_are_reported_once(end, number, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + end)
    assert read_metrics(path) == read_metrics(path) == [{"step": 1}]
    assert caplog.messages == ([f"{path}: {number} left out"] if number else [])


def test_a_damaged_line_before_the_end_raises_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UsageError, match="line 2"):
        read_metrics(path)


def test_runs_are_found_at_any_depth_and_a_run_is_found_from_itself(tmp_path, create):
    for name in ("day/a", "day/sweep/b", "day/sweep/c"):
        create(tmp_path / name).close()
    (tmp_path / "day/empty").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert found == ["day/a", "day/sweep/b", "day/sweep/c"]
    assert find_runs(tmp_path / "day/a") == [tmp_path / "day/a"]
    with pytest.raises(UsageError, match="not a folder"):
        find_runs(tmp_path / "nowhere")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere is not a run's folder: it does not exist"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"settings.yaml or status.json is missing"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (layout.SETTINGS, "model: [", "cannot be read: while parsing"),
        (layout.SETTINGS, b"\xff", "cannot be read: 'utf-8'"),
        (layout.SETTINGS, "- 1", "holds no settings"),
        (layout.SETTINGS, "width: ${x}", "Interpolation key 'x' not found"),
        (layout.SETTINGS, "home: ${oc.env:HOME}", "resolvers are not read from saved settings"),
        (layout.STATUS, "{", "is damaged: it is not JSON"),
        (layout.STATUS, "[1]", "is damaged: it is not a JSON object"),
        (layout.SUMMARY, "null", "is damaged: it is not a JSON object"),
        (layout.STATUS, "{}", "is damaged: its status or its step is missing or wrong"),
        (layout.STATUS, '{"status": null}', "is damaged: its status or its step is missing or wrong"),
        (layout.STATUS, '{"status": "running", "step": "x"}', "is damaged: its status or its step is missing or wrong"),
        (layout.MANIFEST, '{"resumed": 3}', "is damaged: its entry resumed is not a list of objects"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, create, name, content, message):
    folder = tmp_path / "run"
    create(folder).close()
    (folder / layout.MANIFEST).unlink()  # otherwise the settings are read from it
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (read_run, read_overview):
        with pytest.raises(UsageError, match=f"^{folder / name}.*{message}[^\n]*$"):
            read(folder)


def test_a_list_of_runs_need_not_read_their_rows(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(1, {"train/loss": 0.5})
    assert read_run(record.path, metrics=False).metrics == []
    assert len(read_run(record.path).metrics) == 1
    assert read_run(str(record.path)).settings.model.width == 64


def overview(folder, **status):
    (folder / layout.STATUS).write_text(json.dumps({"status": "running", "step": 0, **status}))
    return read_overview(folder)


def test_a_running_run_has_a_step_and_a_remaining_time(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(1, {"train/loss": 0.5})
        record.log(30, {"train/loss": 0.4})
    rows = (record.path / layout.METRICS).read_text().splitlines()
    rows[-1] = json.dumps(json.loads(rows[-1]) | {"elapsed_s": 60.0})
    truncated = '\n{"step": 31, "elap'
    (record.path / layout.METRICS).write_text("\n".join(rows) + truncated)
    assert (overview(record.path).step, overview(record.path).eta_s) == (30, None)
    assert overview(record.path, steps=90).eta_s == 120.0
    settings = (record.path / layout.SETTINGS).read_text()
    (record.path / layout.SETTINGS).write_text(settings.replace("average: null", "max_minutes: 1.5"))
    assert overview(record.path, steps=90).eta_s == 30.0
    assert overview(record.path, status="done", step=90, steps=90).eta_s is None


def test_a_run_whose_process_has_ended_counts_as_interrupted(tmp_path, create):
    create(tmp_path / "run").close()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = {"host": socket.gethostname()}
    for machine, status in [
        (here | {"pid": os.getpid()}, "running"),
        (here | {"pid": dead.pid}, "interrupted"),
        (here | {"pid": os.getpid(), "began": process_start(os.getpid())}, "running"),
        # Another process has the same number now.
        (here | {"pid": os.getpid(), "began": "another time"}, "interrupted"),
        ({"host": "elsewhere", "pid": dead.pid}, "running"),
        ({}, "running"),
    ]:
        (tmp_path / "run" / layout.MANIFEST).write_text(json.dumps({"machine": machine}))
        assert overview(tmp_path / "run").status == status
        assert read_overview(tmp_path / "run", trust_status=True).status == "running"


def test_a_reason_is_one_line_that_moves_no_cursor(tmp_path):
    status = {"status": "failed", "step": 0, "message": "it\nbroke \x1b[2J\x07 here"}
    (tmp_path / layout.STATUS).write_text(json.dumps(status))
    assert read_overview(tmp_path).message == "it broke [2J here"


def test_an_overview_reads_no_yaml_where_the_manifest_has_the_settings(tmp_path, create):
    create(tmp_path / "run").close()
    (tmp_path / "run" / layout.MANIFEST).write_text('{"settings": {"model": {"name": "mlp"}}}')
    (tmp_path / "run" / layout.SETTINGS).write_text("not: [yaml")
    found = read_overview(tmp_path / "run")
    assert (found.setting("model.name"), found.setting("model.name.x"), found.setting("data")) == ("mlp", None, None)
    (tmp_path / "run" / layout.MANIFEST).write_text("{")
    with pytest.raises(UsageError, match=r"manifest\.json is damaged"):
        read_overview(tmp_path / "run")


def test_a_search_through_too_many_folders_ends_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_FOLDERS_WITHOUT_RUN", 3)
    for number in range(5):  # runs do not count
        (tmp_path / f"day/{number}").mkdir(parents=True)
        for name in ("status.json", "settings.yaml"):
            (tmp_path / f"day/{number}/{name}").touch()
    assert len(find_runs(tmp_path)) == 5
    (tmp_path / "a/b/c").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds more than 3 folders without a run; name a folder of runs"):
        find_runs(tmp_path)

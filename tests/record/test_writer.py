import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from odebench.config.schema.quantities import QUANTITIES
from odebench.errors import UsageError
from odebench.record import files, layout
from odebench.record.reader import read_run
from odebench.record.writer import RunWriter, write_status


def strict_rows(path: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_writes_all_its_files(tmp_path, create):
    with create(tmp_path / "deep" / "run") as record:
        record.log(10, {"train/loss": 0.5})
        record.write_figure("confusion", Figure(), 10)
        record.write_summary({"best/accuracy": 0.9, "note": "ok"})
        record.write_status("done")
    names = {path.name for path in record.path.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "settings.yaml",
        "overrides.txt",
        "manifest.json",
        "status.json",
        "metrics.jsonl",
        "summary.json",
        "log.txt",
        "checkpoints",
        "figures",
    }
    assert (record.path / "overrides.txt").read_text() == "tol=1e-3\nseed=0\n"
    assert (record.path / "figures/confusion.png").read_bytes().startswith(b"\x89PNG")
    assert read_run(record.path).summary == {"best/accuracy": 0.9, "note": "ok"}


def test_saved_settings_keep_interpolations_so_that_tol_can_change_later(tmp_path, create):
    create(tmp_path / "run").close()
    saved = OmegaConf.load(tmp_path / "run/settings.yaml")
    saved.tol = 1e-6
    assert saved.solver.rtol == 1e-6


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (1.5, 1.5),
        (np.float32(0.25), 0.25),
        (np.int64(7), 7),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([3]), 3),
        (math.nan, None),
        (-math.inf, None),
        (torch.tensor(math.inf), None),
    ],
)
def test_metrics_are_strict_json_whatever_kind_of_number_comes(tmp_path, create, number, written):
    with create(tmp_path / "run") as record:
        record.log(1, {"train/loss": number})
    (row,) = strict_rows(record.path / "metrics.jsonl")
    assert row["train/loss"] == written
    assert row["step"] == 1
    frame = pd.read_json(record.path / "metrics.jsonl", lines=True)
    assert frame["train/loss"].isna()[0] == (written is None)


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path, create):
    with create(tmp_path / "run") as record:
        for step in (1, 2):
            record.log(step, {"train/loss": 0.5})
            assert [row["step"] for row in strict_rows(record.path / "metrics.jsonl")][-1] == step


def test_an_unknown_tag_is_refused_unless_it_starts_with_task(tmp_path, create):
    with create(tmp_path / "run") as record:
        with pytest.raises(AssertionError, match="train/los "):
            record.log(1, {"train/los": 0.5})
        record.log(1, {"task/energy": 2.0})
    assert read_run(record.path).series("task/energy") == ([1], [2.0])


def test_a_tag_is_logged_once_a_step_also_after_reopening(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(5, {"train/loss": 0.5})
        record.log(5, {"val/loss": 0.5})
        with pytest.raises(AssertionError, match="already"):
            record.log(5, {"val/loss": 0.4})
    with RunWriter.reopen(tmp_path / "run", 5) as record, pytest.raises(AssertionError, match="already"):
        record.log(5, {"train/loss": 0.5})


def test_a_folder_with_anything_in_it_is_refused_and_left_as_it_is(tmp_path, create):
    folder = tmp_path / "run"
    create(folder).close()
    before = contents(folder)
    with pytest.raises(UsageError, match=r"not empty.*odebench resume .*run.*another run_dir"):
        create(folder)
    assert contents(folder) == before

    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other is not empty"):
        create(tmp_path / "other")
    assert contents(tmp_path / "other") == {"notes.txt": b"mine"}
    with pytest.raises(UsageError, match="is a file"):
        create(tmp_path / "other/notes.txt")


def test_a_queued_job_may_start_in_its_folder(tmp_path, create):
    write_status(tmp_path, "queued")
    create(tmp_path).close()
    assert read_run(tmp_path).status["status"] == "running"
    write_status(tmp_path / "checkpoints", "done")
    with pytest.raises(UsageError, match="not empty"):
        create(tmp_path / "checkpoints")


def test_the_status_has_step_time_and_error_and_the_log_has_the_traceback(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(7, {"train/loss": math.nan})
        record.write_status("failed", message="disk full", traceback="Traceback ...\nOSError: disk full\n")
    status = read_run(record.path).status
    assert status["status"] == "failed"
    assert status["step"] == 7
    assert status["message"] == "disk full"
    assert pd.Timestamp(status["time"]).tzname() == "UTC"
    assert "OSError: disk full\n" in (record.path / "log.txt").read_text()
    with pytest.raises(AssertionError):
        write_status(record.path, "finished")


def test_the_log_file_gets_messages_only_while_the_record_is_open(tmp_path, create):
    logger = logging.getLogger("odebench")
    handlers = list(logger.handlers)
    with create(tmp_path / "run") as record:
        logging.getLogger("odebench.training").info("epoch %d", 1)
    logging.getLogger("odebench.training").info("after")
    record.close()
    text = (record.path / "log.txt").read_text()
    assert "INFO odebench.training: epoch 1" in text
    assert "after" not in text
    assert logger.handlers == handlers


def test_json_files_are_whole_or_old_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    files.write_json(path, {"status": "running"})

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        files.write_json(path, {"status": "done"})
    assert json.loads(path.read_text()) == {"status": "running"}
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def test_reopening_drops_later_rows_a_truncated_line_and_the_final_metrics(tmp_path, create):
    with create(tmp_path / "run") as record:
        for step in (10, 20, 30):
            record.log(step, {"train/loss": 1 / step})
        record.write_status("done")
        record.write_summary({"final/nfe_forward": 26.0})
    with open(record.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "train/lo')
    with RunWriter.reopen(record.path, 20, {"host": "other"}) as record:
        assert record.step == 20
        assert read_run(record.path).status["status"] == "running"
        assert not (record.path / "summary.json").exists()
        record.log(30, {"train/loss": 0.7})
    run = read_run(record.path)
    assert run.series("train/loss") == ([10, 20, 30], [0.1, 0.05, 0.7])
    assert run.series("final/nfe_forward") == ([], [])
    assert run.manifest == {"command": ["odebench"], "resumed": [{"step": 20, "host": "other"}]}


def test_reopening_at_the_end_drops_the_final_metrics(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(10, {"train/loss": 0.5})
        record.write_summary({"best/accuracy": 0.5})
    with RunWriter.reopen(record.path, 10) as record:
        assert len(read_run(record.path).metrics) == 1
        record.write_summary({"best/accuracy": 0.6})
    assert read_run(record.path).series("best/accuracy") == ([10], [0.6])


def test_elapsed_time_continues_after_reopening(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(1, {"train/loss": 0.5})
    rows = strict_rows(record.path / "metrics.jsonl")
    (record.path / "metrics.jsonl").write_text(json.dumps({**rows[0], "elapsed_s": 1000.0}) + "\n")
    with RunWriter.reopen(record.path, 1) as record:
        assert 1000 <= record.elapsed_s < 1010


def test_reopening_a_folder_without_a_run_raises_usage_error(tmp_path):
    with pytest.raises(UsageError, match="not a run's folder"):
        RunWriter.reopen(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_reading_and_plotting_need_no_torch_and_no_pyplot():
    program = (
        "import sys, odebench.record.layout, odebench.record.reader;"
        "import odebench.plots.confusion, odebench.plots.curves;"
        "print(sorted({'torch', 'tensorboard', 'matplotlib.pyplot'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_chart_and_metric_names_a_tag_that_exists():
    for task, quantities in QUANTITIES.items():
        sections = layout.chart_layout(list(quantities))
        tags = [tag for charts in sections.values() for chart in charts.values() for tag in chart]
        assert tags, task
        assert set(tags) <= layout.TAGS.keys()

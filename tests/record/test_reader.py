import math

import pytest

from odebench.errors import UsageError
from odebench.record.reader import find_runs, read_metrics, read_run


def test_a_torn_last_line_is_left_out_and_null_is_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 1, "train/loss": null}\n{"step": 2, "train/loss": 0.5}\n'
    for torn in (b"", b'{"step": 3, "tr', b'{"step": 3}', b"\x00\x00\x00\n", b'{"step": 3, "\xc3'):
        path.write_bytes(whole + torn)
        rows = read_metrics(path)
        assert [row["step"] for row in rows] == [1, 2]
        assert math.isnan(rows[0]["train/loss"])


def test_a_damaged_line_elsewhere_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UsageError, match="line 2"):
        read_metrics(path)


def test_runs_are_found_at_any_depth_and_a_run_is_found_from_itself(tmp_path, create):
    for name in ("day/a", "day/sweep/b", "day/sweep/c"):
        create(tmp_path / name).close()
    (tmp_path / "day/empty").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == [
        "day/a",
        "day/sweep/b",
        "day/sweep/c",
    ]
    assert find_runs(tmp_path / "day/a") == [tmp_path / "day/a"]
    with pytest.raises(UsageError, match="not a folder"):
        find_runs(tmp_path / "nowhere")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere is not a run's folder: it does not exist"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"settings.yaml or status.json is missing"):
        read_run(tmp_path)


def test_a_list_of_runs_need_not_read_their_rows(tmp_path, create):
    with create(tmp_path / "run") as record:
        record.log(1, {"train/loss": 0.5})
    assert read_run(record.path, metrics=False).metrics == []
    assert len(read_run(record.path).metrics) == 1
    assert read_run(str(record.path)).settings.model.width == 64

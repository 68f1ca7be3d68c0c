"""Results: ratios, tables, files that read back unchanged, an empty folder for them."""

import json

import numpy as np
import pytest

from odebench.bench import report
from odebench.errors import UsageError
from odebench.plots.comparison import Panel, comparison_figure


def row(library, time_ms, **changes):
    return {
        "work": "tiny",
        "family": "forward",
        "library": library,
        "variant": "",
        "mode": "forward",
        "method": "dopri5",
        "tol": 1e-5,
        "batch": 20,
        "time_min_ms": time_ms,
        "time_median_ms": 2 * time_ms,
        "runs": 3,
        "bare_ms": 0.5,
        "nfe_forward": 26,
        "nfe_backward": 0,
        "rows_forward": 520,
        "accepted": 4,
        "rejected": 1,
        "state_error": 1.5e-6,
        "parameter_gradient_error": None,
        "state_gradient_error": None,
        "peak_mib": None,
        "operations_per_step": 20.0,
        "synchronisations_per_step": 1.0,
        "version": "1.0.1",
        **changes,
    }


ABOUT = {
    "date": "2026-01-01",
    "machine": {"cpu": "A CPU", "threads": 2},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}


def test_ratios_are_relative_to_the_first_other_library_of_each_group():
    rows = [row("odebench", 2.0), row("torchdiffeq", 6.0), row("scipy", 3.0), row("odebench", 1.0, tol=1e-3)]
    report.add_ratios(rows)
    assert [r["ratio_min"] for r in rows] == [3, 1, 2, 1]
    assert [r["ratio_median"] for r in rows] == [3, 1, 2, 1]


def test_files_read_back_as_they_were_written(tmp_path):
    rows = [row("odebench", 2.0), row("torchdiffeq", 6.0, state_error=float("nan"))]
    report.add_ratios(rows)
    report.write(tmp_path, ABOUT, rows, ["jax: not installed"])
    read = report.read_csv(tmp_path / report.CSV)
    where = {"cpu": "A CPU", "threads": 2, "python": "3.11.7", "torch": "2.13.0", "date": "2026-01-01"}
    assert read[0] == {name: value if value != "" else None for name, value in (rows[0] | where).items()}
    content = json.loads((tmp_path / report.JSON).read_text())
    assert content["left_out"] == ["jax: not installed"]
    assert content["rows"][0] == rows[0]
    assert content["rows"][1]["state_error"] is None
    assert content["machine"]["cpu"] == "A CPU"


def test_a_table_shows_errors_beside_times_and_drops_empty_columns():
    rows = [row("odebench", 2.0), row("torchdiffeq", 1234.5, nfe_backward=35, accepted=None, rejected=None)]
    report.add_ratios(rows)
    (table,) = report.tables(rows, {"tiny": "a spiral"})
    title, family, header, first, second = table.splitlines()
    assert (title, family) == ("tiny: a spiral", "forward, tol 1e-05")
    assert header.split("  ")[0] == "LIBRARY"
    assert "ERROR" in header
    assert "PEAK MIB" not in header
    assert "ROWS" not in header
    assert first.split()[:2] == ["odebench", "forward"]
    assert {"26", "1.5e-06", "617.25"} <= set(first.split())
    assert "4 + 1" in first
    assert "26 + 35" in second
    assert {"1,234", "-"} <= set(second.split())


def test_batches_are_compared_apart():
    rows = [row(name, time, batch=batch) for batch in (20, 1) for name, time in (("odebench", 2.0), ("scipy", 6.0))]
    rows[-1]["time_min_ms"] = 8.0
    report.add_ratios(rows)
    assert [r["ratio_min"] for r in rows] == [3, 1, 4, 1]
    first, second = (table.splitlines() for table in report.tables(rows, {"tiny": "a spiral"}))
    assert [*first[:2], second[0]] == ["tiny: a spiral", "forward, tol 1e-05", "forward, tol 1e-05, batch 1"]
    narrow = "\n".join(report.tables(rows, {"tiny": "a spiral " * 9}, 50))
    assert max(map(len, narrow.splitlines())) <= 50
    assert "all:  mode forward  method dopri5" in narrow


def test_results_need_an_empty_folder(tmp_path, monkeypatch):
    assert report.make_folder(tmp_path / "new" / "one").is_dir()
    assert report.make_folder(tmp_path / "new" / "one").is_dir()  # still empty
    with pytest.raises(UsageError, match="new is not empty"):
        report.make_folder(tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        report.make_folder(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    assert report.make_folder(None).relative_to("outputs/bench").parts.__len__() == 2


def test_a_figure_is_drawn_where_there_are_two_tolerances(tmp_path):
    rows = [row("odebench", 2.0), row("odebench", 3.0, tol=1e-6, state_error=1e-7), row("scipy", 3.0, case="mlp")]
    assert [path.name for path in report.save_figures(tmp_path, rows)] == ["tiny_forward.png"]
    assert (tmp_path / "tiny_forward.png").stat().st_size > 1000


def test_lines_follow_the_tolerances_and_omit_values_that_are_not_positive():
    of_each = ((3.0, 50, 1e-5, 20), (1.0, 26, 1e-3, None), (2.0, None, 1e-2, None), (4.0, 60, float("nan"), 0),
               (5.0, 70, 0.0, 0), (6.0, 80, None, 0))  # fmt: skip
    rows = [
        {"tol": 1e-3, "time_median_ms": time_ms, "nfe_forward": forward, "nfe_backward": backward, "state_error": error}
        for time_ms, forward, error, backward in of_each
    ]
    for x, expected in (
        ("time (ms): median and quartiles", [(3.0, 1e-5), (1.0, 1e-3), (2.0, 1e-2)]),
        ("NFE, forward + backward", [(70, 1e-5), (26, 1e-3)]),
    ):
        line = report.work_precision_line("one", rows, report.FIGURE_COSTS[x], "state_error")
        assert [point for point in zip(line.x, line.y, strict=True) if np.isfinite(point).all()] == expected


def test_times_have_bars_between_their_quartiles_and_points_their_tolerance():
    rows = [row("odebench", 2.0, tol=tol, time_low_ms=3.5, time_high_ms=5.0) for tol in (1e-3, 1e-6)]
    line = report.work_precision_line("one", rows, ("time_median_ms",), "state_error")
    assert line.x_range.tolist() == [[3.5, 5.0]] * 2
    assert line.point_labels == ["1e-3", "1e-6"]
    (axes,) = comparison_figure([Panel("t", "x", "y", [line])]).axes
    (bars,) = axes.collections
    assert [part[:, 0].tolist() for part in bars.get_segments()] == [[3.5, 5.0]] * 2

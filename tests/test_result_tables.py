"""The tables of the pages are those of the committed results, and the scripts that measure these can start."""

import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch):
    """Import a script by its name, which may import others of its folder."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


@pytest.fixture
def tables(script):
    """The script that renders the tables of the pages."""
    return script("render_tables")


def test_the_tables_match_the_results(tables):
    for page, with_tables in tables.PAGES.items():
        text = page.read_text(encoding="utf-8")
        assert with_tables(text) == text, f"{page.name}: python scripts/render_tables.py"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(row["date"] in readme for row in tables.results.read("mnist5k"))


def test_all_tables_are_generated(tables):
    """A page with emptied tables is rendered as before, so no number in them is written by hand."""
    for page, with_tables in tables.PAGES.items():
        text = page.read_text(encoding="utf-8")
        emptied = re.sub(r"(<!-- (?!first_run|end)\w+ -->\n).*?(?=<!-- end -->)", r"\1", text, flags=re.DOTALL)
        assert emptied != text
        assert with_tables(emptied) == text


BENCH = {
    "work": "mlp", "family": "forward", "mode": "forward", "method": "dopri5", "variant": "", "tol": "1e-05",
    "bare_ms": "2.5", "nfe_forward": "50", "nfe_backward": "0", "accepted": "7", "rejected": "1", "peak_mib": "",
    "state_error": "1.2e-05", "parameter_gradient_error": "", "cpu": "CPU", "threads": "1", "python": "3.11",
    "torch": "2.13", "date": "2026-01-02",
}  # fmt: skip


def test_the_speed_tables_show_the_benchmark_results(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables.results, "RESULTS", tmp_path)
    assert tables.bench_files() == []
    assert tables.bench_summary([]) == tables.machine_table() == tables.NOT_YET
    libraries = [("odebench", "4.0", "5.0", "3.0", "2.4"), ("torchdiffeq", "12.0", "12.0", "1.0", "1.0")]
    names = ("library", "time_min_ms", "time_median_ms", "ratio_min", "ratio_median")
    rows = [BENCH | dict(zip(names, values, strict=True)) | {"version": "1.0"} for values in libraries]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (tmp_path / "bench_x.cpu.torch-2.13.0.csv").write_text("\n".join(lines) + "\n")
    (found,) = tables.bench_files()
    all_libraries = tables.bench_tables(found)
    assert "| odebench | forward | `dopri5` | 4, 5 | 3.00, 2.40 | 2.5 | 50 | 7 + 1 | 1.2e-05 | – |" in all_libraries
    assert "gradient error" not in all_libraries
    summary = tables.bench_summary(found)
    assert "| `mlp` | **3.0** (4 / 12 ms) | – | – |" in summary
    faster = [row | {"cpu": "Other CPU", "time_min_ms": time} for row, time in zip(rows, ("3.0", "12.0"), strict=True)]
    faster.append(faster[0] | {"variant": "compiled", "time_min_ms": "2.0"})
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in faster)]
    (tmp_path / "other_machines").mkdir()
    (tmp_path / "other_machines" / "bench_x.other-cpu.torch-2.13.0.csv").write_text("\n".join(lines) + "\n")
    assert tables.machine_table().splitlines()[0] == "| case | gradient | CPU | Other CPU |"
    assert tables.machine_table().splitlines()[2] == "| `mlp` | forward | 3.0 | 4.0, compiled 6.0 |"
    for text in (all_libraries, summary):
        assert "Measured 2026-01-02 on 1 thread of CPU, Python 3.11, torch 2.13; odebench 1.0, torchdiffeq 1.0." in text


def test_a_result_file_is_named_after_machine_and_versions_and_replaces_the_previous_one(tables, tmp_path, monkeypatch):
    results = tables.results
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    machine = "Intel(R) Xeon(R) Processor, threads: 1, torch 2.13.0+cpu"
    one = results.keep("figure4", [{"ours": "1", "machine": machine}])
    assert one.name == "figure4.intel-xeon.torch-2.13.0.csv"
    cpu = "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz"
    assert results.keep("bench", [{"cpu": cpu, "torch": "2.9.1"}]).name == "bench.intel-xeon-e5-2680-v4.torch-2.9.1.csv"
    both = results.keep("figure4", [{"ours": "2", "machine": f"{machine}; AMD EPYC, threads: 2, torch 2.9.1"}])
    assert both.name == "figure4.amd-epyc_intel-xeon.torch-2.13.0_2.9.1.csv"
    assert not one.exists()
    assert [row["ours"] for row in results.read("figure4")] == ["2"]
    assert results.keep("detest", [{"torch": "2.13.0+cpu"}]).name == "detest.torch-2.13.0.csv"
    # Ratios are another machine's own.
    first = results.keep("bench_x", [{"cpu": "AMD EPYC", "torch": "2.13.0"}])
    second = results.keep("bench_x", [{"cpu": "Intel Xeon", "torch": "2.13.0"}])
    assert [path.exists() for path in (first, second)] == [False, True]
    assert (tmp_path / "other_machines" / first.name).exists()
    assert results.keep("bench_x", [{"cpu": "AMD EPYC", "torch": "2.14.0"}]).exists()
    assert [path.name for path in (tmp_path / "other_machines").iterdir()] == [second.name]
    with pytest.raises(SystemExit, match=r"0 files figure5\.\*\.csv"):
        results.read("figure5")


def test_every_result_file_name_matches_its_rows(tables):
    results = tables.results
    for path in (*results.RESULTS.glob("*.csv"), *(results.RESULTS / results.OTHERS).glob("*.csv")):
        name = path.name.partition(".")[0]
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert path.name == ".".join([name, *results.machines(rows), *results.versions(rows), "csv"])


def reproduced(row, number, **columns):
    empty = dict.fromkeys(("published", "ours", "spread", "share", "verdict"), "")
    where = {"machine": "CPU", "date": "2026-01-02", "command": "odebench reproduce x seed=0,1"}
    return {**empty, "row": row, "number": f"final/{number}", "seeds": "2", **where, **columns}


def test_a_reproduction_table_has_published_values_std_verdict_and_command(script):
    tables = script("reproduction_tables")
    partial = "partial budget, 4 % of the published training: worse by 9 %"
    against = "as published: 0.3 against 0.6 of b, ratio 0.50 (published 0.42); partial budget, 4 % and 5 % of the"
    rows = [
        reproduced("a", "test_rmse", published="0.25", ours="0.3", spread="0.01", share="0.04",
                   verdict=f"{partial}; {against} published trainings"),
        reproduced("a", "test_accuracy", ours="0.985"),
        reproduced("b", "test_rmse", ours="0.6"),
        reproduced("b", "minutes", published="6", ours="0.4", verdict="another machine"),
    ]  # fmt: skip
    text = tables.reproduction_table(rows).splitlines()
    assert text[0] == "| run | test RMSE | published | test accuracy (%) | minutes | published | share | verdict |"
    short = "partial budget: worse by 9 %; as published, ratio 0.50 (published 0.42)"
    assert text[2] == f"| a | 0.300 ± 0.010 | 0.25 | 98.5 | – | – | 4 % | {short} |"
    assert text[3] == "| b | 0.6 | – | – | 0.4 | 6 | – | – |"
    assert text[-1] == "`odebench reproduce x seed=0,1`, seeds: 2, measured 2026-01-02 on CPU."
    both = [reproduced("a", name, verdict=f"reproduced: within {name} %") for name in ("test_rmse", "test_loss")]
    assert tables.short_verdict({row["number"]: row for row in both}) == (
        "test RMSE: reproduced: within test_rmse %; test loss: reproduced: within test_loss %"
    )
    waiting = [reproduced("a", name, verdict="b not done: queued") for name in ("test_rmse", "test_loss")]
    assert tables.short_verdict({row["number"]: row for row in waiting}) == "nothing to compare with yet"
    known = reproduced("a", "test_rmse", verdict=f"{partial}; b, 20 % not done: interrupted, stopped by SIGTERM")
    assert tables.short_verdict({"test_rmse": known}) == "partial budget: worse by 9 %"


def test_equal_columns_of_a_reproduction_table_move_below_it(script):
    tables = script("reproduction_tables")
    its = [("minutes", "4"), ("test_nll_nats", "2")]
    rows = [reproduced(name, number, ours=ours, share="0.2") for name in "ab" for number, ours in its]
    below = "`odebench reproduce x seed=0,1`, 20 % of the published training, seeds: 2, 4 minutes, measured"
    text = tables.reproduction_table(rows).splitlines()
    assert [text[0], text[2]] == ["| run | test NLL (nats) |", "| a | 2 |"]
    assert text[-1] == f"{below} 2026-01-02 on CPU."
    # Beside a published number ours stays.
    text = tables.reproduction_table([row | {"published": "3"} for row in rows]).splitlines()
    assert text[2] == "| a | 4 | 3 | 2 | 3 |"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("final/test_nll_nats", "test NLL (nats)"),
        ("best/kl_nats", "best validation KL (nats)"),
        ("final/test_auc", "test AUC (%)"),
        ("final/peak_mib", "peak memory (MiB)"),
        ("final/step_ms", "step (ms)"),
        ("final/test_mse_per_feature", "test MSE per feature"),
        ("nfe_backward", "NFE backward"),
    ],
)
def test_column_titles_have_words_and_units(script, number, words):
    assert script("reproduction_tables").column_title(number) == words


def test_every_verdict_on_a_published_value_is_counted(script, tables):
    verdicts = (*script("reproduction_tables").VERDICTS, "another machine")
    rows = [row for name in tables.REPRODUCED for row in tables.results.read(name) if row["published"] and row["ours"]]
    assert [row["verdict"] for row in rows if not row["verdict"].startswith(verdicts)] == []


def test_the_overview_counts_verdicts_and_sums_minutes(script, monkeypatch):
    tables = script("reproduction_tables")
    common = {"command": "odebench reproduce table2 budget=full trainer.threads=1 seed=0,1", "ours": "0.1"}
    columns = common | {"share": "0.2"}
    against = "0.1 against 0.2 of RNN, 30 points, ratio 0.50 (published 0.42)"
    partial = "partial budget, 20 % of the published training: worse by 9 %"
    rows = [
        reproduced("a", "test_rmse", verdict=f"{partial}; as published: {against}", minutes="2.5", **columns),
        reproduced("a", "minutes", verdict="", minutes="2.5", **columns),
        reproduced("b", "test_rmse", verdict=f"reproduced: better by 3 %; not as published: {against}; partial budget, "
                   "20 % and 100 % of the published trainings", minutes="4", **(columns | {"share": "1.0"})),
    ]  # fmt: skip
    monkeypatch.setattr(tables.results, "read", lambda name: rows)
    line = tables.overview_table(["table2"]).splitlines()[2]
    assert line.startswith("| Chen et al. 2018, Table 2 | ")
    assert line.endswith(
        "| `table2 budget=full seed=0,1` | 100 % and 20 % | 13 | 1 reproduced, 1 partial budget | 1 of 2 as published |"
    )
    rows.append(reproduced("c", "test_rmse", minutes="", verdict="not done: queued", **(common | {"ours": ""})))
    assert "| 100 % and 20 %, 2 of 3 rows | 13 |" in tables.overview_table(["table2"]).splitlines()[2]


def test_the_table_of_figure_4_has_one_line_per_target_and_size(script):
    shared = {"command": "odebench reproduce figure4", "share": "1.0"}
    partial = "partial budget, 100 % and 20 % of the published trainings"
    rows = [
        reproduced(
            "target 1: CNF, M = 2", "test_kl_nats", ours="0.05", **shared, verdict=f"as published: x; {partial}"
        ),
        reproduced("target 1: CNF, M = 2", "minutes", ours="10.6", **shared),
        reproduced("target 1: CNF, M = 2", "", ours="0.04", **shared, verdict=f"not as published: x; {partial}")
        | {"number": "best/kl_nats"},
        reproduced("target 1: planar flow, K = 2", "test_kl_nats", ours="0.7", **(shared | {"share": "0.2"})),
        reproduced("target 1: planar flow, K = 2", "minutes", ours="5.5", published="6", **(shared | {"share": "0.2"})),
        reproduced("target 1: planar flow, K = 2, in the CNF's time", "", ours="0.01", **(shared | {"share": "0.2"}))
        | {"number": "best/kl_nats"},
    ]
    text = script("reproduction_tables").width_table(rows).splitlines()
    assert text[2] == "| target 1 | 2 | 0.05 | 0.7 | 0.04 | 0.01 | 10.6 | 5.5 | 6 | as published; not as published |"
    assert "of the published trainings CNF 100 % and planar flow 20 %, seeds: 2" in text[-1]


def test_every_script_can_be_imported():
    names = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    if importlib.util.find_spec("torchdiffeq") is None:
        names -= {"torchdiffeq_models", "compare_training_step"}
    command = [sys.executable, "-c", f"import {', '.join(sorted(names))}"]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

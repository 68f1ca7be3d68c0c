"""The tables of the pages are those of the committed results, and the scripts that measure these can start."""

import csv
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from odebench.config.compose import compose
from odebench.config.read import read_settings
from odebench.tasks.build import build_model

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
    for page, its_tables in tables.tables_by_page().items():
        text = page.read_text(encoding="utf-8")
        assert tables.with_tables(text, its_tables) == text, f"{page.name}: python scripts/render_tables.py"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(row["date"] in readme for row in tables.results.read("mnist5k"))


def test_all_tables_are_generated(tables):
    """A page with emptied tables is rendered as before, so no number in them is written by hand."""
    for page, its_tables in tables.tables_by_page().items():
        text = page.read_text(encoding="utf-8")
        emptied = re.sub(r"(<!-- (?!first_run|end)\w+ -->\n).*?(?=<!-- end -->)", r"\1", text, flags=re.DOTALL)
        assert emptied != text
        assert tables.with_tables(emptied, its_tables) == text


BENCH = {
    "work": "mlp", "family": "forward", "mode": "forward", "method": "dopri5", "variant": "", "tol": "1e-05",
    "bare_ms": "2.5", "nfe_forward": "50", "nfe_backward": "0", "accepted": "7", "rejected": "1", "peak_mib": "",
    "state_error": "1.2e-05", "parameter_gradient_error": "", "cpu": "CPU", "threads": "1", "python": "3.11",
    "torch": "2.13", "date": "2026-01-02",
}  # fmt: skip


def write_bench(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")


def test_the_speed_tables_show_the_benchmark_results(script, tables, tmp_path, monkeypatch):
    bench = script("bench_tables")
    monkeypatch.setattr(tables.results, "RESULTS", tmp_path)
    assert bench.bench_files() == []
    assert bench.bench_summary([]) == bench.library_table() == bench.NOT_YET
    libraries = [("odebench", "4.0", "5.0"), ("torchdiffeq", "12.0", "12.0"), ("diffrax", "1.0", "2.0")]
    names = ("library", "time_min_ms", "time_median_ms")
    rows = [BENCH | dict(zip(names, values, strict=True)) | {"version": "1.0"} for values in libraries]
    write_bench(tmp_path / "bench_default.cpu.torch-2.13.0.csv", rows)
    (found,) = bench.bench_files()
    summary = bench.bench_summary(found)
    assert "| `mlp` | 3.0 | – | – |" in summary
    assert "Measured 2026-01-02 on 1 thread of CPU, Python 3.11, torch 2.13; odebench 1.0, torchdiffeq 1.0." in summary
    assert "| odebench | 3.0 | – | – |" in bench.library_table()
    # Another machine, where eager steps are faster and diffrax is missing; of torchdiffeq's norms the faster counts.
    others = [rows[0] | {"time_min_ms": "3.0"}, rows[1], rows[1] | {"variant": "seminorm", "time_min_ms": "11.4"}]
    write_bench(tmp_path / "other_machines" / "bench_default.other-cpu.torch-2.13.0.csv", others)
    assert "| odebench | 3.0 to 3.8 | – | – |" in bench.library_table()
    # Eager steps are those of the first file.
    compiled = [rows[0] | {"time_min_ms": "1.0"}, rows[0] | {"variant": "compiled", "time_min_ms": "2.0"}, rows[1]]
    write_bench(tmp_path / "bench_compiled.cpu.torch-2.13.0.csv", compiled)
    assert bench.library_table().splitlines()[2:] == [
        "| odebench | 3.0 to 3.8 | – | – |",
        "| odebench compiled | 6.0 | – | – |",
        "| diffrax | 12 | – | – |",
    ]
    answer = bench.speed_answer()
    assert "**3.0 to 3.8 times as fast as torchdiffeq's**" in answer
    assert "compiled steps on `mlp` 6.0 times" in answer
    assert "\n4.0 times as fast as our eager steps" in answer


def compiled_rows(work, batch, times, **columns):
    """Rows of (library, variant, mode) -> shortest time."""
    families = {"forward": "forward", "backprop": "exact gradient", "checkpoint": "exact gradient"}
    return [
        {"work": work, "batch": batch, "family": families.get(mode, "continuous adjoint"), "library": library,
         "variant": variant, "mode": mode, "time_min_ms": time, "time_median_ms": 2 * time, "alone_min_ms": time / 2,
         "compile_cold_s": 30.2 if variant else None, "compile_warm_s": 3.1 if variant else None, "version": "1.0",
         "cpu": "CPU", "threads": 1, "python": "3.11", "torch": "2.13", "date": "2026-01-02", **columns}
        for (library, variant, mode), time in times.items()
    ]  # fmt: skip


def test_compiled_solves_are_compared_with_torchdiffeq_and_diffrax(script, tables, tmp_path, monkeypatch):
    compiled = script("compiled_tables")
    monkeypatch.setattr(tables.results, "RESULTS", tmp_path)
    times = {
        ("odebench", None, "forward"): 6.0,
        ("odebench", "compiled_solve", "forward"): 1.0,
        ("torchdiffeq", None, "forward"): 12.0,
        ("diffrax", None, "forward"): 0.5,
        ("odebench", "compiled_solve", "backprop"): 2.0,
        ("odebench", "compiled_solve", "checkpoint"): 1.0,  # not what torchdiffeq does
        ("torchdiffeq", None, "backprop"): 20.0,
        ("diffrax", None, "checkpoint"): 3.0,
        ("torchdiffeq", None, "adjoint"): 60.0,
        ("torchdiffeq", "seminorm", "adjoint"): 50.0,
    }
    rows = compiled_rows("tiny", 20, times)
    rows += compiled_rows("tiny", 4096, times | {("odebench", "compiled_solve", "adjoint"): 10.0})
    tables.results.keep("compiled_solves", rows)
    rows += compiled_rows("tiny", 20, {("odebench", "compiled_fast", "forward"): 0.5})
    table = compiled.goals(rows).splitlines()
    header = (
        "forward / exact gradient / adjoint",
        "times eager",
        "times eager, fast math",
        "times torchdiffeq, fast math",
    )
    assert table[0].startswith(f"| {' | '.join(header)} | times diffrax | times diffrax, fast math |")
    own = "6 / – / – | 12 / – / – | 24 / – / – | 0.5 / 1.5 / – | 1 / – / –"
    assert table[2] == f"| `tiny` | {own} | 30 / 30 / – | 3.1 / 3.1 / – |"
    large = "6 / – / – | – | – | 0.5 / 1.5 / – | –"
    assert table[3] == f"| `tiny`, batch 4,096 | {large} | 30 / 30 / 30 | 3.1 / 3.1 / 3.1 |"
    assert "Timed alone, diffrax takes 0.5 times as long, our compiled solves 0.5 times." in table[-1]
    assert "All: [compiled_solves](" in table[-1]
    rows[3]["alone_min_ms"] = 0.1  # diffrax
    headline = compiled.headline(rows).splitlines()
    assert headline[0] == "[Compiled solves](docs/compiling.md) on `tiny`, forward and gradients:"
    assert headline[4:6] == [
        '| `compile_math="fast"` | 24 | 1.0 | 0.4 |',
        '| `compile_math="exact"` | 10 to 12 | 0.5 to 1.5 | 0.2 to 1.5 |',
    ]
    forward = compiled.picture(rows).axes[0]
    shortest = {line.get_label(): line.get_xdata()[0] for line in forward.lines if line.get_label()[0] != "_"}
    assert (shortest["torchdiffeq"], shortest["odebench, compiled solve"]) == (12, 1)


def test_a_stopped_measurement_of_compiled_solves_continues(script, tmp_path, monkeypatch):
    measure = script("measure_compiled_solves")
    commands = []

    def run(command, check):
        commands.append(command)
        folder = Path(command[-1])
        assert not list(folder.glob("*"))
        folder.mkdir(exist_ok=True)
        (folder / "results.csv").write_text("")
        return subprocess.CompletedProcess(command, len(commands) == 2)

    monkeypatch.setattr(measure.subprocess, "run", run)
    measure.measure("tiny", tmp_path, 3)
    with pytest.raises(SystemExit):
        measure.measure("mlp:4096", tmp_path, 3)
    for name in ("tiny", "mlp:4096"):
        measure.measure(name, tmp_path, 3)
    assert [command[4] for command in commands] == ["tiny", "mlp", "mlp"]
    assert commands[0][1:4] == ["-m", "odebench", "bench"]
    assert commands[2][commands[2].index("--batch") + 1] == "4096"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp_4096", "tiny"]


def test_the_limits_of_the_solver_are_those_of_the_results(script, tables, tmp_path, monkeypatch):
    bench = script("bench_tables")
    monkeypatch.setattr(tables.results, "RESULTS", tmp_path)

    def row(library, time, **columns):
        return BENCH | {"library": library, "time_min_ms": time, "rows_forward": "100"} | columns

    default = [row("odebench", "4"), row("torchdiffeq", "12"), row("torchdyn", "3"), row("torchode", "5")]
    write_bench(tmp_path / "bench_default.cpu.torch-2.13.0.csv", default)
    mixed = [row("odebench", "4"), row("odebench", "8", variant="per_sample", rows_forward="30"), row("diffrax", "2")]
    write_bench(tmp_path / "bench_mixed.cpu.torch-2.13.0.csv", mixed)
    times = {"forward": "3", "backprop": "4", "adjoint": "5"}
    conv = [row("odebench", "2", mode=mode) for mode in times]
    conv += [row("odebench", time, mode=mode, variant="compiled") for mode, time in times.items()]
    write_bench(tmp_path / "bench_conv.cpu.torch-2.13.0.csv", conv)
    text = bench.limits()
    assert "eager steps: torchdyn (forward, `mlp`).\n" in text
    assert "30 % of the rows, but take 2 times as long" in text
    assert "diffrax is 2 times as fast" in text
    assert "take 1.5 to 2.5 times as long on `conv`" in text


def test_the_tables_of_stiff_cases_and_gradient_modes_have_a_column_for_each_case(
    script, tables, tmp_path, monkeypatch
):
    bench = script("bench_tables")
    monkeypatch.setattr(tables.results, "RESULTS", tmp_path)
    common = BENCH | {"library": "odebench", "time_min_ms": "4.0"}
    stiff = [common | {"method": "rodas4", "work": work} for work in ("robertson", "vdp")]
    stiff.append(common | {"library": "scipy", "method": "radau", "work": "vdp"})
    write_bench(tmp_path / "bench_stiff.cpu.torch-2.13.0.csv", stiff)
    assert bench.stiff_table().splitlines()[2:] == [
        "| odebench `rodas4` | 4 ms, 1.2e-05 | 4 ms, 1.2e-05 |",
        "| scipy `radau` | – | 4 ms, 1.2e-05 |",
    ]
    gradient = common | {"parameter_gradient_error": "0.0002", "peak_mib": "1.5"}
    modes = [common, gradient | {"mode": "backprop"}, gradient | {"mode": "adjoint", "work": "cnf"}]
    write_bench(tmp_path / "bench_default.cpu.torch-2.13.0.csv", modes)
    assert bench.mode_table(bench.read("bench_default")).splitlines() == [
        "| mode | `mlp` | `cnf` |",
        "|---|---|---|",
        "| `backprop` | 4 ms, 1.5 MiB, 2.0e-04 | – |",
        "| `adjoint` | – | 4 ms, 1.5 MiB, 2.0e-04 |",
    ]


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


def test_the_minutes_of_a_row_are_those_of_its_trainings(tables):
    for name in tables.REPRODUCED:
        rows = tables.results.read(name)
        measured = {row["row"]: float(row["ours"]) for row in rows if row["number"] == "final/minutes" and row["ours"]}
        of_row = {row["row"]: float(row["minutes"]) for row in rows if row["row"] in measured}
        assert of_row == pytest.approx(measured), name


def reproduced(row, number, **columns):
    empty = dict.fromkeys(("published", "ours", "spread", "samples", "share", "missing", "minutes", "verdict"), "")
    where = {"machine": "CPU", "commit": "", "date": "2026-01-02", "command": "odebench reproduce table1 seed=0,1"}
    return {**empty, "row": row, "number": f"final/{number}", "seeds": "2", **where, **columns}


def test_a_result_table_has_ours_with_std_and_the_published_value(script):
    tables = script("reproduction_tables")
    rows = [
        reproduced("a", "test_rmse", published="0.25", ours="0.3", spread="0.01"),
        reproduced("a", "test_accuracy", ours="0.985"),
        reproduced("b", "test_rmse", ours="0.6"),
        reproduced("c", "minutes", ours="6"),
        reproduced("d", "test_rmse", published="0.25"),
    ]
    assert tables.result_table(rows, ["final/test_rmse", "final/test_accuracy"]).splitlines() == [
        "|  | test RMSE (published) | test accuracy (%) |",
        "|---|---|---|",
        "| a | 0.300 ± 0.010 (0.25) | 98.5 |",
        "| b | 0.6 | – |",
    ]


def test_differences_are_paired_by_seed(script):
    values = {"plain": "0=10 1=20 2=30", "taylor": "0=8 1=17 2=26", "other": "3=1"}
    rows = [reproduced(name, "nfe_forward", ours="1", values=text) for name, text in values.items()]
    text = script("reproduction_tables").difference_table(rows, ["final/nfe_forward"], "plain").splitlines()
    # The t quantile of 2 degrees of freedom is 4.303.
    assert text[2:] == ["| taylor | -3 ± 2.5 |", "| other | – |"]


def test_a_pivot_table_has_a_line_for_each_first_part_of_the_rows_names(script):
    tables = script("reproduction_tables")
    rows = [reproduced(name, "test_mse", ours=ours) for name, ours in (("x: a", "1"), ("x: b", "2"), ("y: a", "3"))]
    rows.append(reproduced("x: a", "minutes", ours="5"))
    numbers = ["final/test_mse", "final/minutes"]
    assert tables.pivot_table(rows, numbers, ": ").splitlines() == [
        "| test MSE, minutes | a | b |",
        "|---|---|---|",
        "| x | 1, 5 | 2, – |",
        "| y | 3, – | – |",
    ]


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


def test_every_verdict_is_recomputed_from_its_file(script, tables):
    judge = script("reproduction_tables")
    names = set()
    for path in tables.results.RESULTS.glob("*.csv"):
        rows = tables.results.read_csv(path)
        if "verdict" in rows[0]:
            assert judge.judge_again(judge.reproduction_of(rows), rows) == path.read_text(encoding="utf-8"), path.name
            names.add(path.name.partition(".")[0])
    assert names >= {*tables.REPRODUCED, "memory-modes", "memory-cnf", "gradients"}


def test_a_changed_result_changes_its_verdict(script, tables):
    judge = script("reproduction_tables")
    rows = tables.results.read("table2")
    row = next(row for row in rows if row["row"] == "RNN, 100 points")
    assert row["verdict"].startswith("cannot tell")
    for ours, verdict in (("0.18", "reproduced"), ("0.25", "worse"), ("0.1", "better")):
        row |= {"ours": ours, "spread": "0.004", "values": ""}
        (again,) = (one for one in csv.DictReader(judge.judge_again(judge.reproduction_of(rows), rows).splitlines())
                    if (one["row"], one["number"]) == (row["row"], row["number"]))  # fmt: skip
        assert again["verdict"].startswith(f"{verdict}: ")


def test_the_answer_counts_published_numbers_by_verdict(script, monkeypatch):
    tables = script("reproduction_tables")
    sizes = reproduced("1-layer MLP", "", ours="238510") | {"number": "parameters"}
    rows = [
        sizes,
        sizes | {"row": "ODE-Net"},
        reproduced("ODE-Net", "test_accuracy", ours="0.99", share="0.1"),
        reproduced("ResNet", "test_accuracy", ours="0.997", samples="10000", share="1.0", seeds="1"),
        reproduced("RK-Net", "test_accuracy", ours="0.99", samples="10000", share="1.0", seeds="1"),
    ]
    monkeypatch.setattr(tables.results, "read", lambda name: rows)
    text = " ".join(tables.published_numbers(["table1"]).split())
    assert text.startswith(
        "Reproduced: **1 of 2** published results that were trained in full; the others are 1 *worse*."
    )
    assert (
        "1 more come from shorter trainings and decide nothing yet. Of 2 numbers of parameters 1 agrees. 5 of" in text
    )
    # A shorter training of a number that is judged does not count.
    short = reproduced("ResNet", "test_accuracy", ours="0.99", share="0.1")
    monkeypatch.setattr(tables.results, "read", lambda name: {"table1": rows, "table1-tiny": [short]}[name])
    for order in (["table1", "table1-tiny"], ["table1-tiny", "table1"]):
        assert " ".join(tables.published_numbers(order).split()) == text


def test_the_overview_has_published_values_with_intervals_and_the_comparisons(script, monkeypatch):
    tables = script("reproduction_tables")
    command = {"command": "odebench reproduce table2 budget=full trainer.threads=1 seed=0,1"}
    short = command | {"minutes": "2.5", "share": "0.2"}
    rows = [
        reproduced("latent ODE, 30 points", "test_rmse_extrapolation", ours="0.1", **short),
        reproduced("latent ODE, 50 points", "test_rmse_extrapolation", ours="0.2", **short),
        reproduced("latent ODE, 30 points", "minutes", ours="2.5", **short),
        reproduced("RNN, 30 points", "test_rmse_extrapolation", ours="0.39", spread="0.001", minutes="4", share="1.0",
                   **command),
        reproduced("RNN, 50 points", "test_rmse_extrapolation", missing="not done: queued", **command),
    ]  # fmt: skip
    monkeypatch.setattr(tables.results, "read", lambda name: rows)
    monkeypatch.setattr(tables.results, "path_of", lambda name: Path(f"{name}.cpu.csv"))
    lines = tables.overview_table(["table2"], {"table2": "spirals"}).splitlines()
    assert lines[2:5] == [
        "| [table2](reproduced/spirals.md) | latent ODE, 30, 50 points, test RMSE extrapolation | full, 100 % and 20 % "
        "| 2 | 0.1642*, 0.1502* | 0.1, 0.2 | partial budget: 39 % better, 33 % worse |",
        "|  | RNN, 30 points, test RMSE extrapolation |  | 2 | 0.3937* | 0.39 (0.3811 to 0.3991) "
        "| reproduced: 0.9 % better, 2 seeds |",
        "|  | 1 comparison that the paper makes |  | 2 | – | – | 1 partial budget |",
    ]
    assert tables.origin("table2") == (
        "`odebench reproduce table2 budget=full seed=0,1`: 100 % and 20 % of `budget=full`, 3 of 4 rows, 13 "
        "minutes; [results](../results/table2.cpu.csv)"
    )
    assert tables.missed_by_chance(["table2"]).startswith("Of the 1 intervals of complete trainings, 0.1 should miss")


def test_the_listed_results_are_those_of_the_files(tables):
    assert tables.listed_results() == tables.COMMITTED.read_text(encoding="utf-8"), "python scripts/render_tables.py"


def test_settings_of_ours_say_how_they_were_chosen(script, tables):
    for page, its_tables in tables.reproduction_pages().items():
        assert its_tables["own"].count("\n- ") >= 1, page.name
        assert "results/" in its_tables["origin"]


def test_every_number_of_parameters_in_the_files_is_that_of_the_model(script, tables):
    judge, counts = script("reproduction_tables"), {}
    for name in ("table1", "figure4"):
        rows = tables.results.read(name)
        jobs = {row.name: row.job for row in judge.reproduction_of(rows).rows}
        properties = {"shape": (2,)} if name == "figure4" else {"in_channels": 1, "image_size": 28, "num_classes": 10}
        for row in (row for row in rows if row["number"] == "parameters"):
            job = tuple(one for one in jobs[row["row"]] if not one.startswith("data="))
            if job not in counts:
                model = build_model(read_settings(compose([*job, "budget=small"])), properties)
                counts[job] = sum(one.numel() for one in model.parameters() if one.requires_grad)
            assert float(row["ours"]) == counts[job], row["row"]
    assert {1516, 2704, 7456, 10, 40, 160, 208_266} <= set(counts.values())


def test_the_forest_plot_has_each_published_value_that_was_judged(script, tables):
    forest = script("forest_plot")
    names = ["table1", "table2"]
    rows = {row.label: row for row in forest.forest_rows(names)}
    published = [one for name in names for one in tables.results.read(name) if one["published"] and one["ours"]]
    assert len(rows) == len(published) > 10
    row = rows["table2: RNN, 100 points, test RMSE extrapolation"]
    assert (row.word, row.low < row.factor < row.high, row.margin) == ("cannot tell", True, 0.1)
    # Factors compare errors, and skill above chance.
    assert forest.worse_factor("final/test_accuracy", 0.99, 0.995) == pytest.approx(2)
    assert forest.worse_factor("final/test_auc", 0.6, 0.8) == pytest.approx(3)
    assert forest.worse_factor("final/test_auc", 0.5, 0.8) == float("inf")
    assert forest.worse_factor("final/test_mse", -0.1, 0.8) == 0
    labels = [text.get_text() for text in forest.draw([*rows.values()]).axes[0].get_yticklabels()]
    assert labels == [*rows]


def test_the_table_of_figure_4_has_a_line_for_each_target_and_a_column_for_each_size(script):
    ours = {"target 1: CNF, M = 2": ("0.05", "1516"), "target 1: CNF, M = 8": ("0.006", "2704"),
            "target 1: planar flow, K = 2": ("0.7", "10"), "target 1: planar flow, K = 8": ("0.02", "40"),
            "target 1: CNF, M = 2, with as many parameters as K = 32": ("0.3", "166")}  # fmt: skip
    rows = [reproduced(name, "test_kl_nats", ours=kl) for name, (kl, _) in ours.items()]
    rows += [reproduced(name, "", ours=size) | {"number": "parameters"} for name, (_, size) in ours.items()]
    rows.append(reproduced("target 1: planar flow, K = 2, in the CNF's time", "minutes", ours="0.01"))
    text = script("reproduction_tables").width_table(rows).splitlines()
    equal = "M = 2, with as many parameters as K = 32"
    assert text[0] == f"| test KL (nats): CNF, planar flow | M = K = 2 | M = K = 8 | {equal} |"
    assert text[2:] == ["| target 1 | 0.05, 0.7 | 0.006, 0.02 | 0.3 |", "| parameters | 1,516; 10 | 2,704; 40 | 166 |"]


def test_the_table_of_memory_has_both_ends_and_the_growth(script):
    rows = [
        reproduced(f"{name}, L = {depth}", f"{kind}_mib", ours=str(base + slope * depth))
        for name, base, slope in (("ResNet", 2, 0.5), ("ODE-Net, adjoint", 3, 0))
        for depth in (1, 6, 21)
        for kind in ("saved", "peak")
    ]
    text = script("reproduction_tables").growth_table(rows).splitlines()
    assert text[0] == "| MiB, L = 1 to 21, and for each layer from L = 6 on | saved for backward | peak |"
    growing, constant = "2.50 to 12.50, 0.500", "3.00 to 3.00, 0.000"
    expected = [("ResNet", growing, growing), ("ODE-Net, adjoint", constant, constant)]
    assert text[2:] == [f"| {' | '.join(line)} |" for line in expected]


def test_the_table_of_costs_divides_operations_by_the_width(script):
    rows = [reproduced("M = 1024", "flops", ours="2048000000"), reproduced("M = 1024", "", ours="9000")]
    rows[1]["number"] = "parameters"
    text = script("reproduction_tables").cost_table(rows).splitlines()
    assert text[2:] == ["| 1,024 | 9,000 | 2,048 | 2.000 |"]


def test_rows_of_another_measurement_are_added_to_a_file(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables.results, "RESULTS", tmp_path)
    machine = {"machine": "AMD EPYC, threads: 1, torch 2.13.0+cpu"}
    old = [reproduced(name, "test_mse", ours="1") | machine for name in ("RNN", "latent ODE")]
    tables.results.keep("hopper", old)
    new = [reproduced(name, "test_mse", ours="2") | machine for name in ("last value", "RNN")]
    rows = tables.results.with_rows_of("hopper", new)
    assert [(row["row"], row["ours"]) for row in rows] == [("RNN", "2"), ("latent ODE", "1"), ("last value", "2")]


def test_predictions_at_all_times_are_those_of_the_table(tables):
    """The script asks the runs as their evaluation did."""
    rows = [row for row in tables.results.read("table2") if row["number"] == "final/test_rmse_extrapolation"]
    values = {row["row"]: dict(pair.split("=") for pair in row["values"].split()) for row in rows}
    for row in tables.results.read("spiral-predictions"):
        in_table = float(values[f"{row['row']}, {row['points']} points"][row["seed"]])
        assert float(row["all_times"]) == pytest.approx(in_table, rel=1e-3), row


def test_further_seeds_are_added_to_the_seeds_of_a_file(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables.results, "RESULTS", tmp_path)
    machine = {"machine": "CPU X, threads: 1, torch 2.13.0+cpu", "date": "2026-01-02", "missing": ""}
    row = {"share": "1.0", "minutes": "4", "command": "odebench reproduce poisson seed=0,1", "std_error": ""} | machine
    old = reproduced("latent ODE", "test_mse", values="0=1.0 1=3.0") | row
    tables.results.keep("poisson", [old])
    new = old | {"values": "1=4.0 2=4.0", "minutes": "1", "machine": "CPU Y, threads: 1, torch 2.13.0+cpu"}
    new |= {"command": "odebench reproduce poisson seed=1,2", "commit": "0123456789"}
    (found,) = tables.results.with_rows_of("poisson", [new])
    assert (found["ours"], found["seeds"], found["values"]) == (3.0, 3, "0=1.0 1=4.0 2=4.0")
    assert found["spread"] == pytest.approx(3**0.5)
    assert found["command"] == "odebench reproduce poisson seed=0,1,2"
    assert found["minutes"] == 2.0
    assert found["machine"] == "; ".join([machine["machine"], new["machine"]])
    assert found["commit"] == "0123456789"
    # Not to those of another budget, nor if they are not known one by one.
    for other in ({"share": "0.1"}, {"values": ""}):
        tables.results.keep("poisson", [old | other])
        assert tables.results.with_rows_of("poisson", [new]) == [new]


def test_the_sources_of_a_page_have_days_processors_versions_and_links(tables, tmp_path, monkeypatch):
    results = tables.results
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    results.keep("a", [{"machine": "CPU X, threads: 1, torch 2.13.0+cpu", "date": "2026-01-02"}])
    planned = {"cpu": "", "torch": "2.13.0", "date": ""}
    results.keep("b", [{"cpu": "CPU Y", "torch": "2.13.0", "date": "2026-01-05"}, planned])
    measured, files = results.sources(["a", "b"]).split(". Files, with the machine and date of each row: ")
    assert measured == "Measured 2026-01-02 to 2026-01-05 on CPU X and CPU Y, torch 2.13.0"
    assert files == "[a](results/a.x.torch-2.13.0.csv), [b](results/b.y.torch-2.13.0.csv)."


def test_the_table_of_training_steps_has_ratios_of_medians(tables, monkeypatch):
    columns = ("gradient", "first_step", "images_per_s_best", "images_per_s_median")
    lines = [
        ("adjoint, compiled", "search", "9", "6"), ("adjoint", "search", "5", "4"),
        ("adjoint, compiled", "warm", "9", "8"), ("adjoint", "search", "5", "4"),
    ]  # fmt: skip
    monkeypatch.setattr(tables, "TRAINING_STEPS", {"training_step": "`odenet`"})
    rows = [dict(zip(columns, line, strict=True)) for line in lines]
    monkeypatch.setattr(tables.results, "read", lambda name: rows)
    assert tables.step_table().splitlines()[2:] == [
        "| `odenet` | adjoint, compiled (torchdiffeq: adjoint) | 1.5 | 2.0 |"
    ]


def test_the_backward_table_has_both_ratios_at_every_second_tolerance(tables):
    names = {
        f"adams at {tol}{kind}": f"{tol}{half}" for tol in "123" for kind, half in ((tables.ABSOLUTE, ".5"), ("", ""))
    }
    rows = [reproduced(name, "", ours=ours) | {"number": "nfe_ratio"} for name, ours in names.items()]
    lines = tables.backward_table([*rows, rows[0] | {"row": "in training"}]).splitlines()
    assert lines[0] == "| tol | `adams`: relative, absolute |"
    assert lines[2:] == ["| 1 | 1.00, 1.50 |", "| 3 | 3.00, 3.50 |"]


def test_the_table_of_paths_has_means_and_ranges_over_seeds(tables):
    measured = [("0", "2", "60", "-0.5"), ("1", "2", "0", "0.25")]
    rows = [
        {"row": "euler", "seed": seed, "nfe": nfe, "samples": "512", "crossed": crossed, "smallest": smallest}
        for seed, nfe, crossed, smallest in measured
    ]
    lines = tables.paths_table([*rows, rows[1] | {"row": "dopri5"}]).splitlines()
    assert lines[2:4] == ["| euler | 2 | 30 (0 – 60) | -0.5 |", "| dopri5 | 2 | 0 | 0.25 |"]
    assert lines[-1] == "None of 512: at 95 %, fewer than 0.6 % of all samples."


@pytest.mark.slow
def test_every_script_can_be_imported():
    names = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    if importlib.util.find_spec("torchdiffeq") is None:
        names -= {"torchdiffeq_models", "compare_training_step"}
    command = [sys.executable, "-c", f"import {', '.join(sorted(names))}"]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_table_says_after_how_many_steps_compiling_pays(script):
    training = script("compiled_tables").training

    def row(compile, cache, first_steps_s, step_ms):
        names = {"training": "cnf", "gradient": "adjoint", "steps_of_the_training": "1000"}
        times = {"step_ms": step_ms, "step_ms_low": step_ms and "9", "step_ms_high": step_ms and "11"}
        return {**names, "compile": compile, "cache": cache, "first_steps_s": first_steps_s, **times}

    rows = [row("false", "", "1", "20"), row("step", "cold", "31", "10"), row("step", "warm", "0.5", "10")]
    rows += [row("solve", "cold", "46.2", "5"), row("solve", "warm", "", "")]
    line = training(rows).splitlines()[2]
    assert line == "| `cnf` (adjoint), 1,000 | 20 (9 – 11) | 10 (9 – 11) | – | 3,000 | 0 | 3,000 | never |"
    rows[-1] = row("solve", "warm", "1.2", "30")
    assert training(rows).splitlines()[2].endswith("| 30 (9 – 11) | 3,000 | 0 | 3,000 | never |")


def test_every_picture_is_drawn_by_the_script_and_has_an_alternative_text(script):
    pictures = script("pictures")
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = re.findall(
        r'!\[[^\]]+\]\([./]*(?:docs/)?pictures/([^)]+)\)|<img src="[./]*(?:docs/)?pictures/([^"]+)"[^>]* alt="[^"]+">',
        "\n".join(page.read_text(encoding="utf-8") for page in pages),
    )
    shown = {markdown or html for markdown, html in found}
    files = {path.name for path in pictures.PICTURES.iterdir()}
    assert files == shown
    assert files <= pictures.ALL.keys()


def test_pictures_of_committed_numbers_have_a_line_for_each_series(script):
    pictures = script("pictures")
    error = pictures.figure3().axes[0]
    assert [line.get_label() for line in error.lines] == ["dopri5", "adams", "vode_adams"]
    assert len(error.lines[0].get_xdata()) == 6
    assert {axes.get_yscale() for axes in pictures.figure4().axes} == {"log"}
    titles = [axes.get_title(loc="left") for axes in pictures.gradients().axes]
    assert titles[:2] == ["odenet: against the discrete solve", "odenet: against float64 at 1e-9"]
    assert [line.get_label() for line in pictures.memory().axes[0].lines] == ["adjoint", "backprop"]


@pytest.mark.parametrize(
    "name", ["compiled_solves", "figure3", "figure4", "gradients", "memory", "memory_growth", "published", "speed"]
)
def test_pictures_of_committed_numbers_are_current(script, name):
    """Otherwise draw it again: python scripts/pictures.py NAME.png."""
    pictures = script("pictures")
    with Image.open(pictures.PICTURES / f"{name}.png") as image:
        in_file = image.text[pictures.FINGERPRINT]
    assert in_file == pictures.fingerprint(pictures.ALL[f"{name}.png"].draw())

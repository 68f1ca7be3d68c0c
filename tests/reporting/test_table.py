import copy
import csv
import json
import math

import numpy as np
import pytest

import odebench
from odebench.errors import UsageError
from odebench.reporting import formatting, notes, table
from odebench.reporting.lines import panel_key_function
from odebench.reporting.runs import collect_runs


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (0.97123, 0.0021, "0.9712 ± 0.0021"),
        (43.2, 1.26, "43.2 ± 1.3"),
        (1234.6, 250.0, "1,235 ± 250"),
        (13.0, math.nan, "13"),
        (13.0, 0.0, "13"),
        (0.1 + 0.2, 4e-17, "0.3"),
        (1.6e-7, 2e-8, "(1.60 ± 0.20)e-07"),
        (-2.5e-6, 3e-6, "(-2.5 ± 3.0)e-06"),
        (208266, math.nan, "208,266"),
        (1.3e8, math.nan, "1.3e+08"),
        (math.nan, math.nan, "-"),
    ],
)
def test_numbers_are_formatted_with_two_digits_of_std(mean, std, text):
    assert formatting.format_number(mean, std) == text


@pytest.mark.parametrize(
    ("numbers", "texts"),
    [
        ([29, 30.8], ["29.0", "30.8"]),
        ([0.05, 12.3, math.nan], ["0.05", "12.30", "-"]),
        ([3642, 208266], ["3,642", "208,266"]),
        ([0, 13], ["0", "13"]),
        ([1e-9, 1], ["1e-09", "1"]),
        ([3e10, 2e7], ["3e+10", "2e+07"]),
        ([97.123, 95], ["97.12", "95.00"]),
    ],
)
def test_numbers_of_a_column_have_the_same_decimals_unless_they_differ_much(numbers, texts):
    decimals = formatting.column_decimals([(number, math.nan) for number in numbers])
    assert [formatting.format_number(number, decimals=decimals) for number in numbers] == texts


@pytest.mark.parametrize(
    ("tag", "title"),
    [
        ("best/accuracy", "validation accuracy (%)"),
        ("final/test_nll_nats", "test NLL (nats)"),
        ("final/nfe_forward", "NFE forward"),
        ("final/peak_mib", "peak memory (MiB)"),
        ("final/train_loss", "last training loss"),
    ],
)
def test_headings_are_readable_and_have_units(tag, title):
    assert formatting.heading(tag) == title


def test_the_best_of_comparable_values_is_bold_in_markdown_and_latex(record, runs):
    for data, accuracies in (("mnist5k", (0.95, 0.97)), ("mnist", (0.5, 0.5))):
        for accuracy, nfe in zip(accuracies, (20, 30.5), strict=True):
            record(data__name=data, tol=accuracy / nfe, summary={"best/accuracy": accuracy, "final/nfe_forward": nfe})
    collection = collect_runs([runs])
    tags = ["best/accuracy", "final/nfe_forward", "parameters"]
    made = table.make_table(collection, tags, comparable=panel_key_function(collection))
    rows = [line.split(" | ")[-3:] for line in table.as_markdown(made).splitlines()]
    assert rows[0] == ["validation accuracy (%)", "NFE forward", "parameters |"]
    assert sorted(row[:2] for row in rows[2:]) == [
        ["**97**", "30.5"],
        ["50", "**20.0**"],
        ["50", "30.5"],
        ["95", "**20.0**"],
    ]
    assert r"\textbf{97} & 30.5" in table.as_latex(made)
    assert "*" not in table.as_terminal(made)


def test_a_row_has_settings_runs_and_values_with_fractions_in_percent(record, runs):
    record(tol=1e-2, seed=0, summary={"best/accuracy": 0.95})
    record(tol=1e-2, seed=1, summary={"best/accuracy": 0.97})
    record(tol=1e-2, seed=2, status="diverged", message="the loss is nan")
    record(solver__name="none", gradient__name="backprop", summary={"final/nfe_forward": None})
    collection = collect_runs([runs])
    made = table.make_table(collection, ["best/accuracy", "final/nfe_forward"])
    assert made.texts == [
        ["solver", "tol", "gradient", "runs", "validation accuracy (%)", "NFE forward"],
        ["dopri5", "0.01", "adjoint", "2 of 3", "96.0 ± 1.4", "20"],
        ["none", "-", "backprop", "1", "95.0", "-"],
    ]


def test_names_and_tags_come_first_and_notes_are_on_the_page_and_in_the_csv(record, runs):
    record(seed=0, name="first", tags=["a", "b"], notes="two\nlines")
    record(seed=1, name="second", tags=["b"])
    record(tol=1e-2)
    collection = collect_runs([runs])
    assert [row[:3] for row in table.make_table(collection, []).texts] == [
        ["name", "tags", "tol"],
        ["first, second", "a, b", "0.001"],
        ["-", "-", "0.01"],
    ]
    assert table.make_table(collection, [], with_notes=True).texts[1][:3] == ["first, second", "a, b", "two lines"]
    row = next(csv.DictReader(table.as_csv(collection, []).splitlines()))
    assert (row["name"], row["tags"], row["notes"], row["done"]) == ("first, second", "a, b", "two lines", "2")


def test_differing_settings_without_a_column_are_noted_and_are_in_the_csv(record, runs):
    record(model__name="odenet")
    record(model__name="rknet", trainer__batch_size=128)
    collection = collect_runs([runs])
    made = table.make_table(collection, ["best/accuracy"])
    note = "also differ: trainer.batch_size (--format csv has their values)"
    assert "trainer.batch_size" not in [column.title for column in made.columns]
    assert table.as_terminal(made).splitlines()[-1] == note
    assert table.as_markdown(made).endswith(f" |\n\n{note}\n")
    assert table.as_latex(made).splitlines()[-1] == f"% {note}"
    rows = list(csv.DictReader(table.as_csv(collection, ["best/accuracy"]).splitlines()))
    assert [(row["model.name"], row["trainer.batch_size"]) for row in rows] == [("odenet", "64"), ("rknet", "128")]


def test_the_columns_are_the_objective_and_its_costs_unless_named(record, runs):
    record()
    collection = collect_runs([runs])
    headline = table.chosen_tags(collection, None)
    assert headline[:2] == ["best/accuracy", "final/test_accuracy"]
    assert headline[-1] == "parameters"
    assert "best/loss" not in headline
    assert "best/loss" in table.chosen_tags(collection, "all")
    assert table.chosen_tags(collection, "best/loss,parameters") == ["best/loss", "parameters"]
    with pytest.raises(UsageError, match="did you mean best/accuracy"):
        table.chosen_tags(collection, "best/acuracy")


def test_csv_has_full_precision_and_the_std(record, runs):
    values = [0.123456789012, 0.2]
    for seed, value in enumerate(values):
        record(seed=seed, model__width=32, summary={"best/accuracy": value})
    record(model__width=64)
    rows = list(csv.DictReader(table.as_csv(collect_runs([runs]), ["best/accuracy"]).splitlines()))
    assert [row["model.width"] for row in rows] == ["32", "64"]
    assert float(rows[0]["best/accuracy"]) == np.mean(values)
    assert float(rows[0]["best/accuracy_std"]) == np.std(values, ddof=1)
    assert (rows[0]["runs"], rows[0]["done"], rows[0]["seeds"], rows[1]["best/accuracy_std"]) == ("2", "2", "2", "")


def test_markdown_and_latex_escape_special_characters():
    made = table.Table(
        [table.Column("a|b", is_numeric=False), table.Column("50 %")],
        [[table.TableCell("x_1 & y", ""), table.TableCell("1 ± 2", 1.0)]],
    )
    assert table.as_markdown(made) == "| a\\|b | 50 % |\n| --- | ---: |\n| x_1 & y | 1 ± 2 |\n"
    assert r"a\textbar{}b & 50 \% \\" in table.as_latex(made)
    assert r"x\_1 \& y & 1 $\pm$ 2 \\" in table.as_latex(made)
    assert table.as_latex(made).startswith("\\begin{tabular}{lr}\n\\toprule")


def test_notes_count_runs_and_merge_failure_reasons(record, runs):
    record(seed=0)
    record(seed=0)
    for step in (3, 40):
        record(status="diverged", message=f"after step {step}: the loss is nan", seed=step)
    record(status="running", seed=7)
    record(tol=0.5)
    collection = collect_runs([runs])
    assert notes.status_counts(collection) == "6 runs in 2 groups: 1 running, 3 done, 2 diverged"
    (reason,) = [line for line in notes.failure_lines(collection) if line.startswith("diverged")]
    assert reason == f"diverged: after step 3: the loss is nan  ({runs / '002'} and 1 more)"
    assert any("1 run with a repeated seed" in line for line in notes.caveats(collection))


@pytest.mark.parametrize(("schedule", "is_told"), [("one_cycle", True), ("constant", False)])
def test_a_run_that_was_made_longer_is_told(schedule, is_told, record, runs):
    path = record(schedule__name=schedule)
    manifest = json.loads((path / "manifest.json").read_text())
    longer = copy.deepcopy(manifest["settings"])
    longer["trainer"]["epochs"] += 1
    (path / "manifest.json").write_text(json.dumps(manifest | {"resumed": [{"step": 4}, {"settings": longer}]}))
    lines = [line for line in notes.caveats(collect_runs([runs])) if line.startswith("1 run made longer")]
    assert len(lines) == is_told


def test_a_note_lists_several_machines(record, runs):
    record(seed=0)
    manifest = record(seed=1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("a processor", "another one"))
    assert any(line.startswith("times were measured on 2 machines") for line in notes.caveats(collect_runs([runs])))


def test_a_note_reports_different_test_data_in_a_group(record, runs):
    for seed, test in enumerate(("a", "a", "b", "")):
        path = record(seed=seed)
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["data"] = {"splits": {"test": {"sha256": test}}}
        (path / "manifest.json").write_text(json.dumps(manifest))
        caveats = [line for line in notes.caveats(collect_runs([runs])) if line.startswith("tested on different data")]
        assert caveats == (["tested on different data within 1 group (manifest.json: data.splits)"] * (seed > 1))


def test_settings_with_newlines_do_not_break_rows():
    made = table.Table([table.Column("a", is_numeric=False)], [[table.TableCell("x\ny <z>", "")]])
    assert table.as_markdown(made).splitlines() == ["| a |", "| --- |", "| x y <z> |"]
    assert r"x y \textless{}z\textgreater{} \\" in table.as_latex(made)


def test_load_runs_gives_settings_and_results_of_each_run(record, runs, caplog):
    done = record(model__name="odenet", seed=3, extensions=["mine"], summary={"results": {"test accuracy": "94 %"}})
    record(status="running", model__name="rknet", experiment="paper/mnist_odenet")
    (record() / "status.json").write_text("{")
    table = odebench.load_runs(runs)
    assert "002" in caplog.text
    assert [*table][:3] == ["folder", "status", "experiment"]
    assert [*table["status"]] == ["done", "running"]
    assert table["folder"][0] == str(done)
    assert [*table["model.name"]] == ["odenet", "rknet"]
    assert (table["seed"][0], table["extensions"][0]) == (3, ["mine"])
    assert table["experiment"][1] == "paper/mnist_odenet"
    assert table["final/test_accuracy"][0] == 0.94
    assert math.isnan(table["final/test_accuracy"][1])
    assert not {"results", "test", "budgets"} & {*table}


def test_load_runs_without_runs_gives_an_empty_table_and_without_a_folder_an_error(tmp_path):
    assert odebench.load_runs(tmp_path).empty
    with pytest.raises(UsageError, match="is not a folder"):
        odebench.load_runs(tmp_path / "nowhere")

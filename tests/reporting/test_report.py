"""The command `odebench report`."""

import base64
import csv
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from odebench import cli
from odebench.reporting.figures import FIGURES
from odebench.reporting.notes import published_table
from odebench.reporting.runs import collect_runs


@pytest.fixture
def report(capsys):
    """Run ``odebench report`` with these arguments; returns exit code, stdout and stderr."""

    def run(*arguments):
        code = cli.main(["report", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def page_data(page):
    """The data of a page's script."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def column(table, key):
    return next(one for one in table["columns"] if one["key"] == key)


class Outside(HTMLParser):
    """Collects external resources of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [v for k, v in attributes if k in ("src", "href") and not v.startswith("data:")]
        self.found += [tag] if tag in ("link", "iframe", "object") else []


def test_the_table_goes_to_stdout_with_counts_and_reasons(report, record, runs):
    record(tol=1e-2)
    record(tol=1e-3, status="failed", message="RuntimeError: no memory")
    code, out, err = report(runs)
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:2] == ["0.001", "0"]
    assert "2 runs in 2 groups: 1 done, 1 failed" in out
    assert f"failed: RuntimeError: no memory  ({runs / '001'})" in out


def test_other_formats_print_only_the_table(report, record, runs):
    record(tol=1e-2)
    record(tol=1e-3)
    code, out, err = report(runs, "--format", "csv", "--columns", "best/accuracy")
    assert code == 0
    assert [row["tol"] for row in csv.DictReader(out.splitlines())] == ["0.001", "0.01"]
    assert "2 runs in 2 groups" in err
    assert report(runs, "--format", "markdown")[1].startswith("| tol | runs |")
    assert report(runs, "--format", "latex")[1].startswith("\\begin{tabular}")


@pytest.mark.parametrize(
    ("suffix", "start"), [("md", "| runs"), ("tex", "\\begin"), ("csv", "runs,"), ("txt", "runs ")]
)
def test_the_suffix_chooses_the_format_and_files_are_not_overwritten(report, record, runs, tmp_path, suffix, start):
    record()
    output = tmp_path / "new" / f"table.{suffix}"
    assert report(runs, "--output", output)[:2] == (0, f"{output}\n")
    text = output.read_text()
    assert text.lstrip().startswith(start)
    code, _, err = report(runs, "--output", output)
    assert (code, "exists; name a new file" in err, output.read_text()) == (2, True, text)


def test_a_page_is_self_contained_and_escapes_names(report, record, runs, tmp_path):
    record(
        model__name="<b>odenet</b>", rows=[{"step": 1, "elapsed_s": 1, "nfe/forward": 9}, {"step": 2, "nfe/forward": 8}]
    )
    record(model__name="mlp", status="failed", message="<script>alert(1)</script>")
    output = tmp_path / "page.html"
    assert report(runs, "--output", output)[0] == 0
    page = output.read_text()
    outside = Outside()
    outside.feed(page)
    assert not outside.found
    assert not re.search(r"https?://|url\((?!#)", page)
    assert "<b>odenet" not in page
    assert "<script>alert" not in page
    assert {"<b>odenet</b>", "mlp"} == set(column(page_data(page)["tables"][0], "model.name")["texts"])
    assert len(re.findall(r'<figure role="img" aria-label="[^"]+"><svg', page)) == len(page_data(page)["figures"]) == 2
    assert "figure pareto needs two settings" in page


def test_a_page_lists_differing_settings_and_one_line_names_omitted_figures(report, record, runs, tmp_path):
    record()
    record(model__name="mlp", trainer__batch_size=128, summary={"final/nfe_forward": None})
    code, out, err = report(runs, "--output", tmp_path / "new")
    assert (code, str(tmp_path / "new" / "table.csv") in out) == (0, True)
    assert err.count("\n") == 1
    assert "figures omitted: result-nfe, result-training, nfe-tolerance" in err
    page = (tmp_path / "new" / "report.html").read_text()
    assert column(page_data(page)["tables"][0], "trainer.batch_size")["texts"] == ["128", "64"]
    assert "figure nfe-tolerance needs two tolerances" in page


def test_a_figure_is_written_to_the_given_file_or_folder(report, corpus, tmp_path):
    picture = tmp_path / "time.png"
    assert report(corpus, "--figure", "time-nfe", "--output", picture)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert report(corpus, "--figure", "time-nfe,step-sizes", "--output", tmp_path / "figures")[0] == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in ("time-nfe", "step-sizes") for suffix in ("png", "svg")
    }


@pytest.mark.slow
def test_a_figure_for_a_paper_is_a_pdf_and_an_svg_of_its_width(report, corpus, tmp_path):
    heights = []
    for style, width_in in (("paper", 5.5), ("paper-column", 3.25)):
        folder = tmp_path / style
        assert report(corpus, "--figure", "pareto", "--style", style, "--output", folder)[0] == 0
        assert (folder / "pareto.pdf").read_bytes().startswith(b"%PDF")
        svg = (folder / "pareto.svg").read_text()
        assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) == pytest.approx(72 * width_in)
        heights.append(float(re.search(r'height="([\d.]+)pt"', svg)[1]))
    assert heights[0] < heights[1]  # three panels in two rows, and in three


def test_the_numbers_behind_a_figure_are_written(report, corpus, tmp_path):
    data = tmp_path / "new" / "numbers.csv"
    assert report(corpus, "--figure", "result-nfe", "--data", data) == (0, f"{data}\n", "")
    rows = list(csv.DictReader(data.read_text().splitlines()))
    first = next(row for row in rows if row["series"] == "adjoint" and row["point"] == "1e-2")
    assert (first["panel"], first["x_name"]) == ("mnist: result against NFE", "forward NFE of a training step")
    assert (float(first["x"]), float(first["y"])) == (20.5, pytest.approx(92.05))
    assert float(first["y_std"]) == pytest.approx(100 * 0.001 / math.sqrt(2))
    assert first["run"] == str(corpus / "000")
    assert rows[-1]["series"].startswith("published, test")


def test_the_numbers_behind_a_heat_map_and_dots_are_written(report, corpus, tmp_path):
    found = {}
    for name in ("nfe-heatmap", "gradient-error"):
        assert report(corpus, "--figure", name, "--data", tmp_path / f"{name}.csv")[0] == 0
        found[name] = list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
    cell = next(row for row in found["nfe-heatmap"] if row["series"] == "tolerance 0.01" and float(row["x"]) == 2)
    assert (cell["x_name"], cell["y_name"]) == ("epoch", "forward NFE per step")
    assert float(cell["y"]) == 24  # the mean of steps 3 and 4 over seeds 0 and 1: 20 + 3.5 + 0.5
    assert cell["run"].startswith(str(corpus))
    bench = list(csv.DictReader((corpus / "results.csv").read_text().splitlines()))
    errors = sorted(float(row["parameter_gradient_error"]) for row in bench if row["parameter_gradient_error"])
    assert sorted(float(row["y"]) for row in found["gradient-error"]) == errors
    assert {row["point"] for row in found["gradient-error"]} <= {row["mode"] for row in bench}


@pytest.mark.parametrize("arguments", [[], ["--columns", "all"]])
def test_a_table_fits_the_terminal(report, corpus, monkeypatch, arguments):
    for module in ("odebench.console", "odebench.reporting.table"):
        monkeypatch.setattr(f"{module}.terminal_width", lambda: 80)
    code, out, _ = report(corpus, *arguments)
    assert code == 0
    assert [line for line in out.splitlines() if len(line) > 80 and " " in line] == []
    assert "validation accuracy (%) 93" in " ".join(out.split()) if arguments else "(MiB)" in out


def test_the_figures_are_listed_without_a_folder(report):
    code, out, _ = report("--list")
    assert code == 0
    assert {"pareto", "nfe-training", "gradient-error"} <= {line.split()[0] for line in out.splitlines()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no folder given"),
        (["RUNS", "--figure", "paretto"], "did you mean pareto"),
        (["RUNS", "--figure", "pareto"], "add --output"),
        (["RUNS", "--figure", "pareto", "--style", "papr", "--output", "new"], "did you mean paper"),
        (["RUNS", "--style", "paper"], "--style is for figures; add --figure"),
        (["RUNS", "--data", "a.csv"], "--data is for figures; add --figure"),
        (["RUNS", "--figure", "pareto,time-nfe", "--data", "a.csv"], "holds the numbers of one figure"),
        (["RUNS", "--figure", "pareto", "--data", "a.txt"], "name a new file that ends with .csv"),
        (["RUNS", "--figure", "pareto", "--output", "new"], "figure pareto needs two settings"),
        (["RUNS", "--figure", "pareto,time-nfe", "--output", "a.png"], "holds one figure"),
        (["RUNS", "--output", "a.png"], "name it: --figure"),
        (["RUNS", "--figure", "pareto", "--output", "a.md"], "holds no figure"),
        (["RUNS", "--output", "a.eps"], "unknown suffix; end the name of a file with"),
        (["RUNS", "--format", "cvs"], "did you mean csv"),
        (["RUNS", "--format", "csv", "--output", "a.md"], "--output FILE.csv"),
        (["RUNS", "--split", "tets"], "did you mean test"),
        (["RUNS", "--columns", "best/acuracy"], "did you mean best/accuracy"),
        (["RUNS", "--columns", ","], "--columns needs a name"),
        (["RUNS", "--columns", "all", "--figure", "pareto", "--output", "NEW.png"], "--columns all: is for tables"),
        (["RUNS", "--figure", ",", "--output", "new"], "--figure needs a name"),
        (["RUNS", "--output", "RUNS"], "is not empty"),
        (["EMPTY"], "no runs in"),
        (["QUEUED"], "no run in"),
        (["EMPTY", "--figure", "pareto", "--output", "new"], "no runs in"),
        (["missing"], "is not a folder"),
        ([""], "no folder given: name one"),
        (["RUNS", "--output", "queued/status.json/a.csv"], "cannot be made (Not a directory)"),
    ],
)
def test_invalid_arguments_print_one_line_and_write_nothing(report, record, tmp_path, monkeypatch, arguments, says):
    record()
    (tmp_path / "empty").mkdir()
    (tmp_path / "queued").mkdir()
    (tmp_path / "queued" / "status.json").write_text('{"status": "queued"}')
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = report(
        *({"RUNS": "runs", "EMPTY": "empty", "QUEUED": "queued"}.get(argument, argument) for argument in arguments)
    )
    assert (code, out, err.count("\n")) == (1 if says.startswith("no run") else 2, "", 1)
    assert says in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_no_partial_file(report, corpus, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for arguments in (["--output", tmp_path / "a.csv"], ["--figure", "time-nfe", "--output", tmp_path / "a.png"]):
        code, _, err = report(corpus, *arguments)
        assert (code, "No space left on device" in err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == [corpus.name]


def test_published_values_have_units_and_the_share_of_the_training(record, runs):
    budgets = {"full": {"epochs": 160}}
    summary = {"best/step": 8, "best/epoch": 4, "final/test_accuracy": 0.9}
    record(experiment="paper/mnist_odenet", data__name="mnist", budgets=budgets, summary=summary)
    table = published_table(collect_runs([runs]))
    titles = [column.title for column in table.columns]
    rows = {row[titles.index("tag")].text: dict(zip(titles, row, strict=True)) for row in table.rows}
    accuracy = rows["final/test_accuracy"]
    assert [accuracy[name].text for name in ("published", "ours")] == ["99.58 %", "90 %"]
    assert [accuracy[name].value for name in ("published", "ours", "seeds")] == pytest.approx([99.58, 90, 1])
    assert accuracy["share of the published training"].text == "2.5 %"
    assert rows["parameters"]["ours"].text == "3,642"
    assert math.isnan(rows["-"]["published"].value)


def test_reporting_does_not_import_torch():
    code = "import sys, odebench.reporting.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_report_folder_is_reproducible(report, corpus, tmp_path):
    for name in ("one", "two"):
        assert report(corpus, "--output", tmp_path / name)[0] == 0
    one, two = ({path.name: path for path in (tmp_path / name).rglob("*.*")} for name in ("one", "two"))
    assert len(one) == 1 + 4 + 2 * (len(FIGURES) - 1)  # figure4 is of density matching
    assert all(one[name].read_bytes() == two[name].read_bytes() for name in one if name != "report.html")


@pytest.mark.slow
def test_a_real_training_is_reported(report, train, capsys, tmp_path):
    folder = train("trainer.epochs=1").folder
    capsys.readouterr()
    code, out, _ = report(folder, "--columns", "all")
    assert code == 0
    header = out.splitlines()[0]
    assert all(name in header for name in ("best/accuracy (%)", "final/nfe_forward", "final/peak_mib"))
    assert "1 run in 1 group: 1 done" in out
    assert report(folder, "--figure", "nfe-training", "--output", tmp_path / "nfe.svg")[0] == 0


def test_a_page_shows_the_objective_also_if_all_runs_share_it(report, record, runs, tmp_path):
    for tol in (1e-2, 1e-3):
        record(tol=tol, summary={"best/accuracy": 0.95, "final/nfe_forward": 20}, arguments=[f"tol={tol}"])
    assert report(runs, "--output", tmp_path / "page.html")[0] == 0
    (table,) = page_data((tmp_path / "page.html").read_text())["tables"]
    assert column(table, "best/accuracy")["shown"]
    assert not column(table, "final/nfe_forward")["shown"]


def test_a_page_has_a_table_for_each_task_with_its_best_setting(report, record, runs, tmp_path):
    for tol, accuracy, nfe in ((1e-2, 0.95, 20), (1e-3, 0.97, 30.5)):
        record(tol=tol, summary={"best/accuracy": accuracy, "final/nfe_forward": nfe}, arguments=[f"tol={tol}"])
    record(task="density", model__name="cnf", trainer__objective="val/nll_nats", status="failed", message="no memory")
    assert report(runs, "--output", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    best = "Best on mnist5k: <b>tol 0.001</b>: validation accuracy 97 %, test accuracy 94 %, NFE forward 30.5, NFE"
    assert best in page
    data = page_data(page)
    images, densities = data["tables"]
    assert (images["title"], densities["title"]) == ("classification", "density")
    assert sum(one["shown"] for one in images["columns"]) <= 10
    assert column(images, "final/nfe_forward")["texts"] == ["30.5", "20.0"]
    assert (column(images, "best/accuracy")["title"], column(images, "best/accuracy")["best"]) == (
        "validation accuracy (%)",
        [0],
    )
    assert images["columns"][images["sort"]]["key"] == "best/accuracy"
    assert images["down"]
    (run,) = data["runs"][images["ids"][0]]
    assert run["command"] == "odebench train tol=0.001"
    assert (tmp_path / run["folder"] / "settings.yaml").exists()
    assert data["runs"][densities["ids"][0]][0]["message"] == "no memory"


# Each line of a test page's script adds one value to its list of results.
SCRIPT = """
const shown = title => {
  const titles = [...document.querySelectorAll("#table-0 thead tr:first-child th")];
  const at = titles.findIndex(th => th.textContent === title);
  return [...document.querySelectorAll("#table-0 tr[data-row]")].map(row => row.cells[at].textContent);
};
const button = text => [...document.querySelectorAll("#table-0 button")].find(one => one.textContent === text);
const type = (field, text) => { field.value = text; field.dispatchEvent(new Event("input")); };
const search = document.querySelector("#table-0 input[type=search]");
const results = {};
results.first = shown("tol");
button("validation accuracy (%)").click();
results.reversed = shown("tol");
results.bold = [...document.querySelectorAll("#table-0 td.best")].map(cell => cell.textContent);
type(search, "TOL 0.01");
results.filtered = [shown("tol"), document.querySelector("#table-0 .count").textContent];
type(search, "");
button("Ranges").click();
type(document.querySelector("#table-0 input[aria-label='min validation accuracy (%)']"), "94");
results.limited = shown("tol");
results.csv = tables[0].download();
const labels = [...document.querySelectorAll("#table-0 .picker label")];
const box = labels.find(one => one.textContent.trim() === "batch size");
box.querySelector("input").click();
results.added = shown("batch size");
document.querySelector("#table-0 tr[data-row]").click();
results.panel = document.getElementById("panel-0").textContent;
document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
results.closed = document.getElementById("panel-0").textContent;
const svg = document.querySelector("figure svg"), [series] = figures[0].series;
const at = new DOMPoint(series.px[0], series.py[0]).matrixTransform(svg.getScreenCTM());
const mouse = name => svg.dispatchEvent(new MouseEvent(name, {clientX: at.x, clientY: at.y, bubbles: true}));
mouse("mousemove");
results.hovered = tip.textContent;
mouse("click");
results.highlighted = [svg.querySelectorAll(".ring").length, selected === series.rows[0]];
const heat = figures.findIndex(one => one.series.some(line => line.reach)), cell = figures[heat].series[1];
const map = document.querySelectorAll("figure svg")[heat], half = cell.reach / 2;
const inside = new DOMPoint(cell.px[1] + half, cell.py[1]).matrixTransform(map.getScreenCTM());
map.dispatchEvent(new MouseEvent("mousemove", {clientX: inside.x, clientY: inside.y, bubbles: true}));
results.cell = tip.textContent;
const isRight = (one, line) => line.reach || one.artists[line.id][0].matches(".dim") === !line.rows.includes(selected);
results.dimmed = figures.map(one => one.series.map(line => isRight(one, line)));
document.body.append(make("pre", {id: "results", textContent: btoa(encodeURIComponent(JSON.stringify(results)))}));
"""


@pytest.mark.slow
@pytest.mark.browser
def test_a_page_sorts_filters_and_shows_runs_in_a_browser(report, record, runs, tmp_path):
    for number, (tol, accuracy) in enumerate(((1e-2, 0.9), (1e-3, None), (1e-4, 0.08), (1e-5, 0.95))):
        summary = {"best/accuracy": accuracy, "best/step": 4, "best/epoch": 2}
        rows = [{"step": step, "elapsed_s": step, "nfe/forward": 10 * number + step} for step in (2, 4)]
        changes = {"model__width": number // 2, "trainer__batch_size": 32 if number else 64}
        record(tol=tol, summary=summary, rows=rows, arguments=[f"tol={tol}"], **changes)
    page = tmp_path / "page.html"
    assert report(runs, "--output", page)[0] == 0
    results = in_browser(page, SCRIPT)
    assert results["first"] == ["1e-05", "0.01", "0.0001", "0.001"]
    assert results["reversed"] == ["0.0001", "0.01", "1e-05", "0.001"]
    assert results["bold"] == ["95"]
    assert results["filtered"] == [["0.01"], "1 of 4 rows"]
    assert results["limited"] == ["1e-05"]
    (row,) = csv.DictReader(results["csv"].splitlines())
    assert (row["tol"], row["best/accuracy"], row["trainer.batch_size"]) == ("0.00001", "0.95", "32")
    assert results["added"] == ["32"]
    assert "odebench train tol=1e-05" in results["panel"]
    assert str(runs / "003") in results["panel"]
    assert results["closed"] == ""
    settings, *_ = page_data(page.read_text())["figures"][0]
    first = settings["rows"][0]
    tol = column(page_data(page.read_text())["tables"][0], "tol")["texts"][first]
    assert f"forward NFE of a training step: {settings['x'][0]:g}" in results["hovered"]
    assert f"tol: {tol}" in results["hovered"]
    assert results["highlighted"] == [1, True]
    assert "tolerance 1e-05epoch: 2forward NFE per step: 34tol: 1e-05" in results["cell"]
    assert all(map(all, results["dimmed"]))
    assert len(results["dimmed"]) > 3


def in_browser(page, script):
    """Run a script on a page in Chromium; returns the JSON that it puts, as base64, into the element `results`."""
    tested = page.with_name("tested.html")
    tested.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    browser = [shutil.which("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*browser, f"--user-data-dir={page.parent / 'profile'}", tested.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found = re.search(r'<pre id="results">([^<]+)<', done.stdout)
    return json.loads(unquote(base64.b64decode(found[1]).decode()))

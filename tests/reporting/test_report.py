"""The command `odebench report`."""

import base64
import csv
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

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
    assert not re.search(r"https?://|url\(", page)
    assert "&lt;b&gt;odenet" in page
    assert "<script>alert" not in page
    pictures = re.findall(r'<img alt="[^"]+" src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == 2
    assert all(b"<svg" in base64.b64decode(picture) for picture in pictures)
    assert "figure pareto needs two settings" in page
    assert "also differ" not in page


def test_a_page_lists_differing_settings_and_one_line_names_omitted_figures(report, record, runs, tmp_path):
    record()
    record(model__name="mlp", trainer__batch_size=128, summary={"final/nfe_forward": None})
    code, out, err = report(runs, "--output", tmp_path / "new")
    assert (code, str(tmp_path / "new" / "table.csv") in out) == (0, True)
    assert err.count("\n") == 1
    assert "figures omitted: result-nfe, result-training, nfe-tolerance" in err
    page = (tmp_path / "new" / "report.html").read_text()
    assert '<p class="note">also differ: trainer.batch_size' in page
    assert "figure nfe-tolerance needs two tolerances" in page


def test_a_figure_is_written_to_the_given_file_or_folder(report, corpus, tmp_path):
    picture = tmp_path / "time.png"
    assert report(corpus, "--figure", "time-nfe", "--output", picture)[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert report(corpus, "--figure", "time-nfe,step-sizes", "--output", tmp_path / "figures")[0] == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in ("time-nfe", "step-sizes") for suffix in ("png", "svg")
    }


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
        (["RUNS", "--figure", "pareto", "--output", "new"], "figure pareto needs two settings"),
        (["RUNS", "--figure", "pareto,time-nfe", "--output", "a.png"], "holds one figure"),
        (["RUNS", "--output", "a.png"], "name it: --figure"),
        (["RUNS", "--figure", "pareto", "--output", "a.md"], "holds no figure"),
        (["RUNS", "--output", "a.pdf"], "unknown suffix; end the name of a file with"),
        (["RUNS", "--format", "cvs"], "did you mean csv"),
        (["RUNS", "--format", "csv", "--output", "a.md"], "--output FILE.csv"),
        (["RUNS", "--split", "tets"], "did you mean test"),
        (["RUNS", "--columns", "best/acuracy"], "did you mean best/accuracy"),
        (["RUNS", "--columns", ","], "--columns needs a name"),
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


@pytest.mark.slow
@pytest.mark.browser
def test_a_click_on_a_title_sorts_the_table_and_a_second_one_reverses_it(report, record, runs, tmp_path):
    for tol, accuracy in ((1e-2, 0.9), (1e-3, None), (1e-4, 0.08), (1e-5, 0.95)):
        record(tol=tol, summary={"best/accuracy": accuracy})
    page = tmp_path / "page.html"
    assert report(runs, "--output", page)[0] == 0
    text = page.read_text()
    order = {}
    for clicks in (1, 2):
        click = "[...document.querySelectorAll('th button')].find(b => b.textContent === 'best/accuracy (%)').click();"
        page.write_text(text.replace("</body>", f"<script>{clicks * click}</script></body>"))
        browser = [shutil.which("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        done = subprocess.run(
            [*browser, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        body = done.stdout[done.stdout.index("<tbody>") : done.stdout.index("</tbody>")]
        order[clicks] = re.findall(r"<tr><td[^>]*>([^<]+)<", body)
    assert order == {1: ["0.0001", "0.01", "1e-05", "0.001"], 2: ["1e-05", "0.01", "0.0001", "0.001"]}

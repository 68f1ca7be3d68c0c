"""The pages for readers: their commands are ones that this tool takes, their links lead somewhere."""

import csv
import importlib.util
import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch

from odebench import cli
from odebench.compose import options, parse_overrides
from odebench.ode import GRADIENTS, METHODS, Status
from odebench.settings import compose, override_saved, read_settings

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "docs" / "engine.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

SET_UP = [
    'pip install -e ".[dev]" && odebench train model=odenet solver=dopri5 tol=1e-3',
    'pip install -e ".[dev]" && pytest',
]
# What these verbs do is not done here: they are told apart from what they are given.
NOT_RUN = ("train", "sweep", "eval", "sample", "predict", "resume", "report", "reproduce", "tensorboard")


def bash_lines(text):
    """The commands of a page's bash blocks, continued lines joined."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if line.strip() and not line.lstrip().startswith("#")]


def prose(text):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def odebench_commands(text):
    """The words after `odebench` of every command of a page that calls it, in a block or in a line of prose."""
    # A verb alone in prose, such as `odebench list`, is the verb's name.
    in_prose = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]
    in_prose = [code for code in in_prose if code.startswith("odebench ") and code.count(" ") > 1]
    for line in bash_lines(text) + in_prose:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for is_end, words in itertools.groupby(lexer, key=lambda word: set(word) <= set("&|;<>()")):
            words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
            if not is_end and words[0] == "odebench" and "VERB" not in words:
                yield words[1:]


def all_commands():
    return [
        pytest.param(words, id=f"{page.name}: {' '.join(words)}")
        for page in PAGES
        for words in odebench_commands(page.read_text(encoding="utf-8"))
    ]


@pytest.fixture
def taken(monkeypatch):
    """What the verbs that are not run were given, instead."""
    noted = []
    for verb in NOT_RUN:
        monkeypatch.setitem(cli._VERBS, verb, lambda arguments: noted.append(arguments) or 0)
    # The bench reads what it is to measure, and measures nothing.
    monkeypatch.setattr("odebench.bench.run.run_bench", lambda *arguments: 0)
    return noted


def each_job(overrides):
    """The overrides of each job of a multirun."""
    choices = []
    for override in parse_overrides(overrides):
        several = override.is_sweep_override()
        key = override.get_key_element()
        values = override.sweep_string_iterator() if several else ()
        choices.append([f"{key}={value}" for value in values] or [override.input_line])
    return [list(job) for job in itertools.product(*choices)]


def ours(arguments):
    """Whether the settings need nothing of the reader's own."""
    words = arguments.overrides
    return getattr(arguments, "config_dir", None) is None and not any(w.startswith("extensions=") for w in words)


@pytest.mark.parametrize("words", all_commands())
def test_a_command_is_taken_and_its_settings_compose(words, taken, tmp_path, monkeypatch, capsys):
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    words = [word.replace("=NAME", f"={next(iter(options(word.removesuffix('=NAME'))), '')}") for word in words]
    assert cli.main(words) == 0, capsys.readouterr().err
    for arguments in taken:
        if arguments.verb == "train" and ours(arguments):
            jobs = each_job(arguments.overrides) if arguments.multirun else [arguments.overrides]
            assert len(jobs) > 1 or not arguments.multirun, "one run needs no -m"
            for overrides in jobs:
                # A run that the reader has made is none that these settings could be checked against.
                read_settings(compose([word for word in overrides if not word.startswith("init_from=")]))
        elif arguments.verb in ("eval", "predict"):
            _, overrides = cli._split(arguments.overrides)
            for job in each_job(overrides) if arguments.verb == "eval" else [overrides]:
                read_settings(override_saved(compose([]), job))


def test_the_two_set_up_commands_stand_at_the_top():
    assert bash_lines((ROOT / "README.md").read_text(encoding="utf-8"))[:2] == SET_UP


@pytest.fixture
def tables(monkeypatch):
    """The script that makes the tables of the pages."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("render_tables", ROOT / "scripts" / "render_tables.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_tables_are_those_of_the_committed_results(tables):
    for page, with_tables in tables.PAGES.items():
        text = page.read_text(encoding="utf-8")
        assert with_tables(text) == text, f"{page.name}: python scripts/render_tables.py"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(row["date"] in readme for row in tables.results.read("mnist5k"))


def test_no_table_is_written_by_hand(tables):
    """The numbers of another measurement would stand in every table."""
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


def test_the_speed_tables_say_what_the_bench_wrote(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables.results, "RESULTS", tmp_path)
    assert tables.bench_files() == []
    assert tables.bench_summary([]) == tables.machine_table() == tables.NOT_YET
    peers = [("odebench", "4.0", "5.0", "3.0", "2.4"), ("torchdiffeq", "12.0", "12.0", "1.0", "1.0")]
    names = ("library", "time_min_ms", "time_median_ms", "ratio_min", "ratio_median")
    rows = [BENCH | dict(zip(names, values, strict=True)) | {"version": "1.0"} for values in peers]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (tmp_path / "bench_x.cpu.torch-2.13.0.csv").write_text("\n".join(lines) + "\n")
    (found,) = tables.bench_files()
    everybody = tables.bench_tables(found)
    assert "| odebench | forward | `dopri5` | 4, 5 | 3.00, 2.40 | 2.5 | 50 | 7 + 1 | 1.2e-05 | – |" in everybody
    assert "gradient error" not in everybody
    summary = tables.bench_summary(found)
    assert "| `mlp` | **3.0** (4 / 12 ms) | – | – |" in summary
    faster = [row | {"cpu": "Other CPU", "time_min_ms": time} for row, time in zip(rows, ("3.0", "12.0"), strict=True)]
    faster.append(faster[0] | {"variant": "compiled", "time_min_ms": "2.0"})
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in faster)]
    (tmp_path / "other_machines").mkdir()
    (tmp_path / "other_machines" / "bench_x.other-cpu.torch-2.13.0.csv").write_text("\n".join(lines) + "\n")
    assert tables.machine_table().splitlines()[0] == "| work | gradient | CPU | Other CPU |"
    assert tables.machine_table().splitlines()[2] == "| `mlp` | forward | 3.0 | 4.0, compiled 6.0 |"
    for text in (everybody, summary):
        assert "Measured 2026-01-02 on 1 thread of CPU, Python 3.11, torch 2.13; odebench 1.0, torchdiffeq 1.0." in text


def test_a_result_is_named_after_its_machine_and_versions_and_takes_the_place_of_the_one_before(
    tables, tmp_path, monkeypatch
):
    results = tables.results
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    told = "Intel(R) Xeon(R) Processor, threads: 1, torch 2.13.0+cpu"
    one = results.keep("figure4", [{"ours": "1", "machine": told}])
    assert one.name == "figure4.intel-xeon.torch-2.13.0.csv"
    cpu = "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz"
    assert results.keep("bench", [{"cpu": cpu, "torch": "2.9.1"}]).name == "bench.intel-xeon-e5-2680-v4.torch-2.9.1.csv"
    both = results.keep("figure4", [{"ours": "2", "machine": f"{told}; AMD EPYC, threads: 2, torch 2.9.1"}])
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


def test_every_result_has_the_name_that_its_rows_ask_for(tables):
    results = tables.results
    for path in (*results.RESULTS.glob("*.csv"), *(results.RESULTS / results.OTHERS).glob("*.csv")):
        name = path.name.partition(".")[0]
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        told = [name, *results.machines(rows), *results.versions(rows)]
        assert path.name == ".".join([*told, "csv"])


def reproduced(row, number, **told):
    empty = dict.fromkeys(("published", "ours", "spread", "share", "verdict"), "")
    where = {"machine": "CPU", "date": "2026-01-02", "command": "odebench reproduce x seed=0,1"}
    return {**empty, "row": row, "number": f"final/{number}", "seeds": "2", **where, **told}


def test_a_reproductions_table_has_the_published_the_spread_a_short_verdict_and_the_command(tables):
    partial = "partial budget, 4 % of the published training: worse by 9 %"
    beside = "as published: 0.3 against 0.6 of b, ratio 0.50 (published 0.42); partial budget, 4 % and 5 % of the"
    rows = [
        reproduced("a", "test_rmse", published="0.25", ours="0.3", spread="0.01", share="0.04",
                   verdict=f"{partial}; {beside} published trainings"),
        reproduced("a", "test_accuracy", ours="0.985"),
        reproduced("b", "test_rmse", ours="0.6"),
        reproduced("b", "minutes", published="6", ours="0.4", verdict="another machine"),
    ]  # fmt: skip
    text = tables.reproduction_table(rows).splitlines()
    assert text[0].startswith("| run | test rmse | published | test accuracy (%) | minutes | published | share")
    short = "partial budget: worse by 9 %; as published, ratio 0.50 (published 0.42)"
    assert text[2] == f"| a | 0.300 ± 0.010 | 0.25 | 98.5 | – | – | 4 % | 2 | {short} |"
    assert text[3] == "| b | 0.6 | – | – | 0.4 | 6 | – | 2 | – |"
    assert text[-1] == "`odebench reproduce x seed=0,1`, measured 2026-01-02 on CPU."
    both = [reproduced("a", name, verdict="reproduced: within 1.0 %") for name in ("test_rmse", "test_loss")]
    assert tables.short_verdict({row["number"]: row for row in both}) == (
        "test rmse: reproduced: within 1.0 %; test loss: reproduced: within 1.0 %"
    )
    assert tables.in_words("final/test_nll_nats") == "test nll nats"
    assert tables.in_words("best/nll_nats") == "best validation nll nats"
    waiting = [reproduced("a", name, verdict="b not done: queued") for name in ("test_rmse", "test_loss")]
    assert tables.short_verdict({row["number"]: row for row in waiting}) == "nothing to compare with yet"
    known = reproduced("a", "test_rmse", verdict=f"{partial}; b, 20 % not done: interrupted, stopped by SIGTERM")
    assert tables.short_verdict({"test_rmse": known}) == "partial budget: worse by 9 %"
    assert "verdict" not in tables.reproduction_table(rows[2:])


def python_blocks(text):
    """(code, what it prints) of a page's Python blocks; a block of text right behind one is what it prints."""
    blocks = re.finditer(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", text, re.MULTILINE | re.DOTALL)
    return [(block[1], block[2] or "") for block in blocks]


def test_the_python_of_the_engines_page_prints_what_it_says(capsys):
    names = {}
    for code, printed in python_blocks(ENGINE.read_text(encoding="utf-8")):
        exec(compile(code, "docs/engine.md", "exec"), names)
        assert capsys.readouterr().out == printed, code


def test_the_python_of_the_readme_runs(monkeypatch):
    import odebench

    monkeypatch.setattr(odebench, "load_run", lambda folder: folder, raising=False)
    (block,) = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    names = {}
    exec(compile(block[0], "README.md", "exec"), names)
    assert names["solution"].y.shape == (2, 3)
    assert torch.allclose(names["y"], names["solution"].y, atol=1e-5)


def test_the_engines_page_names_every_method_with_its_order_and_cost():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (adaptive|fixed) \|", ENGINE.read_text(encoding="utf-8"), re.M)
    assert sorted(name for name, *_ in rows) == sorted(METHODS)
    for name, order, evaluations, steps in rows:
        method = METHODS[name]
        # An explicit method's last stage may be the next step's first.
        cost = method.stages - getattr(method, "fsal", False)
        assert (int(order), int(evaluations)) == (method.order, cost), name
        assert (steps == "adaptive") is method.adaptive, name


def test_the_engines_page_names_every_gradient_mode_and_status():
    text = ENGINE.read_text(encoding="utf-8")
    for name in (*GRADIENTS, *(status.value for status in Status)):
        assert f"\n| `{name}` |" in text


def anchors(text):
    """The names by which a page's headings can be linked."""
    headings = re.findall(r"^#+ +(.*?)\s*$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text):
    """The targets of a page's links and images, those of other sites left out."""
    text = prose(text)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, re.MULTILINE)
    found += re.findall(r"""(?:src|srcset|href)=["']([^"']+)""", text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page):
    text = page.read_text(encoding="utf-8")
    for target in links(text):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{target} is not there"
        assert not anchor or path.suffix != ".md" or anchor in anchors(path.read_text(encoding="utf-8")), target


def test_the_reading_of_a_page_finds_what_it_should():
    page = """
# A page & more
[a](x.md) ![b](<y.png> "title") <img src="z.svg"> [c](https://no.where) [d](#a-page--more)
```bash
# not this
A=1 odebench train tol=1e-3 \\
    seed=1  # nor this
$ pip install x && odebench list models | head
```
```python
`odebench no`
```
Say `odebench train
--cfg`, or `odebench VERB --help`; `odebench list` is "a list", and `x` one.
"""
    assert list(odebench_commands(page)) == [["train", "tol=1e-3", "seed=1"], ["list", "models"], ["train", "--cfg"]]
    assert links(page) == ["x.md", "y.png", "#a-page--more", "z.svg"]
    assert anchors(page) == {"a-page--more"}

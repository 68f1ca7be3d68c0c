"""README and docs: their commands are valid, their Python runs, their links lead somewhere."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from odebench import cli
from odebench.cli.options import read_split
from odebench.config.compose import compose, parse_overrides
from odebench.config.files import options
from odebench.config.read import read_settings
from odebench.ode import GRADIENTS, METHODS, Status

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "docs" / "engine.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

SET_UP = [
    'pip install -e ".[dev]" && odebench train model=odenet solver=dopri5 tol=1e-3',
    'pip install -e ".[dev]" && pytest',
]
# These commands are not run; only their arguments are checked.
NOT_RUN = ("train", "sweep", "eval", "sample", "predict", "resume", "report", "export", "reproduce", "tensorboard")


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
    # A command alone in prose, such as `odebench list`, is the command's name.
    in_prose = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]
    in_prose = [code for code in in_prose if code.startswith("odebench ") and code.count(" ") > 1]
    for line in bash_lines(text) + in_prose:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for is_end, words in itertools.groupby(lexer, key=lambda word: set(word) <= set("&|;<>()")):
            words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
            if not is_end and words[0] == "odebench" and "COMMAND" not in words:
                yield words[1:]


def all_commands():
    return [
        pytest.param(words, id=f"{page.name}: {' '.join(words)}")
        for page in PAGES
        for words in odebench_commands(page.read_text(encoding="utf-8"))
    ]


@pytest.fixture
def taken(monkeypatch):
    """Arguments of the commands in NOT_RUN, which are recorded instead of run."""
    noted = []
    for command in NOT_RUN:
        monkeypatch.setattr(f"odebench.cli.{command}.run", lambda arguments: noted.append(arguments) or 0)
    # The bench reads what it is to measure, and measures nothing.
    monkeypatch.setattr("odebench.bench.run.run_bench", lambda *arguments: 0)
    return noted


def each_job(overrides):
    """The overrides of each job of a sweep."""
    choices = []
    for override in parse_overrides(overrides):
        several = override.is_sweep_override()
        key = override.get_key_element()
        values = override.sweep_string_iterator() if several else ()
        choices.append([f"{key}={value}" for value in values] or [override.input_line])
    return [list(job) for job in itertools.product(*choices)]


def ours(arguments):
    """Whether the settings need no files of the reader."""
    words = arguments.overrides
    return getattr(arguments, "config_dir", None) is None and not any(w.startswith("extensions=") for w in words)


@pytest.mark.parametrize("words", all_commands())
def test_a_command_is_valid_and_its_settings_compose(words, taken, tmp_path, monkeypatch, capsys):
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    words = [word.replace("=NAME", f"={next(iter(options(word.removesuffix('=NAME'))), '')}") for word in words]
    assert cli.main(words) == (1 if words[:2] == ["list", "runs"] else 0), capsys.readouterr().err  # there are no runs
    for arguments in taken:
        if arguments.command == "train" and ours(arguments):
            jobs = each_job(arguments.overrides) if arguments.multirun else [arguments.overrides]
            assert len(jobs) > 1 or not arguments.multirun, "one run needs no -m"
            for overrides in jobs:
                # A run that the reader has made is none that these settings could be checked against.
                read_settings(compose([word for word in overrides if not word.startswith("init_from=")]))
        elif arguments.command in ("eval", "predict"):
            _, overrides = read_split(arguments.overrides)
            for job in each_job(overrides) if arguments.command == "eval" else [overrides]:
                read_settings(compose(job, saved=compose([])))


def test_the_two_set_up_commands_come_first():
    assert bash_lines((ROOT / "README.md").read_text(encoding="utf-8"))[:2] == SET_UP


def python_blocks(text):
    """(code, what it prints) of a page's Python blocks; a block of text right behind one is what it prints."""
    blocks = re.finditer(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", text, re.MULTILINE | re.DOTALL)
    return [(block[1], block[2] or "") for block in blocks]


def test_the_python_of_the_engine_page_prints_what_the_page_shows(capsys):
    names = {}
    for code, printed in python_blocks(ENGINE.read_text(encoding="utf-8")):
        exec(compile(code, "docs/engine.md", "exec"), names)
        assert capsys.readouterr().out == printed, code


def test_the_python_of_the_readme_runs(monkeypatch):
    import odebench

    for name in ("train", "load_runs"):
        monkeypatch.setattr(odebench, name, lambda given: given, raising=False)
    (block,) = python_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    names = {}
    exec(compile(block[0], "README.md", "exec"), names)
    assert names["solution"].y.shape == (2, 3)
    assert torch.allclose(names["y"], names["solution"].y, atol=1e-5)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    cells = json.loads((ROOT / "docs" / "from_python.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    names = {}
    with plt.rc_context({"backend": "agg"}):
        for number, cell in enumerate(cells):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"docs/from_python.ipynb, cell {number}", "exec"), names)
        plt.close("all")
    assert len(names["runs"]) == 3
    assert names["by_tolerance"]["final/nfe_forward"].is_monotonic_decreasing
    assert 0 < names["damping"].grad.abs() < 10


def test_the_engine_page_names_every_method_with_its_order_and_cost():
    table = re.search(r"^\| kind \| adaptive \| fixed .*\n(\|.*\n)+", ENGINE.read_text(encoding="utf-8"), re.M)
    rows = []
    for line in table[0].splitlines():
        for steps, cell in zip(("adaptive", "fixed"), line.split("|")[2:4], strict=True):
            rows += [(*found, steps) for found in re.findall(r"`(\w+)` (\d+)/(\d+)", cell)]
    assert sorted(name for name, *_ in rows) == sorted(METHODS)
    for name, order, evaluations, steps in rows:
        method = METHODS[name]
        # An explicit method's last stage may be the next step's first.
        cost = method.stages - getattr(method, "fsal", False)
        assert (int(order), int(evaluations)) == (method.order, cost), name
        assert (steps == "adaptive") is method.adaptive, name


def test_the_engine_page_names_every_gradient_mode_and_status():
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


def test_commands_and_links_of_a_page_are_found():
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
--cfg`, or `odebench COMMAND --help`; `odebench list` is "a list", and `x` one.
"""
    assert list(odebench_commands(page)) == [["train", "tol=1e-3", "seed=1"], ["list", "models"], ["train", "--cfg"]]
    assert links(page) == ["x.md", "y.png", "#a-page--more", "z.svg"]
    assert anchors(page) == {"a-page--more"}

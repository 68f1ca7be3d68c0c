"""Generated wrong input, on the command line and in files: one plain line, in time, and nothing written or executed.

SECURITY.md says what this protects. Everything runs in this process; a training that would start is a fake.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from odebench.cli import main
from odebench.config.compose import compose
from odebench.config.saved import read_saved, saved_settings
from odebench.data import tabular
from odebench.data.mnist_files import IdxFile
from odebench.errors import UsageError
from odebench.record import layout
from odebench.record.reader import read_run
from odebench.record.steps import read_longest_solve
from odebench.reporting.runs import collect_runs, read_evaluations
from odebench.training.checkpoint import FORMAT, load_weights

# Audit events of code that runs or of files that change; `open` counts if it is not for reading only.
FORBIDDEN = {
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class"),
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "socket.connect"),
}
LIMIT_S = 5.0
observed: list[str] | None = None  # while input is read


def _observe(event, arguments):
    if observed is None:
        return
    path, mode, flags = [*arguments, None, None, None][:3]
    if event == "open" and "__pycache__" not in str(path) and path != "/dev/null":
        if any(letter in str(mode or "") for letter in "wax+") or (mode is None and flags and flags & 3):
            observed.append(f"open {path} {mode}")
    elif event in FORBIDDEN and "__pycache__" not in str(path):
        observed.append(f"{event} {path}")


sys.addaudithook(_observe)


@contextlib.contextmanager
def harmless():
    """Assert that nothing is executed, that no file is changed, and that it does not take long."""
    global observed
    observed, start = [], time.process_time()  # of this process: other work on the machine does not count
    try:
        yield
        assert observed == []
        assert time.process_time() - start < LIMIT_S
    finally:
        observed = None


def check_command(*words):
    """Run a command: it ends well, or with an exit code and lines on stderr that are no traceback."""
    out, err = io.StringIO(), io.StringIO()
    with harmless(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    assert code in (0, 1, 2), (words, code)
    assert code == 0 or err.getvalue().strip(), words
    assert "Traceback" not in err.getvalue(), words


@pytest.fixture(scope="module", autouse=True)
def fakes(tmp_path_factory):
    """An empty current folder; training and evaluation only read their settings."""
    fake = types.SimpleNamespace
    training = fake(
        train_run=lambda *_: fake(exit_code=0), resume_run=lambda folder, overrides: fake(exit_code=read_all(folder))
    )
    trained = fake(
        evaluate_run=lambda folder, *_: read_all(folder),
        predict_run=lambda folder, *_: read_all(folder),
        sample_run=lambda folder, *_: read_all(folder),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("current"))
        patch.setitem(sys.modules, "odebench.training.run", training)
        patch.setitem(sys.modules, "odebench.training.trained_run", trained)
        patch.setitem(sys.modules, "odebench.training.study", fake(study_run=lambda folder, *_: read_all(folder)))
        yield


def read_all(folder):
    """Read the record and the settings of a run, as every command does before it computes; returns an exit code."""
    run = read_run(folder)
    read_saved(saved_settings(run.settings, run.path), run.path / layout.SETTINGS)
    runs = collect_runs([Path(folder)]).runs
    for one in runs:
        read_evaluations(one)
        read_longest_solve(one.path)
    return 0


def generated(number):
    """Settings of a test of `number` examples, the same ones in every run; of a fifth of them without --slow."""
    number = number if os.environ["ODEBENCH_TESTS"] == "slow" else number // 5
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(max_examples=number, derandomize=True, database=None, deadline=None, suppress_health_check=checks)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
HOSTILE = st.sampled_from(
    [
        *(
            "",
            "null",
            "nan",
            "-1",
            "1e999",
            "9" * 400,
            "true",
            "[1,2",
            "[../x]",
            "[a.b]",
            "{a: 1}",
            "a,b",
            "choice()",
            "range(0,1,0)",
        ),
        *("${oc.env:HOME}", "${tol}", "${no}", "${", "$(touch x)", "`touch x`", "; touch x", "../../etc/passwd", "/"),
        *(
            "!!python/object/apply:os.system ['touch x']",
            "glob(*)",
            "interval(0,1)",
            "'",
            '"',
            "\\",
            "%s%n",
            "~",
            "\x1b[2J",
        ),
        *("/nope", "x" * 300, "odenet", "rk4", "dopri5", "\u202e", "é" * 50),
    ]
)
KEYS = st.sampled_from(
    [
        *(
            "tol",
            "seed",
            "model",
            "solver",
            "gradient",
            "data",
            "experiment",
            "optim.lr",
            "solver.steps",
            "trainer.epochs",
        ),
        *("model.width", "extensions", "init_from", "outputs", "run_dir", "config_dir", "device", "budget", "budgets"),
        *("hydra.run.dir", "hydra/launcher", "hydra.searchpath", "cluster", "cluster.jobs", "split", "eval_solver"),
        *("task", "trainer.objective", "model.name", "_target_", "defaults", "hydra._target_", "data.root"),
    ]
)
WORDS = st.one_of(
    st.builds("{}={}".format, KEYS, HOSTILE),
    st.builds("{}={}".format, KEYS, TEXT),
    st.builds("{}{}={}".format, st.sampled_from(["+", "++", "~", "@", ""]), TEXT, HOSTILE),
    st.sampled_from(["--cfg", "--limit", "--list", "--output", "--config-dir", "--fro", "--", "-x", "--num=1e9"]),
    HOSTILE,
    TEXT,
)
COMMANDS = st.sampled_from(
    [
        ["train"],
        ["train", "--cfg"],
        ["sweep", "--dry-run"],
        ["eval"],
        ["predict"],
        ["sample"],
        ["resume"],
        ["list"],
        ["tain"],
    ]
)


@generated(100)
@given(COMMANDS, st.lists(WORDS, max_size=3))
def test_a_wrong_command_line(command, words):
    check_command(*command, *words)


# Without subnormal numbers: a training in this process may have set them to zero.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | TEXT | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
JUNK = st.one_of(st.binary(max_size=60), HOSTILE.map(str.encode), JSON.map(lambda value: json.dumps(value).encode()))


@st.composite
def damaged(draw, content):
    """The bytes of a file: cut short, with a part replaced, or replaced as a whole."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(start + 40, len(content))))
    junk = draw(JUNK)
    return draw(st.sampled_from([content[:start], content[:start] + junk + content[stop:], junk]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, without weights."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    folder.mkdir()
    config = compose(["model=mlp"])
    OmegaConf.save(config, folder / layout.SETTINGS)
    summary = {
        "run": "mlp",
        "objective": 0.5,
        "best/accuracy": 0.5,
        "final/minutes": 3.0,
        "results": [["loss", "1", "1"]],
    }
    row = {"step": 5, "elapsed_s": 1.0, "train/loss": 0.5}
    contents = {
        layout.STATUS: {"status": "done", "step": 10, "time": "2026-01-02T03:04:05Z"},
        layout.SUMMARY: summary,
        layout.MANIFEST: {"settings": OmegaConf.to_container(config, resolve=True), "machine": {"host": "x", "pid": 1}},
        layout.METRICS: row,
        layout.EVALUATIONS: {"overrides": ["tol=1e-3"], "solver": "rk4", "tol": 1e-3, "nfe": 5},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content) + "\n")
    (folder / layout.OVERRIDES).write_text("model=mlp\n")
    check_command("report", str(folder))
    check_command("eval", str(folder))
    return folder


RUN_FILES = [layout.SETTINGS, layout.STATUS, layout.SUMMARY, layout.MANIFEST, layout.METRICS, layout.EVALUATIONS]


@generated(90)
@given(st.data())
def test_a_damaged_file_of_a_run(run, data):
    path = run / data.draw(st.sampled_from(RUN_FILES))
    intact = path.read_bytes()
    content = data.draw(damaged(intact))
    command = data.draw(st.sampled_from([["list", "runs"], ["report"], ["eval"], ["resume"]]))
    try:
        path.write_bytes(content)
        check_command(*command, str(run))
    finally:
        path.write_bytes(intact)


@pytest.mark.parametrize("name", [*RUN_FILES, layout.STEP_SIZES])
def test_brackets_nested_too_deeply(run, name):
    intact = (run / name).read_bytes() if (run / name).exists() else b""
    try:
        (run / name).write_bytes(b"[" * (700 if name == layout.SETTINGS else 2000) + b"\n")
        for command in (["list", "runs"], ["report"], ["eval"]):
            check_command(*command, str(run))
    finally:
        (run / name).write_bytes(intact)


def test_brackets_nested_too_deeply_in_a_file_of_a_sweep(tmp_path):
    (tmp_path / "grid.yaml").write_text("[" * 700)
    check_command("sweep", "--dry-run", "--file", str(tmp_path / "grid.yaml"))


@generated(30)
@given(st.data())
def test_a_damaged_file_of_a_sweep(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "grid.yaml"
    path.write_bytes(data.draw(damaged(b"- tol: 1e-2,1e-3\n  seed: [1, 2]\n- {model: mlp, optim.lr: 0.1}\n")))
    check_command("sweep", "--dry-run", "--file", str(path))


@generated(30)
@given(st.data())
def test_a_damaged_csv_of_a_report(run, data):
    path = run.parent / "bench.csv"
    path.write_bytes(data.draw(damaged(b"work,family,library,ms\ntiny,rk,ours,1.0\ntiny,rk,torchdiffeq,2.0\n")))
    try:
        check_command("report", str(run.parent))
    finally:
        path.unlink()


def may_refuse(read, *arguments):
    """Call a reader: it returns, or raises a UsageError of one line."""
    refused = None
    with harmless():
        try:
            read(*arguments)
        except UsageError as error:
            refused = str(error)
    assert "\n" not in (refused or "")


@generated(30)
@given(st.data())
def test_a_damaged_table(tmp_path_factory, data):
    suffix = data.draw(st.sampled_from([".csv", ".npy"]))
    path = tmp_path_factory.getbasetemp() / f"table{suffix}"
    buffer = io.BytesIO()
    np.save(buffer, np.eye(3))
    path.write_bytes(data.draw(damaged(buffer.getvalue() if suffix == ".npy" else b"a,b,c\n1,2,3\n4,5,6\n")))
    may_refuse(tabular._frame, path)


@generated(30)
@given(st.data())
def test_a_damaged_idx_file(tmp_path_factory, data):
    content = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 1)) + b"abcd"
    suffix = data.draw(st.sampled_from(["", ".gz"]))
    path = tmp_path_factory.getbasetemp() / f"images{suffix}"
    path.write_bytes(data.draw(damaged(gzip.compress(content, mtime=0) if suffix else content)))
    may_refuse(IdxFile("images", hashlib.sha256(content).hexdigest()).read, path, 3)


class Code:
    """Pickles to a call of os.system."""

    def __reduce__(self):
        return eval, ("__import__('os').system('touch executed')",)


WHOLE = {"format": FORMAT, "model_name": "mlp", "model": torch.nn.Linear(2, 1).state_dict()}


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


VALUES = st.none() | st.integers() | TEXT | st.just(torch.tensor([float("nan")])) | st.lists(st.integers(), max_size=2)
CONTENTS = st.one_of(
    VALUES.map(saved),
    st.dictionaries(st.sampled_from([*WHOLE, "x"]), VALUES, max_size=4).map(lambda changed: saved(WHOLE | changed)),
    damaged(saved(WHOLE)),
)


@generated(40)
@given(CONTENTS)
@example(saved(WHOLE | {"model": Code()}))
@example(saved(Code()))
def test_a_damaged_checkpoint(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "last.pt"
    path.write_bytes(content)
    may_refuse(load_weights, torch.nn.Linear(2, 1), path, "mlp")
    assert not Path("executed").exists()


def test_the_observer_sees_what_it_must():
    with pytest.raises(AssertionError, match="open seen"), harmless():
        Path("seen").write_text("x")
    with pytest.raises(AssertionError, match=r"os\.remove seen"), harmless():
        Path("seen").unlink()

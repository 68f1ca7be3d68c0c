"""The layout of the package: what may be imported where, and names that mean one thing.

The order of the packages is checked by import-linter; see [tool.importlinter] in pyproject.toml.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "odebench"

WITHOUT_TORCH = [
    "errors",
    "console",
    "ode.methods",
    "plots",
    "config.read",
    "config.saved",
    "config.warnings",
    "record.layout",
    "record.reader",
    "record.files",
    "reporting.report",
    "reproduce.run",
    "sweep.run",
    "sweep.multirun",
    "sweep.slurm_task",
    "cli",
    "cli.list",
]


def test_import_linter_finds_every_package_in_its_layer_and_no_cycle():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_has_a_layer():
    import tomllib

    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    named = {name.strip().rpartition(".")[2] for layer in layers for name in layer.split("|")}
    assert named == {path.stem for path in PACKAGE.iterdir() if path.stem not in ("__init__", "__pycache__")}


@pytest.mark.parametrize(
    "modules",
    [WITHOUT_TORCH, *(pytest.param([module], marks=pytest.mark.slow) for module in WITHOUT_TORCH)],
    ids=" ".join,
)
def test_modules_that_must_start_fast_import_no_torch(modules):
    lines = [f"import odebench.{module}; assert 'torch' not in sys.modules, '{module}'" for module in modules]
    subprocess.run([sys.executable, "-c", "\n".join(["import sys", *lines])], check=True)


def test_public_names_are_looked_up_on_first_use():
    code = (
        "import sys, odebench; assert 'torch' not in sys.modules and 'hydra' not in sys.modules\n"
        "for name in odebench.__all__: assert getattr(odebench, name) is not None, name\n"
        "from odebench import solve; assert callable(solve)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_is_a_catch_all():
    banned = {"utils", "helpers", "common", "misc", "util"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in banned]


def test_no_class_name_means_two_things():
    files = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                files[node.name.strip("_")].append(path.relative_to(PACKAGE).as_posix())
    assert {name: where for name, where in files.items() if len(where) > 1} == {}


def test_files_stay_under_400_lines():
    lengths = {path.relative_to(PACKAGE).as_posix(): path.read_bytes().count(b"\n") for path in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length >= 400} == {}

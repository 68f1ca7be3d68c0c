"""The order of the rooms: each imports only what stands below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "odebench"

# What each room may import of odebench, besides itself. The words that all may use come first.
EVERYBODY = {"errors"}
BELOW = {
    "errors": set(),
    "typed": set(),
    "ode": set(),
    "allocator": set(),
    "plots": set(),
    "extensions": set(),
    "compose": {"typed"},
    "rules": {"typed"},
    "checks": {"compose", "extensions", "typed", "ode.methods", "record.schema", "rules", "settings"},
    "settings": {"checks", "compose", "extensions", "typed", "ode.methods", "rules"},
    "models": {"ode"},
    "data": {"extensions"},
    "record": {"rules", "settings"},
    "notices": {"rules", "settings"},
    "saved": {"compose", "record.reader", "record.schema", "settings"},
    "sweep": {"compose", "settings", "typed", "listing", "record", "training.signals"},
    "reporting": {"plots", "record.schema", "record.reader", "record.files"},
    "reproduce": {"sweep", "reporting", "record", "compose", "listing"},
    "tasks": {"models", "data", "ode", "plots", "settings", "extensions", "record.schema", "record.reader"},
    "bench": {"allocator", "ode", "models", "plots", "record", "settings"},
    "training": {
        "tasks",
        "models",
        "data",
        "ode",
        "plots",
        "settings",
        "typed",
        "saved",
        "notices",
        "rules",
        "extensions",
        "record",
        "allocator",
    },
    "console": set(),
    "listing": {"compose", "ode.methods", "record.reader", "rules"},
    "doctor": {"data"},
    "multirun": {"compose", "console", "listing", "record.schema", "settings", "training.run"},
    "completion": {"compose", "listing", "record.schema", "reporting", "reproduce", "rules", "settings", "sweep"},
    "verbs": {"completion"},
    # Of the rooms whose verbs they are, what runs them.
    "cli": {
        "bench.run",
        "completion",
        "compose",
        "console",
        "doctor",
        "listing",
        "multirun",
        "record.reader",
        "record.schema",
        "reporting.report",
        "reproduce.run",
        "settings",
        "sweep",
        "training.run",
        "training.study",
        "training.trained",
        "verbs",
    },
}
TORCH_FREE = [
    "errors",
    "typed",
    "extensions",
    "compose",
    "settings",
    "notices",
    "saved",
    "record.schema",
    "record.reader",
    "record.files",
    "ode.methods",
    "plots",
    "reporting.report",
    "reproduce.run",
    "sweep.run",
    "sweep.slurm_task",
    "listing",
    "verbs",
    "console",
    "cli",
]


def imports(path):
    """(dotted name inside odebench) of everything a file imports from odebench."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "odebench":
            module = node.module.removeprefix("odebench").lstrip(".")
            found |= {f"{module}.{name.name}".lstrip(".") for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {n.name.removeprefix("odebench.") for n in node.names if n.name.startswith("odebench.")}
    return found - {"__version__"}


def rooms():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield parts[0], path


def test_every_room_has_its_place():
    assert {name for name, _ in rooms()} - {"__init__", "__main__"} == set(BELOW)


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_what_stands_below_it(room):
    allowed = BELOW[room] | EVERYBODY | {room}
    for path in (path for name, path in rooms() if name == room):
        for name in imports(path):
            assert any(name == a or name.startswith(a + ".") for a in allowed), f"{path.name} imports {name}"


def test_the_engine_could_be_published_alone():
    for path in (PACKAGE / "ode").rglob("*.py"):
        assert all(name == "ode" or name.startswith("ode.") for name in imports(path)), path


@pytest.mark.parametrize("module", TORCH_FREE)
def test_what_must_start_at_once_imports_no_torch(module):
    code = f"import sys, odebench.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_looked_up_on_first_use():
    code = (
        "import sys, odebench; assert 'torch' not in sys.modules and 'hydra' not in sys.modules\n"
        "for name in odebench.__all__: assert getattr(odebench, name) is not None, name\n"
        "from odebench import solve; assert callable(solve)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_room_is_a_drawer():
    banned = {"utils", "helpers", "common", "misc", "util"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in banned]

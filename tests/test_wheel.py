"""The wheel as a user gets it: built by way of the sdist, installed without a checkout, run from `/`."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from odebench import __version__
from odebench.record import layout
from odebench.record.reader import find_runs, read_run

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built in a separate environment from the sdist, which is complete if that works."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Run a command of a new environment with the wheel, from `/`; returns its stdout.

    The dependencies are those of the environment of the tests: its folder is put at the end of the path. The
    path files in that folder, and with them an editable odebench, are not read there.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--quiet", wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    theirs = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("\n".join(theirs) + "\n")

    def run(program, *words):
        environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        command = [folder / "bin" / program, *words]
        done = subprocess.run(command, cwd="/", env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    code = "import odebench, odebench.config.files as c; print(odebench.__file__, c.CONFIGS)"
    assert run("python", "-c", code).split() == [
        str(packages / "odebench" / "__init__.py"),
        str(packages / "odebench" / "configs"),
    ]
    return run


def test_the_wheel_holds_code_and_configs_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = (
        path for path in (ROOT / "odebench").rglob("*.*") if path.suffix in (".py", ".csv", ".html", ".js", ".yaml")
    )
    code = {str(path.relative_to(ROOT)) for path in files}
    configs = {f"odebench/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name in names if ".dist-info/" not in name} == code | configs
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_it_prints_its_version_and_lists_options(run):
    assert run("odebench", "--version") == f"odebench {__version__}\n"
    models = [line.split()[0] for line in run("odebench", "list", "models").splitlines()]
    assert models == sorted(path.stem for path in (ROOT / "configs" / "model").glob("*.yaml"))


def test_it_trains_and_writes_a_complete_record(run, tiny_odenet, tmp_path):
    out = run("odebench", "train", *tiny_odenet, f"outputs={tmp_path}")
    (folder,) = find_runs(tmp_path)
    assert str(folder) in out
    record = read_run(folder)
    assert (record.status["status"], record.status["step"]) == ("done", 8)
    assert record.manifest["versions"]["odebench"] == __version__
    assert 0 <= record.summary["final/test_accuracy"] <= 1
    files = [layout.OVERRIDES, layout.LOG, layout.LAST_CHECKPOINT, layout.BEST_CHECKPOINT]
    assert [name for name in files if not (folder / name).is_file()] == []
    assert len(list(folder.glob(layout.EVENT_FILES))) == 1
    assert list((folder / layout.FIGURES).glob("*.png"))

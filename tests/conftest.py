"""Shared by all tests: which of them run by default, one thread, and a small training."""

import os
import shutil

import pytest

# Test problems are small: a second thread would only wait for the first. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_MODEL = ["model.width=8", "model.groups=4"]
TINY = [
    "data.train_limit=64",
    "data.validation=40",
    "trainer.batch_size=16",
    "trainer.epochs=2",
    "trainer.log_every=1",
    "trainer.measure_every=100",
    "device=cpu",
]
# Marker -> programs that it needs, and their Debian packages. Daemons are in /usr/sbin.
PROGRAMS = {
    "browser": (("chromium", "chromedriver"), "chromium chromium-driver"),
    "slurm": (("slurmctld", "slurmd", "munged", "sbatch"), "slurmctld slurmd slurm-client munge"),
}
# Markers of tests that run only with the option of the same name.
OPTIONAL = {"slow": "long tables and builds", "compiler": "solves that torch compiles for minutes"}
SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def pytest_addoption(parser):
    for marker, what in OPTIONAL.items():
        parser.addoption(f"--{marker}", action="store_true", help=f"also run {what}")


def pytest_configure(config):
    os.environ["ODEBENCH_TESTS"] = "slow" if config.getoption("--slow") else "fast"  # read while modules are imported


def pytest_collection_modifyitems(config, items):
    """Skip tests that this machine cannot run or that were not asked for, each with its reason."""
    reasons = {x: f"{x}; pytest --{x} runs it" for x in OPTIONAL if not config.getoption(f"--{x}")}
    for marker, (programs, packages) in PROGRAMS.items():
        missing = [program for program in programs if shutil.which(program, path=SEARCHED) is None]
        if missing:
            reasons[marker] = f"no {' and no '.join(missing)} (Debian: apt-get install {packages})"
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            reasons["gpu"] = "no CUDA device"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def tiny(tmp_path):
    """Overrides of a training of eight steps, of any model; its runs go to a temporary folder."""
    return [*TINY, f"outputs={tmp_path / 'outputs'}"]


@pytest.fixture(scope="session")
def tiny_odenet():
    """Overrides of a training of the smallest ODE-Net, without a folder for its runs."""
    return [*TINY_MODEL, *TINY]


@pytest.fixture
def without_figures():
    """Keep runs from drawing figures, which takes longer than a tiny training."""
    from odebench.record.writer import RunWriter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "write_figure", lambda *_, **__: None)
        yield patch


@pytest.fixture
def train(tiny, without_figures):
    """Train the tiny network under more overrides; returns the RunResult."""
    from odebench.config.compose import compose
    from odebench.training.run import train_run

    def run(*overrides):
        model = [] if "model=mlp" in overrides else TINY_MODEL
        given = [*model, *tiny, *overrides]
        return train_run(compose(given), given)

    return run

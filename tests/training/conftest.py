"""Finished trainings that several test files share; tests may only append to evaluations.jsonl."""

import pytest

from odebench.cli import main
from odebench.record.writer import RunWriter


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Train in a separate folder without drawing figures, which is slow; return the folder."""

    def run(*overrides):
        folder = tmp_path_factory.mktemp("finished") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunWriter, "write_figure", lambda *_, **__: None)
            assert main(["train", *overrides, "device=cpu", f"run_dir={folder}"]) == 0
        return folder

    return run


@pytest.fixture(scope="session")
def odenet_run(finished, tiny_odenet):
    """The smallest ODE-Net, trained with its default settings."""
    return finished(*tiny_odenet)


@pytest.fixture(scope="session")
def cnf_run(finished):
    """A small CNF, trained until its field is no longer almost constant; it is smooth, so that orders show."""
    overrides = ["model=cnf", "model.width=8", "data=two_moons", "trainer.iterations=30", "optim.lr=0.03", "tol=1e-3"]
    sizes = ["trainer.batch_size=64", "trainer.eval_batch_size=1000", "data.test=1000"]
    return finished(*overrides, "model.end_time=1", *sizes)

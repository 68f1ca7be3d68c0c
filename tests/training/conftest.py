"""Finished trainings that several test files share; tests may only append to evaluations.jsonl."""

import pytest

from odebench.cli import main
from odebench.tasks.classification import ClassificationTask
from odebench.tasks.density import DensityTask
from odebench.tasks.time_series import TimeSeriesTask


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Train in a separate folder without drawing figures, which is slow; return the folder."""

    def run(*overrides):
        folder = tmp_path_factory.mktemp("finished") / "run"
        with pytest.MonkeyPatch.context() as patch:
            for task in (ClassificationTask, DensityTask, TimeSeriesTask):
                patch.setattr(task, "figures", lambda self: {})
            assert main(["train", *overrides, "device=cpu", f"run_dir={folder}"]) == 0
        return folder

    return run


@pytest.fixture(scope="session")
def cnf_run(finished):
    """A small CNF, trained until its field is no longer almost constant; it is smooth, so that orders show."""
    overrides = ["model=cnf", "model.width=8", "data=two_moons", "trainer.iterations=30", "optim.lr=0.03", "tol=1e-3"]
    return finished(*overrides, "model.end_time=1", "trainer.batch_size=64", "trainer.eval_batch_size=1000")

"""What all tests share: one thread, and a training small enough for a test."""

import os

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
    "device=cpu",
]


@pytest.fixture
def tiny(tmp_path):
    """Overrides of a training of eight steps, of any model; its runs go to a temporary folder."""
    return [*TINY, f"outputs={tmp_path / 'outputs'}"]


@pytest.fixture
def train(tiny):
    """Train the tiny network under more overrides; returns the RunResult."""
    from odebench.settings import compose
    from odebench.training.run import train_run

    def run(*overrides):
        model = [] if "model=mlp" in overrides else TINY_MODEL
        given = [*model, *tiny, *overrides]
        return train_run(compose(given), given)

    return run

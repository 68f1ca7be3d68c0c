from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from odebench.record.writer import RunWriter

SETTINGS = """
model: {name: odenet, width: 64, kind: [a, b]}
solver: {name: dopri5, rtol: '${tol}', atol: '${tol}', steps: null, first_step: warm}
gradient: {name: adjoint, rtol: null}
data: {name: mnist5k, augment: true, root: /somewhere}
optim: {name: sgd, lr: 0.1}
trainer: {epochs: 2, batch_size: 128, average: null, objective: val/accuracy}
task: classification
tol: 1e-3
seed: 0
"""


@pytest.fixture
def config() -> DictConfig:
    config = OmegaConf.create(SETTINGS)
    assert isinstance(config, DictConfig)
    return config


@pytest.fixture
def create(config: DictConfig) -> Callable[[Path], RunWriter]:
    quantities = ["loss", "accuracy", "nfe"]
    return lambda folder: RunWriter.create(
        folder, config, ["tol=1e-3", "seed=0"], {"command": ["odebench"]}, quantities
    )

"""How many calls of odebench lie between the command line and the vector field."""

import statistics
import traceback
from pathlib import Path

import torch

import odebench
from odebench.cli import main
from odebench.models.convolution import ConvField


def test_a_solver_step_reaches_the_field_in_17_calls(tmp_path, monkeypatch):
    package, forward, depths = str(Path(odebench.__file__).parent), ConvField.forward, []

    def spy(field, t, y):
        if torch.is_grad_enabled():  # a training step
            depths.append(1 + sum(frame.filename.startswith(package) for frame in traceback.extract_stack()))
        return forward(field, t, y)

    monkeypatch.setattr(ConvField, "forward", spy)
    words = ["gradient=backprop", "model.width=8", "model.groups=2", "data.train_limit=256", "trainer.epochs=1"]
    assert main(["train", *words, f"run_dir={tmp_path / 'run'}"]) == 0
    assert statistics.mode(depths) == 17

"""The machine made ready: devices by name, and compilation with a way out."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from odebench.errors import UsageError
from odebench.tasks import Loss
from odebench.training.machine import choose_device, compile_model


def test_auto_takes_what_is_there():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match=r"device=cuda:99: .*use device=cpu or device=auto"):
        choose_device("cuda:99")


def test_a_broken_compiler_is_one_warning_and_an_eager_model(monkeypatch, caplog):
    model = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    eager = model(x)
    task = SimpleNamespace(model=model, batch=lambda step: x, loss=lambda batch: Loss(model(batch).sum(), {}, ()))

    def broken(*_):
        raise RuntimeError("no C++ compiler found\nand much more")

    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", broken))
    with caplog.at_level(logging.WARNING):
        compile_model(task)
    assert [record.getMessage() for record in caplog.records] == [
        "trainer.compile: not compiled, going on without (no C++ compiler found)"
    ]
    assert torch.equal(model(x), eager)


@pytest.mark.slow
def test_a_compiled_training_gives_the_numbers_of_an_eager_one(train):
    from odebench.record.reader import read_run

    pytest.importorskip("torch._inductor")
    eager, compiled = train(), train("trainer.compile=true")
    losses = [read_run(result.folder).series("train/loss")[1] for result in (eager, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert compiled.exit_code == 0

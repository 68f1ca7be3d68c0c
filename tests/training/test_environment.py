"""Preparing the environment: devices by name, and compilation with a fallback."""

import logging

import pytest
import torch
from torch import nn

from odebench.errors import Diverged, UsageError
from odebench.ode import SolveError
from odebench.ode.solution import SolveOutcome, Status
from odebench.tasks import Loss
from odebench.training.environment import choose_device, compile_model


def test_auto_chooses_an_available_device():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


def test_a_missing_device_raises_an_error_with_a_hint():
    with pytest.raises(UsageError, match=r"device=cuda:99: .*use device=cpu or device=auto"):
        choose_device("cuda:99")


class Noisy:
    """A task whose steps draw random numbers, change a buffer of the model, and update a warm first step."""

    batch_size = 6

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.warm_step, self.seen = None, []

    def batch(self, step):
        return torch.arange(12.0).reshape(6, 2)

    def loss(self, batch):
        self.seen.append(batch)
        self.warm_step = 0.5
        return Loss(self.model(batch + torch.rand_like(batch)).square().sum(), {}, ())

    def state_dict(self):
        return {"warm_step": self.warm_step}

    def load_state_dict(self, state):
        self.warm_step = state["warm_step"]


@pytest.fixture
def compiler(monkeypatch):
    """compiler(call): replace the compiler, so that compiled modules are called with call."""

    def replace_compiler(call):
        monkeypatch.setattr(torch, "compile", lambda function, **_: call)

    replace_compiler(None)
    return replace_compiler


def test_a_broken_compiler_is_one_warning_and_an_eager_model(compiler, caplog):
    task = Noisy()
    model, x = task.model.eval(), task.batch(0)
    eager = model(x)

    def broken(*_):
        raise RuntimeError("no C++ compiler found\nand much more")

    compiler(broken)
    with caplog.at_level(logging.WARNING):
        compile_model(task)
    assert [record.getMessage() for record in caplog.records] == [
        "trainer.compile: not compiled, continuing in eager mode (no C++ compiler found)"
    ]
    assert torch.equal(model(x), eager)


def test_the_trial_step_has_no_side_effects(compiler):
    task = Noisy()
    before, random = {key: x.clone() for key, x in task.model.state_dict().items()}, torch.get_rng_state()
    compile_model(task)
    assert len(task.seen) == 1
    assert task.state_dict() == {"warm_step": None}
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(x, before[key]) for key, x in task.model.state_dict().items())
    assert all(p.grad is None for p in task.model.parameters())


def test_each_process_compiles_for_the_shapes_of_its_shard(compiler, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    task = Noisy()
    compile_model(task)
    (tried,) = task.seen
    assert torch.equal(tried, task.batch(0)[2:4])


FAILED = SolveOutcome(Status.max_steps, reached=0, time=0.5, step_size=1e-3, error_ratio=1.0, nfe=40)


@pytest.mark.parametrize("failure", [Diverged("solve failed"), SolveError(FAILED)], ids=["forward", "backward"])
def test_a_failed_solve_is_not_reported_as_a_compiler_error(failure, compiler, caplog):
    def failing(*_):
        raise failure

    compiler(failing)
    task = Noisy()
    compile_model(task)
    assert not caplog.records
    assert task.model._compiled_call_impl is failing


def test_invalid_settings_raise_their_own_error(compiler):
    def refusing(*_):
        raise UsageError("solver.step_size=1e-9: too many steps")

    compiler(refusing)
    with pytest.raises(UsageError, match=r"solver\.step_size"):
        compile_model(Noisy())


@pytest.mark.slow
def test_a_compiled_training_gives_the_numbers_of_an_eager_one(train):
    from odebench.record.reader import read_run

    pytest.importorskip("torch._inductor")
    eager, compiled = train(), train("trainer.compile=true")
    losses = [read_run(result.folder).series("train/loss")[1] for result in (eager, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert compiled.exit_code == 0

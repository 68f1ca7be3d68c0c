"""Two processes that train one model: they give the numbers of one process, write one record, and end together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from odebench.errors import UsageError
from odebench.record.reader import read_overview, read_run
from odebench.training import distributed
from odebench.training.preflight import check_batch_size


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder of the trainings of distributed_program.py, and the exit codes of their processes."""
    folder = tmp_path_factory.mktemp("ranks")
    program = Path(__file__).with_name("distributed_program.py")
    subprocess.run([sys.executable, str(program), str(folder)], check=True)
    return folder, json.loads((folder / "codes.json").read_text())


def weights(folder, name="last"):
    return torch.load(folder / f"checkpoints/{name}.pt", weights_only=True)["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["odenet", "cnf", "latent_ode", "latent_ode_consistent", "odenet_synced", "cnf_synced"]
)
def test_two_processes_get_the_numbers_of_one(model, ranks):
    folder, codes = ranks
    one, two = f"{model}_one", f"{model}_two"
    assert (codes[one], codes[two]) == ([0], [0, 0])
    for name in ("last", "best"):
        found, expected = weights(folder / two, name), weights(folder / one, name)
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)
    runs = [read_run(folder / name) for name in (one, two)]
    for tag in ("train/loss", "optim/grad_norm", "nfe/forward", "nfe/backward", "val/loss", "test/loss"):
        (steps, found), (_, expected) = (run.series(tag) for run in runs)
        assert steps
        assert found == pytest.approx(expected, rel=1e-5), tag


@pytest.mark.slow
def test_there_is_one_record_and_the_second_process_prints_nothing(ranks):
    folder, _ = ranks
    assert len(list((folder / "odenet_two").glob("events*"))) == 1
    assert (folder / "odenet_two.1.txt").read_text() == ""
    assert "test accuracy" in (folder / "odenet_two.0.txt").read_text()
    processes = read_run(folder / "odenet_two").manifest["processes"]
    assert processes == {"number": 2, "batch_size": 16, "batch_size_each": 8}


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_the_resumed_run_is_bit_equal(ranks):
    folder, codes = ranks
    assert codes["stopped"] == [75, 75]
    assert codes["resumed"] == [0, 0]
    output = (folder / "stopped.0.txt").read_text()
    assert "stopped by SIGTERM after step 3" in output
    assert "resuming after step 3" in output
    found, expected = weights(folder / "stopped"), weights(folder / "odenet_two")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [("nan", "the loss is nan"), ("diverged", "solve failed: too many"), ("part_diverged", "the loss is nan")],
)
def test_a_run_that_diverges_in_one_process_diverges(name, reason, ranks):
    folder, codes = ranks
    assert codes[name] == [3, 3]
    status = read_run(folder / name).status
    assert (status["status"], status["step"]) == ("diverged", 2)
    assert reason in status["message"]


@pytest.mark.slow
def test_a_step_that_diverges_in_one_process_where_it_is_only_measured_is_measured_in_none(ranks):
    folder, codes = ranks
    assert codes["unmeasured"] == [0, 0]
    assert "not measured after step 4: the loss is nan" in (folder / "unmeasured.0.txt").read_text()
    assert (folder / "unmeasured.1.txt").read_text() == ""
    assert not read_run(folder / "unmeasured").series("memory/peak_mib")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lost", "lost_synced"])
def test_a_process_that_dies_ends_the_run_with_a_status(name, ranks):
    folder, codes = ranks
    assert codes[name] == [1, -9]
    status = read_overview(folder / name, trust_status=True)
    assert (status.status, status.step) == ("failed", 2)
    assert "another process of this run has ended" in status.message
    assert "Traceback" not in (folder / f"{name}.0.txt").read_text()


@pytest.mark.slow
def test_a_batch_size_that_does_not_divide_into_equal_shards_is_refused(ranks):
    folder, codes = ranks
    assert codes["uneven"][0] == 2
    line = "trainer.batch_size=15: 2 processes share it; make it a multiple of 2"
    assert line in (folder / "uneven.0.txt").read_text()
    assert (folder / "uneven.1.txt").read_text() == ""
    assert not (folder / "uneven").exists()


@pytest.fixture
def second_of_three(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)


def test_the_shards_of_a_batch_are_its_rows_without_repeats(monkeypatch, second_of_three):
    batch = (torch.arange(12).reshape(6, 2), torch.arange(6))
    pairs = []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        pairs.append(distributed.shard_batch(batch, 6))
    for column, full in enumerate(batch):
        assert torch.equal(torch.cat([pair[column] for pair in pairs]), full)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert distributed.shard_batch(batch, 6) is batch


def test_a_batch_object_with_rows_selects_its_own_rows(second_of_three):
    class Series:
        def rows(self, rows):
            return rows

    assert distributed.shard_batch(Series(), 6) == slice(2, 4)


def test_random_numbers_of_a_step_differ_between_processes_and_are_reproducible(monkeypatch, second_of_three):
    def drawn(step):
        distributed.seed_step(0, step)
        return torch.rand(3).tolist()

    first = drawn(4)
    assert first == drawn(4) != drawn(5)
    monkeypatch.setenv("RANK", "2")
    assert drawn(4) != first
    monkeypatch.setenv("RANK", "0")
    state = torch.get_rng_state()
    distributed.seed_step(0, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_rank_variables_set_by_a_cluster_are_ignored(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    assert (distributed.world_size(), distributed.rank(), distributed.local_rank()) == (1, 0, 0)
    assert distributed.reduce_max(15, False) == [15, False]
    assert distributed.reduce_mean({"train/loss": 0.5}) == {"train/loss": 0.5}
    with distributed.process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()


def test_uneven_shards_are_refused(second_of_three):
    check_batch_size(6, distributed.world_size())
    with pytest.raises(UsageError, match=r"trainer\.batch_size=7: 3 processes share it; make it a multiple of 3"):
        check_batch_size(7, distributed.world_size())


@pytest.mark.parametrize("of_several", [False, True])
def test_one_of_several_processes_does_not_end_its_interpreter(of_several):
    """Threads of the process group that are still running could abort it."""
    program = "import atexit, runpy, sys; atexit.register(print, 'ended'); sys.argv = ['odebench', '--version']; "
    program += "runpy.run_module('odebench', run_name='__main__')"
    environment = os.environ | ({"TORCHELASTIC_RUN_ID": "one"} if of_several else {})
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("odebench")
    assert ("ended" in done.stdout) != of_several


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path):
    from distributed_program import ODENET

    # Standalone: otherwise torchrun always uses the same port, which may be taken.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "odebench", "train"]
    overrides = [*ODENET, "trainer.iterations=2", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert read_run(tmp_path / "run").status["status"] == "done"

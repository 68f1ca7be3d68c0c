"""Submission to SLURM, with fakes of its commands."""

import sys

import pytest
from sweep_testing import calls, statuses

from odebench.errors import UsageError
from odebench.sweep import slurm
from odebench.sweep.attempts import FailurePolicy, write_status
from odebench.sweep.folder import load_sweep
from odebench.sweep.run import plan_sweep, resume_sweep, run_sweep

POLICY = FailurePolicy(fail_fast=False, retry=0)


def test_an_array_over_the_list_of_jobs_is_submitted(submit, commands, tmp_path, capsys):
    arguments = [
        "seed=range(0,3)",
        "cluster.partition=gpu",
        "cluster.account=us",
        "cluster.time=8:00:00",
        "cluster.gpus=1",
    ]
    more = ["cluster.memory=16G", "cluster.cpus=4", "cluster.jobs=2", "cluster.directives={qos: long, exclusive: true}"]
    assert submit(*arguments, *more, fail_fast=True, retry=3) == 0
    sweep = tmp_path / "sweep"
    ((*options, script, python, dash_m, module, folder, listed, warning, retry, fast),) = calls(commands, "sbatch")
    assert set(options) == {
        "--parsable", "--job-name=odebench-sweep", "--array=0-2%2", f"--output={sweep}/slurm/%A_%a.txt", "--requeue",
        f"--chdir={tmp_path}", "--open-mode=append", "--signal=B:USR1@120", "--partition=gpu", "--account=us",
        "--time=8:00:00", "--gres=gpu:1", "--cpus-per-task=4", "--mem=16G", "--qos=long", "--exclusive",
    }  # fmt: skip
    assert [python, dash_m, module] == [sys.executable, "-m", "odebench.sweep.slurm_task"]
    assert [folder, listed] == [str(sweep), "0.txt"]
    assert [warning, retry, fast] == ["--warning-s=120", "--retry=3", "--fail-fast"]
    assert (sweep / "slurm" / "task.sh").read_text() == '#!/bin/sh\nexec "$@"\n'
    assert script == str(sweep / "slurm" / "task.sh")
    assert (sweep / "slurm" / "0.txt").read_text() == "0\n1\n2\n"
    assert statuses(sweep) == ["queued"] * 3
    assert "submitted array 101" in capsys.readouterr().out


def test_many_jobs_are_split_into_several_arrays(submit, commands, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "MAX_ARRAY_SIZE", 2)
    submit("seed=range(0,5)")
    arrays = [
        next(argument for argument in arguments if argument.startswith("--array"))
        for arguments in calls(commands, "sbatch")
    ]
    assert arrays == ["--array=0-1", "--array=0-1", "--array=0-0"]
    sweep = load_sweep(tmp_path / "sweep")
    assert [slurm.read_job_list(sweep, f"{n}.txt") for n in range(3)] == [[0, 1], [2, 3], [4]]
    assert not any("--dependency" in argument for arguments in calls(commands, "sbatch") for argument in arguments)


def test_the_limit_of_simultaneous_jobs_holds_for_all_arrays(submit, commands, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "MAX_ARRAY_SIZE", 2)
    submit("seed=range(0,5)", "cluster.jobs=1")
    after = [[w for w in arguments if w.startswith("--dependency")] for arguments in calls(commands, "sbatch")]
    assert after == [[], ["--dependency=afterany:101"], ["--dependency=afterany:102"]]


def test_resume_submits_only_jobs_that_are_not_queued_and_have_not_ended(submit, commands, tmp_path):
    submit("seed=range(0,6)")
    sweep = load_sweep(tmp_path / "sweep")
    for number, status in enumerate(["done", "failed", "running", "running", "queued", "interrupted"]):
        write_status(sweep, sweep.jobs[number], status, "")
    (commands / "squeue.answer").write_text("101 2\n101 4\n99 0\n101 [7-8]\n")
    assert resume_sweep(sweep.path, ["cluster.time=2-0"], POLICY, follow=False) == 0
    assert slurm.read_job_list(sweep, "1.txt") == [1, 3, 5]
    assert "--time=2-0" in calls(commands, "sbatch")[1]
    assert statuses(sweep.path) == ["done", "failed", "running", "interrupted", "queued", "interrupted"]


def test_a_sweep_can_continue_on_another_cluster(submit, commands, tmp_path):
    submit("seed=1,2", "cluster.partition=gpu")
    assert resume_sweep(tmp_path / "sweep", ["cluster=local", "cluster.jobs=2"], POLICY, follow=False) == 0
    assert statuses(tmp_path / "sweep") == ["done", "done"]


def test_an_error_of_sbatch_is_reported(submit, commands, tmp_path):
    (commands / "sbatch.fails").touch()
    with pytest.raises(UsageError, match="error: invalid partition"):
        submit("seed=1,2")


def test_a_missing_slurm_raises_an_error_that_says_what_to_do(submit, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UsageError, match="sbatch not found: start the sweep where SLURM's commands are installed, or choose"
    ):
        submit("seed=1,2")


def test_follow_ends_when_the_queue_holds_no_job_of_the_sweep(commands, tmp_path, monkeypatch):
    answers = [{0, 1}, {1}, set()]
    monkeypatch.setattr(slurm, "REFRESH_S", 0.0)
    monkeypatch.setattr(slurm, "QUEUE_POLL_S", 0.0)
    monkeypatch.setattr(
        slurm, "jobs_in_queue", lambda sweep: answers.pop(0) if (sweep.path / "slurm").exists() else set()
    )
    plan = plan_sweep(["model=mlp", "cluster=slurm", "seed=1,2"], None, None)
    assert run_sweep(plan, tmp_path / "sweep", POLICY, follow=True) == 75
    assert answers == []


HOSTILE = "a 'b' \"c\"; $(touch ran) `touch ran` 50% #SBATCH"


def test_names_and_paths_are_arguments_and_never_script_lines(submit, commands, tmp_path):
    root = "data.root='x\n#SBATCH --wrap=y; $(touch ran)'"
    submit("seed=1,2", root, name=HOSTILE)
    (arguments,) = calls(commands, "sbatch")
    sweep = tmp_path / HOSTILE
    assert f"--output={str(sweep).replace('%', '%%')}/slurm/%A_%a.txt" in arguments
    assert "--job-name=odebench-a-b-c-touch-ran-touch-ran-50-SBATCH" in arguments
    assert str(sweep) in arguments
    assert (sweep / "slurm" / "task.sh").read_text() == '#!/bin/sh\nexec "$@"\n'
    assert load_sweep(sweep).jobs[0].overrides[2] == root
    assert not list(tmp_path.rglob("ran"))


def test_the_list_of_arrays_cannot_inject_options_of_scancel(submit, commands, tmp_path):
    submit("seed=1,2")
    sweep = load_sweep(tmp_path / "sweep")
    arrays = sweep.path / "slurm" / "arrays.jsonl"
    arrays.write_text(arrays.read_text() + '{"array": "--user=root", "list": "0.txt"}\n')
    slurm.cancel(sweep)
    assert calls(commands, "scancel") == [["101"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [("arrays.jsonl", b"{"), ("arrays.jsonl", b"5\n"), ("arrays.jsonl", b'{"array": 1}'), ("arrays.jsonl", b"\xff"),
     ("0.txt", b"a\n"), ("0.txt", b"7\n"), ("0.txt", b"\xff"), ("0.txt", None)],
)  # fmt: skip
def test_a_damaged_list_of_arrays_or_jobs_is_named(submit, commands, tmp_path, name, content):
    submit("seed=1,2")
    path = tmp_path / "sweep" / "slurm" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name} is damaged: .*; cancel ") as caught:
        resume_sweep(tmp_path / "sweep", [], POLICY, follow=False)
    assert "\n" not in str(caught.value)


def test_a_task_of_the_queue_that_the_list_of_jobs_lacks_is_ignored(submit, commands, tmp_path):
    submit("seed=1,2")
    (tmp_path / "sweep" / "slurm" / "0.txt").write_text("1\n")
    (commands / "squeue.answer").write_text("101 0\n101 1\n")
    assert slurm.jobs_in_queue(load_sweep(tmp_path / "sweep")) == {1}


def test_setup_commands_are_written_to_the_script(submit, commands, tmp_path):
    submit("seed=1,2", "cluster.setup=['module load cuda']")
    assert (tmp_path / "sweep" / "slurm" / "task.sh").read_text() == '#!/bin/sh\nmodule load cuda\nexec "$@"\n'


@pytest.mark.parametrize(
    ("arguments", "sbatch_options", "task_options"),
    [
        (["cluster.gpus=1"], ["--gres=gpu:1"], []),
        (["cluster.gpus=4"], ["--gres=gpu:4"], ["--nodes=1", "--processes=4"]),
        (["cluster.processes=2"], [], ["--nodes=1", "--processes=2"]),
        (["cluster.gpus=4", "cluster.processes=1"], ["--gres=gpu:4"], []),
        (["cluster.nodes=2"], ["--nodes=2", "--ntasks-per-node=1"], ["--nodes=2", "--processes=1"]),
        (
            ["cluster.nodes=2", "cluster.gpus=4"],
            ["--nodes=2", "--ntasks-per-node=1", "--gres=gpu:4"],
            ["--nodes=2", "--processes=4"],
        ),
    ],
    ids=lambda value: " ".join(value),
)
def test_options_for_several_nodes_and_processes(arguments, sbatch_options, task_options, submit, commands):
    submit("seed=1,2", *arguments)
    (command,) = calls(commands, "sbatch")
    options, more = command[: command.index(sys.executable)], command[command.index("--retry=0") + 1 :]
    assert [
        argument for argument in options if argument.startswith(("--nodes", "--ntasks", "--gres"))
    ] == sbatch_options
    assert more == task_options


def test_the_processes_that_train_a_model_must_share_its_batches_evenly(submit, commands):
    with pytest.raises(UsageError) as caught:
        submit("seed=1,2", "cluster.nodes=3", "cluster.processes=2")
    line = "trainer.batch_size=64: 6 processes share it; make it a multiple of 6"
    assert str(caught.value).splitlines()[1] == f"job 0 (model=mlp seed=1) and 1 more: {line}"
    assert calls(commands, "sbatch") == []

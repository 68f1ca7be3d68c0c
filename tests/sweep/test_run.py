"""The command `odebench sweep`: output, errors and files."""

import io
import os
import shutil
import subprocess
import sys

import pytest
from sweep_testing import statuses

from odebench.cli import main
from odebench.record.reader import RunOverview
from odebench.sweep import display as shown
from odebench.sweep.display import SweepDisplay
from odebench.sweep.folder import load_sweep
from odebench.sweep.run import plan_sweep
from odebench.sweep.validate import Job


def test_a_dry_run_prints_the_jobs_and_writes_nothing(fake_training, tmp_path, capsys):
    assert main(["sweep", "model=mlp", "seed=1,2", "cluster=slurm", "--dry-run"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["JOB", "FOLDER", "SETTINGS"],
        ["0", "0000_seed=1", "seed=1"],
        ["1", "0001_seed=2", "seed=2"],
        ["2", "jobs,", "all", "valid;", "nothing", "was", "started"],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["tol=1,-1", "model.hiden=3"], 2),
        (["solver=dopri,rk4", "="], 2),
        (["seed=1,2", "cluster=slrm"], 1),
        (["seed=1,2", "--file", "no.yaml"], 1),
        (["seed=1,2", "--retry", "-1"], 1),
        ([], 1),
        (["cluster.jobs=2"], 1),
        (["seed=1,2", "--dry-run", "--output", "."], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_raise_an_error_and_write_nothing(arguments, lines, fake_training, tmp_path, capsys):
    assert main(["sweep", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("odebench sweep: ")
    assert len(err.splitlines()) >= lines
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_an_unknown_option_is_reported_with_all_independent_errors(fake_training, capsys):
    arguments = ["solver=dopri55,rk44,rk4", "solver.steps=8", "gradient=reversible,backprop", "tol=-1,1", "seed=1,a"]
    assert main(["sweep", *arguments]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "odebench sweep: unknown solver dopri55; did you mean dopri5? (odebench list solvers prints all)",
        "unknown solver rk44; did you mean rk4? (odebench list solvers prints all)",
        "job 0 (gradient=reversible tol=-1 seed=1) and 3 more: tol=-1: must be greater than 0",
        "job 1 (gradient=reversible tol=-1 seed=a) and 3 more: seed=a: a whole number is needed, such as seed=0",
    ]


def test_with_an_unknown_model_errors_that_depend_on_it_are_not_reported(fake_training, capsys):
    arguments = ["model=cnff", "data.samples=100", "loss=flow_matching", "loss.sigma=0.1", "tol=-1", "trainer.epochs=a"]
    assert main(["sweep", *arguments, "trainer.objective=val/nll_nats"]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith("odebench sweep: unknown model cnff; did you mean cnf?")
    assert [line.partition("): ")[2].partition(":")[0] for line in lines] == ["tol=-1", "trainer.epochs=a"]


def test_a_file_and_the_command_line_make_one_sweep(fake_training, tmp_path):
    (tmp_path / "grid.yaml").write_text("- {model: mlp, model.hidden: [10, 11]}\n- {model: resnet, model.blocks: 1}\n")
    assert main(["sweep", "--file", "grid.yaml", "seed=3", "outputs=o", "cluster.jobs=3"]) == 0
    (path,) = (tmp_path / "o" / "sweeps").glob("*/*")
    assert [job.overrides for job in load_sweep(path).jobs] == [
        ("model=mlp", "model.hidden=10", "seed=3", "outputs=o"),
        ("model=mlp", "model.hidden=11", "seed=3", "outputs=o"),
        ("model=resnet", "model.blocks=1", "seed=3", "outputs=o"),
    ]
    assert statuses(path) == ["done"] * 3


def test_a_job_that_is_given_more_than_once_runs_once(caplog):
    plan = plan_sweep(["model=mlp", "seed=1,2,1", "tol=1e-2,1e-2"], None, None)
    assert [job.overrides for job in plan.jobs] == [("model=mlp", f"seed={seed}", "tol=0.01") for seed in (1, 2)]
    assert caplog.messages == ["4 jobs given more than once: each runs once"]


def test_a_sweep_resumes_without_its_logs_and_folders_of_jobs(sweep, tmp_path):
    sweep("model.hidden=10,11")
    for path in ("logs", "0000_hidden=10"):
        shutil.rmtree(tmp_path / "sweep" / path)
    assert main(["resume", "sweep"]) == 0
    assert statuses(tmp_path / "sweep") == ["done"] * 2
    assert (tmp_path / "sweep" / "logs" / "0000.txt").exists()


def test_the_jobs_of_a_sweep_are_listed_later(sweep, tmp_path, capsys):
    sweep("model.hidden=10,3")
    capsys.readouterr()
    assert main(["list", "runs", "sweep"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[6]) for row in rows[1:]] == [
        ("sweep/0000_hidden=10", "done"),
        ("sweep/0001_hidden=3", "diverged"),
    ]


def test_a_sweep_with_a_damaged_result_is_listed_and_resumed(sweep, tmp_path, capsys):
    sweep("model.hidden=10,11")
    (tmp_path / "sweep" / "0000_hidden=10" / "summary.json").write_text('{"objective": "a"}')
    capsys.readouterr()
    for words in (["list", "runs", "sweep"], ["resume", "sweep"]):
        assert main(words) == 0
        assert "val/accuracy -" in capsys.readouterr().out


def test_neither_sweeping_nor_resuming_imports_torch(tmp_path):
    code = (
        "import sys; from odebench.cli import main; assert main(['sweep', 'seed=1,2', '--dry-run']) == 0\n"
        "import odebench.sweep.slurm_task\n"
        "loaded = {'torch', 'matplotlib', 'tensorboard'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_the_table_has_the_counts_and_a_row_for_each_job_that_runs(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    jobs = [Job(n, f"000{n}_mlp", (f"seed={n}",)) for n in range(3)]
    state = lambda status, **more: RunOverview(os.curdir, status, 0, None, "", {}, {}, **more)  # noqa: E731
    with SweepDisplay(jobs, [state("queued")] * 3, 2) as display:
        display.update(jobs[0], state("done"))
        display.update(jobs[1], RunOverview(os.curdir, "running", 5, 75.0, "", {}, {}))
        display.refresh()
        drawn = sys.stderr.getvalue()
    assert "1 of 3, about 0 s left: 1 queued, 1 running, 1 done" in drawn
    assert "job 1: running, step 5, 1:15 to go  seed=1" in drawn


def test_without_a_terminal_lines_report_changes_and_sometimes_all_jobs(monkeypatch, caplog):
    caplog.set_level("INFO", "odebench")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(shown, "PLAIN_INTERVAL_S", 0.0)
    job = Job(0, "0000_mlp", ("seed=0",))
    with SweepDisplay([job], [RunOverview(os.curdir, "queued", 0, None, "", {}, {})], 1) as display:
        for _ in range(2):
            display.update(job, RunOverview(os.curdir, "running", 5, 3675.0, "", {}, {}))
        display.refresh()
    assert caplog.messages == [
        "job 0: running, step 5, 1:01:15 to go  seed=0",
        "0 of 1: 1 running",
        *caplog.messages[:1],
    ]

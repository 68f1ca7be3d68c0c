"""Reproductions from the command line, with fake trainings and evaluations."""

import csv
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from odebench.cli import main
from odebench.errors import UsageError
from odebench.record.files import file_lock
from odebench.reporting import report
from odebench.reporting.report import RenderedFigure
from odebench.reproduce import run
from odebench.reproduce.catalogue import committed_results
from odebench.reproduce.results import RowResult
from odebench.sweep import attempts, local


@pytest.fixture
def new_calls(monkeypatch, tmp_path):
    """Replace odebench by fake_commands.py; returns a function that gives the commands called since its last call."""
    command = (sys.executable, "-I", "-S", str(Path(__file__).with_name("fake_commands.py")))
    monkeypatch.setattr(attempts, "COMMAND", command)
    monkeypatch.setattr(run, "COMMAND", command)
    monkeypatch.setattr(run, "COMPARE_COMMAND", (*command, "compare"))
    monkeypatch.setattr(local, "POLL_S", 0.01)
    monkeypatch.setenv("FAKE_TRAINING_NOTES", str(tmp_path / "notes"))
    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "notes"

    def new_commands():
        lines = notes.read_text().splitlines() if notes.exists() else []
        notes.unlink(missing_ok=True)
        return [json.loads(line)[0] for line in lines]

    return new_commands


def csv_rows(folder):
    return {
        (row["row"], row["number"]): row
        for row in csv.DictReader((folder / "reproduction.csv").read_text().splitlines())
    }


def status_files(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/status.json")}


def fails(capsys, *arguments):
    assert main(["reproduce", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("odebench reproduce: ").rstrip("\n")


def test_trainings_run_once_and_are_then_only_read(new_calls, tmp_path, capsys):
    assert main(["reproduce", "figure5", "budget=small", "cluster.jobs=2"]) == 0
    assert new_calls() == ["train"] * 4
    folder = tmp_path / "outputs" / "reproduce" / "figure5-small"
    first = capsys.readouterr().out
    assert main(["reproduce", "figure5", "budget=small"]) == 0
    assert new_calls() == []
    second = capsys.readouterr().out
    assert first.endswith(second)  # after the sweep's own table
    assert "partial budget: 10 % and 10 % of the published trainings, 2 against 3 of two_moons: planar flow" in second
    assert "ran on a processor, threads: 1, torch 2.13.0" in second
    assert second.splitlines()[-1] == f"written to {folder}: reproduction.md, reproduction.csv"
    row = csv_rows(folder)["two_moons: CNF", "final/test_nll_nats"]
    assert (row["share"], row["command"]) == ("0.1", "odebench reproduce figure5 budget=small")
    assert (row["values"], row["std_error"], row["samples"]) == ("0=2.0", "0.007", "")
    assert row["commit"] == "0123456789+"
    assert float(row["low"]) == pytest.approx(2.0 - 1.96 * 0.007, abs=1e-4)


def test_a_failed_job_is_reported_and_run_again_while_the_others_are_kept(new_calls, tmp_path, capsys):
    arguments = ["reproduce", "figure5", "seed=0,7", "--output", str(tmp_path / "runs")]
    assert main(arguments) == 1
    assert new_calls() == ["train"] * 8
    assert main(arguments) == 1
    assert new_calls() == ["train"] * 4
    assert "failed: it broke" in capsys.readouterr().out
    row = csv_rows(tmp_path / "runs")["two_moons: CNF", "final/test_nll_nats"]
    assert (row["seeds"], row["command"]) == ("1", "odebench reproduce figure5 seed=0,7")


def test_a_row_without_a_run_gives_the_reason(new_calls, tmp_path, capsys):
    assert main(["reproduce", "figure5", "seed=7"]) == 1
    out = capsys.readouterr().out
    assert "two_moons: CNF not done: failed, it broke" in out
    row = csv_rows(tmp_path / "outputs" / "reproduce" / "figure5-full")["two_moons: CNF", "final/test_nll_nats"]
    assert row["ours"] == ""


def test_a_seed_without_a_value_does_not_count():
    group = SimpleNamespace(done_runs=[SimpleNamespace()] * 2)
    row = SimpleNamespace(name="dopri5 at 1e-3")
    found = RowResult(row, group, {"nfe": {"0": 14.0}}, None, "", num_planned=2).measurement("nfe")
    assert (found.num_seeds, found.mean, found.missing) == (1, 14.0, "1 of 2 values")


@pytest.mark.slow
def test_seeds_are_runs_of_each_row(new_calls, tmp_path):
    assert main(["reproduce", "figure5", "seed=0,1,2"]) == 0
    row = csv_rows(tmp_path / "outputs" / "reproduce" / "figure5-full")["two_circles: CNF", "final/test_nll_nats"]
    assert (row["ours"], row["spread"], row["seeds"], row["values"]) == ("3.0", "1.0", "3", "0=2.0 1=3.0 2=4.0")
    assert row["verdict"].endswith("of the published trainings, 3 against 4 of two_circles: planar flow")


def test_results_are_compared_with_published_values(new_calls, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "render_figure", render_figure)
    assert main(["reproduce", "table1"]) == 0
    rows = csv_rows(tmp_path / "outputs" / "reproduce" / "table1-full")
    node = rows["ODE-Net", "final/test_accuracy"]
    assert (node["published"], node["ours"], node["minutes"]) == ("0.9958", "0.9956", "1.5")
    assert node["verdict"] == "partial budget: 1.6 % of the published training, 4.8 % worse"
    low, high = float(node["low"]), float(node["high"])
    assert (node["samples"], low < 0.9956 < high) == ("10000", True)
    assert rows["ODE-Net", "parameters"]["verdict"] == "different architecture: 5.3 % less"
    assert rows["control: ResNet of one block", "final/test_accuracy"]["published"] == ""
    assert "published: Chen et al. 2018, Table 1 (from memory)" in capsys.readouterr().out


def render_figure(name, *_):
    """Fake: drawing takes seconds."""
    if name == "nfe-training":
        raise UsageError("no rows")
    return RenderedFigure(name, "", {".png": b"png", ".svg": b"svg"})


def test_evaluations_run_once_and_fill_their_rows(new_calls, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "render_figure", render_figure)
    assert main(["reproduce", "figure3"]) == 0
    assert new_calls() == ["train", "eval", "eval"]
    assert main(["reproduce", "figure3"]) == 0
    assert new_calls() == []
    folder = tmp_path / "outputs" / "reproduce" / "figure3-full"
    rows = csv_rows(folder)
    assert rows["vode_adams at 1e-3", "output_error"]["ours"] == "0.25"
    assert rows["evaluated, vode_adams at 1e-3", "nfe_ratio"]["ours"] == "0.5"
    assert rows["evaluated, vode_adams at 1e-3, absolute error", "nfe_ratio"]["ours"] == "0.25"
    assert rows["in training, dopri5", "nfe_ratio"]["ours"] == "0.55"
    assert rows["in training, dopri5", "nfe_growth"]["ours"] == "1.25"  # 20 against 15, 16, 17
    assert (folder / "error-tolerance.svg").read_bytes() == b"svg"
    assert not (folder / "nfe-training.svg").exists()
    (run_folder,) = folder.glob("0000_*")
    status = run_folder / "status.json"
    done = status.read_text()
    status.write_text('{"status": "diverged", "step": 3}')
    assert main(["reproduce", "figure3"]) == 3  # as when it diverged
    status.write_text(done)
    evaluated = run_folder / "evaluations.jsonl"
    evaluated.write_text(evaluated.read_text().replace('"output_error": 0.25', '"failed": "max_steps"'))
    assert main(["reproduce", "figure3"]) == 0
    assert new_calls() == []  # it would fail again
    assert csv_rows(folder)["vode_adams at 1e-3", "output_error"]["ours"] == ""
    evaluated.unlink()
    assert main(["reproduce", "figure3"]) == 0
    assert new_calls() == ["eval", "eval"]


def test_a_row_within_the_time_of_another_has_the_best_validation_in_that_time(
    new_calls, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(report, "render_figure", render_figure)
    assert main(["reproduce", "figure4"]) == 0
    assert new_calls() == ["train"] * 28
    rows = csv_rows(tmp_path / "outputs" / "reproduce" / "figure4-full")
    planar = "target 1: planar flow, K = 2, in the CNF's time"
    assert rows[planar, "best/kl_nats"]["ours"] == "1.2"  # of 80 s in 1.5 minutes; the best follows at 120 s
    assert rows[planar, "final/minutes"]["ours"] == "1.5"
    # Each pair is compared once, by its final result.
    assert rows["target 1: CNF, M = 2", "best/kl_nats"]["verdict"] == ""
    assert rows["target 1: CNF, M = 2", "final/test_kl_nats"]["verdict"].startswith("partial budget: 10 % and")


def test_gradient_modes_are_trained_and_only_those_runs_are_evaluated(new_calls, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "render_figure", render_figure)
    assert main(["reproduce", "gradients", "budget=small", "cluster.jobs=2"]) == 0
    assert new_calls() == ["train"] * 15 + ["eval"] * 15
    folder = tmp_path / "outputs" / "reproduce" / "gradients-small"
    studied, trained = "cnf: adjoint, steps of 16 at 1e-3", "cnf: adjoint, training"
    rows = csv_rows(folder)
    assert (rows[trained, "final/peak_mib"]["ours"], rows[studied, "peak_mib"]["ours"]) == ("7.5", "2.5")
    header = next(line for line in capsys.readouterr().out.splitlines() if "peak_mib" in line).split()
    assert header.count("peak_mib") == 1
    # Evaluations with other arguments or of other samples are ignored.
    (path,) = [
        path for path in folder.glob("*/settings.yaml") if has_overrides(path.parent, "model=cnf", "gradient=adjoint")
    ]
    with (path.parent / "evaluations.jsonl").open("a") as file:
        values = {"output_error": 1.0, "peak_mib": 9.0, "limit": 50}
        file.write(json.dumps({"overrides": ["tol=0.001", "solver=rk4"], "split": "validation", **values}) + "\n")
        same = ["tol=0.001", "trainer.batch_size=16"]
        file.write(json.dumps({"overrides": same, "split": "test", **values}) + "\n")
        file.write(json.dumps({"overrides": same, "split": "validation", **values, "limit": None}) + "\n")
    assert main(["reproduce", "gradients", "budget=small"]) == 0
    assert new_calls() == []
    assert csv_rows(folder)[studied, "peak_mib"]["ours"] == "2.5"


def has_overrides(folder, *arguments):
    return set(arguments) <= set((folder / "overrides.txt").read_text().splitlines())


def test_figures_of_the_runs_are_copied_with_the_name_of_their_row(new_calls, tmp_path, capsys):
    assert main(["reproduce", "spirals"]) == 0
    folder = tmp_path / "outputs" / "reproduce" / "spirals-full"
    assert (folder / "latent-ODE-series.png").read_bytes() == b"paper/latent_ode_spirals"
    assert (folder / "RNN-series.png").read_bytes() == b"paper/rnn_spirals"
    assert "![RNN-series](RNN-series.png)" in (folder / "reproduction.md").read_text()
    assert capsys.readouterr().out.endswith("latent-ODE-series.png, RNN-series.png, comparison.png\n")


def test_table_2_draws_one_comparison_of_its_networks(new_calls, tmp_path):
    assert main(["reproduce", "table2"]) == 0
    assert new_calls() == ["train"] * 24 + ["compare"]
    folder = tmp_path / "outputs" / "reproduce" / "table2-full"
    latent = [f"latent ODE{variant}" for variant in ("", " of a two-layer field", " with consistency")]
    models = [*latent, "RNN", "RNN without time gaps"]
    names = [f"{model}, {points} points" for model in models for points in (30, 50, 100)]
    shown = json.loads((folder / "comparison.png").read_text())
    assert list(shown) == names
    assert [Path(run).name[:4] for run in shown.values()] == [f"{i:04}" for i in range(15)]
    assert "![comparison](comparison.png)" in (folder / "reproduction.md").read_text()


def test_without_a_run_of_each_row_there_is_no_comparison_figure(new_calls, tmp_path):
    assert main(["reproduce", "table2", "seed=7"]) == 1
    assert "compare" not in new_calls()
    assert not (tmp_path / "outputs" / "reproduce" / "table2-full" / "comparison.png").exists()


def test_rows_are_trained_in_parts(new_calls, tmp_path, capsys):
    arguments = ["reproduce", "figure5", "budget=small", "--output", str(tmp_path / "runs")]
    assert main([*arguments, "--rows", "moons: CNF"]) == 0
    assert new_calls() == ["train"]
    assert "not measured: two_moons: planar flow" in capsys.readouterr().out
    rows = csv_rows(tmp_path / "runs")
    assert {row for row, _ in rows} == {"two_moons: CNF"}
    command = "odebench reproduce figure5 budget=small --rows 'moons: CNF'"
    assert rows["two_moons: CNF", "final/test_nll_nats"]["command"] == command
    # Earlier rows stay in the table; without --rows the others are trained, too.
    assert main([*arguments, "--rows", "moons: planar"]) == 0
    assert new_calls() == ["train"]
    assert {row for row, _ in csv_rows(tmp_path / "runs")} == {"two_moons: CNF", "two_moons: planar flow"}
    assert main(arguments) == 0
    assert new_calls() == ["train"] * 2
    capsys.readouterr()
    assert fails(capsys, *arguments[1:], "--rows", "sun").startswith("--rows sun: no row of figure5 has this text")


def test_the_name_of_a_row_trains_no_row_with_a_longer_name(new_calls):
    name = "the same, of events without readings"
    assert main(["reproduce", "poisson", "--rows", name]) == 0
    assert new_calls() == ["train"]
    assert main(["reproduce", "poisson", "--rows", f"{name},"]) == 0
    assert new_calls() == ["train"]


def test_further_seeds_are_added_to_completed_ones(new_calls, tmp_path, capsys):
    arguments = ["reproduce", "figure5", "budget=small", "--output", str(tmp_path / "runs")]
    assert main([*arguments, "seed=0"]) == 0
    assert new_calls() == ["train"] * 4
    first = status_files(tmp_path / "runs")
    assert main([*arguments, "seed=0,1,2", "--dry-run"]) == 0
    assert new_calls() == []
    assert main([*arguments, "seed=0,1,2"]) == 0
    assert new_calls() == ["train"] * 8
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir() and path.name != "logs")
    assert [name[:4] for name in folders] == [f"{number:04d}" for number in range(12)]
    assert len(first) == 4
    assert first.items() <= status_files(tmp_path / "runs").items()
    row = csv_rows(tmp_path / "runs")["two_moons: CNF", "final/test_nll_nats"]
    assert (row["seeds"], row["command"]) == ("3", "odebench reproduce figure5 budget=small seed=0,1,2")
    # Existing runs must be among the requested ones, or the table would omit them.
    capsys.readouterr()
    assert "holds a run that is not part of this command (seed=2)" in fails(capsys, *arguments[1:], "seed=0,1")


def test_runs_are_identified_without_order_of_overrides_or_default_seed(new_calls, tmp_path):
    assert main(["reproduce", "figure5", "budget=small", "optim.lr=0.5"]) == 0
    new_calls()
    written = (tmp_path / "outputs" / "reproduce" / "figure5-small" / "sweep.yaml").read_text()
    created = next(line for line in written.splitlines() if line.startswith("created"))
    assert main(["reproduce", "figure5", "seed=1,0", "optim.lr=0.5", "budget=small"]) == 0
    assert new_calls() == ["train"] * 4
    assert created in (tmp_path / "outputs" / "reproduce" / "figure5-small" / "sweep.yaml").read_text()


def test_completed_runs_are_read_while_another_process_locks_the_folder(new_calls, tmp_path, capsys):
    assert main(["reproduce", "figure5", "budget=small", "--output", str(tmp_path / "runs")]) == 0
    with file_lock(tmp_path / "runs" / "lock"):
        assert main(["reproduce", "figure5", "budget=small", "--output", str(tmp_path / "runs")]) == 0
        capsys.readouterr()
        arguments = ["reproduce", "figure5", "budget=small", "seed=0,1", "--output", str(tmp_path / "runs")]
        assert main(arguments) == 2
        assert "in use by another process" in capsys.readouterr().err


def test_a_folder_with_other_runs_raises_an_error(new_calls, tmp_path, capsys):
    arguments = ["figure5", "budget=small", "--output", str(tmp_path / "runs")]
    assert main(["reproduce", *arguments]) == 0
    new_calls()
    capsys.readouterr()
    line = fails(capsys, *arguments, "optim.lr=0.5")
    settings = "experiment=paper/cnf_maximum_likelihood data=two_circles budget=small"
    hint = "add its settings, or choose another folder: --output DIR"
    assert line == f"{tmp_path / 'runs'} holds a run that is not part of this command ({settings}); {hint}"
    assert new_calls() == []


def test_overriding_settings_of_the_rows_raises_an_error(new_calls, capsys):
    assert fails(capsys, "figure5", "data=pinwheel") == (
        "data=pinwheel: the rows of figure5 set data themselves; leave it out, or train separately: odebench train"
    )
    for name, argument in (("table2", "data.observed=20"), ("table1", "data=mnist5k"), ("memory", "tol=1e-3"),
                       ("hopper", "data=spirals"), ("table1", "experiment=ffjord/toy"), ("figure5", "data.noise=0.5"),
                       ("memory", "model.channels=8"), ("table2", "loss.consistency=0")):  # fmt: skip
        assert fails(capsys, name, argument).startswith(f"{argument}: the rows of {name} set")
    for argument in ("budgets.full.iterations=5", "trainer.batch_size=8"):
        assert fails(capsys, "figure5", argument).startswith(
            f"{argument}: this changes which share of the published training is run"
        )
    assert main(["reproduce", "memory", "trainer.batch_size=8", "--dry-run"]) == 0
    assert main(["reproduce", "figure5", "budget=small", "trainer.iterations=5", "optim.lr=0.5", "--dry-run"]) == 0
    assert new_calls() == []


def test_an_indivisible_batch_size_raises_an_error(new_calls, capsys):
    assert main(["reproduce", "table2", "budget=small", "cluster=slurm", "cluster.processes=4", "--dry-run"]) == 2
    assert "trainer.batch_size=90: 4 processes share it" in capsys.readouterr().err
    assert new_calls() == []


def test_a_dry_run_starts_nothing(new_calls, tmp_path, capsys):
    assert main(["reproduce", "figure5", "--dry-run", "cluster.jobs=2"]) == 0
    assert "4 jobs, all valid; nothing was started" in capsys.readouterr().out
    assert new_calls() == []
    assert not (tmp_path / "outputs").exists()


def test_a_nonempty_folder_raises_an_error_also_in_a_dry_run(new_calls, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for more in ([], ["--dry-run"]):
        assert main(["reproduce", "figure5", "--output", str(tmp_path / "mine"), *more]) == 2
        assert "mine is not empty; name another folder" in capsys.readouterr().err
    assert new_calls() == []


def test_invalid_arguments_print_one_line(new_calls, capsys, monkeypatch):
    assert fails(capsys).startswith("no reproduction given: name one of table1, figure3")
    assert fails(capsys, "tabel1").startswith("unknown reproduction tabel1; did you mean table1?")
    assert fails(capsys, "memory", "budget=smal").startswith("unknown budget smal; did you mean small?")
    assert fails(capsys, "memory", "budget=small,full") == "budget=small,full: give one budget at a time"
    assert main(["reproduce", "figure5", "budget=smal"]) == 2
    assert "unknown budget smal; did you mean small?" in capsys.readouterr().err
    monkeypatch.setattr(run, "options", lambda group: {})
    assert fails(capsys, "figure5") == ("figure5 needs experiment=paper/cnf_maximum_likelihood, which does not exist")
    assert new_calls() == []


def test_the_list_describes_each_reproduction_and_missing_experiments(capsys, monkeypatch):
    assert main(["reproduce", "--list"]) == 0
    listed = entries(capsys)
    assert "Figure 4: 28 trainings, budget=full or medium or small measured (medium, " in listed["figure4"]
    assert "Chen et al. 2018, Table 1: 6 trainings, budget=full or small or tiny measured (" in listed["table1"]
    assert listed["figure5"].endswith(": 2 tie measured (small, 10 % and 2 %): 2 partial budget")
    assert "(no numbers): 15 trainings, budget=full or small" in listed["gradients"]
    assert "measured" not in listed["gradients"]
    assert "1 training, " in listed["figure3"]
    monkeypatch.setattr(run, "options", lambda group: {})
    assert main(["reproduce", "--list"]) == 0
    missing = entries(capsys)
    assert "needs experiment=paper/cnf_density_matching" in missing["figure4"]
    assert "needs" not in missing["memory"]


def entries(capsys):
    """The entries of a list, whose further lines are indented; each as one line, by name."""
    parts = re.split(r"^(?=\S)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    return {part.split()[0]: " ".join(map(str.strip, part.splitlines())) for part in parts}


def test_the_list_of_one_reproduction_has_the_rows_of_the_overview(capsys):
    page = (Path(__file__).parents[2] / "docs" / "reproduced.md").read_text()
    for name in ("table1", "table2", "figure4", "hopper"):
        assert main(["reproduce", name, "--list"]) == 0
        out = capsys.readouterr().out
        for row in committed_results(name):
            shown = [row[column] for column in ("number", "published", "ours", "verdict")]
            assert all(text in page and text in out for text in shown)
        assert "* quoted from memory" in out
    assert main(["reproduce", "gradients", "--list"]) == 0
    assert "no committed result has a published number" in capsys.readouterr().out
    assert main(["reproduce", "tabel1", "--list"]) == 2
    assert "did you mean table1?" in capsys.readouterr().err


@pytest.mark.slow
def test_real_trainings_give_a_table(tmp_path, capsys):
    arguments = ["figure5", "budget=small", "trainer.iterations=2", "device=cpu", "cluster.jobs=2"]
    assert main(["reproduce", *arguments, "--output", str(tmp_path / "runs")]) == 0
    rows = csv_rows(tmp_path / "runs")
    assert len(rows) == 8
    assert all(float(row["ours"]) > 0 for row in rows.values())
    assert float(rows["two_moons: CNF", "final/test_nll_nats"]["share"]) == pytest.approx(2 / 10_000)
    assert "partial budget: 0.02 % and 0.0004 % of the published trainings, " in capsys.readouterr().out

"""The command line: commands, messages, exit codes, multirun and completion. Trainings are fakes."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from odebench.cli import doctor, main
from odebench.cli.command import COMMANDS
from odebench.cli.list import KINDS
from odebench.config.compose import compose
from odebench.config.files import CONFIGS
from odebench.config.read import read_settings
from odebench.errors import UsageError
from odebench.record import layout, reader

RUN_VERBS = ("eval", "predict", "sample", "resume")


@pytest.fixture
def calls(monkeypatch):
    """Replace odebench.training.run by a fake that records its calls; hidden=N chooses the exit code N."""
    noted = []

    def result(code=0, folder="somewhere"):
        return types.SimpleNamespace(exit_code=code, folder=Path(folder), objective=0.5)

    def train_run(config, overrides, settings):
        noted.append(("train", settings, overrides, list(sys.argv)))
        code = getattr(settings.model, "hidden", 0)
        if code == 7:
            raise ZeroDivisionError("a fault of ours")
        if code == 8:
            raise OSError(28, "", "/full")
        if code == 9:
            raise UsageError("no data there")
        if code == 10:
            raise KeyboardInterrupt
        return result(code if code in (1, 2, 3, 75) else 0, settings.run_dir or "somewhere")

    def note(command, code=0):
        return lambda *words: noted.append((command, *words)) or result(code)

    started = types.SimpleNamespace(train_run=train_run, resume_run=note("resume", 75))
    finished = types.SimpleNamespace(evaluate_run=note("eval"), predict_run=note("predict"), sample_run=note("sample"))
    monkeypatch.setitem(sys.modules, "odebench.training.study", types.SimpleNamespace(study_run=note("study")))
    monkeypatch.setitem(sys.modules, "odebench.training.run", started)
    monkeypatch.setitem(sys.modules, "odebench.training.trained_run", finished)
    return noted


@pytest.fixture
def run(tmp_path):
    """The folder of a run, with the files that the command line reads."""
    folder = tmp_path / "runs" / "a_run"
    folder.mkdir(parents=True)
    OmegaConf.save(compose([]), folder / layout.SETTINGS)
    (folder / layout.STATUS).write_text(json.dumps({"status": "done", "step": 10}))
    numbers = {"objective": 0.98765, "final/test_accuracy": 0.97, "final/minutes": 3.25}
    numbers |= {"final/nfe_forward": 20.0, "final/nfe_backward": 38.5, "final/peak_mib": 49.4}
    (folder / layout.SUMMARY).write_text(json.dumps(numbers))
    return folder


def fails(capsys, *words, code=2, lines=1):
    """The lines on stderr of a command that fails."""
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == lines
    return err.rstrip("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_own_help(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: odebench {command}")
    assert f"odebench {command}" in out.split("example")[-1] or command == "doctor"


@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS)], ids=" ".join)
def test_help_fits_a_narrow_terminal(words, monkeypatch, capsys):
    main([*words, "--help"])
    wide = capsys.readouterr().out
    monkeypatch.setattr("odebench.cli.command.terminal_width", lambda: 60)
    monkeypatch.setenv("COLUMNS", "60")
    main([*words, "--help"])
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 60
    assert sorted(narrow.split()) == sorted(wide.split())


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: odebench [-h] [--version] COMMAND ...\n")
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_the_help_of_list_names_all_that_it_lists(capsys):
    assert main(["list", "--help"]) == 0
    assert set(KINDS) <= set(re.findall(r"\w+", capsys.readouterr().out))


def test_version(capsys):
    from odebench import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"odebench {__version__}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "odebench: the following arguments are required: COMMAND (odebench --help explains)"),
        (["trian"], "odebench: unknown command trian; did you mean train? (commands: " + ", ".join(COMMANDS) + ")"),
        (["eval"], "odebench eval: the following arguments are required: RUN (odebench eval --help explains)"),
        (["eval", "/no"], "odebench eval: /no is not a run's folder: it does not exist"),
        (["resume", "/no", "tol=1"], "odebench resume: /no is not a run's folder: it does not exist"),
        (
            ["eval", "RUN", "--limit", "abc"],
            "odebench eval: argument --limit: a whole number is needed, not abc (odebench eval --help explains)",
        ),
        (["train", "--foo"], "odebench train: unknown option --foo"),
        (["sample", "RUN", "--limit", "3"], "odebench sample: unknown option --limit"),
        (["report", "RUN", "--figure", "no"], "odebench report: unknown figure no (odebench report --list prints all)"),
        (["reproduce", "no"], "odebench reproduce: unknown reproduction no (odebench reproduce --list prints all)"),
        (["train", "--multirn"], "odebench train: unknown option --multirn; did you mean --multirun?"),
        (
            ["eval", "RUN", "--splt=test"],
            "odebench eval: unknown option --splt=test; did you mean split=...? settings have no dashes",
        ),
        (
            ["train", "--lr=1"],
            "odebench train: unknown option --lr=1; did you mean optim.lr=...? settings have no dashes",
        ),
        (["eval", "RUN", "--limt", "3"], "odebench eval: unknown option --limt; did you mean --limit?"),
        (["train", "tol=abc"], "odebench train: tol=abc: a number is needed, such as tol=1e-3"),
        (
            ["train", "seed=" + "9" * 5000],
            f"odebench train: seed={'9' * 55}...: is too long to be a number or a list; give a shorter value",
        ),
        (
            ["train", "tol=" + 3000 * "[" + 3000 * "]"],
            f"odebench train: tol={56 * '['}...: is too long to be a number or a list; give a shorter value",
        ),
        (
            ["train", "trainer.eval_batch_size=9223372036854775808"],
            "odebench train: trainer.eval_batch_size=9223372036854775808: must be below 2^63",
        ),
        (
            ["sweep", "seed=1,2", "cluster.devices=[-1]"],
            "odebench sweep: cluster.devices[0]=-1: must be at least 0, or null",
        ),
        (
            ["bench", "tiny", "--threads", "99999999999"],
            "odebench bench: --threads must be 1 to 1,024, got 99999999999",
        ),
        (["train", "-m", "--cfg"], "odebench train: --cfg prints the settings of one run; leave -m out"),
        (["train", "--", "x"], "odebench train: x: nothing can follow --"),
        (["train", "--config-dir", "/no"], "odebench train: --config-dir /no: no such folder"),
        (["list", "models", "x"], "odebench list: x: a folder goes with `list runs` only"),
        (["list", "runs", "/no"], "odebench list: /no is not a folder"),
        (["tensorboard", "/no"], "odebench tensorboard: /no is not a folder"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line(words, line, capsys):
    assert fails(capsys, *words) == line


@pytest.mark.parametrize(
    ("group", "content", "reason"),
    [
        ("model", b"# \xfc\nmodel: {name: mlp}\n", "mine.yaml cannot be read: 'utf-8' codec can't decode byte 0xfc"),
        ("experiment", b"# @package _global_\ndefaults: [mine]\n", "the defaults of its files include each other"),
        ("solver", b"name: a\0", "unacceptable character #x0000"),
    ],
    ids=["latin-1", "a loop of defaults", "a null byte"],
)
@pytest.mark.parametrize("command", [["train"], ["train", "-m"], ["sweep", "--dry-run"]], ids=" ".join)
def test_yaml_of_a_user_that_cannot_be_composed(command, group, content, reason, in_tmp, calls, capsys):
    (in_tmp / "own" / group).mkdir(parents=True)
    (in_tmp / "own" / group / "mine.yaml").write_bytes(content)
    assert reason in " ".join(
        fails(capsys, *command, "--config-dir", "own", f"{group}=mine", lines=1 + (command != ["train"])).split()
    )


def test_no_experiment_can_be_chosen_by_name(calls):
    assert main(["train", "experiment=null"]) == 0
    assert main(["sweep", "experiment=null,paper/mnist_odenet", "--dry-run"]) == 0


def test_a_mistyped_list_suggests_the_nearest_name(capsys):
    line = fails(capsys, "list", "solver")
    assert line.startswith("odebench list: nothing to list called solver; did you mean solvers? (models, ")


def test_train_passes_settings_and_overrides_in_any_order_with_options(calls):
    assert main(["train", "model=mlp", "--config-dir", str(CONFIGS), "tol=1e-4"]) == 0
    ((_, settings, overrides, _),) = calls
    assert (settings.model.name, settings.tol) == ("mlp", 1e-4)
    assert overrides == ["model=mlp", "tol=1e-4"]


@pytest.mark.parametrize("code", [1, 3, 75])
def test_the_exit_code_of_a_run_is_that_of_the_command(code, calls):
    assert main(["train", "model=mlp", f"model.hidden={code}"]) == code


def test_usage_errors_of_a_run_are_one_line_and_internal_errors_a_traceback(calls, capsys):
    words = ["train", "model=mlp"]
    assert fails(capsys, *words, "model.hidden=9") == "odebench train: no data there"
    full = "odebench train: No space left on device: /full"
    assert fails(capsys, *words, "model.hidden=8", code=1) == full
    assert fails(capsys, *words, "model.hidden=10", code=130) == "odebench train: stopped"
    with pytest.raises(ZeroDivisionError):
        main([*words, "model.hidden=7"])


def test_only_the_first_of_several_processes_prints_an_error(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # by a cluster, for purposes of its own
    assert fails(capsys, "train", "tol=abc").startswith("odebench train: tol=abc: a number is needed")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert main(["train", "tol=abc"]) == 2
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert fails(capsys, "train", "tol=abc").startswith("odebench train: tol=abc: a number is needed")


def test_several_processes_train_one_model_but_no_multirun(calls, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "0")
    line = "odebench train: -m: torchrun's processes train one model together; leave -m out, or start without torchrun"
    assert fails(capsys, "train", "-m", "tol=1e-2,1e-3") == line
    assert calls == []


def test_cfg_prints_settings_that_read_back(calls, capsys):
    assert main(["train", "--cfg", "model=rknet", "tol=1e-5"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert read_settings(printed) == read_settings(compose(["model=rknet", "tol=1e-5"]))
    assert calls == []


def test_cfg_job_prints_the_settings_as_in_hydra(capsys):
    assert main(["train", "--cfg"]) == 0
    printed = capsys.readouterr().out
    assert main(["train", "--cfg", "job"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["train", "model=mlp", "--cfg", "job", "seed=3"]) == 0
    assert "\nseed: 3\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train --cfg all", "--cfg prints the settings of a run, without those of Hydra: write --cfg, or --cfg job"),
        ("train -c job", "-c: write --cfg"),
        ("train --cfg=job", "argument --cfg: takes no value, but got 'job' (odebench train --help explains)"),
        *(
            (f"train {option}", f"{option.split()[0]}: choose options as in experiment=paper/mnist_odenet; "
             "--config-dir DIR adds your own YAML")
            for option in ("--config-name mine", "--config-name=mine", "-cn mine", "--config-path configs")
        ),
        ("sweep -m tol=1e-2,1e-3", "-m: odebench sweep runs several values, as in odebench sweep tol=1e-2,1e-3"),
        ("-m tol=1e-2,1e-3", "-m: odebench sweep runs several values, as in odebench sweep tol=1e-2,1e-3"),
        ("model=mlp tol=1", "model=mlp: begin with a command, as in odebench train model=mlp"),
        ("train +x=1", "+x=1: settings cannot be added; write KEY=VALUE without the plus"),
        ("sweep ++x=1", "++x=1: settings cannot be added; write KEY=VALUE without the plus"),
        ("train ~tol", "~tol: settings cannot be removed; many can be null, as in KEY=null"),
        ("train ~tol=1", "~tol=1: settings cannot be removed; many can be null, as in KEY=null"),
        ("resume RUN +x=1", "+x=1: settings cannot be added; write KEY=VALUE without the plus"),
        ("eval RUN ~tol", "~tol: settings cannot be removed; many can be null, as in KEY=null"),
    ],
)  # fmt: skip
def test_habits_of_hydra_get_a_line_that_shows_our_way(words, line, run, capsys):
    command = words.split()[0] if words.split()[0] in COMMANDS else ""
    assert fails(capsys, *words.replace("RUN", str(run)).split()) == f"odebench {command}".strip() + f": {line}"


def test_eval_takes_overrides_and_a_split(calls, run, capsys):
    assert main(["eval", str(run)]) == 0
    assert main(["eval", str(run), "solver=rk4", "split=test", "tol=1e-5"]) == 0
    assert main(["eval", str(run), "--limit", "20"]) == 0
    assert calls == [
        ("eval", run, [], "validation", None, None),
        ("eval", run, ["solver=rk4", "tol=1e-5"], "test", None, None),
        ("eval", run, [], "validation", 20, None),
    ]
    assert fails(capsys, "eval", str(run), "split=tset").startswith(
        "odebench eval: unknown split tset; did you mean test?"
    )


def test_eval_of_several_values_is_a_study_of_their_combinations(calls, run, capsys):
    assert main(["eval", str(run), "tol=1e-1,1e-2", "solver=dopri5,rk4", "split=test"]) == 0
    ((command, folder, combinations, split, limit, gradients, output),) = calls
    assert (command, folder, split, limit, gradients, output) == ("study", run, "test", None, False, None)
    assert combinations == [[f"tol={tol}", f"solver={solver}"] for tol in (0.1, 0.01) for solver in ("dopri5", "rk4")]
    assert fails(capsys, "eval", str(run), "solver=dopri5,rk5").startswith(
        "odebench eval: unknown solver rk5; did you mean rk4"
    )


def test_eval_with_gradients_is_a_study_even_of_one_combination(calls, run):
    assert main(["eval", str(run), "tol=1e-2", "--gradients", "--limit", "5"]) == 0
    assert calls == [("study", run, [["tol=1e-2"]], "validation", 5, True, None)]


def test_sample_takes_a_number_a_seed_and_a_file(calls, run):
    assert main(["sample", str(run)]) == 0
    assert main(["sample", str(run), "--num", "7", "tol=1e-6", "--seed", "3", "--output", "x.npy"]) == 0
    assert calls == [("sample", run, [], 100, 0, None), ("sample", run, ["tol=1e-6"], 7, 3, Path("x.npy"))]


def test_predict_takes_an_output_file(calls, run):
    assert main(["predict", str(run), "--output", "p.csv", "split=train"]) == 0
    assert main(["predict", str(run), "--limit", "5"]) == 0
    assert calls == [
        ("predict", run, [], "train", Path("p.csv"), None),
        ("predict", run, [], "validation", None, 5),
    ]


def test_resume_passes_the_folder_and_returns_its_exit_code(calls, run):
    assert main(["resume", str(run)]) == 75
    assert main(["resume", str(run), "trainer.epochs=30"]) == 75
    assert calls == [("resume", run, []), ("resume", run, ["trainer.epochs=30"])]


@pytest.mark.parametrize("option", ["--fail-fast", "--retry=2", "--follow"])
def test_resuming_a_run_takes_no_option_of_sweeps(calls, run, capsys, option):
    assert fails(capsys, "resume", str(run), option).endswith("are for sweeps, and this is a run; leave them out")
    assert calls == []


def test_a_setting_that_cannot_change_is_refused_before_torch_is_imported(calls, run, capsys):
    folder = run.rename(run.parent / "my run")
    line = fails(capsys, "resume", str(folder), "tol=1e-5")
    assert line.startswith("odebench resume: tol=1e-5: cannot change when a run resumes (trainer.epochs, ")
    assert line.endswith(f"train another from its weights: odebench train KEY=VALUE init_from='{folder}'")
    assert calls == []


@pytest.mark.parametrize("command", ["eval", "resume"])
def test_a_folder_of_runs_raises_an_error_that_says_how_to_list_them(command, run, capsys):
    line = f"{run.parent} is not a run's folder: it holds 1; name one (odebench list runs {run.parent})"
    assert fails(capsys, command, str(run.parent)) == f"odebench {command}: {line}"


def test_list_runs_before_the_first_run(in_tmp, capsys):
    assert fails(capsys, "list", "runs", code=1) == "odebench list: no runs yet: they go to outputs/"


@pytest.mark.parametrize(
    "words", ["list runs DIR", "report DIR", "tensorboard DIR", *(f"{command} DIR" for command in RUN_VERBS)]
)
def test_a_folder_without_a_run_exits_with_1_as_grep_does(words, in_tmp, capsys):
    (in_tmp / "DIR").mkdir()
    assert "DIR" in fails(capsys, *words.split(), code=1)
    (in_tmp / "DIR").rmdir()
    assert "DIR" in fails(capsys, *words.split(), code=2)


def test_tensorboard_gives_up_in_a_tree_without_runs(in_tmp, capsys, monkeypatch):
    monkeypatch.setattr(reader, "MAX_FOLDERS_WITHOUT_RUN", 3)
    (in_tmp / "a/b/c").mkdir(parents=True)
    line = f"odebench tensorboard: {in_tmp} holds more than 3 folders without a run; name a folder of runs"
    assert fails(capsys, "tensorboard", str(in_tmp)) == line


def test_list_shows_every_option_with_its_first_comment(capsys, tmp_path):
    (tmp_path / "solver").mkdir()
    (tmp_path / "solver" / "mine.yaml").write_text("# My own tuning\nname: rk4\n")
    assert main(["list", "solvers", "--config-dir", str(tmp_path)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["SOLVER", "ORDER", "STAGES", "ADAPTIVE", "STIFF", "REVERSIBLE", "FOR", "SOURCE"]
    listed = {row.split()[0]: re.split(r"\s\s+", row) for row in rows}
    assert "My own tuning" in listed["mine"]
    assert listed["rk4"][1:7] == ["4", "4", "-", "-", "-", "Runge-Kutta 3/8 rule, order 4, fixed steps"]
    assert listed["kvaerno5"][3:6] == ["yes", "yes", "-"]
    assert set(listed) == {path.stem for path in (CONFIGS / "solver").glob("[!_]*.yaml")} | {"mine"}


def test_options_fit_the_width_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    assert main(["list", "solvers"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert max(map(len, rows)) <= 70
    assert rows[0].split() == ["SOLVER", "ORDER", "ADAPTIVE", "STIFF", "FOR"]
    assert re.split(r"\s\s+", next(row for row in rows if row.startswith("rk4 ")))[1:4] == ["4", "-", "-"]
    text = " ".join(row.partition("  ")[2].strip() for row in rows)
    assert "Runge-Kutta 3/8 rule, order 4, fixed steps" in text  # wrapped between words


def test_every_option_has_a_first_comment(capsys):
    for kind in ("models", "solvers", "gradients", "data", "optim", "schedules", "trainers", "experiments", "clusters"):
        assert main(["list", kind]) == 0
        for line in capsys.readouterr().out.splitlines():
            assert len(line.split(maxsplit=1)) == 2, line


def test_list_runs_shows_results_and_skips_a_damaged_run(run, capsys):
    damaged = run.parent / "b_run"
    damaged.mkdir()
    for name in (layout.SETTINGS, layout.STATUS):
        (damaged / name).write_bytes((run / name).read_bytes())
    (damaged / layout.SUMMARY).write_text("{")
    lost = run.parent / "c_run"
    shutil.copytree(run, lost)
    (lost / layout.STATUS).rename(lost / layout.MANIFEST)
    assert main(["list", "runs", str(run.parent)]) == 0
    out, err = capsys.readouterr()
    header, row = out.splitlines()
    settings, state = ["RUN", "MODEL", "SOLVER", "TOL", "GRADIENT"], ["STATUS", "STEP", "ETA", "BEST", "TEST", "NFE"]
    assert header.split() == [*settings, *state, "MEMORY", "MINUTES", "DISK"]
    assert row.split()[:8] == [str(run), "odenet", "dopri5", "0.001", "adjoint", "done", "10", "-"]
    assert row.split()[8:] == ["val/accuracy", "0.9877", "0.9700", "20.0+38.5", "49.4", "MiB", "3.2", "0.0", "MiB"]
    assert "b_run" in err
    assert "b_run/summary.json is damaged" in err
    assert f"{lost} is damaged: status.json is missing" in err


def test_list_runs_shows_the_tolerance_of_adaptive_steps(run, capsys):
    for word, told in (
        ("tol=1e-4", "0.0001"),
        ("solver.rtol=1e-2", "0.01/0.001"),
        ("solver.steps=20", "-"),
        ("solver.step_size=0.1", "-"),
        ("model=resnet", "-"),
    ):
        OmegaConf.save(compose([word]), run / layout.SETTINGS)
        assert main(["list", "runs", str(run.parent)]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[3] == told, word


def test_tensorboard_starts_on_a_folder_with_event_files(run, capsys, monkeypatch):
    from tensorboard import program

    started = []
    monkeypatch.setattr(program.TensorBoard, "main", lambda board: started.append(board.flags) or 0)
    assert "no TensorBoard files" in fails(capsys, "tensorboard", str(run), code=1)
    assert (
        fails(capsys, "tensorboard", str(run), "more")
        == "odebench tensorboard: more is not expected here; leave it out"
    )
    (run / "events.out.tfevents.1.host").touch()
    line = "odebench tensorboard: unknown task densty (tasks: classification)"
    assert fails(capsys, "tensorboard", str(run), "--task", "densty") == line
    assert main(["tensorboard", str(run.parent), "--", "--port", "7007"]) == 0
    assert (started[0].port, started[0].window_title) == (7007, f"classification in {run.parent}")


def test_doctor_has_a_line_for_each_thing(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ODEBENCH_DATA", str(tmp_path))
    assert main(["doctor", "--outputs", str(tmp_path)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert {"odebench", "torch", "threads", "data=mnist", "data=mnist5k", "compiler", "slurm"} <= set(lines)
    assert lines["outputs"].split()[1] == "ok"
    assert lines["data=mnist"].split()[1] == "missing"
    assert all(line.split()[1] in ("ok", "missing") for name, line in lines.items() if name != "data")


def test_doctor_compiles_a_solve(capsys, monkeypatch, tmp_path):
    import torch

    from odebench.ode.compiled.run import _compiled_solve

    def compiled_solve_line():
        _compiled_solve.cache_clear()
        assert main(["doctor", "--compile", "--outputs", str(tmp_path)]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compiled solve")]
        return " ".join(line.split())

    def fail(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    assert compiled_solve_line() == "compiled solve missing torch cannot compile it: no C++ compiler"
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    assert compiled_solve_line() == "compiled solve ok in 0 s, for solver.compile=solve"
    _compiled_solve.cache_clear()


def test_doctor_knows_required_and_optional_packages():
    code = (
        "import sys, odebench.training.run\n"
        "from odebench.tasks import classification, density, time_series\n"
        "from odebench.config.compose import compose; compose([])\n"
        "print(*sys.modules)"
    )
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    names = {"hydra": "hydra-core", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    project = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    assert set(doctor._REQUIRED_PACKAGES) == declared & {names.get(module, module) for module in imported}
    assert set(doctor._OPTIONAL_PACKAGES) == declared - set(doctor._REQUIRED_PACKAGES)


@pytest.mark.parametrize(("lacking", "code"), [("scipy", 1), ("scikit-learn", 0), ("torchvision", 0)])
def test_doctor_fails_if_a_required_package_is_missing(capsys, monkeypatch, tmp_path, lacking, code):
    def version(package):
        if package == lacking:
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor", "--outputs", str(tmp_path)]) == code
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{lacking} ")]
    assert line.split()[1:5] == ["missing", "pip", "install", lacking + ";" * (code == 0)]


def test_doctor_reports_an_unusable_folder_for_runs(capsys, tmp_path):
    (tmp_path / "file").touch()
    main(["doctor", "--outputs", str(tmp_path / "file" / "runs")])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("outputs")]
    assert f"missing  {tmp_path / 'file'} is a file" in " ".join(line.split()).replace("missing ", "missing  ")


def test_undecodable_arguments_raise_an_error_before_anything_is_written(capsys, tmp_path):
    assert "is not UTF-8" in fails(capsys, "train", "model=mlp", f"run_dir='{tmp_path}/run\udcff'")
    assert "hydra.run.dir=x: has no effect; run_dir=DIR" in fails(capsys, "train", "hydra.run.dir=x")
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_a_missing_data_root(capsys, tmp_path):
    assert main(["doctor", "--data", str(tmp_path / "no")]) == 0
    assert f"{tmp_path / 'no'} is not a folder" in capsys.readouterr().out


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


NO_TORCH = """
import contextlib, io, os, sys
from odebench.cli import main
from odebench.cli.completion import complete_setting
import argparse
with contextlib.redirect_stdout(io.StringIO()):
    for words in (["--version"], ["--help"], *([command, "--help"] for command in {commands}), ["list", "models"],
                  ["list", "experiments"], ["list", "runs", {runs!r}], ["train", "--cfg"]):
        assert main(words) == 0, words
assert complete_setting("model=", argparse.Namespace())
assert complete_setting("trainer.precision=", argparse.Namespace())
for wrong in ("tol=-1", "init_from=/nope", "outputs=/dev/null/x", "run_dir=/dev/null/x"):
    assert main(["train", wrong]) == 2
loaded = {{"torch", "torchvision", "matplotlib", "tensorboard"}} & set(sys.modules)
assert not loaded, loaded
"""


def test_no_torch_before_a_command_needs_it(run):
    code = NO_TORCH.format(commands=list(COMMANDS), runs=str(run.parent))
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


def test_version_and_help_import_no_hydra():
    code = "import sys, odebench.cli as c; c.main(['train', '--help']); assert 'hydra' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("kind", "row"),
    [("models", "cnf density "), ("data", "mnist classification, density "), ("losses", "elbo time_series ")],
)
def test_options_are_listed_with_their_task(kind, row, capsys):
    assert main(["list", kind]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith(row) for line in lines)


@pytest.mark.parametrize("words", [["list", "models"], ["train", "--help"]], ids=" ".join)
def test_a_closed_pipe_prints_no_traceback(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "odebench", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (0, 128 + signal.SIGPIPE)  # 0 where argparse itself passes over it


@pytest.mark.parametrize(
    ("words", "closed", "code"),
    [
        ("list models", ">&-", 0),
        ("train --cfg", "2>&-", 0),
        ("list solver", "2>&-", 2),
        ("list models", "<&- >&- 2>&-", 0),
    ],
)
def test_closed_streams_act_like_dev_null(words, closed, code):
    def run(streams):
        command = f"{sys.executable} -m odebench {words} {streams}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    done = run(closed)
    assert done == run(closed.replace("&-", "/dev/null"))
    assert done[0] == code


@pytest.mark.parametrize(
    "words",
    [
        *("train run_dir=LONG", "train outputs=LONG", "train init_from=LONG", "train --config-dir LONG"),
        *("sweep seed=1,2 --output LONG", "sweep --file LONG", *(f"{command} LONG" for command in RUN_VERBS)),
        *("list runs LONG", "list models --config-dir LONG", "report LONG", "report RUN --output LONG.csv"),
        *("report RUN --output LONG/a.csv", "tensorboard LONG", "reproduce table1 --output LONG"),
        *("bench tiny --output LONG", "doctor --outputs LONG"),
    ],
)
def test_a_name_that_is_too_long_is_wrong_usage(words, in_tmp, run, calls, capsys):
    name = "x" * 500
    line = fails(capsys, *words.replace("LONG", name).replace("RUN", str(run)).split())
    assert name in line
    assert calls == []


@pytest.mark.parametrize("words", ["list runs LOOP", "report LOOP", "eval LOOP", "resume LOOP", "tensorboard LOOP"])
def test_a_link_to_itself_is_wrong_usage(words, in_tmp, capsys):
    (in_tmp / "LOOP").symlink_to("LOOP")
    assert "LOOP" in fails(capsys, *words.split())


@pytest.mark.parametrize("line", ["train --cfg", "train -m seed=1,2", "sweep seed=1,2"])
def test_a_deleted_working_directory_is_named(line, tmp_path, monkeypatch, capsys):
    words = line.split()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr("odebench.config.compose._composed", {})  # Hydra runs, as in a new process
    reason = "No such file or directory: the working directory was deleted; change to another one with cd"
    assert fails(capsys, *words, code=1) == f"odebench {words[0]}: {reason}"


def completions(line):
    """The completions of argcomplete in bash at the end of ``line``."""
    pytest.importorskip("argcomplete")
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-m", "odebench"]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split("\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("odebench tr", ["train "]),
        ("odebench train solver.r", ["solver.rtol="]),
        ("odebench train model=oden", ["odenet "]),
        ("odebench train -m solver=dopri5,ts", ["dopri5,tsit5 "]),
        ("odebench train tol=1 trainer.precision=", ["bf16", "float32"]),
        ("odebench list sol", ["solvers "]),
        ("odebench report outputs --figure par", ["pareto "]),
        ("odebench report outputs --figure pareto,step", ["pareto,step-sizes "]),
        ("odebench reproduce tab", ["table1", "table2"]),
        ("odebench sweep cluster.th", ["cluster.threads="]),
        ("odebench sweep cluster=sl", ["slurm "]),
        ("odebench resume outputs cluster.p", ["cluster.partition=", "cluster.processes="]),
        ("odebench resume outputs sol", [""]),
    ],
)
def test_completion_in_bash(line, expected):
    assert sorted(completions(line)) == sorted(expected)

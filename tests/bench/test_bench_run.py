"""``odebench bench``: arguments to a plan, and a small plan to results."""

import json

import pytest
import torch
from torch import nn

from odebench.bench.cases import DEFAULT_CASES
from odebench.bench.comparison import BenchmarkResults, measure_all
from odebench.bench.fields import Spiral
from odebench.bench.libraries import COMPILED
from odebench.bench.run import COMPILE, WORK_PRECISION_TOLS, make_plan
from odebench.cli import main
from odebench.cli.command import build_parser


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tinyy"], "unknown case tinyy; did you mean tiny? (cases: tiny, mlp,"),
        (["tiny", "--modes", "forwrd"], "unknown mode forwrd; did you mean forward? (modes: forward, backprop,"),
        (
            ["tiny", "--peers", "torchdifeq"],
            "unknown library torchdifeq; did you mean torchdiffeq? (libraries: torchdiffeq,",
        ),
        (["--peers", "scipy", "tiny", "mpl"], "unknown case mpl; did you mean mlp?"),
        (["tiny", "--methods", "dopri55"], "unknown method dopri55; did you mean dopri5?"),
        (["tiny", "--tol", "abc"], "--tol abc: must be numbers, such as 1e-3 or 1e-3,1e-5"),
        (["tiny", "--tol", "1e-3,5"], "--tol 1e-3,5: a tolerance must lie between 0 and 1"),
        (
            ["tiny", "--compile", "solv"],
            "unknown compilation solv; did you mean solve? (compilations: step, solve, fast)",
        ),
        (["tiny", "--batch", "1,x"], "--batch 1,x: must be 1 to 1,000,000, or several such numbers, such as 1,4096"),
        (["tiny", "vdp", "--batch", "2"], "--batch: the state of vdp has no batch dimension; leave one of them out"),
        (["tiny", "--modes", ","], "--modes needs a name, or several names separated by commas"),
        (["tiny", "--repeats", "0"], "--repeats must be 1 or more, got 0"),
        (["tiny", "--threads", "0"], "--threads must be 1 to 1,024, got 0"),
        (["tiny", "--repeat", "3"], "unknown option --repeat; did you mean --repeats?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line(words, line, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"odebench bench: {line}")
    assert not (tmp_path / "outputs").exists()


def test_a_plan_has_defaults_and_takes_names_in_order():
    plan = make_plan([])
    assert tuple(case.name for case in plan.cases) == DEFAULT_CASES
    assert plan.libraries[:2] == ("odebench", "torchdiffeq")
    assert not plan.named
    plan = make_plan(["vdp", "stiff"], "adjoint", "scipy", "radau", work_precision=True)
    assert [case.name for case in plan.cases] == ["vdp", "robertson"]
    assert (plan.modes, plan.libraries, plan.methods) == (("adjoint",), ("odebench", "scipy"), ("radau",))
    assert (plan.tols, plan.named) == (WORK_PRECISION_TOLS, True)
    assert [case.batch for case in make_plan(["tiny", "cnf"], batch="1,7").cases] == [1, 7, 1, 7]
    assert make_plan([], libraries="none").libraries == ("odebench",)


def test_a_small_bench_writes_and_prints(tmp_path, capsys):
    folder = tmp_path / "results"
    words = ["tiny", "--peers", "none", "--modes", "forward,adjoint", "--repeats", "2", "--output", str(folder)]
    assert main(["bench", *words, "--tol", "1e-3,1e-5"]) == 0
    out, err = capsys.readouterr()
    assert "tiny, forward, tol 0.001: odebench dopri5\n" in err
    assert "forward, tol 0.001" in out
    assert "continuous adjoint, tol 1e-05" in out
    assert sorted(path.name for path in folder.iterdir()) == [
        "results.csv",
        "results.json",
        "tiny_continuous_adjoint.png",
        "tiny_forward.png",
    ]
    content = json.loads((folder / "results.json").read_text())
    assert len(content["rows"]) == 4
    assert content["versions"]["torch"]
    assert content["machine"]["threads"] >= 1
    errors = [row["parameter_gradient_error"] for row in content["rows"] if row["mode"] == "adjoint"]
    assert errors[0] > errors[1] > 0

    assert main(["bench", *words]) == 2
    assert f"{folder} is not empty" in capsys.readouterr().err


def test_compiled_steps_are_compared_with_the_time_of_the_compiled_field(monkeypatch):
    fields = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: fields.append(f) or f if isinstance(f, nn.Module) else f)
    results = BenchmarkResults()
    plan = make_plan(["tiny"], modes="forward", libraries="none", tol="1e-3", repeats=1, compiled="step")
    list(measure_all(plan, results, lambda text: None))
    assert [type(field) for field in fields] == [Spiral]
    assert [row["variant"] for row in results.rows] == ["", "compiled"]
    assert all(row["bare_ms"] > 0 for row in results.rows)


@pytest.mark.slow
def test_a_compiled_solve_has_its_own_row(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("odebench.bench.comparison.compile_seconds", lambda case, config, tol: (20.0, 3.0))
    results = BenchmarkResults()
    names = {"modes": "backprop,checkpoint", "libraries": "none", "tol": "1e-3", "batch": "3"}
    plan = make_plan(["tiny"], **names, repeats=2, compiled="solve", compile_time=True, alone=True)
    list(measure_all(plan, results, lambda text: None))
    eager, compiled, checkpoint = results.rows
    assert [row["variant"] for row in results.rows] == ["", "compiled_solve", ""]
    assert (checkpoint["mode"], compiled["batch"]) == ("checkpoint", 3)
    assert all(0 < row["alone_min_ms"] <= row["alone_median_ms"] for row in results.rows)
    assert [row["compile_cold_s"] for row in results.rows] == [None, 20.0, None]
    assert compiled["compile_warm_s"] == 3.0
    assert eager["bare_ms"] > 0
    assert compiled["bare_ms"] is None
    for name in ("nfe_forward", "accepted", "rejected"):
        assert compiled[name] == eager[name]
    for name in ("state_error", "parameter_gradient_error"):
        assert compiled[name] == pytest.approx(eager[name], rel=1e-2)


@pytest.mark.slow
def test_a_bench_whose_compiled_solves_ran_eagerly_fails(monkeypatch, tmp_path, capsys):
    def fail(*arguments, **options):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", fail)
    words = ["tiny", "--peers", "none", "--modes", "forward,backprop", "--repeats", "1", "--tol", "1e-3"]
    assert main(["bench", *words, "--compile", "solve", "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "odebench bench: 1 compiled solves ran eagerly, the first is tiny, forward, tol 0.001: odebench compiled_solve "
        "dopri5: compile='solve' has no effect on this solve: torch cannot compile it: no C++ compiler"
    )
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["variant"] for row in content["rows"]] == ["", ""]
    assert content["left_out"][1].endswith("another mode ran eagerly")


def test_the_option_compile_without_a_value_chooses_all_variants():
    arguments = build_parser().parse_args(["bench", "mlp", "--compile"])
    assert arguments.compile.split(",") == list(COMPILE)
    assert tuple(COMPILE.values()) == tuple(COMPILED)

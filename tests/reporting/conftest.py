"""Records as files, as a training writes and a report reads them."""

import copy
import itertools
import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from odebench.config.compose import compose

SUMMARY = {
    "parameters": 3642,
    "best/accuracy": 0.95,
    "final/test_accuracy": 0.94,
    "best/loss": 0.2,
    "final/nfe_forward": 20.0,
    "final/nfe_backward": 30.0,
    "final/peak_mib": 50.0,
    "final/step_ms": 100.0,
    "final/minutes": 2.5,
}


@pytest.fixture(scope="session")
def odenet_settings():
    """Settings of a training, resolved."""
    return OmegaConf.to_container(compose([]), resolve=True)


@pytest.fixture
def record(tmp_path, odenet_settings):
    """Write a record: by keyword its settings (``solver__name``), status, message, summary, rows, experiment and the
    overrides of its command line."""
    made = []

    def write(
        status="done", message=None, summary=None, rows=(), experiment=None, folder=None, arguments=(), **changes
    ):
        path = folder or tmp_path / "runs" / f"{len(made):03d}"
        path.mkdir(parents=True)
        made.append(path)
        settings = copy.deepcopy(odenet_settings)
        if "tol" in changes:
            changes = {"solver__rtol": changes["tol"], "solver__atol": changes["tol"], **changes}
        for key, value in changes.items():
            *groups, name = key.split("__")
            node = settings
            for group in groups:
                node = node[group]
            node[name] = value
        machine = {"cpu": "a processor", "threads": 1, "gpu": None}
        manifest = {"settings": settings, "machine": machine, "versions": {"torch": "2.13.0"}}
        state = {"status": status, "step": 8, **({"message": message} if message else {})}
        overrides = [*([f"experiment={experiment}"] if experiment else []), *arguments]
        (path / "manifest.json").write_text(json.dumps(manifest))
        (path / "settings.yaml").write_text("seed: 0\n")
        (path / "status.json").write_text(json.dumps(state))
        (path / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if status == "done":
            (path / "summary.json").write_text(json.dumps(SUMMARY | (summary or {})))
        return path

    return write


@pytest.fixture
def runs(tmp_path):
    """The folder that `record` writes to."""
    return tmp_path / "runs"


@pytest.fixture
def matched(record, runs):
    """CNF and planar flow of three sizes, fitted to two targets."""
    for model, key in (("cnf", "model__width"), ("planar_nf", "model__layers")):
        for size, target in itertools.product((2, 8, 32), (1, 2)):
            kl = target + 1 / size + (model == "planar_nf")
            settings = {"task": "density", "trainer__objective": "val/kl_nats", "data__name": f"potential_{target}"}
            settings |= {"model__hidden": 32} if model == "cnf" else {}
            record(model__name=model, summary={"best/kl_nats": kl}, **settings, **{key: size})
    return runs


@pytest.fixture
def corpus(record, runs):
    """Two gradient modes, three tolerances, two seeds; with rows, evaluations, steps and a bench: any figure's data."""
    for mode, has_backward in (("adjoint", 1), ("backprop", 0)):
        for tol in (1e-2, 1e-3, 1e-4):
            for seed in (0, 1):
                nfe = -10 * math.log10(tol) + seed
                summary = {
                    "final/nfe_forward": nfe,
                    "final/nfe_backward": 1.5 * nfe * has_backward,
                    "best/accuracy": 0.9 + nfe / 1000,
                    "final/peak_mib": 50 if has_backward else 50 + nfe,
                    "final/step_ms": nfe * 4,
                    "best/step": 4,
                    "best/epoch": 2,
                }
                rows = [
                    {"step": step, "elapsed_s": step, "nfe/forward": nfe + step, "nfe/backward": nfe * has_backward}
                    for step in range(1, 6)
                ]
                rows += [
                    {"step": step, "elapsed_s": 60.0 * step + 30 * seed, "val/accuracy": 0.8 + step / 100 + seed / 50}
                    for step in (2, 4)
                ]
                path = record(
                    gradient__name=mode,
                    tol=tol,
                    seed=seed,
                    summary=summary,
                    rows=rows,
                    experiment="paper/mnist_odenet",
                    data__name="mnist",
                )
    lines = [
        {"overrides": [f"tol={tol}"], "nfe": 9, "output_error": 2 * tol, "gradient_error": 3 * tol, "step_tol": tol}
        | {"step_solver": "dopri5", "gradient_error_discrete": 0.0}
        for tol in (1e-3, 1e-1)
    ]
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "steps.json").write_text(json.dumps({"solves": [[0.25, 0.5, 0.25]]}))
    bench = "work,family,library,variant,mode,method,tol,parameter_gradient_error\n"
    bench += "conv,gradient,odebench,,adjoint,dopri5,0.001,0.02\nconv,gradient,odebench,,backprop,dopri5,0.001,\n"
    (runs / "results.csv").write_text(bench)
    return runs


def drawn(axes) -> dict[str, list[tuple[float, float]]]:
    """Points of the lines that the legend names."""
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label(): list(zip(*map(list, line.get_data()), strict=True)) for line in named}


@pytest.fixture
def points():
    """`drawn`."""
    return drawn


@pytest.fixture
def root():
    """The checkout."""
    return Path(__file__).resolve().parents[2]

"""Behaves as `odebench train ... run_dir=...` and `odebench eval RUN ...` do, without a training.

seed=7 fails. Records every call.
"""

import itertools
import json
import os
import re
import sys
from pathlib import Path


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def train(arguments):
    (quoted,) = [argument.removeprefix("run_dir=") for argument in arguments if argument.startswith("run_dir=")]
    folder = Path(re.sub(r"\\(.)", r"\1", quoted[1:-1]))
    given = dict(argument.split("=", 1) for argument in arguments)
    seed = int(given.get("seed", 0))
    (folder / "settings.yaml").write_text("seed: 0\n")
    (folder / "overrides.txt").write_text("".join(f"{argument}\n" for argument in arguments))
    experiment = given.get("experiment", "")
    full = {"epochs": 160} if "mnist" in experiment else {"iterations": 10_000}
    settings = {"seed": seed, "budgets": {"full": full}, "data": {"name": given.get("data", "mnist")}}
    settings |= {"model": {"name": experiment or given["model"]}, "gradient": {"name": given.get("gradient")}}
    settings |= {"solver": {"name": "dopri5", "rtol": 1e-3, "atol": 1e-3}}
    machine = {"cpu": "a processor", "threads": 1, "gpu": None}
    git = {"commit": "0123456789abcdef", "dirty": True}
    manifest = {"settings": settings, "machine": machine, "git": git, "versions": {"torch": "2.13.0"}}
    write(folder, "manifest.json", manifest)
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "series.png").write_bytes(experiment.encode())
    if seed == 7:
        write(folder, "status.json", {"status": "failed", "step": 0, "message": "it broke"})
        return 1
    numbers = {"final/test_nll_nats": 2.0 + seed + ("/nf_" in experiment), "final/minutes": 1.5}
    numbers |= {"final/test_accuracy": 0.9956, "parameters": 208266, "best/step": 400, "best/epoch": 1.0}
    numbers |= {"final/nfe_forward": 20.0, "final/nfe_backward": 11.0, "final/peak_mib": 7.5}
    numbers |= {"final/test_kl_nats": 1.0, "best/kl_nats": 1.1, "test": {"images": 10_000, "nll_std_error": 0.007}}
    rows = [
        {"step": 200 * i, "elapsed_s": 40 * i, "val/kl_nats": value, "nfe/forward": 15.0 + i}
        for i, value in enumerate((2.0, 1.3, 1.2, 0.1), 0)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(folder, "summary.json", numbers)
    write(folder, "status.json", {"status": "done", "step": 1000})
    return 0


def evaluate(folder, arguments):
    limits = [int(argument.partition("=")[2]) for argument in arguments if argument.startswith("--limit=")]
    arguments = [argument for argument in arguments if not argument.startswith("--")]
    values = [argument.split("=")[1].split(",") for argument in arguments]
    keys = [argument.split("=")[0] for argument in arguments]
    with (Path(folder) / "evaluations.jsonl").open("a") as file:
        for chosen in itertools.product(*values):
            given = dict(zip(keys, chosen, strict=True)) | {"tol": float(chosen[keys.index("tol")])}
            line = {"overrides": [f"{key}={value}" for key, value in given.items()], "nfe": 14.0, "output_error": 0.25}
            line |= {"split": "validation", "limit": limits[0] if limits else None}
            backward = 7.5 if given.get("gradient.error") == "absolute" else 15
            line |= {"nfe_forward": 30, "nfe_backward": backward, "peak_mib": 2.5, "gradient_error": 0.01}
            file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    with Path(os.environ["FAKE_TRAINING_NOTES"]).open("a") as notes:
        notes.write(json.dumps([command, *arguments]) + "\n")
    if command == "compare":
        Path(arguments[0]).write_text(json.dumps(dict(zip(arguments[1::2], arguments[2::2], strict=True))))
        sys.exit(0)
    sys.exit(evaluate(arguments[0], arguments[1:]) if command == "eval" else train(arguments))

"""Many runs from one command (`train -m`): Hydra's own multirun, with any launcher or sweeper installed.

Hydra expands the values and calls ``_run_job`` for each; a job keeps its run in a folder of its own inside
the sweep's and adds a line to the sweep's jobs.jsonl. One job's failure does not end the others. Launchers (joblib,
submitit) run the jobs in other processes, sweepers (Optuna) choose the values by what the jobs before returned.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from odebench.config.compose import (
    CONFIGS,
    apply_model_overrides,
    config_dir_overrides,
    explain_hydra_error,
    freeze_resolvers,
    parse_overrides,
    quoted,
)
from odebench.config.schema.quantities import higher_is_better
from odebench.console import console_log, print_table, report_error
from odebench.errors import DIVERGED, FAILED, STOPPED, WRONG_USAGE, UsageError

LEDGER = "jobs.jsonl"
# The exit code of the whole is the first of these that a job ended with.
_WORST_FIRST = (FAILED, WRONG_USAGE, DIVERGED, STOPPED)


def run_multirun(overrides: list[str], config_dir: Path | None = None) -> int:
    """Runs every combination of the values; prints a line a job on stdout and returns the worst exit code.

    UsageError, before anything runs, where an override is malformed or names something unknown.
    """
    import hydra

    first = _first_job(overrides, config_dir)
    sweep_dir = Path(first.hydra.sweep.dir).absolute()
    if (sweep_dir / LEDGER).exists():
        raise UsageError(f"{sweep_dir} holds another multirun; choose another hydra.sweep.dir")
    words = [*overrides, *config_dir_overrides(config_dir), f"hydra.sweep.dir={quoted(str(sweep_dir))}"]
    direction = _direction(first, overrides)
    if direction is not None:
        words.append(f"hydra.sweeper.direction={direction}")
    command, parent = list(sys.argv), os.getpid()

    def job(config: DictConfig) -> float | None:
        sys.argv = command  # what the manifest tells as the command; Hydra has read its own by now
        return _run_job(config, sweep_dir, parent)

    code = 0
    try:
        with _hydra_reads(words):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")(job)()
    except SystemExit as stop:  # a job was stopped by a signal, and the rest with it
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        usage = _explain(error, config_dir)
        if not (sweep_dir / LEDGER).exists():  # nothing has run
            (sweep_dir / "multirun.yaml").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                sweep_dir.rmdir()
            raise usage from error
        print(f"odebench train: {usage}", file=sys.stderr)
        code = 1
    codes = {code, *_print_jobs(sweep_dir, direction)} - {0}
    return next((worst for worst in _WORST_FIRST if worst in codes), max(codes, default=0))


def _first_job(overrides: list[str], config_dir: Path | None) -> DictConfig:
    """The settings of the first job, and Hydra's own: the sweep's folder, the launcher, the sweeper."""
    import hydra

    first = []
    for override in parse_overrides(overrides, config_dir):
        if not override.is_sweep_override():
            first.append(str(override.input_line))
        elif override.is_discrete_sweep() and "glob(" not in str(override.input_line):
            first.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
    try:
        with hydra.initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            words = [*first, *config_dir_overrides(config_dir)]
            config = hydra.compose("train", overrides=words, return_hydra_config=True)
        OmegaConf.resolve(config.hydra.sweep)
        return config
    except Exception as error:
        raise _explain(error, config_dir) from error


def _direction(config: DictConfig, overrides: list[str]) -> str | None:
    """Where a sweeper that searches has to go: up where more of the objective is better, unless it is told otherwise.

    None for a sweeper that does not search.
    """
    if "direction" not in config.hydra.sweeper:
        return None
    told = [word.partition("=")[2] for word in overrides if word.startswith("hydra.sweeper.direction=")]
    ours = "maximize" if higher_is_better(str(config.trainer.objective).partition("/")[2]) else "minimize"
    return told[-1] if told else ours


def _explain(error: Exception, config_dir: Path | None) -> UsageError:
    """What Hydra, a launcher or a sweeper raised, in one line; with HYDRA_FULL_ERROR=1 it is raised as it is."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    try:
        return explain_hydra_error(error, config_dir)
    except Exception:
        return UsageError(f"{type(error).__name__}: {' '.join(str(error).split())}")


@contextlib.contextmanager
def _hydra_reads(words: list[str]) -> Iterator[None]:
    """Gives Hydra its command line, and has it raise its errors instead of printing them and exiting."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["odebench", "--multirun", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _run_job(config: DictConfig, sweep_dir: Path, parent: int) -> float | None:
    """One job, its failures told and kept in the ledger; returns its objective, None where it was not done.

    ``parent`` is the id of the process that was asked for the multirun: some launchers use others.
    """
    from hydra.core.hydra_config import HydraConfig

    number = HydraConfig.get().job.num
    overrides = [word for word in HydraConfig.get().overrides.task if not word.startswith("config_dir=")]
    print(f"job {number}: {' '.join(overrides)}", file=sys.stderr)
    row: dict[str, Any] = {"job": number, "overrides": overrides, "folder": None, "objective": None}
    try:
        with console_log():
            row |= _train(config, overrides, sweep_dir, number)
    except Exception as error:
        row |= {"exit_code": _told(error, number), "error": f"{type(error).__name__}: {error}"}
    except KeyboardInterrupt:
        row |= {"exit_code": 130, "error": "stopped by Ctrl-C"}
        raise
    except SystemExit:
        row |= {"exit_code": STOPPED, "error": "its launcher queues it again"}
        raise
    finally:
        with (sweep_dir / LEDGER).open("a", encoding="utf-8") as ledger:
            ledger.write(json.dumps(row) + "\n")
    # The signal was meant for the whole multirun; Hydra lets this exception through. Under submitit the job leaves
    # without a result: with one it would be taken for done, even where SLURM queues it again.
    if row["exit_code"] == STOPPED and (os.getpid() == parent or "SUBMITIT_EXECUTOR" in os.environ):
        raise SystemExit(STOPPED)
    return row["objective"] if row["exit_code"] == 0 else None  # Optuna counts None as a failed trial, and goes on


def _told(error: Exception, number: int) -> int:
    """The exit code for a job's error, which is told on stderr; a fault of ours with its traceback."""
    try:
        return report_error(f"odebench train: job {number}", error)
    except Exception:
        traceback.print_exc()
        return 1


def _train(config: DictConfig, overrides: list[str], sweep_dir: Path, number: int) -> dict[str, Any]:
    from odebench.config.read import read_settings
    from odebench.config.settings import run_name

    own = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    assert isinstance(own, DictConfig)
    settings = read_settings(freeze_resolvers(apply_model_overrides(own, overrides)))
    if settings.run_dir is None:
        own.run_dir = str(sweep_dir / f"{number}_{run_name(settings)}")
    from odebench.training.run import train_run

    result = train_run(own, overrides)
    return {"exit_code": result.exit_code, "folder": str(result.folder), "objective": result.objective}


def _print_jobs(sweep_dir: Path, direction: str | None) -> list[int]:
    """A table of the jobs that ended, and the best of those of a search; returns their exit codes."""
    if not (sweep_dir / LEDGER).exists():
        return []
    lines = (sweep_dir / LEDGER).read_text(encoding="utf-8").splitlines()
    # A job that its launcher has queued again left several lines; the last one holds.
    last = {row["job"]: row for row in map(json.loads, lines)}
    rows = [last[number] for number in sorted(last)]
    table = [("JOB", "EXIT", "OBJECTIVE", "SETTINGS")]
    for row in rows:
        objective = "-" if row["objective"] is None else f"{row['objective']:.4f}"
        table.append((str(row["job"]), str(row["exit_code"]), objective, " ".join(row["overrides"])))
    print_table(table)
    done = [row for row in rows if row["exit_code"] == 0 and row["objective"] is not None]
    if direction is not None and done:
        best = (max if direction == "maximize" else min)(done, key=lambda row: row["objective"])
        print(f"best: job {best['job']}, {best['objective']:.4f}, {best['folder']}")
    print(f"{len(rows)} jobs in {sweep_dir}")
    return [row["exit_code"] for row in rows]

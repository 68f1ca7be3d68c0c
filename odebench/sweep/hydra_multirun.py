"""Many runs from one command (`train -m`): Hydra's multirun, with any installed launcher or sweeper.

Hydra expands the values and calls ``_run_job`` for each; a job writes its run to a subfolder of the sweep's folder and
adds a line to the sweep's jobs.jsonl. A failed job does not stop the others. Launchers (joblib, submitit) run jobs in
other processes; sweepers (Optuna) choose values based on the results of earlier jobs.
"""

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from odebench.config.compose import (
    compose_with_hydra,
    config_dir_overrides,
    explain_hydra_error,
    finish_composition,
    parse_overrides,
    quoted,
)
from odebench.config.files import CONFIGS, known_keys
from odebench.config.groups import PLURALS
from odebench.config.schema.quantities import higher_is_better
from odebench.console import console_log, print_table, report_error
from odebench.errors import DIVERGED, FAILED, STOPPED, WRONG_USAGE, UsageError, unknown_setting
from odebench.record.reader import warn_of_dropped_lines
from odebench.sweep.expand import sweep_values
from odebench.training.preflight import read_init_run

log = logging.getLogger(__name__)

JOBS_FILE = "jobs.jsonl"
# The multirun exits with the first of these codes that a job exited with.
_EXIT_CODES_WORST_FIRST = (FAILED, WRONG_USAGE, DIVERGED, STOPPED)


def run_multirun(overrides: list[str], config_dir: Path | None = None) -> int:
    """Run every combination of the values; prints one line per job and returns the worst exit code.

    UsageError, before anything runs, if an override is malformed or names something unknown.
    """
    import hydra

    first = _first_job(overrides, config_dir)
    if first.init_from is not None:
        read_init_run(str(first.init_from))
    sweep_dir = Path(first.hydra.sweep.dir).absolute()
    if (sweep_dir / JOBS_FILE).exists():
        raise UsageError(f"{sweep_dir} holds another multirun; choose another hydra.sweep.dir")
    arguments = [*_distinct(overrides, config_dir), *config_dir_overrides(config_dir)]
    arguments.append(f"hydra.sweep.dir={quoted(str(sweep_dir))}")
    direction = _direction(first, overrides)
    if direction is not None:
        arguments.append(f"hydra.sweeper.direction={direction}")
    command, parent = list(sys.argv), os.getpid()

    def job(config: DictConfig) -> float | None:
        sys.argv = command  # for the manifest; Hydra has already parsed its own
        return _run_job(config, sweep_dir, parent)

    code = 0
    try:
        with _hydra_command_line(arguments):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")(job)()
    except SystemExit as stop:  # a signal stopped a job and all others
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        usage = _explain(error, config_dir)
        if not (sweep_dir / JOBS_FILE).exists():  # nothing has run
            (sweep_dir / "multirun.yaml").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                sweep_dir.rmdir()
            raise usage from error
        print(f"odebench train: {usage}", file=sys.stderr)
        code = 1
    codes = {code, *_print_jobs(sweep_dir, direction)} - {0}
    return next((worst for worst in _EXIT_CODES_WORST_FIRST if worst in codes), max(codes, default=0))


_ABSENT = object()


def _first_job(overrides: list[str], config_dir: Path | None) -> DictConfig:
    """The settings of the first job, with Hydra's: the sweep's folder, the launcher, the sweeper."""
    first, drawn = [], []
    for override in parse_overrides(overrides, config_dir):
        if not override.is_sweep_override():
            first.append(str(override.input_line))
        elif override.is_discrete_sweep() and "glob(" not in str(override.input_line):
            first.append(f"{override.get_key_element()}={sweep_values(override)[0]}")
        else:
            drawn.append(override.key_or_group)
    try:
        config = compose_with_hydra(first, config_dir)
        for key in drawn:
            if key not in PLURALS and OmegaConf.select(config, key, default=_ABSENT) is _ABSENT:
                raise unknown_setting(key, known_keys(config_dir))
        OmegaConf.resolve(config.hydra.sweep)
        return config
    except OSError:  # of the machine, such as a deleted working directory
        raise
    except Exception as error:
        raise _explain(error, config_dir) from error


def _distinct(overrides: list[str], config_dir: Path | None) -> list[str]:
    """The overrides with each of their values once: ``seed=1,1`` would run the same job twice."""
    distinct = []
    for override in parse_overrides(overrides, config_dir):
        text = str(override.input_line)
        if override.is_discrete_sweep() and "glob(" not in text:
            values = sweep_values(override)
            if (once := list(dict.fromkeys(values))) != values:
                log.warning("%s: a value given more than once runs once", text)
                text = f"{override.get_key_element()}={','.join(once)}"
        distinct.append(text)
    return distinct


def _direction(config: DictConfig, overrides: list[str]) -> str | None:
    """Direction of an optimising sweeper: maximize if a larger objective is better, unless the user sets it.

    None for a sweeper that does not optimise.
    """
    if "direction" not in config.hydra.sweeper:
        return None
    given = [word.partition("=")[2] for word in overrides if word.startswith("hydra.sweeper.direction=")]
    default = "maximize" if higher_is_better(str(config.trainer.objective).partition("/")[2]) else "minimize"
    return given[-1] if given else default


def _explain(error: Exception, config_dir: Path | None) -> UsageError:
    """An error of Hydra, a launcher or a sweeper in one line; HYDRA_FULL_ERROR=1 raises it unchanged."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    try:
        return explain_hydra_error(error, config_dir)
    except UsageError as cause:  # a file that cannot be read
        return cause
    except Exception:
        return UsageError(f"{type(error).__name__}: {' '.join(str(error).split())}")


@contextlib.contextmanager
def _hydra_command_line(arguments: list[str]) -> Iterator[None]:
    """Set Hydra's command line, and make it raise errors instead of printing them and exiting."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["odebench", "--multirun", *arguments]
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
    """Run one job, report a failure and record it in jobs.jsonl; returns its objective, None if it failed.

    parent: id of the process that started the multirun; some launchers run jobs in other processes.
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
        row |= {"exit_code": _report_job_error(error, number), "error": f"{type(error).__name__}: {error}"}
    except KeyboardInterrupt:
        row |= {"exit_code": 130, "error": "stopped by Ctrl-C"}
        raise
    except SystemExit:
        row |= {"exit_code": STOPPED, "error": "requeued by its launcher"}
        raise
    finally:
        with (sweep_dir / JOBS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    # The signal stops the whole multirun; Hydra does not catch this exception. Under submitit the job must exit without
    # a result: with one it would count as done, even if SLURM requeues it.
    if row["exit_code"] == STOPPED and (os.getpid() == parent or "SUBMITIT_EXECUTOR" in os.environ):
        raise SystemExit(STOPPED)
    return row["objective"] if row["exit_code"] == 0 else None  # Optuna counts None as a failed trial, and continues


def _report_job_error(error: Exception, number: int) -> int:
    """Print a job's error to stderr, an internal one with its traceback; returns the exit code."""
    try:
        return report_error(f"odebench train: job {number}", error)
    except Exception:
        traceback.print_exc()
        return 1


def _train(config: DictConfig, overrides: list[str], sweep_dir: Path, number: int) -> dict[str, Any]:
    from odebench.config.read import read_settings
    from odebench.config.settings import run_name

    job_config = OmegaConf.create(OmegaConf.to_container(config, resolve=False))
    assert isinstance(job_config, DictConfig)
    settings = read_settings(finish_composition(job_config, parse_overrides(overrides, job_config.config_dir)))
    if settings.run_dir is None:
        job_config.run_dir = str(sweep_dir / f"{number}_{run_name(settings)}")
        settings = replace(settings, run_dir=job_config.run_dir)
    from odebench.training.run import train_run

    result = train_run(job_config, overrides, settings)
    return {"exit_code": result.exit_code, "folder": str(result.folder), "objective": result.objective}


def _print_jobs(sweep_dir: Path, direction: str | None) -> list[int]:
    """Print a table of the finished jobs, and the best one of an optimisation; returns their exit codes."""
    if not (sweep_dir / JOBS_FILE).exists():
        return []
    rows, damaged = _read_jobs(sweep_dir / JOBS_FILE)
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
    return [*(row["exit_code"] for row in rows), *([FAILED] if damaged else [])]


def _read_jobs(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The jobs of a multirun by number, and how many damaged lines were left out, with a warning."""
    last: dict[int, dict[str, Any]] = {}
    damaged = 0
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
            if not isinstance(row["overrides"], list) or not isinstance(row["objective"], int | float | None):
                raise TypeError
            last[int(row["job"])] = row | {"exit_code": int(row["exit_code"])}  # of a requeued job the last line counts
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += 1
    if damaged:
        warn_of_dropped_lines(path, damaged)
    return [last[number] for number in sorted(last)], damaged

"""``odebench reproduce``: run missing trainings and evaluations, and print the table."""

import logging
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from odebench.config.compose import compose, parse_overrides
from odebench.config.files import options
from odebench.console import print_table, print_text, progress_text
from odebench.errors import STOPPED, UsageError, unknown_name
from odebench.record.files import file_lock, write_atomically
from odebench.record.layout import FIGURES
from odebench.reporting import notes, table
from odebench.reporting.formatting import EMPTY
from odebench.reporting.report import figure_files, render_figures
from odebench.reporting.runs import collect_runs
from odebench.reproduce.catalogue import (
    CONSTANTS,
    FULL_BUDGET,
    Reproduction,
    committed_results,
    find_reproduction,
    reproductions,
)
from odebench.reproduce.results import (
    RowResult,
    collect_results,
    evaluations_by_key,
    expected_evaluations,
    job_identity,
)
from odebench.reproduce.table import as_csv, judge_rows, measurements, results_table, verdict_table
from odebench.sweep.attempts import COMMAND, FINAL_STATUSES, FailurePolicy, read_status
from odebench.sweep.cluster import is_cluster_override, read_cluster
from odebench.sweep.expand import expand
from odebench.sweep.folder import LOCK_FILE, Sweep, add_jobs, choose_folder, is_sweep, load_sweep
from odebench.sweep.run import SweepPlan, exit_code, resume_sweep, run_sweep
from odebench.sweep.validate import Job, validate_jobs

log = logging.getLogger(__name__)

TABLE_NAME = "reproduction"
# Groups of settings that define a published experiment.
EXPERIMENT_GROUPS = ("model", "data", "loss")
# Settings that determine which fraction of the published training a run completes.
TRAINING_LENGTH_KEYS = {"budgets", "trainer.batch_size"}
DATA_LOCATION_KEYS = ("data.root", "data.download")
COMPARISON_FILE = "comparison.png"
COMPARE_COMMAND = (sys.executable, "-m", "odebench.training.comparison")


@dataclass(frozen=True)
class ReproductionPlan:
    """A validated reproduction that has not started.

    jobs: name of a row -> overrides of each of its runs. command: the command line that reproduces the results, without
    the cluster settings.
    """

    reproduction: Reproduction
    plan: SweepPlan
    folder: Path
    jobs: dict[str, list[tuple[str, ...]]]
    command: str


def list_reproductions(name: str | None = None) -> None:
    """Print each reproduction: name, title, source, trainings, budgets or the missing experiment, committed verdicts.

    name: print the committed results of this reproduction instead. Raises UsageError if the name is unknown.
    """
    if name is not None:
        _list_results(find_reproduction(name))
        return
    known, rows = options("experiment"), []
    for one in reproductions().values():
        missing = _missing_experiment(one, known)
        details = (
            f"needs experiment={missing}"
            if missing
            else f"{notes.plural(len({row.job for row in one.rows}), 'training')}, budget={' or '.join(_budgets(one))}"
        )
        rows += [(one.name, one.title), ("", f"{one.source}: {details}")]
        rows += [("", line) for line in _committed_verdicts(one.name)]
    print_table(rows)


def _list_results(reproduction: Reproduction) -> None:
    """Print the committed results: budget, seeds, published, ours with interval, verdict."""
    columns = ("number", "budget", "seeds", "published", "ours", "verdict")
    rows = [{name: row[name] or EMPTY for name in columns} for row in committed_results(reproduction.name)]
    print(f"{reproduction.title}\n{reproduction.source}\n")
    if rows:
        table.print_table(
            table.Table.of(rows, words=columns, note="* quoted from memory, not checked against the paper")
        )
    else:
        print("no committed result has a published number")


def _committed_verdicts(name: str) -> list[str]:
    """How many committed results have each verdict, a line for each budget."""
    found: dict[str, Counter[str]] = {}
    for row in committed_results(name):
        for number, word in re.findall(r"(\d+) ([a-z ]+)", row["counts"]):
            found.setdefault(row["budget"], Counter())[word] += int(number)
    return [
        f"measured ({budget}): {', '.join(f'{number} {word}' for word, number in counts.items())}"
        for budget, counts in found.items()
    ]


def _budgets(reproduction: Reproduction) -> list[str]:
    """The names of the budgets, the largest first."""
    names = reproduction.budgets or compose([f"experiment={_experiments(reproduction)[0]}"]).budgets
    return sorted(map(str, names))  # full, medium, small, tiny


def _missing_experiment(reproduction: Reproduction, known: Sequence[str] | dict[str, Path]) -> str:
    """The first required experiment that does not exist, or ""."""
    return next((name for name in _experiments(reproduction) if name not in known), "")


def _experiments(reproduction: Reproduction) -> list[str]:
    overrides = (override for row in reproduction.rows for override in row.job)
    return [one.removeprefix("experiment=") for one in overrides if one.startswith("experiment=")]


def plan_reproduction(
    name: str | None, overrides: Sequence[str], output: Path | None, rows: str = ""
) -> ReproductionPlan:
    """Expand and validate the jobs without writing anything.

    overrides: budget=NAME, settings for all runs, and cluster settings. output: the folder for the runs; None: choose
    it. rows: train only the row of this name, or those whose names contain this text. Raises UsageError if the name is
    unknown, no row has the text, an experiment is missing, an override conflicts with the rows, or the folder holds
    other runs.
    """
    reproduction = find_reproduction(name)
    if missing := _missing_experiment(reproduction, options("experiment")):
        raise UsageError(f"{reproduction.name} needs experiment={missing}, which does not exist")
    budget, others = _split_budget(overrides)
    known = reproduction.budgets or {budget: (f"budget={budget}",)}
    if budget not in known:
        raise unknown_name("budget", budget, known, "budgets")
    cluster = tuple(filter(is_cluster_override, others))
    processes = read_cluster(cluster).num_processes
    settings = [override for override in others if not is_cluster_override(override)]
    _check_overrides(reproduction, settings)
    more = [*known[budget], *settings]
    jobs = {row.name: [tuple(job) for job in expand([[*row.job, *more]])] for row in reproduction.rows}
    chosen = [rows] if rows in jobs else [row for row in jobs if rows in row]
    if not chosen:
        raise UsageError(f"--rows {rows}: no row of {reproduction.name} has this text; its rows are {'; '.join(jobs)}")
    distinct = list(dict.fromkeys(job for row in chosen for job in jobs[row]))
    valid, outputs = validate_jobs(distinct, num_processes=processes)
    folder = output or Path(outputs) / "reproduce" / f"{reproduction.name}-{budget}"
    if is_sweep(folder):
        _check_existing_jobs(folder, [job for of_row in jobs.values() for job in of_row])
    else:
        choose_folder(folder, outputs)
    command = ["odebench", "reproduce", reproduction.name, *(one for one in overrides if one not in cluster)]
    command += ["--rows", rows] if rows else []
    return ReproductionPlan(reproduction, SweepPlan(valid, outputs, cluster, None), folder, jobs, shlex.join(command))


def _check_existing_jobs(folder: Path, jobs: Sequence[tuple[str, ...]]) -> None:
    """Raise UsageError if the folder's sweep has runs that are not among these jobs."""
    requested = set(map(job_identity, jobs))
    others = [job for job in load_sweep(folder).jobs if job_identity(job.overrides) not in requested]
    if others:
        settings = sorted(job_identity(others[0].overrides).difference(*requested)) or others[0].overrides
        raise UsageError(
            f"{folder} holds a run that is not part of this command ({' '.join(settings)}); add its settings, or "
            "choose another folder: --output DIR"
        )


def _split_budget(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Split the overrides into the name of the budget and the other overrides."""
    budgets = [override for override in parse_overrides(list(overrides)) if override.key_or_group == "budget"]
    if any(override.is_sweep_override() for override in budgets):
        raise UsageError(f"{budgets[-1].input_line}: give one budget at a time")
    budget = str(budgets[-1].value()) if budgets else FULL_BUDGET
    lines = {override.input_line for override in budgets}
    return budget, [override for override in overrides if override not in lines]


def _check_overrides(reproduction: Reproduction, overrides: Sequence[str]) -> None:
    """Raise UsageError if an override changes a setting that defines the published experiment."""
    fixed = {override.partition("=")[0] for row in reproduction.rows for override in row.job}
    is_published = "experiment" in fixed
    fixed |= set(EXPERIMENT_GROUPS) if is_published else set()  # an experiment sets these
    hint = "leave it out, or train separately: odebench train"
    for override in parse_overrides(list(overrides)):
        key, line = override.key_or_group, override.input_line
        part = key.partition(".")[0]
        is_part = part in EXPERIMENT_GROUPS and part in fixed and key not in DATA_LOCATION_KEYS
        if is_part or any(one == key or one.startswith(f"{key}.") for one in fixed):
            raise UsageError(f"{line}: the rows of {reproduction.name} set {key} themselves; {hint}")
        if is_published and {key, part} & TRAINING_LENGTH_KEYS:
            raise UsageError(f"{line}: this changes which share of the published training is run; {hint}")


def run_reproduction(planned: ReproductionPlan, policy: FailurePolicy, follow: bool) -> int:
    """Run the trainings and evaluations that are missing, then print and write the table.

    Returns the exit code of the sweep.
    """
    folder = planned.folder
    if not is_sweep(folder):
        code = run_sweep(planned.plan, folder, policy, follow)
        print()
    elif _has_unfinished_jobs(planned):
        code = resume_sweep(folder, planned.plan.cluster, policy, follow)
        print()
    else:
        code = exit_code(load_sweep(folder))
    sweep = load_sweep(folder)
    if code != STOPPED and (missing := _missing_evaluations(planned, sweep)):
        with file_lock(folder / LOCK_FILE):
            started = time.monotonic()
            for done, (path, arguments) in enumerate(missing):
                progress = progress_text(done, len(missing), time.monotonic() - started)
                log.info("%s: evaluating %s: %s", progress, path.name, " ".join(arguments))
                _run_command(sweep, [*COMMAND, "eval", str(path), *arguments], f"evaluation of {path.name}")
    _print_and_write(planned, sweep)
    return code


def _has_unfinished_jobs(planned: ReproductionPlan) -> bool:
    """Add planned jobs that the folder's sweep lacks, such as further seeds. Returns whether any job is left to run."""
    sweep = load_sweep(planned.folder)
    if _new_jobs(planned, sweep):
        with file_lock(planned.folder / LOCK_FILE):
            sweep = load_sweep(planned.folder)
            sweep = add_jobs(sweep, _new_jobs(planned, sweep))
    return any(read_status(sweep, job).status not in FINAL_STATUSES for job in sweep.jobs)


def _new_jobs(planned: ReproductionPlan, sweep: Sweep) -> list[Job]:
    known = {job_identity(job.overrides) for job in sweep.jobs}
    return [job for job in planned.plan.jobs if job_identity(job.overrides) not in known]


def _missing_evaluations(planned: ReproductionPlan, sweep: Sweep) -> list[tuple[Path, Sequence[str]]]:
    """Find completed runs that lack an evaluation; returns each with the arguments for `odebench eval`."""
    if not planned.reproduction.evaluations:
        return []
    rows = [row for row in planned.reproduction.rows if row.evaluation]
    shown = {job_identity(job) for row in rows for job in planned.jobs[row.name]}
    names = {job.name for job in sweep.jobs if job_identity(job.overrides) in shown}
    return [
        (run.path, arguments)
        for arguments in planned.reproduction.evaluations
        for run in collect_runs([sweep.path]).runs
        if run.path.name in names
        and run.status == "done"
        and not expected_evaluations(arguments) <= evaluations_by_key(run).keys()
    ]


def _run_command(sweep: Sweep, command: Sequence[str], task: str) -> bool:
    """Run a command in the folder in which the sweep was started.

    Returns whether it succeeded; if not, logs a warning.
    """
    code = subprocess.run(command, check=False, cwd=sweep.cwd if sweep.cwd.is_dir() else None).returncode
    if code:
        log.warning("%s: exit code %d", task, code)
    return code == 0


def _print_and_write(planned: ReproductionPlan, sweep: Sweep) -> None:
    """Print the tables, and write them with the figures to the sweep's folder, replacing earlier ones."""
    reproduction, collection = planned.reproduction, collect_runs([sweep.path])
    found = collect_results(reproduction, planned.jobs, sweep, collection)
    shown = {result.row.name for result in found}
    lines = [line for line in judge_rows(reproduction, measurements(found)) if line.ours.row in shown]
    tables = [*([verdict_table(lines)] if lines else []), results_table(found)]
    sources = dict.fromkeys(line.published.citation for line in lines if line.published)
    remarks = [notes.status_counts(collection), *notes.caveats(collection)]
    remarks += [f"published: {'; '.join(sources)}"] if sources else []
    print(f"{reproduction.title}\n{reproduction.source}\n")
    for one in tables:
        table.print_table(one)
        print()
    print_text(*remarks)
    drawn, left_out = render_figures(collection, reproduction.figures)
    for message in left_out.values():
        log.info("omitted: %s", message)
    pictured = [result for result in found if f"experiment={CONSTANTS}" not in result.row.job]
    pictures = _run_figures(reproduction, pictured) | _comparison_figure(reproduction, pictured, sweep)
    head = f"# {reproduction.title}\n\n{reproduction.source}\n"
    images = "".join(f"\n![{name.removesuffix('.png')}]({name})\n" for name in pictures)
    text = "\n".join([head, *map(table.as_markdown, tables), *(f"- {remark}" for remark in remarks), images])
    written = {f"{TABLE_NAME}.md": text.encode(), f"{TABLE_NAME}.csv": as_csv(lines, found, planned.command).encode()}
    written |= {path.name: content for path, content in figure_files(sweep.path, drawn).items()} | pictures
    for name, content in written.items():
        write_atomically(sweep.path / name, content)
    print(f"written to {sweep.path}: {', '.join(written)}")


def _run_figures(reproduction: Reproduction, found: Sequence[RowResult]) -> dict[str, bytes]:
    """Read the figures of each row's first run: file name -> content."""
    found_files: dict[str, bytes] = {}
    for result in found:
        for name in reproduction.run_figures if result.group.done_runs else ():
            path = result.group.done_runs[0].path / FIGURES / f"{name}.png"
            if path.exists():  # an RNN has no latent paths
                found_files[re.sub(r"\W+", "-", f"{result.row.name} {name}") + ".png"] = path.read_bytes()
    return found_files


def _comparison_figure(reproduction: Reproduction, found: Sequence[RowResult], sweep: Sweep) -> dict[str, bytes]:
    """Draw the predictions of each row's first run for the same series, if all rows have a run.

    This happens in another process, since it needs torch. Returns file name -> content.
    """
    if not reproduction.comparison or not found or not all(result.group.done_runs for result in found):
        return {}
    path = sweep.path / COMPARISON_FILE
    arguments = [one for result in found for one in (result.row.name, str(result.group.done_runs[0].path))]
    drawn = _run_command(sweep, [*COMPARE_COMMAND, str(path), *arguments], f"omitted: {COMPARISON_FILE}")
    return {COMPARISON_FILE: path.read_bytes()} if drawn else {}

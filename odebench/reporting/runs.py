"""Read the runs of a report, group them, and find the settings that vary among them."""

import csv
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from odebench.errors import UsageError
from odebench.record import layout
from odebench.record.differences import differing_columns, distinguishing_keys, flatten, follows_from_choice
from odebench.record.files import read_if_exists
from odebench.record.reader import (
    RunOverview,
    find_runs,
    read_metrics,
    read_overrides,
    read_overview,
    warn_of_dropped_lines,
)

log = logging.getLogger(__name__)

BENCH_HEADER = "work,family,library"
# Settings that choose fixed steps.
FIXED_STEP_KEYS = ("solver.steps", "solver.step_size")

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One run.

    settings: dotted key -> value, including "experiment" and "tol". overridden_keys: keys set on its command line.
    machine: a short description of the machine. test_data_hash: SHA-256 of the test data, "" if unknown.
    """

    overview: RunOverview
    settings: dict[str, Any]
    overridden_keys: frozenset[str]
    machine: str
    test_data_hash: str = ""

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.overview.path

    @property
    def status(self) -> str:
        """One of `layout.STATUSES`."""
        return self.overview.status

    @property
    def commit(self) -> str:
        """The commit of odebench that it ran, with a + if there were other changes; "" outside a checkout."""
        git = self.overview.manifest.get("git") or {}
        return f"{git['commit'][:10]}{'+' * git['dirty']}" if git.get("commit") else ""

    @property
    def was_prolonged(self) -> bool:
        """Whether its length was changed on the way, under a schedule that depends on the length."""
        resumed = self.overview.manifest.get("resumed", [])
        if not resumed or self.settings.get("schedule.name") not in ("one_cycle", "cosine"):
            return False
        settings = [one["settings"] for one in (self.overview.manifest, *resumed) if "settings" in one]
        return len({(one["trainer"]["epochs"], one["trainer"]["iterations"]) for one in settings}) > 1

    @property
    def objective(self) -> str:
        """The quantity that the training optimised, without the split: ``accuracy``, ``nll_nats``, ``loss``."""
        return str(self.settings.get("trainer.objective") or "val/loss").rpartition("/")[2]

    def value(self, tag: str) -> float:
        """A value of the summary; NaN if it is missing."""
        value = self.overview.summary.get(tag)
        return float(value) if isinstance(value, int | float) else float("nan")


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in the seed. varying_settings: key -> value, for settings that differ between groups."""

    varying_settings: dict[str, Any]
    runs: list[Run]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the group's first run."""
        return self.runs[0].settings

    def label(self, key: str) -> str:
        """Names, tags or notes of the runs, each once, on one line. key: one of `layout.LABELS`."""
        values = [run.settings.get(key) or [] for run in self.runs]
        texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
        return ", ".join(dict.fromkeys(" ".join(str(text).split()) for text in texts))

    @property
    def done_runs(self) -> list[Run]:
        """The runs whose status is done."""
        return [run for run in self.runs if run.status == "done"]

    def mean(self, tag: str) -> float:
        """Mean over the completed runs; NaN if there are none, or if one value is not finite."""
        return mean_and_std(self.values(tag))[0]

    def std(self, tag: str) -> float:
        """Standard deviation (n - 1) over the completed runs; NaN for fewer than two."""
        return mean_and_std(self.values(tag))[1]

    def values(self, tag: str) -> list[float]:
        """Values of the completed runs, NaN for one that lacks the tag; none if all of them lack it."""
        runs = self._runs_with_results
        return [run.value(tag) for run in runs] if any(tag in run.overview.summary for run in runs) else []

    @cached_property
    def _runs_with_results(self) -> list[Run]:
        """The completed runs, without those whose summary is damaged."""
        return [run for run in self.done_runs if any(map(layout.is_summary_tag, run.overview.summary))]


def mean_and_std(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) over seeds.

    Both are NaN if one value is not finite: leaving that seed out would bias the result. The standard deviation is NaN
    for fewer than two values.
    """
    if not numbers or not all(map(math.isfinite, numbers)):
        return math.nan, math.nan
    mean = math.fsum(numbers) / len(numbers)
    # statistics.stdev computes with fractions: for thousands of groups it would dominate the time of a report.
    squares = math.fsum((number - mean) ** 2 for number in numbers)
    return mean, math.sqrt(squares / (len(numbers) - 1)) if len(numbers) > 1 else math.nan


@dataclass(frozen=True)
class RunCollection:
    """All runs of a report.

    damaged: the reasons why folders could not be read. split: the split of the results, "validation" or "test".
    """

    folders: Sequence[Path]
    runs: list[Run]
    queued: list[RunOverview]
    damaged: list[str]
    split: str = "validation"

    @cached_property
    def differing_columns(self) -> dict[str, list[int]]:
        """The settings that differ between the runs; see the function `differing_columns`."""
        return differing_columns([run.settings for run in self.runs])

    @cached_property
    def overridden_keys(self) -> frozenset[str]:
        """Keys set on the command line of at least one run."""
        return frozenset().union(*(run.overridden_keys for run in self.runs))

    @cached_property
    def varying_keys(self) -> list[str]:
        """The keys of the settings that distinguish the groups."""
        return distinguishing_keys(self.differing_columns, self.overridden_keys)

    @cached_property
    def other_differing_keys(self) -> list[str]:
        """Other keys that differ between runs, except those that follow from an option, such as the model."""
        return [
            key
            for key in self.differing_columns
            if key not in self.varying_keys and not follows_from_choice(key, self.differing_columns)
        ]

    @cached_property
    def groups(self) -> list[RunGroup]:
        """The runs grouped by the varying settings, sorted by their values."""
        found: dict[str, RunGroup] = {}
        for run in self.runs:
            values = {key: run.settings.get(key) for key in self.varying_keys}
            found.setdefault(repr(values), RunGroup(values, [])).runs.append(run)
        return sorted(
            found.values(), key=lambda group: [_value_order(value) for value in group.varying_settings.values()]
        )

    @cached_property
    def objectives(self) -> list[str]:
        """The objectives of the trainings."""
        return list(dict.fromkeys(run.objective for run in self.runs))

    @cached_property
    def bench(self) -> list[Row]:
        """Rows of the CSV files that ``odebench bench`` wrote to the folders."""
        return [row for folder in self.folders for path in _csv_files(folder) for row in _bench_rows(path)]

    def result_tag(self, quantity: str) -> str:
        """The tag of a quantity's final value on the requested split."""
        return f"final/test_{quantity}" if self.split == "test" else f"best/{quantity}"


def collect_runs(folders: Sequence[Path], split: str = "validation") -> RunCollection:
    """Read all runs in the folders and their subfolders, each once. Raises UsageError if a folder does not exist."""
    runs, queued = [], []
    damaged: list[str] = []
    paths = {path.resolve(): path for folder in folders for path in find_runs(folder, queued=True, problems=damaged)}
    for path in paths.values():
        try:
            run = _read_run(path)
        except UsageError as error:
            damaged.append(str(error))
        except (AttributeError, TypeError):  # JSON, but of another shape
            damaged.append(f"{path} is damaged: a file has unexpected content")
        else:
            if run.settings:
                runs.append(run)
            else:
                queued.append(run.overview)
    return RunCollection(folders, runs, queued, damaged, split)


def _read_run(path: Path) -> Run:
    overview = read_overview(path)
    for name, content in ((layout.SETTINGS, overview.settings), (layout.SUMMARY, overview.summary)):
        if overview.status == "done" and not content:
            raise UsageError(f"{path} is damaged: {name} is missing")
    overrides = read_overrides(path)
    experiment = overrides.get("experiment")
    extra = {"experiment": None if experiment == "null" else experiment, "tol": overview.tol}
    settings = flatten(overview.settings | extra) if overview.settings else {}
    if settings.get("trainer.iterations") is not None:
        settings["trainer.epochs"] = None  # iterations take precedence
    overridden_keys = frozenset(key if key in settings else f"{key}.name" for key in overrides)
    test_data = overview.manifest.get("data", {}).get("splits", {}).get("test", {})
    return Run(overview, settings, overridden_keys, _machine(overview.manifest), str(test_data.get("sha256", "")))


def _machine(manifest: Mapping[str, Any]) -> str:
    """Describe the machine of a run's first process: its GPU, or processor and threads, and the version of torch."""
    if not manifest:
        return "an unknown machine"
    machine, torch = manifest.get("machine", {}), manifest.get("versions", {}).get("torch")
    where = machine.get("gpu") or f"{machine.get('cpu')}, threads: {machine.get('threads')}"
    return f"{where}, torch {torch}"


def _value_order(value: Any) -> tuple[int, float, str]:
    """A sort key: None comes first, then numbers, then text."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def read_rows(run: Run) -> list[Row]:
    """Read the metrics of a run."""
    return read_metrics(run.path / layout.METRICS)


def read_evaluations(run: Run) -> list[Row]:
    """Read the evaluations of a run, each with its "solver", "tol" and "gradient".

    Leaves out, with a warning, those of other weights than the run's best ones, which it had before it was resumed.

    Adds "resolution", the tolerance, or the number or the size of fixed steps; and "others", the other overrides of the
    command line, and the samples used if they are not the whole validation split.
    """
    settings = run.settings
    defaults = {
        "solver": settings.get("eval_solver") or settings.get("solver.name"),
        "tol": settings.get("eval_tol") or settings.get("tol"),
        "gradient": settings.get("gradient.name"),
    }
    lines = [*_evaluation_lines(run.path / layout.EVALUATIONS)]
    best = run.overview.summary.get("best/step") or next((row.get("weights_step") for row in lines[::-1]), None)
    current = [row for row in lines if row.get("weights_step") in (None, best)]
    if len(current) < len(lines):
        num = len(lines) - len(current)
        log.warning("%s: omitted the evaluations of weights that it no longer has (%d)", run.path, num)
    found = []
    for row in current:
        given = dict(one.split("=", 1) for one in row["overrides"])
        evaluation = defaults | {key: given[key] for key in defaults if key in given} | row
        evaluation["tol"] = number(evaluation["tol"]) if isinstance(evaluation["tol"], str) else evaluation["tol"]
        steps = next((number(given[key]) for key in FIXED_STEP_KEYS if key in given), None)
        evaluation["resolution"] = steps if evaluation["tol"] is None else evaluation["tol"]
        others = [one for one in row["overrides"] if one.partition("=")[0] not in {*defaults, *FIXED_STEP_KEYS}]
        others += ["split=test"] if row.get("split") == "test" else []
        others += [f"first {row['limit']:,}"] if isinstance(row.get("limit"), int) else []
        found.append(evaluation | {"others": ", ".join(others)})
    return found


def _evaluation_lines(path: Path) -> Iterator[Row]:
    """Yield the valid lines of evaluations.jsonl.

    Skips, with a warning, incomplete lines of killed processes and anything that is not an evaluation. Raises
    UsageError if the file cannot be read.
    """
    dropped = 0
    for line in filter(None, (read_if_exists(path) or b"").split(b"\n")):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and _is_evaluation(row):
            yield row
        else:
            dropped += 1
    if dropped:
        warn_of_dropped_lines(path, dropped)


def _is_evaluation(row: Row) -> bool:
    """Whether overrides are KEY=VALUE, names are strings, and tolerances are numbers, strings of two, or None."""
    overrides = row.get("overrides")
    if not isinstance(overrides, list) or not all(isinstance(word, str) and "=" in word for word in overrides):
        return False
    tolerances = [number(word[4:]) for word in overrides if word.startswith("tol=")]
    has_names = all(isinstance(row.get(key, ""), str) for key in ("solver", "gradient", "step_solver"))
    is_tol = isinstance(row.get("tol"), str | int | float | None)
    return has_names and is_tol and all(isinstance(value, int | float) for value in tolerances)


def _csv_files(folder: Path) -> Iterator[Path]:
    """Find the CSV files that do not belong to a run."""
    for parent, children, files in os.walk(folder):
        if layout.STATUS in files:
            children.clear()
        else:
            yield from (Path(parent, name) for name in sorted(files) if name.endswith(".csv"))


def _bench_rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        if not file.readline().startswith(BENCH_HEADER):
            return []
        file.seek(0)
        return [{name: number(text) for name, text in row.items() if name} for row in csv.DictReader(file)]


def number(text: str | None) -> Any:
    """Convert a text that is a number to float, so that 1e-2 equals 0.01. Other texts stay, empty ones become None."""
    try:
        return float(text or "")
    except ValueError:
        return text or None

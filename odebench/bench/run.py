"""``odebench bench``: parse its arguments, measure, and write a folder of results."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from odebench.bench import report
from odebench.bench.cases import CASE_GROUPS, CASES, DEFAULT_CASES, with_batch
from odebench.bench.comparison import BenchmarkPlan, BenchmarkResults, measure_all
from odebench.bench.libraries import LIBRARIES, MODES, OTHER_LIBRARIES
from odebench.config.schema.training import MAX_THREADS
from odebench.console import print_text, progress_text, terminal_width
from odebench.errors import DONE, FAILED, UsageError, split_names, unknown_name
from odebench.training.environment import keep_freed_memory

log = logging.getLogger(__name__)

DEFAULT_MODES = ("forward", "backprop", "checkpoint", "adjoint")
# Value of --compile -> variant.
COMPILE = {"step": "compiled", "solve": "compiled_solve", "fast": "compiled_fast"}
# No tolerance is below the accuracy of single precision.
WORK_PRECISION_TOLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
MAX_BATCH = 1_000_000


def make_plan(
    cases: Sequence[str],
    modes: str | None = None,
    libraries: str | None = None,
    methods: str | None = None,
    tol: str | None = None,
    batch: str | None = None,
    repeats: int = 10,
    compiled: str | None = None,
    compile_time: bool = False,
    alone: bool = False,
    work_precision: bool = False,
) -> BenchmarkPlan:
    """Make a plan from comma-separated names. Raises UsageError for an unknown name or an invalid number."""
    names: list[str] = []
    for word in cases or DEFAULT_CASES:
        if word not in CASES and word not in CASE_GROUPS:
            raise unknown_name("case", word, [*CASES, *CASE_GROUPS], "cases")
        names += [name for name in CASE_GROUPS.get(word, (word,)) if name not in names]
    known_methods = dict.fromkeys(method for library in LIBRARIES.values() for method in library.methods)
    tols = _tolerances(tol) if tol is not None else WORK_PRECISION_TOLS if work_precision else None
    if repeats < 1:
        raise UsageError(f"--repeats must be 1 or more, got {repeats}")
    chosen = [CASES[name] for name in names]
    if batch is not None:
        chosen = [with_batch(case, size) for case in chosen for size in _batches(batch)]
    others = () if libraries == "none" else _names("--peers", "library", libraries, OTHER_LIBRARIES, OTHER_LIBRARIES)
    return BenchmarkPlan(
        cases=tuple(chosen),
        modes=_names("--modes", "mode", modes, MODES, DEFAULT_MODES),
        libraries=("odebench", *others),
        methods=_names("--methods", "method", methods, known_methods, ()) or None,
        tols=tols,
        named=libraries is not None,
        repeats=repeats,
        compiled=tuple(COMPILE[name] for name in _names("--compile", "compilation", compiled, COMPILE, ())),
        compile_time=compile_time,
        alone=alone,
    )


def _names(option: str, kind: str, text: str | None, known: Iterable[str], default: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return default
    words = tuple(dict.fromkeys(split_names(option, text)))
    for word in words:
        if word not in known:
            # `odebench list solvers` prints most of the methods.
            plural = {"library": "libraries", "method": "solvers"}.get(kind, f"{kind}s")
            raise unknown_name(kind, word, known, plural)
    return words


def _batches(text: str) -> tuple[int, ...]:
    words = tuple(dict.fromkeys(split_names("--batch", text)))
    if not all(word.isdecimal() and 1 <= int(word) <= MAX_BATCH for word in words):
        raise UsageError(f"--batch {text}: must be 1 to {MAX_BATCH:,}, or several such numbers, such as 1,4096")
    return tuple(map(int, words))


def _tolerances(text: str) -> tuple[float, ...]:
    try:
        tols = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"--tol {text}: must be numbers, such as 1e-3 or 1e-3,1e-5") from None
    if not all(0 < tol < 1 for tol in tols):
        raise UsageError(f"--tol {text}: a tolerance must lie between 0 and 1")
    return tols


def run_bench(plan: BenchmarkPlan, output: Path | None, threads: int | None, command: Sequence[str]) -> int:
    """Measure all cases, print tables and write the results; returns the exit code.

    After each case it writes all results so far. Raises UsageError for a folder that is not empty.
    """
    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"--threads must be 1 to {MAX_THREADS:,}, got {threads}")
        torch.set_num_threads(threads)
    keep_freed_memory()  # as trainings do; otherwise the kernel zeroes new pages in each solve, which takes time
    folder = report.make_folder(output)
    settings = {"modes": plan.modes, "repeats": plan.repeats, "limit_s": plan.limit_s, "named": plan.named}
    machine_info = report.describe_machine(command, plan.libraries, settings)
    machine, versions = machine_info["machine"], machine_info["versions"]
    installed = [f"{name} {versions[name]}" for name in LIBRARIES if name in plan.libraries and versions[name]]
    print(f"{', '.join(installed)}; torch {torch.__version__}")
    print(f"{machine['cpu']}, {machine['threads']} threads, {machine_info['date']}", flush=True)
    results = BenchmarkResults()
    descriptions = {case.name: case.description for case in plan.cases}
    with _progress(len(plan.cases)) as (on_progress, advance):
        for case in measure_all(plan, results, on_progress):
            report.add_ratios(results.rows)
            report.write(folder, machine_info, results.rows, results.left_out)
            rows = [row for row in results.rows if (row["work"], row["batch"]) == (case.name, case.batch)]
            for table in report.tables(rows, descriptions, terminal_width()):
                tqdm.write(f"\n{table}")  # above the bar
                sys.stdout.flush()
            advance()
    report.write(folder, machine_info, results.rows, results.left_out)
    return _finish(folder, results)


def _finish(folder: Path, results: BenchmarkResults) -> int:
    """Print what was measured; return 1 if nothing was, or if a solve ran eagerly that should have been compiled."""
    nothing = "nothing was measured: no library has these modes and methods"
    print_text(*(["", *report.LEGEND.splitlines()] if results.rows else [nothing]))
    if results.left_out:
        print_text("", "left out:", *(f"  {line}" for line in results.left_out))
    figures = report.save_figures(folder, results.rows)
    files = (report.JSON, report.CSV) if results.rows else (report.JSON,)
    print("\nwritten:", *(folder / name for name in files), *figures, sep="\n  ")
    if results.ran_eagerly:
        number, first = len(results.ran_eagerly), results.ran_eagerly[0]
        print(f"odebench bench: {number} compiled solves ran eagerly, the first is {first}", file=sys.stderr)
        return FAILED
    return DONE if results.rows else FAILED


@contextmanager
def _progress(num_cases: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Yield (on_progress, advance), which show progress on stderr: as a bar on a terminal, else as log lines."""
    started, done = time.monotonic(), 0

    def line(text: str) -> str:
        return f"{progress_text(done, num_cases, time.monotonic() - started)}: {text}"

    def advance() -> None:
        nonlocal done
        done += 1

    if not sys.stderr.isatty():
        yield (lambda text: log.info(line(text))), advance
        return
    form = "{percentage:3.0f}%|{bar:10}| {desc}"
    with (
        tqdm(total=num_cases, bar_format=form, dynamic_ncols=True, leave=False) as bar,
        logging_redirect_tqdm([logging.getLogger("odebench")]),
    ):

        def advance_bar() -> None:
            advance()
            bar.update()

        yield (lambda text: bar.set_description_str(line(text))), advance_bar

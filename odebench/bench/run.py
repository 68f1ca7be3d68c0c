"""``odebench bench``: from the words of the command line to a folder of results."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from odebench.bench import report
from odebench.bench.cases import DEFAULT, GROUPS, WORKS
from odebench.bench.comparison import BenchmarkPlan, BenchmarkResults, measure_all
from odebench.bench.libraries import LIBRARIES, MODES, PEERS
from odebench.errors import UsageError, unknown_name
from odebench.training.environment import keep_freed_memory

log = logging.getLogger(__name__)

DEFAULT_MODES = ("forward", "backprop", "checkpoint", "adjoint")
# Loose enough for single precision to follow.
WORK_PRECISION_TOLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def make_plan(
    works: Sequence[str],
    modes: str | None = None,
    peers: str | None = None,
    methods: str | None = None,
    tol: str | None = None,
    repeats: int = 10,
    compiled: bool = False,
    work_precision: bool = False,
) -> BenchmarkPlan:
    """A plan from names separated by commas. Raises UsageError for what is not known."""
    names: list[str] = []
    for word in works or DEFAULT:
        if word not in WORKS and word not in GROUPS:
            raise unknown_name("work", word, [*WORKS, *GROUPS], "works")
        names += [name for name in GROUPS.get(word, (word,)) if name not in names]
    known_methods = dict.fromkeys(method for library in LIBRARIES.values() for method in library.methods)
    tols = _tolerances(tol) if tol is not None else WORK_PRECISION_TOLS if work_precision else None
    if repeats < 1:
        raise UsageError(f"--repeats must be 1 or more, got {repeats}")
    chosen = () if peers == "none" else _names("peer", peers, PEERS, PEERS)
    return BenchmarkPlan(
        works=tuple(WORKS[name] for name in names),
        modes=_names("mode", modes, MODES, DEFAULT_MODES),
        libraries=("odebench", *chosen),
        methods=_names("method", methods, known_methods, ()) or None,
        tols=tols,
        named=peers is not None,
        repeats=repeats,
        compiled=compiled,
    )


def _names(kind: str, text: str | None, known: Iterable[str], default: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return default
    words = tuple(dict.fromkeys(filter(None, text.split(","))))
    for word in words:
        if word not in known:
            # Of the many methods the list of our own solvers names most.
            raise unknown_name(kind, word, known, "solvers" if kind == "method" else f"{kind}s")
    if not words:
        raise UsageError(f"--{kind}s needs a name, or several with commas")
    return words


def _tolerances(text: str) -> tuple[float, ...]:
    try:
        tols = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"--tol {text}: numbers are needed, such as 1e-3 or 1e-3,1e-5") from None
    if not all(0 < tol < 1 for tol in tols):
        raise UsageError(f"--tol {text}: a tolerance lies between 0 and 1")
    return tols


def run_bench(plan: BenchmarkPlan, output: Path | None, threads: int | None, command: Sequence[str]) -> int:
    """Measures, writes and prints; the exit code. What was measured is written after each work.

    Raises UsageError for a folder that holds something already.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads must be 1 or more, got {threads}")
        torch.set_num_threads(threads)
    keep_freed_memory()  # as trainings do; else the kernel is measured, which zeroes the pages of each solve anew
    folder = report.make_folder(output)
    settings = {"modes": plan.modes, "repeats": plan.repeats, "limit_s": plan.limit_s, "named": plan.named}
    about = report.describe_machine(command, plan.libraries, settings)
    machine = about["machine"]
    print(f"{report.versions_line(plan.libraries)}; torch {torch.__version__}")
    print(f"{machine['cpu']}, {machine['threads']} threads, {about['date']}", flush=True)
    outcome = BenchmarkResults()
    abouts = {work.name: work.about for work in plan.works}
    with _progress(len(plan.works)) as (tell, tick):
        for work in measure_all(plan, outcome, tell):
            report.add_ratios(outcome.rows)
            report.write(folder, about, outcome.rows, outcome.left_out)
            for table in report.tables([row for row in outcome.rows if row["work"] == work.name], abouts):
                tqdm.write(f"\n{table}")  # beside the bar
                sys.stdout.flush()
            tick()
    report.write(folder, about, outcome.rows, outcome.left_out)
    print(f"\n{report.LEGEND}" if outcome.rows else "nothing was measured: no library has such a mode and method")
    if outcome.left_out:
        print("\nleft out:", *outcome.left_out, sep="\n  ")
    figures = report.draw(folder, outcome.rows)
    files = (report.JSON, report.CSV) if outcome.rows else (report.JSON,)
    print("\nwritten:", *(folder / name for name in files), *figures, sep="\n  ")
    return 0 if outcome.rows else 1


@contextmanager
def _progress(num_works: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """(tell, tick): a bar on a terminal, plain lines elsewhere, on stderr."""
    if not sys.stderr.isatty():
        yield (lambda text: log.info("%s", text)), (lambda: None)
        return
    with (
        tqdm(total=num_works, unit="work", dynamic_ncols=True, leave=False) as bar,
        logging_redirect_tqdm([logging.getLogger("odebench")]),
    ):
        yield (lambda text: bar.set_description(text)), (lambda: bar.update())

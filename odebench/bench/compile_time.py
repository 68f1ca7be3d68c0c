"""The time that torch takes to compile a solve, measured in new processes."""

import contextlib
import functools
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from odebench.bench import measure
from odebench.bench.cases import CASES, BenchmarkCase, build_problem, with_batch
from odebench.bench.preparation import LibraryConfig, make_run

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@contextlib.contextmanager
def compiler_cache(folder: Path) -> Iterator[None]:
    """Let torch's compiler keep its results in this folder, also in processes that start inside the block."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before


def compile_seconds(case: BenchmarkCase, config: LibraryConfig, tol: float) -> tuple[float, float]:
    """The seconds that the first solve of a process takes longer than the second: (cold, warm).

    The cold process compiles everything if the compiler's cache is empty. The warm one finds its results in the cache.
    Raises what the library raises.
    """
    in_new_process = functools.partial(_in_new_process, case.name, case.batch, config, tol)
    return in_new_process(), in_new_process()


def _in_new_process(name: str, batch: int, config: LibraryConfig, tol: float) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_excess_of_first_run, name, batch, config, tol, torch.get_num_threads()).result()


def _excess_of_first_run(name: str, batch: int, config: LibraryConfig, tol: float, threads: int) -> float:
    torch.set_num_threads(threads)
    case = CASES[name]
    run = measure.timed(make_run(build_problem(with_batch(case, batch) if case.batch else case), config, tol))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run() - run()

"""Run every library, mode and variant on every benchmark case, and collect the measurements.

A mode is what is computed: "forward", only the solution, or a way to compute its gradient, such as "adjoint". The modes
of a family compute the same, so that their times can be compared. A variant is another way to run a library, such as
"compiled".
"""

import contextlib
import dataclasses
import functools
import itertools
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from odebench.bench import measure
from odebench.bench.cases import BenchmarkCase, CaseProblem, build_problem
from odebench.bench.compile_time import compile_seconds, compiler_cache
from odebench.bench.diffrax_client import DiffraxClient
from odebench.bench.libraries import COMPILED, FORWARD, LIBRARIES, MODE_FAMILIES, installed_version
from odebench.bench.preparation import LibraryConfig, PreparedRun, RanEagerlyError, prepare, prepare_diffrax
from odebench.bench.reference import ReferenceSolution, relative_error, solve_reference

ProgressCallback = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkPlan:
    """The cases, modes, libraries and settings that are measured.

    modes, libraries: those to run, in the order of the table.
    methods, tols: those to use; None uses those of each case.
    named: whether the user named the libraries.
    limit_s: the time limit for the timed runs of one library, method, mode and variant.
    compiled: the variants of odebench among ``libraries.COMPILED`` to run.
    compile_time: measure the time to compile them, in new processes.
    alone: also time each run many times in a row, not only in turns.
    """

    cases: tuple[BenchmarkCase, ...]
    modes: tuple[str, ...]
    libraries: tuple[str, ...]
    methods: tuple[str, ...] | None = None
    tols: tuple[float, ...] | None = None
    named: bool = False
    repeats: int = 10
    limit_s: float = 2.0
    compiled: tuple[str, ...] = ()
    compile_time: bool = False
    alone: bool = False


@dataclass
class BenchmarkResults:
    """The results: one row per library, method, mode and variant.

    left_out: a line for each that was not measured, with the reason.
    ran_eagerly: those of these lines that are about compiled solves that ran eagerly.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    ran_eagerly: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _CaseContext:
    """A problem, its reference solution and the process that runs diffrax, with what all cases share.

    cache: a folder for the compiler. eager_variants: the compiled variants that ran eagerly.
    """

    problem: CaseProblem
    reference: ReferenceSolution
    client: DiffraxClient | None
    plan: BenchmarkPlan
    results: BenchmarkResults
    on_progress: ProgressCallback
    cache: str
    eager_variants: set[str] = field(default_factory=set)


def measure_all(
    plan: BenchmarkPlan, results: BenchmarkResults, on_progress: ProgressCallback
) -> Iterator[BenchmarkCase]:
    """Measure all cases, add their rows to ``results``, and yield each case when it is done.

    on_progress: called with a line of text before each task.
    """
    missing = [name for name in plan.libraries if installed_version(name) is None]
    results.left_out += [f"{name}: not installed" for name in missing]
    for case in plan.cases:
        names = [name for name in plan.libraries if name not in missing]
        if not plan.named:
            slow = [name for name in names if name in case.slow_libraries]
            results.left_out += [f"{name} on {case.name}: takes minutes; --peers {name} includes it" for name in slow]
            names = [name for name in names if name not in slow]
        problem = build_problem(case)
        on_progress(f"{case.name}: reference")
        try:
            reference = solve_reference(problem, gradients=any(mode != FORWARD for mode in plan.modes))
        except ModuleNotFoundError:
            results.left_out.append(f"{case.name}: its reference needs SciPy")
            continue
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(contextlib.closing(DiffraxClient(problem))) if "diffrax" in names else None
            cache = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            context = _CaseContext(problem, reference, client, plan, results, on_progress, cache)
            for tol, family in itertools.product(plan.tols or (case.tol,), MODE_FAMILIES):
                modes = [mode for mode in MODE_FAMILIES[family] if mode in plan.modes]
                configs = list(_library_configs(plan, case, names, modes))
                _measure_family(context, family, tol, configs)
        yield case


def _library_configs(
    plan: BenchmarkPlan, case: BenchmarkCase, names: Sequence[str], modes: Sequence[str]
) -> Iterator[LibraryConfig]:
    """Yield a configuration for each library, variant, method and mode that can solve the case."""
    for name in names:
        library = LIBRARIES[name]
        variants = [*library.variants]
        if name == "odebench":
            variants += [(variant, "") for variant in plan.compiled]
        if case.per_sample and name in ("odebench", "torchode"):
            variants.append(("per_sample", ""))
        for method, mode in itertools.product(plan.methods or case.methods, modes):
            if mode == "reversible" and f"reversible_{method}" in library.methods:
                method = f"reversible_{method}"
            if method in library.methods and mode in library.modes:
                yield LibraryConfig(name, method, mode, "")
                for variant, only in variants:
                    # Compiled solves compute backprop and checkpoint in one way.
                    repeated = COMPILED.get(variant, {}).get("compile") == "solve" and mode == "checkpoint"
                    if only in ("", mode) and not (repeated and "backprop" in modes):
                        yield LibraryConfig(name, method, mode, variant)


def _measure_family(context: _CaseContext, family: str, tol: float, configs: list[LibraryConfig]) -> None:
    """Measure one family of modes, and add its rows to the results.

    The libraries run in turns, so that their times can be compared.
    """
    case = context.problem.case.name
    runs: list[PreparedRun] = []
    for config in configs:
        name = f"{case}, {config.mode}, tol {tol:g}: {config.label} {config.method}"
        if config.variant in context.eager_variants:  # the warning comes once, also for graphs that modes share
            context.results.left_out.append(f"{name}: another mode ran eagerly")
            continue
        context.on_progress(name)
        try:
            runs.append(_prepare(context, config, tol))
        except Exception as error:  # the report names every error of a library
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            context.results.left_out.append(f"{name}: {reason}")
            if isinstance(error, RanEagerlyError):
                context.results.ran_eagerly.append(context.results.left_out[-1])
                context.eager_variants.add(config.variant)
    if not runs:
        return
    timers = {str(number): run.seconds for number, run in enumerate(runs)}
    timers |= _field_timers(context, runs, gradient=family != "forward")
    context.on_progress(f"{case}, {family}, tol {tol:g}: timing {len(runs)} solves")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = measure.interleave(timers, context.plan.repeats, context.plan.limit_s)
        alone: dict[str, list[float]] = {}
        for number, run in enumerate(runs) if context.plan.alone else ():
            alone |= measure.interleave({str(number): run.seconds}, context.plan.repeats, context.plan.limit_s)
    for number, run in enumerate(runs):
        costs, field_name = run.costs, _field_name(context.problem, run.config)
        field_s = None
        if field_name:
            field_s = measure.field_seconds(times, field_name, costs.nfe_forward, costs.nfe_backward)
        seconds = (times[str(number)], alone.get(str(number), []))
        context.results.rows.append(_row(context, family, tol, run, seconds, field_s))


def _prepare(context: _CaseContext, config: LibraryConfig, tol: float) -> PreparedRun:
    if config.library == "diffrax":
        assert context.client is not None
        return prepare_diffrax(context.client, config, tol)
    if not context.plan.compile_time or config.variant not in COMPILED:
        return prepare(context.problem, config, tol)
    folder = Path(tempfile.mkdtemp(dir=context.cache))
    with compiler_cache(folder):
        seconds = compile_seconds(context.problem.case, config, tol)
        run = prepare(context.problem, config, tol)
    run.costs.compile_cold_s, run.costs.compile_warm_s = seconds
    return run


def _field_name(problem: CaseProblem, config: LibraryConfig) -> str:
    """The name of the implementation of the vector field that the library solves.

    It is "" if the field cannot be timed alone: a compiled solve does not call it from Python.
    """
    if config.library == "diffrax":
        return "diffrax"
    if config.variant == "compiled":
        return "ours compiled"
    if config.variant in COMPILED:
        return ""
    return "ours" if config.library == "odebench" or problem.published is problem.field else "published"


def _field_timers(context: _CaseContext, runs: list[PreparedRun], gradient: bool) -> dict[str, Callable[[], float]]:
    """Functions that time the fields alone, with and without vector-Jacobian products."""
    problem, client = context.problem, context.client
    fields = {"ours": problem.field, "ours compiled": problem.field, "published": problem.published}
    kinds = (measure.FIELD_ONLY, measure.VJPS_TOGETHER, measure.VJP_EACH) if gradient else (measure.FIELD_ONLY,)
    timers: dict[str, Callable[[], float]] = {}
    for name, kind in itertools.product({_field_name(problem, run.config) for run in runs} - {""}, kinds):
        if name == "diffrax":
            assert client is not None
            timers[f"{name} {kind}"] = functools.partial(client.field_seconds, kind != measure.FIELD_ONLY)
        else:
            make_timer = functools.partial(measure.field_timer, t=problem.times[0], state=problem.state, kind=kind)
            vector_field: Any = fields[name]
            try:
                if name == "ours compiled":
                    vector_field = torch.compile(vector_field, dynamic=False)
                timers[f"{name} {kind}"] = make_timer(vector_field)
            except torch._dynamo.exc.TorchDynamoException:  # without a compiler the steps were not compiled either
                timers[f"{name} {kind}"] = make_timer(fields[name])
    return timers


def _row(
    context: _CaseContext,
    family: str,
    tol: float,
    run: PreparedRun,
    seconds: tuple[list[float], list[float]],
    field_s: float | None,
) -> dict[str, Any]:
    """Make one row of results.csv.

    seconds: the times of the runs in turns, and of those in a row, if any; field_s: the time of the field alone, if
    known.
    """
    problem, reference, output = context.problem, context.reference, run.output
    num_parameters, (in_turns, alone) = len(problem.parameters), seconds
    low, _, high = statistics.quantiles(in_turns, n=4, method="inclusive") if len(in_turns) > 1 else 3 * in_turns
    errors: list[float | None] = [None, None]
    if output.gradients is not None and reference.gradients is not None:
        parts = (slice(num_parameters), slice(num_parameters, None))
        errors = [relative_error(output.gradients[part], reference.gradients[part]) for part in parts]
    return {
        "work": problem.case.name,
        "family": family,
        **dataclasses.asdict(run.config),
        "tol": tol,
        "batch": problem.case.batch,
        "time_min_ms": 1e3 * min(in_turns),
        "time_median_ms": 1e3 * statistics.median(in_turns),
        "time_low_ms": 1e3 * low,
        "time_high_ms": 1e3 * high,
        "runs": len(in_turns),
        "alone_min_ms": 1e3 * min(alone) if alone else None,
        "alone_median_ms": 1e3 * statistics.median(alone) if alone else None,
        "bare_ms": None if field_s is None else 1e3 * field_s,
        "state_error": relative_error(output.states, reference.states),
        "parameter_gradient_error": errors[0],
        "state_gradient_error": errors[1],
        **dataclasses.asdict(run.costs),
        "version": installed_version(run.config.library),
    }

"""The contest: which library, mode and variant meets which work, and what is measured of each."""

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from odebench.bench import measure
from odebench.bench.cases import BenchmarkCase, CaseProblem, build
from odebench.bench.diffrax_client import DiffraxClient
from odebench.bench.libraries import FAMILIES, FORWARD, LIBRARIES, installed_version
from odebench.bench.preparation import LibraryConfig, PreparedRun, prepare, prepare_remote
from odebench.bench.reference import ReferenceSolution, relative_error, solve_reference

ProgressCallback = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkPlan:
    """What the user wants measured.

    modes, libraries: in the order of the table. methods: None takes each work's own. tols: None takes each work's own.
    named: whether the user named the libraries. limit_s: time for one contestant's timed runs.
    """

    works: tuple[BenchmarkCase, ...]
    modes: tuple[str, ...]
    libraries: tuple[str, ...]
    methods: tuple[str, ...] | None = None
    tols: tuple[float, ...] | None = None
    named: bool = False
    repeats: int = 10
    limit_s: float = 2.0
    compiled: bool = False


@dataclass
class BenchmarkResults:
    """Everything that was measured: a row a contestant, and who is missing, why."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _CaseContext:
    """Where contestants meet: a problem, its truth, and the process of the library that needs one."""

    problem: CaseProblem
    truth: ReferenceSolution
    remote: DiffraxClient | None


def measure_all(plan: BenchmarkPlan, outcome: BenchmarkResults, tell: ProgressCallback) -> Iterator[BenchmarkCase]:
    """Measures work by work into ``outcome``; yields each work when it is done. ``tell`` hears what is going on."""
    missing = [name for name in plan.libraries if installed_version(name) is None]
    outcome.left_out += [f"{name}: not installed" for name in missing]
    for work in plan.works:
        libraries = [name for name in plan.libraries if name not in missing]
        if not plan.named:
            slow = [name for name in libraries if name in work.minutes_for]
            outcome.left_out += [f"{name} on {work.name}: takes minutes; --peers {name} asks for it" for name in slow]
            libraries = [name for name in libraries if name not in slow]
        problem = build(work)
        tell(f"{work.name}: reference")
        try:
            truth = solve_reference(problem, gradients=any(mode != FORWARD for mode in plan.modes))
        except ModuleNotFoundError:
            outcome.left_out.append(f"{work.name}: its reference needs SciPy")
            continue
        with contextlib.ExitStack() as stack:
            remote = stack.enter_context(DiffraxClient(problem)) if "diffrax" in libraries else None
            ring = _CaseContext(problem, truth, remote)
            for tol, family in itertools.product(plan.tols or (work.tol,), FAMILIES):
                modes = [mode for mode in FAMILIES[family] if mode in plan.modes]
                contestants = list(_contestants(plan, work, libraries, modes))
                _measure_family(plan, ring, family, tol, contestants, outcome, tell)
        yield work


def _contestants(
    plan: BenchmarkPlan, work: BenchmarkCase, libraries: Sequence[str], modes: Sequence[str]
) -> Iterator[LibraryConfig]:
    """Everybody who can do the work in one of the modes."""
    for name in libraries:
        library = LIBRARIES[name]
        variants = [*library.variants]
        if name == "odebench" and plan.compiled:
            variants.append(("compiled", ""))
        if work.per_sample and name in ("odebench", "torchode"):
            variants.append(("per_sample", ""))
        for method, mode in itertools.product(plan.methods or work.methods, modes):
            if mode == "reversible" and f"reversible_{method}" in library.methods:
                method = f"reversible_{method}"
            if method in library.methods and mode in library.modes:
                yield LibraryConfig(name, method, mode, "")
                for variant, only in variants:
                    if only in ("", mode):
                        yield LibraryConfig(name, method, mode, variant)


def _measure_family(
    plan: BenchmarkPlan,
    ring: _CaseContext,
    family: str,
    tol: float,
    contestants: list[LibraryConfig],
    outcome: BenchmarkResults,
    tell: ProgressCallback,
) -> None:
    """Rows of the contestants whose times are compared with one another, timed turn by turn."""
    work = ring.problem.work.name
    entries: list[PreparedRun] = []
    for contestant in contestants:
        name = f"{work}, {contestant.mode}, tol {tol:g}: {contestant.label} {contestant.method}"
        tell(name)
        try:
            if contestant.library == "diffrax":
                assert ring.remote is not None
                entries.append(prepare_remote(ring.remote, contestant, tol))
            else:
                entries.append(prepare(ring.problem, contestant, tol))
        except Exception as error:  # whatever a library raises is its answer, told by name
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            outcome.left_out.append(f"{name}: {reason}")
    if not entries:
        return
    runs = {str(number): entry.seconds for number, entry in enumerate(entries)}
    runs |= _bare_runs(ring, entries, gradient=family != "forward")
    tell(f"{work}, {family}, tol {tol:g}: timing {len(entries)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = measure.interleave(runs, plan.repeats, plan.limit_s)
    for number, entry in enumerate(entries):
        times_and_bare = times[str(number)], _bare_ms(ring.problem, entry, times)
        outcome.rows.append(_row(ring, family, tol, entry, *times_and_bare))


def _whose_field(problem: CaseProblem, contestant: LibraryConfig) -> str:
    if contestant.library == "diffrax":
        return "diffrax"
    if contestant.variant == "compiled":
        return "ours compiled"
    return "ours" if contestant.library == "odebench" or problem.published is problem.field else "published"


def _bare_runs(ring: _CaseContext, entries: list[PreparedRun], gradient: bool) -> dict[str, Callable[[], float]]:
    """The fields that the entries solve, alone, without and with their vector-Jacobian products."""
    problem, remote = ring.problem, ring.remote
    fields = {"ours": problem.field, "ours compiled": problem.field, "published": problem.published}
    kinds = (measure.PLAIN, measure.TOGETHER, measure.APART) if gradient else (measure.PLAIN,)
    runs: dict[str, Callable[[], float]] = {}
    for whose, kind in itertools.product({_whose_field(problem, entry.contestant) for entry in entries}, kinds):
        if whose == "diffrax":
            assert remote is not None
            runs[f"{whose} {kind}"] = functools.partial(remote.bare_seconds, kind != measure.PLAIN)
        else:
            run = functools.partial(measure.bare, t=problem.times[0], state=problem.state, kind=kind)
            vector_field: Any = fields[whose]
            try:
                if whose == "ours compiled":
                    vector_field = torch.compile(vector_field, dynamic=False)
                runs[f"{whose} {kind}"] = run(vector_field)
            except torch._dynamo.exc.TorchDynamoException:  # no compiler: the steps were not compiled either
                runs[f"{whose} {kind}"] = run(fields[whose])
    return runs


def _bare_ms(problem: CaseProblem, entry: PreparedRun, times: dict[str, measure.RunTimes]) -> float:
    """What the contestant's evaluations alone would take at best: f for each, and the product of each that is
    differentiated (those of the backward pass where there are any, else those of the forward one)."""
    forward, backward = entry.costs.nfe_forward, entry.costs.nfe_backward
    whose = _whose_field(problem, entry.contestant)
    plain_ms = times[f"{whose} {measure.PLAIN}"].min_ms
    if entry.contestant.mode == FORWARD:
        return forward * plain_ms
    if not backward:
        return forward * times[f"{whose} {measure.TOGETHER}"].min_ms
    return forward * plain_ms + backward * times[f"{whose} {measure.APART}"].min_ms


def _row(
    ring: _CaseContext, family: str, tol: float, entry: PreparedRun, times: measure.RunTimes, bare_ms: float
) -> dict[str, Any]:
    """All numbers of one contestant under the names they are written with."""
    problem, truth = ring.problem, ring.truth
    contestant, answer, costs = entry.contestant, entry.answer, entry.costs
    num_parameters = len(problem.parameters)
    errors: list[float | None] = [None, None]
    if answer.gradients is not None and truth.gradients is not None:
        parts = (slice(num_parameters), slice(num_parameters, None))
        errors = [relative_error(answer.gradients[part], truth.gradients[part]) for part in parts]
    return {
        "work": problem.work.name,
        "family": family,
        "library": contestant.library,
        "variant": contestant.variant,
        "mode": contestant.mode,
        "method": contestant.method,
        "tol": tol,
        "time_min_ms": times.min_ms,
        "time_median_ms": times.median_ms,
        "runs": len(times.seconds),
        "bare_ms": bare_ms,
        "nfe_forward": costs.nfe_forward,
        "nfe_backward": costs.nfe_backward,
        "rows_forward": costs.rows_forward,
        "accepted": costs.steps.accepted if costs.steps else None,
        "rejected": costs.steps.rejected if costs.steps else None,
        "state_error": relative_error(answer.states, truth.states),
        "parameter_gradient_error": errors[0],
        "state_gradient_error": errors[1],
        "peak_mib": costs.peak_mib,
        "operations_per_step": costs.operations,
        "synchronisations_per_step": costs.synchronisations,
        "version": installed_version(contestant.library),
    }

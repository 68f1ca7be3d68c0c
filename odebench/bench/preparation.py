"""A contestant made ready: run once and counted, once watched, and from then on only timed."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odebench.bench import measure
from odebench.bench.cases import CaseProblem, leaves_of, like, loss
from odebench.bench.diffrax_client import DiffraxClient
from odebench.bench.libraries import FORWARD, LIBRARIES, SolveFunction, SolveRequest, StepCounts
from odebench.ode.methods import METHODS, Tableau
from odebench.record.profiling import measure_step

# A solve that evaluates more often than this is given up: it will not end.
MAX_EVALUATIONS = 50_000


@dataclass(frozen=True)
class LibraryConfig:
    """A library that solves by a method in a mode, in a variant of its own ("" the plain one)."""

    library: str
    method: str
    mode: str
    variant: str

    @property
    def label(self) -> str:
        """Library and variant in one word or two."""
        return f"{self.library} {self.variant}".rstrip()


@dataclass(frozen=True)
class RunOutput:
    """What one run gives: states, each tensor [T, *its shape]; gradients of the parameters, then of the state."""

    states: list[Tensor]
    gradients: list[Tensor] | None
    steps: StepCounts | None


@dataclass
class RunCosts:
    """What one run costs besides time; None where it cannot be told.

    rows_forward: rows of the batch over all evaluations of the forward solve.
    peak_mib: the most tensors alive at once. operations, synchronisations: tensor operations and waits a step of the
        forward solve, outside the field.
    """

    nfe_forward: int
    nfe_backward: int
    steps: StepCounts | None
    rows_forward: int | None = None
    peak_mib: float | None = None
    operations: float | None = None
    synchronisations: float | None = None


@dataclass
class PreparedRun:
    """A contestant that is ready; ``seconds`` runs it once and returns the time."""

    contestant: LibraryConfig
    answer: RunOutput
    costs: RunCosts
    seconds: Callable[[], float]


class TooManyEvaluations(RuntimeError):
    """A solve that was given up."""


class _LimitedField(measure.CountingField):
    def forward(self, t: Tensor, y: Any) -> Any:
        if self.calls >= MAX_EVALUATIONS:
            raise TooManyEvaluations(f"more than {MAX_EVALUATIONS:,} evaluations")
        return super().forward(t, y)


def prepare(problem: CaseProblem, contestant: LibraryConfig, tol: float) -> PreparedRun:
    """Counts, watches and warms up a contestant. Raises what its library raises, and TooManyEvaluations."""
    library = LIBRARIES[contestant.library]
    vector_field = problem.field if contestant.library == "odebench" else problem.published
    run = functools.partial(_run, problem, contestant.mode, _adapt(problem, contestant, vector_field, tol))
    # Compiled code neither counts nor can be watched; it evaluates as often as the eager one
    # (a compiled adjoint, which keeps no stage, once more for each further step of an interval).
    eager = dataclasses.replace(contestant, variant="") if contestant.variant == "compiled" else contestant
    answers: list[RunOutput] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        costs = _count(problem, eager, _LimitedField(vector_field), tol)
        if library.torch_memory and contestant is eager:
            costs.peak_mib = measure_step(lambda: answers.append(run()), "cpu")["memory/peak_mib"]
        else:
            answers.append(run())
    if contestant is not eager:
        costs.operations = costs.synchronisations = None
    return PreparedRun(contestant, answers[0], costs, measure.stopwatch(run))


def prepare_remote(remote: DiffraxClient, contestant: LibraryConfig, tol: float) -> PreparedRun:
    """The same for the library in its own process. Raises RuntimeError."""
    reply = remote.prepare(contestant.mode, LIBRARIES["diffrax"].methods[contestant.method], tol)
    steps = StepCounts(reply["accepted"], reply["rejected"])
    answer = RunOutput(reply["states"], reply["gradients"], steps)
    costs = RunCosts(reply["nfe_forward"], reply["nfe_backward"], steps)
    return PreparedRun(contestant, answer, costs, functools.partial(remote.seconds, reply["job"]))


def _adapt(problem: CaseProblem, contestant: LibraryConfig, vector_field: nn.Module, tol: float) -> SolveFunction:
    adapt = LIBRARIES[contestant.library].adapt
    assert adapt is not None
    method, mode, variant = contestant.method, contestant.mode, contestant.variant
    return adapt(SolveRequest(vector_field, problem.state, problem.times, method, mode, variant, tol, tol))


def _run(
    problem: CaseProblem, mode: str, solve: SolveFunction, between: Callable[[], None] = lambda: None
) -> RunOutput:
    """One solve and, in a gradient mode, the gradients; ``between`` is called when the solve is done."""
    if mode == FORWARD:
        with torch.no_grad():
            states, steps = solve(problem.state)
        between()
        return RunOutput(leaves_of(states), None, steps)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves_of(problem.state)]
    states, steps = solve(like(problem.state, leaves))
    between()
    gradients = torch.autograd.grad(loss(states), [*problem.parameters, *leaves])
    return RunOutput([leaf.detach() for leaf in leaves_of(states)], list(gradients), steps)


def _count(problem: CaseProblem, contestant: LibraryConfig, counted: measure.CountingField, tol: float) -> RunCosts:
    """Evaluations and steps of one run; and operations a step, from the difference of two forward solves, so that what
    a solve does once drops out."""
    solve = _adapt(problem, contestant, counted, tol)
    before: list[int] = []
    answer = _run(problem, contestant.mode, solve, lambda: before.extend((counted.calls, counted.rows)))
    nfe_forward, rows_forward = before
    steps = answer.steps
    if steps is None and counted.accepted:
        steps = StepCounts(counted.accepted, counted.rejected)
    costs = RunCosts(nfe_forward, counted.calls - nfe_forward, steps, rows_forward)
    if not LIBRARIES[contestant.library].torch_memory:
        return costs
    tight = _operations(problem, contestant, counted, solve)
    loose = _operations(problem, contestant, counted, _adapt(problem, contestant, counted, 30 * tol))
    if tight[0] == loose[0] or not isinstance(METHODS.get(contestant.method), Tableau):
        loose = (0.0, 0, 0)  # the mean: implicit steps do not all cost the same
    if tight[0] is not None and loose[0] is not None:
        costs.operations, costs.synchronisations = (
            (a - b) / (tight[0] - loose[0]) for a, b in zip(tight[1:], loose[1:], strict=True)
        )
    return costs


def _operations(
    problem: CaseProblem, contestant: LibraryConfig, counted: measure.CountingField, solve: SolveFunction
) -> tuple[float | None, int, int]:
    """Steps of one forward solve, rejected ones included, its operations and its waits."""
    counted.reset()
    gradient = contestant.mode != FORWARD
    leaves = [leaf.detach().requires_grad_(gradient) for leaf in leaves_of(problem.state)]
    with torch.set_grad_enabled(gradient), measure.OperationCounter(counted) as seen:
        _, steps = solve(like(problem.state, leaves))
    tableau = METHODS.get(contestant.method)
    num_steps: float | None = None
    if steps is not None and contestant.variant != "per_sample":  # there each row has its own
        num_steps = steps.accepted + steps.rejected
    elif counted.accepted:
        num_steps = counted.accepted + counted.rejected
    elif isinstance(tableau, Tableau):  # who does not tell shows it by its evaluations
        num_steps = counted.calls / (tableau.stages - tableau.fsal)
    return num_steps, seen.operations, seen.synchronisations

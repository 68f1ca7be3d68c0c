"""Prepare a library for timing: one run counts evaluations and steps, another measures memory."""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from odebench.bench import measure
from odebench.bench.cases import CaseProblem, State, leaves_of, like_state, loss
from odebench.bench.diffrax_client import DiffraxClient
from odebench.bench.libraries import COMPILED, FORWARD, LIBRARIES, SolveFunction, SolveRequest, StepCounts
from odebench.ode.methods import METHODS, Tableau
from odebench.record.profiling import measure_step

# A solve with more evaluations than this is stopped.
MAX_EVALUATIONS = 50_000


class RanEagerlyError(RuntimeError):
    """torch could not compile a solve, so it ran eagerly. The message is the solver's warning."""


@dataclass(frozen=True)
class LibraryConfig:
    """A library, a method, a mode, and a variant of the library ("" is the default)."""

    library: str
    method: str
    mode: str
    variant: str

    @property
    def label(self) -> str:
        """The names of library and variant."""
        return f"{self.library} {self.variant}".rstrip()


@dataclass(frozen=True)
class RunOutput:
    """The results of one run.

    states: each tensor [T, *its shape]. gradients: those for the parameters, then those for the initial state.
    """

    states: list[Tensor]
    gradients: list[Tensor] | None
    steps: StepCounts | None


@dataclass
class RunCosts:
    """Costs of one run besides time, named like the columns of results.csv; None if unknown.

    rows_forward: the number of rows evaluated in the forward solve, summed over evaluations.
    peak_mib: the peak memory of tensors.
    compile_cold_s, compile_warm_s: the seconds to compile, with an empty and with a filled cache on disk.
    operations_per_step, synchronisations_per_step: tensor operations and synchronisations of the host in the forward
        solve, outside the field.
    """

    nfe_forward: int
    nfe_backward: int
    rows_forward: int | None = None
    accepted: int | None = None
    rejected: int | None = None
    peak_mib: float | None = None
    operations_per_step: float | None = None
    synchronisations_per_step: float | None = None
    compile_cold_s: float | None = None
    compile_warm_s: float | None = None


@dataclass
class PreparedRun:
    """A configuration ready for timing; ``seconds`` runs it once and returns the time."""

    config: LibraryConfig
    output: RunOutput
    costs: RunCosts
    seconds: Callable[[], float]


def prepare(problem: CaseProblem, config: LibraryConfig, tol: float) -> PreparedRun:
    """Count evaluations and steps, measure memory and warm up.

    Raises what the library raises, measure.TooManyEvaluations, or RanEagerlyError.
    """
    library = LIBRARIES[config.library]
    vector_field = _field_of(problem, config)
    run = make_run(problem, config, tol)
    # Evaluations in compiled code cannot be counted; there are as many as in eager code. (A compiled adjoint, which
    # keeps no stage, evaluates once more for each step of an interval after the first.)
    eager = dataclasses.replace(config, variant="") if config.variant in COMPILED else config
    outputs: list[RunOutput] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        costs = _count(problem, eager, measure.CountingField(vector_field, MAX_EVALUATIONS), tol)
        if library.torch_memory and config is eager:
            costs.peak_mib = measure_step(lambda: outputs.append(run()), "cpu")["memory/peak_mib"]
        else:
            outputs.append(run())
    for text in (str(warning.message) for warning in caught):
        if re.match("compile=.* has no effect", text):
            raise RanEagerlyError(text.splitlines()[0])
    if config is not eager:
        costs.operations_per_step = costs.synchronisations_per_step = None
    return PreparedRun(config, outputs[0], costs, measure.timed(run))


def prepare_diffrax(client: DiffraxClient, config: LibraryConfig, tol: float) -> PreparedRun:
    """Prepare diffrax, which runs in its own process. Raises RuntimeError if that process fails."""
    reply = client.prepare(config.mode, LIBRARIES["diffrax"].methods[config.method], tol)
    steps = StepCounts(reply["accepted"], reply["rejected"])
    output = RunOutput(reply["states"], reply["gradients"], steps)
    costs = RunCosts(reply["nfe_forward"], reply["nfe_backward"], None, *steps, compile_cold_s=reply["compile_s"])
    return PreparedRun(config, output, costs, functools.partial(client.seconds, reply["index"]))


def make_run(problem: CaseProblem, config: LibraryConfig, tol: float) -> Callable[[], RunOutput]:
    """Make a function that solves the problem once and, in a gradient mode, computes the gradients."""
    return functools.partial(_run, problem, config.mode, _make_solve(problem, config, _field_of(problem, config), tol))


def _field_of(problem: CaseProblem, config: LibraryConfig) -> nn.Module:
    return problem.field if config.library == "odebench" else problem.published


def _make_solve(problem: CaseProblem, config: LibraryConfig, vector_field: nn.Module, tol: float) -> SolveFunction:
    make_solve = LIBRARIES[config.library].make_solve
    assert make_solve is not None
    method, mode, variant = config.method, config.mode, config.variant
    return make_solve(SolveRequest(vector_field, problem.state, problem.times, method, mode, variant, tol, tol))


def _run(
    problem: CaseProblem, mode: str, solve: SolveFunction, between: Callable[[], None] = lambda: None
) -> RunOutput:
    """Solve once and, in a gradient mode, compute the gradients; ``between`` is called after the solve."""
    leaves, states, steps = _solve(problem, mode, solve)
    between()
    if mode == FORWARD:
        return RunOutput(leaves_of(states), None, steps)
    gradients = torch.autograd.grad(loss(states), [*problem.parameters, *leaves])
    return RunOutput([leaf.detach() for leaf in leaves_of(states)], list(gradients), steps)


def _solve(problem: CaseProblem, mode: str, solve: SolveFunction) -> tuple[list[Tensor], State, StepCounts | None]:
    """Solve forward; gradient modes record the graph.

    Returns the tensors of the initial state, the states at all times, and the numbers of steps.
    """
    gradient = mode != FORWARD
    leaves = [leaf.detach().requires_grad_(gradient) for leaf in leaves_of(problem.state)]
    with torch.set_grad_enabled(gradient):
        return leaves, *solve(like_state(problem.state, leaves))


def _count(problem: CaseProblem, config: LibraryConfig, counted: measure.CountingField, tol: float) -> RunCosts:
    """Count evaluations and steps of one run, and operations per step.

    Operations per step come from the difference of two forward solves with different tolerances, in which operations
    that a solve does only once cancel.
    """
    solve = _make_solve(problem, config, counted, tol)
    before: list[int] = []
    output = _run(problem, config.mode, solve, lambda: before.extend((counted.calls, counted.rows)))
    nfe_forward, rows_forward = before
    steps = output.steps
    if steps is None and counted.accepted:
        steps = StepCounts(counted.accepted, counted.rejected)
    costs = RunCosts(nfe_forward, counted.calls - nfe_forward, rows_forward, *(steps or ()))
    if not LIBRARIES[config.library].torch_memory:
        return costs
    tight = _operations(problem, config, counted, solve)
    loose = _operations(problem, config, counted, _make_solve(problem, config, counted, 30 * tol))
    if tight[0] == loose[0] or not isinstance(METHODS.get(config.method), Tableau):
        loose = (0.0, 0, 0)  # no difference but the mean over all steps, since implicit steps have different costs
    if tight[0] is not None and loose[0] is not None:
        costs.operations_per_step, costs.synchronisations_per_step = (
            (a - b) / (tight[0] - loose[0]) for a, b in zip(tight[1:], loose[1:], strict=True)
        )
    return costs


def _operations(
    problem: CaseProblem, config: LibraryConfig, counted: measure.CountingField, solve: SolveFunction
) -> tuple[float | None, int, int]:
    """The numbers of steps (with rejected ones), operations and synchronisations of one forward solve."""
    counted.reset()
    with measure.OperationCounter(counted) as counter:
        *_, steps = _solve(problem, config.mode, solve)
    tableau = METHODS.get(config.method)
    num_steps: float | None = None
    if steps is not None and config.variant != "per_sample":  # with per-sample steps, each row has its own
        num_steps = steps.accepted + steps.rejected
    elif counted.accepted:
        num_steps = counted.accepted + counted.rejected
    elif isinstance(tableau, Tableau):  # the library does not report steps, so derive them from evaluations
        num_steps = counted.calls / (tableau.stages - tableau.fsal)
    return num_steps, counter.operations, counter.synchronisations

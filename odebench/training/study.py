"""Evaluate a trained model with many solvers and tolerances: its metrics, its cost, and its numerical errors.

Each combination of settings is evaluated on a split. On fixed batches, the study also measures the time and the error
of the model's outputs, and the NFE and time of a training step. The error is measured against the reference: the same
model, solved far more accurately in float64.

If gradients are compared, the study also measures the memory of a training step, and two errors of its gradient:
against the exact gradient of the same discrete solve, and against the gradient of the reference; and the error of the
initial states after solving back from the final ones, as the adjoint does.
"""

import contextlib
import dataclasses
import logging
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from odebench.config.settings import Settings
from odebench.console import print_table, print_text
from odebench.errors import Diverged, UsageError
from odebench.ode import Solution, SolveError
from odebench.record.profiling import measure_step
from odebench.tasks import Loss, Task
from odebench.training.environment import choose_device, prepare_processor
from odebench.training.restored_state import restored_state
from odebench.training.trained_run import (
    SavedRun,
    TrainedRun,
    append_evaluation,
    build_trained_run,
    read_trained_run,
    seeded,
    with_evaluation_solver,
    write_evaluations,
)

log = logging.getLogger(__name__)

# dopri8 would take ten times as many evaluations for fields with kinks, such as those of ReLU networks.
REFERENCE_SOLVER, REFERENCE_TOL = "dopri5", 1e-9
REFERENCE = f"{REFERENCE_SOLVER} at {REFERENCE_TOL:g} in float64"
# The number of samples of the split whose outputs are compared.
NUM_OUTPUTS = 100
# Settings of the ODE solve. All other settings are the same for the reference.
_SOLVER_GROUPS = ("solver", "tol", "eval_solver", "eval_tol", "gradient")
_KEYS_WITH_OWN_COLUMN = ("solver", "tol", "solver.steps", "solver.step_size")
_COST_COLUMNS = {
    "nfe": ("NFE", "{:.1f}"),
    "batch_ms": ("ms", "{:.1f}"),
    "output_error": ("output error", "{:.1e}"),
    "nfe_forward": ("forward", "{:.0f}"),
    "nfe_backward": ("backward", "{:.0f}"),
    "forward_ms": ("forward ms", "{:.0f}"),
    "backward_ms": ("backward ms", "{:.0f}"),
    "peak_mib": ("peak MiB", "{:.4g}"),
    "gradient_error_discrete": ("gradient error (discrete)", "{:.1e}"),
    "gradient_error": ("gradient error", "{:.1e}"),
    "reversal_error": ("error after solving back", "{:.1e}"),
}


def study_run(
    path: Path,
    combinations: Sequence[list[str]],
    split: str = "validation",
    limit: int | None = None,
    gradients: bool = False,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Evaluate a finished run with each combination of settings and print a table.

    Appends a line for each combination to the run's evaluations.jsonl. Combinations that give the same result, such as
    several tolerances for a solver with fixed steps, are evaluated once. If a solve fails, a warning is logged, and the
    line contains the reason. Returns the metrics of each row of the table.

    limit: evaluate only this many samples of the split. gradients: compare gradients even if the gradient mode does not
    vary. output: a new CSV file for the numbers. Raises UsageError, before anything is evaluated, if a combination is
    invalid or the model has no ODE; Diverged if the reference solve fails.
    """
    saved = read_trained_run(path)
    chosen = _distinct_evaluations(saved, combinations)
    varying = _varying_keys(combinations)
    compares_gradients = gradients or any(_config_group(key) == "gradient" for key in varying)
    references: dict[tuple[str, ...], ReferenceModel] = {}
    results, table, lines = [], [], []
    for number, (overrides, settings) in enumerate(chosen, 1):
        log.info("%d of %d: %s", number, len(chosen), " ".join(overrides))
        prepare_processor(settings, choose_device(settings.device))
        others = tuple(override for override in overrides if _config_group(override) not in _SOLVER_GROUPS)
        if others not in references:
            references[others] = ReferenceModel(saved, others, split, compares_gradients, limit)
        run = build_trained_run(saved, settings)
        if limit is not None:
            run.task.limit_split(split, limit)
        try:
            metrics = references[others].compare(run, overrides, split)
        except Diverged as error:
            log.warning("skipped: %s: %s", " ".join(overrides), error)
            lines.append(append_evaluation(run, overrides, split, limit, {"failed": str(error)}))
            continue
        lines.append(append_evaluation(run, overrides, split, limit, {**metrics, "reference": REFERENCE}))
        results.append(metrics)
        values = dict(override.split("=", 1) for override in overrides)
        varied = {key: values[key] for key in varying if key not in _KEYS_WITH_OWN_COLUMN}
        # Cut off the confidence intervals and standard errors that follow the numbers.
        cells = {name: re.split(r"  \(| ±", text)[0] for name, text in run.task.format_metrics(metrics)}
        cells |= {title: form.format(metrics[name]) for name, (title, form) in _COST_COLUMNS.items() if name in metrics}
        solver = settings.evaluation_solver
        table.append({"solver": solver.name, "tol": solver.step_control.removeprefix("tol "), **varied, **cells})
    if output is not None:
        write_evaluations(lines, output)
    if table:
        _print_study(table, f"{'' if limit is None else f'first {limit:,} samples of the '}{split} split")
    return results


def _print_study(table: Sequence[dict[str, str]], evaluated: str) -> None:
    titles = list(dict.fromkeys(title for row in table for title in row))
    rows = [titles, *([row.get(title, "-") for title in titles] for row in table)]
    print_table(rows, less_important=("ms", "forward ms", "backward ms"))
    print_text(
        "",
        f"evaluated: {evaluated}; ms: {NUM_OUTPUTS} samples at most; output error: against {REFERENCE}",
        "forward, backward: NFE and time of a training step; memory and gradients: of that step",
    )


class ReferenceModel:
    """The outputs and the gradient of a run's model, solved with high accuracy. Other solves are compared with them."""

    def __init__(
        self, saved: SavedRun, others: Sequence[str], split: str, with_gradient: bool, limit: int | None = None
    ) -> None:
        """Solve the model with high accuracy.

        saved: see ``read_trained_run``. others: overrides that do not concern the solver. with_gradient: also compute
        the gradient. limit: use only this many samples of the split.
        """
        solver = [f"solver={REFERENCE_SOLVER}", "solver.max_steps=100000", f"tol={REFERENCE_TOL:g}"]
        settings = saved.override([*others, *solver, "gradient=checkpoint", "trainer.precision=float32"])
        run = build_trained_run(saved, settings)
        to_double(run.task)
        self._saved = saved
        self._num = NUM_OUTPUTS if limit is None else min(NUM_OUTPUTS, limit)
        self.outputs = task_outputs(run.task, split, self._num).double()
        self._gradient = _loss_gradient(run) if with_gradient else None
        self._is_warmed_up = with_gradient

    def compare(self, run: TrainedRun, overrides: list[str], split: str) -> dict[str, Any]:
        """Evaluate ``run`` and compare it with the reference; return the metrics of one row of the table."""
        task = run.task
        solver = run.settings.solver
        metrics: dict[str, Any] = {
            "gradient": run.settings.gradient.name,
            "step_solver": solver.name,
            "step_tol": None if solver.fixed or solver.rtol != solver.atol else solver.rtol,
        }
        with seeded(run):
            metrics |= task.evaluate(split)
        model_outputs = task_outputs(task, split, self._num)
        started = time.perf_counter()
        _ = task_outputs(task, split, self._num).sum().item()  # synchronises with the device
        metrics["batch_ms"] = 1e3 * (time.perf_counter() - started)
        metrics["output_error"] = relative_error(model_outputs, self.outputs)
        try:
            if not self._is_warmed_up:
                _time_training_step(run)  # the first backward pass includes one-time costs
                self._is_warmed_up = True
            cost, gradient = _time_training_step(run)
            metrics |= cost
            if cost and self._gradient is not None:
                metrics["peak_mib"] = _peak_mib(run)
                metrics["gradient_error"] = relative_error(gradient, self._gradient)
                metrics["reversal_error"] = _reversal_error(task, split, self._num)
                if (discrete := _discrete_gradient(self._saved, run, overrides)) is not None:
                    metrics["gradient_error_discrete"] = relative_error(gradient, discrete)
        except Diverged as error:
            log.warning("the training step was not measured: %s: %s", " ".join(overrides), error)
        return metrics


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Return the 2-norm of the difference, divided by the 2-norm of the exact value."""
    return ((value.double() - exact.double()).norm() / exact.double().norm()).item()


@torch.no_grad()
def _reversal_error(task: Task, split: str, num: int) -> float:
    """Solve each ODE forward, then backward from its end. Returns the relative error of all initial states together."""
    solve, starts, returned = task.eval_solve, list[Tensor](), list[Tensor]()
    assert solve is not None

    def solve_and_return(f: Callable[..., Any], y0: Any, t: Any, **options: Any) -> Solution:
        solution = solve(f, y0, t, **options)
        end = tree_map(lambda y: y[-1], solution.y)
        back = solve(f, end, solution.t[..., [-1, 0]], **options)
        starts.extend(y.flatten() for y in tree_leaves(y0))
        returned.extend(y[-1].flatten() for y in tree_leaves(back.y))
        return solution

    task.eval_solve = cast(Any, solve_and_return)
    try:
        task_outputs(task, split, num)
    finally:
        task.eval_solve = solve
    return relative_error(torch.cat(returned), torch.cat(starts))


def _time_training_step(run: TrainedRun) -> tuple[dict[str, float], Tensor]:
    """Measure NFE and time of the forward and the backward pass over the first training batch.

    Returns these metrics (empty if training solves no ODE) and the gradient [P]. The update by the optimiser is not
    included, because it is the same for all solvers.
    """
    step = _TrainingStep(run)
    with restored_state(run.task):
        first_s = step.forward()[1]  # includes one-time costs
        loss, second_s = step.forward()
        backward_started = time.perf_counter()
        step.backward(loss)
        gradient = step.pop_gradient()
        backward_s = time.perf_counter() - backward_started
    if not loss.solves:
        return {}, gradient
    forward_s = min(first_s, second_s)
    metrics: dict[str, float] = {
        "nfe_forward": sum(stats.nfe for stats in loss.solves),
        "nfe_backward": sum(stats.backward.nfe for stats in loss.solves if stats.backward),
        "forward_ms": 1e3 * forward_s,
        "backward_ms": 1e3 * backward_s,
        "step_ms": 1e3 * (forward_s + backward_s),
    }
    return metrics, gradient


def _loss_gradient(run: TrainedRun) -> Tensor:
    """Compute the gradient [P] of the loss over the first training batch."""
    step = _TrainingStep(run)
    with restored_state(run.task):
        step.backward(step.forward()[0])
        return step.pop_gradient()


def _discrete_gradient(saved: SavedRun, run: TrainedRun, overrides: Sequence[str]) -> Tensor | None:
    """Compute the exact gradient [P] of the same discrete solve, with another gradient mode.

    None if the solver supports no exact mode, as with SciPy's methods.
    """
    forward = [override for override in overrides if _config_group(override) != "gradient"]
    if run.settings.gradient.name == "reversible" and not run.settings.solver.fixed:
        forward.append("solver.stop_at_times=true")  # the mode reversible always does this, other modes do not
    for mode in ("checkpoint", "backprop", "reversible"):
        if mode != run.settings.gradient.name:
            with contextlib.suppress(UsageError):
                return _loss_gradient(build_trained_run(saved, saved.override([*forward, f"gradient={mode}"])))
    return None


def _peak_mib(run: TrainedRun) -> float:
    """Measure the peak memory of a training step, as in training: in a separate eager step."""
    step = _TrainingStep(run)
    with restored_state(run.task), torch.compiler.set_stance("force_eager"):
        return measure_step(lambda: step.backward(step.forward()[0]), step.device)["memory/peak_mib"]


class _TrainingStep:
    """A training step over the first training batch, with the same random numbers each time. It updates no weights."""

    def __init__(self, run: TrainedRun) -> None:
        self._task, self._model = run.task, run.task.model
        first = next(self._model.parameters())
        self.device = first.device
        self._batch, self._state = cast_floats(self._task.batch(0), first.dtype), self._task.state_dict()
        self._model.zero_grad()

    def forward(self) -> tuple[Loss, float]:
        """Compute the loss; return it with the seconds that it took."""
        self._task.load_state_dict(self._state)
        torch.manual_seed(0)
        started = time.perf_counter()
        loss = self._task.loss(self._batch)
        loss.value.item()  # synchronises with the device
        return loss, time.perf_counter() - started

    def backward(self, loss: Loss) -> None:
        """Run the backward pass. Raises Diverged if the backward solve fails."""
        try:
            loss.value.backward()
        except SolveError as error:
            raise Diverged(str(error)) from error

    def pop_gradient(self) -> Tensor:
        """Return the gradient [P] of all parameters, and clear it in the model. Waits for the device."""
        self._model.eval()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._model.parameters()]
        gradient = torch.cat([part.flatten() for part in parts])
        gradient.sum().item()
        self._model.zero_grad()
        return gradient


def _distinct_evaluations(saved: SavedRun, combinations: Sequence[list[str]]) -> list[tuple[list[str], Settings]]:
    """Return the combinations with their settings, without those that give the same result as an earlier one."""
    distinct: list[tuple[list[str], Settings]] = []
    evaluations: list[Settings] = []
    for overrides in combinations:
        settings = saved.override(overrides)
        if not settings.has_ode:
            hint = f"evaluate it once: odebench eval {shlex.quote(str(saved.record.path))}"
            raise UsageError(f"{settings.model.name} has no ODE; {hint}")
        evaluation = with_evaluation_solver(settings)
        if evaluation.solver.fixed:
            # Tolerances have no effect with fixed steps.
            evaluation = replace(evaluation, tol=1.0, solver=replace(evaluation.solver, rtol=None, atol=None))
        if evaluation not in evaluations:
            evaluations.append(evaluation)
            distinct.append((overrides, settings))
    return distinct


def _varying_keys(combinations: Sequence[Sequence[str]]) -> list[str]:
    """Return the keys that have more than one value among the combinations."""
    values: dict[str, set[str]] = {}
    for override in (override for overrides in combinations for override in overrides):
        key, _, value = override.partition("=")
        values.setdefault(key, set()).add(value)
    return [key for key, some in values.items() if len(some) > 1]


def _config_group(override: str) -> str:
    """Return the group of an override's key, such as ``solver`` for ``solver.rtol=1e-3``."""
    return override.partition("=")[0].partition(".")[0].lstrip("+")


def task_outputs(task: Task, split: str, num: int) -> Tensor:
    """Call ``Task.outputs`` with the same random numbers each time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return task.outputs(split, num)


def to_double(task: Task) -> None:
    """Convert the model of a task to float64, and from now on also the inputs of the model."""
    task.model.double().register_forward_pre_hook(lambda model, inputs: cast_floats(inputs, torch.float64))


def cast_floats(value: Any, dtype: torch.dtype) -> Any:
    """Convert floating-point tensors to a dtype, also inside tuples and dataclasses; leave the rest unchanged."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(cast_floats(item, dtype) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: cast_floats(item, dtype) for name, item in vars(value).items()})
    return value

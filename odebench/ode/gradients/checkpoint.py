"""The exact gradient of the discrete solve by a hand-written backward pass over its steps.

An explicit Runge-Kutta step has the stages k_i = f(t + c_i h, Y_i), Y_i = y_n + h sum_j a_ij k_j. With lambda = dL/dy:

    l_i = h (b_i lambda_(n+1) + sum_(j>i) a_ji w_j),   w_i = (df/dy)(Y_i)^T l_i,   i = s .. 1,
    lambda_n = lambda_(n+1) + sum_i w_i,   dL/dtheta += (df/dtheta)(Y_i)^T l_i

(Hager 2000, Runge-Kutta methods in optimal control and the transformed adjoint system; Sanz-Serna 2016, Symplectic
Runge-Kutta schemes for adjoint equations). An output inside a step is linear in y_n and the k_i. Its gradient is added
to l_i and lambda_n, with the weights of the interpolant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from odebench.ode.arguments import as_positive_integer
from odebench.ode.forward_solve import ForwardSolve
from odebench.ode.gradients.captured_tensors import (
    FirstEvaluation,
    GradientAccumulator,
    first_evaluation,
    run_with_backward,
)
from odebench.ode.gradients.compiled_exact import solve_with_exact_gradient
from odebench.ode.gradients.stage_backward import OutputGradients, backward_through_stages
from odebench.ode.gradients.step_history import AcceptedStep, GraphHistory, Stage, StageRecorder, StateHistory
from odebench.ode.integrate import IntegrationResult
from odebench.ode.methods import Tableau
from odebench.ode.methods.steppers import make_stepper
from odebench.ode.once_differentiable import once_differentiable
from odebench.ode.plan import SolvePlan
from odebench.ode.solution import Stats
from odebench.ode.torch_func import without_autocast


@dataclass(frozen=True)
class Checkpoint:
    """The gradient of backpropagation, up to round-off, in less memory: the backward pass evaluates each step again.

    There are no second derivatives.

    checkpoints: the largest number of states stored at any moment; None stores the state of every accepted step. With
        fewer states, the steps between them are computed again, more than once if there are very few. The mode decides
        which states to store while the solve runs, since the number of adaptive steps is not known before.
    recompute: "step" holds the graph of one step at a time. "stage" holds the graph of one evaluation at a time, but
        evaluates everything twice.
    keep: "graphs" stores the graph of every evaluation instead of states, and evaluates nothing again. This is the work
        of backpropagation with fewer tensor operations.
    """

    checkpoints: int | None = None
    recompute: Literal["step", "stage"] = "step"
    keep: Literal["states", "graphs"] = "states"

    name = "checkpoint"

    def __post_init__(self) -> None:
        if self.checkpoints is not None:
            as_positive_integer("checkpoints", self.checkpoints)
        if self.recompute not in ("step", "stage"):
            raise ValueError(f"recompute must be 'step' or 'stage', got {self.recompute!r}")
        if self.keep not in ("states", "graphs"):
            raise ValueError(f"keep must be 'states' or 'graphs', got {self.keep!r}")

    def solve_with_gradient(self, solve: ForwardSolve) -> IntegrationResult:
        """Solve; return the states at the problem's times, and how the solve ended.

        Raises ValueError if f uses a tensor whose gradient this mode would lose.
        """
        if not torch.is_grad_enabled():
            return solve.result()
        if solve.plan.compile == "solve":
            return solve_with_exact_gradient(self, solve)
        first = first_evaluation(solve.problem, self.name, with_graph=self.keep == "graphs")
        return run_with_backward(_CheckpointSolve, solve, first, self)


class _CheckpointSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        solve: ForwardSolve,
        first: FirstEvaluation,
        mode: Checkpoint,
        results: list[IntegrationResult],
        y0: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        problem, plan = solve.problem, solve.plan
        keeps_graphs = mode.keep == "graphs" and any(ctx.needs_input_grad)
        field = StageRecorder(problem, first.args if keeps_graphs else problem.args, problem.stats, keeps_graphs)
        history: GraphHistory | StateHistory = StateHistory(mode.checkpoints)
        if keeps_graphs:
            assert isinstance(plan.method, Tableau)
            history = GraphHistory(field, plan.method, first)
        result = solve.result(field, first.f.detach(), history)
        history.close(result.end_time)
        results.append(result)
        ctx.mode, ctx.problem, ctx.plan, ctx.history = mode, problem, plan, history
        # Not as saved tensors: hooks may replace those, and captured tensors are recognised by identity.
        ctx.parameters, ctx.captured = first.parameters, first.captured
        ctx.times = result.times[: result.outcome.reached]
        ctx.args = first.args if keeps_graphs else None
        ctx.save_for_backward(y0, *tensors)
        return result.states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        problem, plan, history, mode = ctx.problem, ctx.plan, ctx.history, ctx.mode
        args = ctx.saved_tensors[1 + len(ctx.parameters) :]
        accumulator = GradientAccumulator(problem, mode.name, ctx.parameters, args, ctx.args, captured=ctx.captured)
        outputs = OutputGradients(ctx.times, grad_states, history)
        stats = Stats() if isinstance(history, GraphHistory) else problem.stats.backward or Stats()
        field = StageRecorder(problem, accumulator.args, stats, False)
        if isinstance(history, StateHistory):
            problem.stats.backward = stats
        with without_autocast(grad_states.device.type):
            if isinstance(history, GraphHistory):
                steps = history.reversed_steps(plan)
                a = backward_through_stages(plan, history, steps, field.graph, accumulator, outputs)
            elif isinstance(plan.method, Tableau) and not plan.compile and (plan.method.dense or outputs.at_step_ends):
                steps = _recomputed_stages(plan, history, field, outputs, with_graphs=mode.recompute == "step")
                a = backward_through_stages(plan, history, steps, field.graph, accumulator, outputs)
            else:
                # A method without dense output comes here if outputs lie inside steps: its cubic Hermite interpolant
                # uses f at both ends of a step.
                a = _backward_through_steps(plan, history, field, accumulator, outputs)
        return None, None, None, None, a + grad_states[0], *accumulator.gradients()


def _recomputed_stages(
    plan: SolvePlan, history: StateHistory, field: StageRecorder, outputs: OutputGradients, with_graphs: bool
) -> Iterator[tuple[int, list[Stage]]]:
    """Yield the number and stages of each step, from the last step to the first; the stages are evaluated again.

    The last stage of an FSAL method is omitted if no output needs it, or if it is the first stage of the next step.
    """
    method = plan.method
    assert isinstance(method, Tableau)
    side = history.side(plan)
    without_last, with_last = (
        make_stepper(tableau, field, outputs.gradients[0], side=side) for tableau in (method.for_fixed_steps(), method)
    )

    def advance(step: AcceptedStep, y: Tensor) -> Tensor:
        field.recording = False
        without_last.start(step.t, y, None)
        return without_last.attempt(step.t, step.h, y, True)

    for n, y in history.reversed_steps(advance):
        step = history.steps[n]
        needs_last = bool(outputs.inside_step(n)[0]) and not history.shares_last_stage(plan, n)
        stepper = with_last if needs_last else without_last
        field.recording, field.with_graphs, field.stages = True, with_graphs, []
        stepper.start(step.t, y, None)
        y_next = stepper.attempt(step.t, step.h, y, True)
        if needs_last:
            stepper.interpolant(step.t, step.t_next, y, y_next, plan.interpolation)
        if not with_graphs:
            field.recording = False
        yield n, field.stages


def _backward_through_steps(
    plan: SolvePlan,
    history: StateHistory,
    field: StageRecorder,
    accumulator: GradientAccumulator,
    outputs: OutputGradients,
) -> Tensor:
    """Do what ``backward_through_stages`` does, for any one-step method, with the graph of one step at a time."""
    a = torch.zeros_like(outputs.gradients[0])
    has_inner_outputs = any(outputs.inside_step(n)[0] for n in range(len(history.steps)))
    side = history.side(plan)
    options: dict[str, Any] = {"compiled": plan.compile, "with_stages": has_inner_outputs, "side": side}

    def advance(step: AcceptedStep, y: Tensor) -> Tensor:
        stepper = make_stepper(plan.method, field, y, **options)
        stepper.start(step.t, y, None)
        return stepper.attempt(step.t, step.h, y, True)

    for n, y in history.reversed_steps(advance):
        step, (thetas, gradients) = history.steps[n], outputs.inside_step(n)
        a = outputs.add_at_end(n, a)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            stepper = make_stepper(plan.method, field, y, **options)
            stepper.start(step.t, y, None)
            results = [stepper.attempt(step.t, step.h, y, True)]
            if thetas:
                interpolant = stepper.interpolant(step.t, step.t_next, y, results[0], plan.interpolation)
                results.append(interpolant.evaluate(thetas))
        accumulator.note_leaves(results, field.time_tensors([step.t])[0], [y])
        (a,) = accumulator.vjp_of([y], results, [a, gradients][: len(results)])
    return a

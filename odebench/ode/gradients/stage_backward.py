"""Backward pass through the stages of explicit Runge-Kutta steps, by the formulas in ``checkpoint``."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from odebench.ode.dense import evaluate_weights
from odebench.ode.gradients.captured_tensors import GradientAccumulator
from odebench.ode.gradients.step_history import Stage, StepHistory
from odebench.ode.methods import Tableau
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import EvaluationGraph
from odebench.ode.transfer import constant


class OutputGradients:
    """The gradients [T, N] with respect to the outputs, and the steps that the outputs lie in."""

    def __init__(self, times: list[float], gradients: Tensor, history: StepHistory) -> None:
        self.gradients = gradients
        self._inside: list[tuple[list[float], int]] = []
        self._output_at_end: list[int | None] = []
        next_output = 1
        for step in history.steps:
            first = next_output
            while next_output < len(times) and (times[next_output] - step.t_next) * step.h < 0:
                next_output += 1
            self._inside.append(([(time - step.t) / step.h for time in times[first:next_output]], first))
            ends = next_output < len(times) and times[next_output] == step.t_next
            self._output_at_end.append(next_output if ends else None)
            next_output += ends

    @property
    def at_step_ends(self) -> bool:
        """Whether every output lies at the end of a step."""
        return not any(thetas for thetas, _ in self._inside)

    def inside_step(self, n: int) -> tuple[list[float], Tensor]:
        """Return the outputs inside step n: their positions theta, between 0 and 1, and their gradients [m, N]."""
        thetas, first = self._inside[n]
        return thetas, self.gradients[first : first + len(thetas)]

    def add_at_end(self, n: int, a: Tensor) -> Tensor:
        """Return ``a`` [N] plus the gradient with respect to the output at the end of step n, if there is an output."""
        output = self._output_at_end[n]
        return a if output is None else a + self.gradients[output]


def backward_through_stages(
    plan: SolvePlan,
    history: StepHistory,
    steps: Iterator[tuple[int, list[Stage]]],
    evaluate: Callable[[Tensor, Tensor], EvaluationGraph],
    accumulator: GradientAccumulator,
    outputs: OutputGradients,
) -> Tensor:
    """Return dL/dy [N] at the start of the first step.

    The gradients of parameters and arguments are added to the accumulator.

    steps: the number and stages of each step, from the last step to the first.
    evaluate: a function of t and y that evaluates a stage again, and returns its graph.
    """
    method = plan.method
    assert isinstance(method, Tableau)
    a = torch.zeros_like(outputs.gradients[0])
    vjps = a.new_zeros(method.dense_stages, len(a))
    weights = _TransposedWeights(method, vjps)
    # The first stage of a step may also be part of the interpolant of the step before.
    retain = method.end_stage is not None and bool(method.extra_c)
    for n, stages in steps:
        h, num = history.steps[n].h, len(stages)
        a = outputs.add_at_end(n, a)
        from_outputs = _output_gradients_of_stages(method, *outputs.inside_step(n), h)
        from_previous_step = _output_gradient_of_last_stage(plan, history, outputs, n - 1)
        for i in reversed(range(num)):
            stage, b = stages.pop(), method.b[i] if i < method.stages else 0.0
            cotangent = torch.addmv(a, vjps[i + 1 : num].t(), weights.in_later_stages(i, num), beta=h * b, alpha=h)
            if from_outputs is not None:
                cotangent += from_outputs[i]
            elif not weights.any_nonzero(i, num) and (i or from_previous_step is None):
                vjps[i].zero_()
                continue
            if i == 0 and from_previous_step is not None:
                cotangent += from_previous_step
            graph = stage.graph or evaluate(stage.t, stage.y)
            vjps[i].copy_(accumulator.vjp(graph, stage.t, cotangent, retain=retain and i == 0))
        a = a + vjps[:num].sum(0)
        if from_outputs is not None:
            a += outputs.inside_step(n)[1].sum(0)
    return a


class _TransposedWeights:
    """The weights a_ji of a stage i in the later stages j, as tensors with the dtype and device of ``like``."""

    def __init__(self, method: Tableau, like: Tensor) -> None:
        self._table, self._b, self._like = (*method.a, *method.extra_a), method.b, like
        self._cache: dict[tuple[int, int], Tensor] = {}

    def in_later_stages(self, i: int, num: int) -> Tensor:
        """Return the weights a_ji for j = i + 1 .. num - 1, a tensor [num - 1 - i]."""
        if (i, num) not in self._cache:
            column = tuple(self._table[j][i] for j in range(i + 1, num))
            self._cache[i, num] = constant(column, self._like.dtype, self._like.device)
        return self._cache[i, num]

    def any_nonzero(self, i: int, num: int) -> bool:
        """Return whether stage i has weight in the result of the step or in a later stage."""
        return (i < len(self._b) and self._b[i] != 0) or any(self._table[j][i] for j in range(i + 1, num))


def _output_gradients_of_stages(method: Tableau, thetas: list[float], gradients: Tensor, h: float) -> Tensor | None:
    """Return dL/dk_i [S, N] through the outputs inside a step; None if there is no such output."""
    if not thetas:
        return None
    assert method.dense is not None
    return h * evaluate_weights(method.dense, thetas, gradients).t() @ gradients


def _output_gradient_of_last_stage(
    plan: SolvePlan, history: StepHistory, outputs: OutputGradients, n: int
) -> Tensor | None:
    """Return dL/dk [N] for the last stage k of step n, through the outputs inside step n.

    Returns None unless this stage is also the first stage of step n + 1, which has to add this gradient.
    """
    if n < 0 or not outputs.inside_step(n)[0] or not history.shares_last_stage(plan, n):
        return None
    method = plan.method
    assert isinstance(method, Tableau)
    from_outputs = _output_gradients_of_stages(method, *outputs.inside_step(n), history.steps[n].h)
    return None if from_outputs is None else from_outputs[method.stages - 1]

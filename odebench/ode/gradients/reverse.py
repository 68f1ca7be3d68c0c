"""The way back through the stages of explicit Runge-Kutta steps; the formulas stand in ``checkpoint``."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from odebench.ode.dense import weights_at
from odebench.ode.gradients.captured_tensors import Targets
from odebench.ode.gradients.tape import Stage, Tape, shares_last_stage
from odebench.ode.methods import Tableau
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import EvaluationGraph


class Outputs:
    """Which outputs lie in which step, with their gradients [T, N]."""

    def __init__(self, times: list[float], gradients: Tensor, tape: Tape) -> None:
        self.gradients = gradients
        self._inside: list[tuple[list[float], int]] = []
        self._at_end: list[int | None] = []
        due = 1
        for step in tape.steps:
            first = due
            while due < len(times) and (times[due] - step.t_next) * step.h < 0:
                due += 1
            self._inside.append(([(time - step.t) / step.h for time in times[first:due]], first))
            ends = due < len(times) and times[due] == step.t_next
            self._at_end.append(due if ends else None)
            due += ends

    @property
    def at_ends(self) -> bool:
        """Whether all of them are at the ends of steps."""
        return not any(thetas for thetas, _ in self._inside)

    def inside(self, n: int) -> tuple[list[float], Tensor]:
        """The thetas of the outputs inside step n, and their gradients [m, N]."""
        thetas, first = self._inside[n]
        return thetas, self.gradients[first : first + len(thetas)]

    def add_end(self, n: int, a: Tensor) -> Tensor:
        """a [N] with the gradient of the output at the end of step n, where there is one."""
        row = self._at_end[n]
        return a if row is None else a + self.gradients[row]


def reverse_stages(
    plan: SolvePlan,
    tape: Tape,
    steps: Iterator[tuple[int, list[Stage]]],
    evaluate: Callable[[Tensor, Tensor], EvaluationGraph],
    targets: Targets,
    outputs: Outputs,
) -> Tensor:
    """dL/dy [N] at the start of the first step, by the formulas above; the targets' gradients are added up.

    evaluate: the graph of a stage at t and y.
    """
    method = plan.method
    assert isinstance(method, Tableau)
    a = torch.zeros_like(outputs.gradients[0])
    rows = a.new_zeros(method.dense_stages, len(a))
    columns = _Columns(method, rows)
    # A first stage may serve the extension of the step before as well.
    retain = method.end_stage is not None and bool(method.extra_c)
    for n, stages in steps:
        h, num = tape.steps[n].h, len(stages)
        a = outputs.add_end(n, a)
        reading = _reading(method, *outputs.inside(n), h)
        earlier = _reading_of_last_stage(plan, tape, outputs, n - 1)
        for i in reversed(range(num)):
            stage, b = stages.pop(), method.b[i] if i < method.stages else 0.0
            pull = torch.addmv(a, rows[i + 1 : num].t(), columns.below(i, num), beta=h * b, alpha=h)
            if reading is not None:
                pull += reading[i]
            elif not columns.counts(i, num) and (i or earlier is None):
                rows[i].zero_()
                continue
            if i == 0 and earlier is not None:
                pull += earlier
            graph = stage.graph or evaluate(stage.t, stage.y)
            rows[i].copy_(targets.pull(graph, stage.t, pull, retain=retain and i == 0))
        a = a + rows[:num].sum(0)
        if reading is not None:
            a += outputs.inside(n)[1].sum(0)
    return a


class _Columns:
    """The weights a_ji of stage i in the stages j behind it, as tensors like ``rows``."""

    def __init__(self, method: Tableau, rows: Tensor) -> None:
        self._table, self._b, self._rows = (*method.a, *method.extra_a), method.b, rows
        self._known: dict[tuple[int, int], Tensor] = {}

    def below(self, i: int, num: int) -> Tensor:
        """a_ji for j = i + 1 .. num - 1."""
        if (i, num) not in self._known:
            self._known[i, num] = self._rows.new_tensor([self._table[j][i] for j in range(i + 1, num)])
        return self._known[i, num]

    def counts(self, i: int, num: int) -> bool:
        """Whether stage i has any weight in the step's result or in another stage."""
        return (i < len(self._b) and self._b[i] != 0) or any(self._table[j][i] for j in range(i + 1, num))


def _reading(method: Tableau, thetas: list[float], gradients: Tensor, h: float) -> Tensor | None:
    """dL/dk_i [S, N] through the outputs inside a step, None without any."""
    if not thetas:
        return None
    assert method.dense is not None
    return h * weights_at(method.dense, thetas, gradients).t() @ gradients


def _reading_of_last_stage(plan: SolvePlan, tape: Tape, outputs: Outputs, n: int) -> Tensor | None:
    """dL/dk [N] of step n's last stage through the outputs inside that step, where step n + 1 is to add it."""
    if n < 0 or not outputs.inside(n)[0] or not shares_last_stage(plan, tape, n):
        return None
    method = plan.method
    assert isinstance(method, Tableau)
    reading = _reading(method, *outputs.inside(n), tape.steps[n].h)
    return None if reading is None else reading[method.stages - 1]

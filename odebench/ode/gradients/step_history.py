"""Records of the accepted steps of a forward solve, with states or graphs, for a hand-written backward pass."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from odebench.ode.gradients.captured_tensors import FirstEvaluation
from odebench.ode.integrate import Observer
from odebench.ode.methods import Tableau
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import EvaluationGraph, FieldArguments, InitialValueProblem, flatten
from odebench.ode.solution import Stats


class AcceptedStep(NamedTuple):
    """An accepted step that starts at t and has the signed size h; ``t_next`` is where the next step starts."""

    t: float
    h: float
    t_next: float


class StepHistory(Observer):
    """Record the accepted steps of a solve, in order."""

    def __init__(self) -> None:
        self.steps: list[AcceptedStep] = []

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Append the step."""
        if self.steps:
            self.steps[-1] = self.steps[-1]._replace(t_next=t)
        self.steps.append(AcceptedStep(t, h, t + h))

    def side(self, plan: SolvePlan) -> float:
        """Return ``SolvePlan.side`` of the solve."""
        return plan.side(self.steps[0].t, self.steps[-1].t_next) if self.steps else 0.0

    def shares_last_stage(self, plan: SolvePlan, n: int) -> bool:
        """Return whether the last stage of step n is the first stage of step n + 1, which computes its gradient."""
        method = plan.method
        assert isinstance(method, Tableau)
        follows = n + 1 < len(self.steps) and self.steps[n].t_next not in plan.jump_times
        return method.fsal and not method.extra_c and follows

    def close(self, end: float) -> None:
        """Drop the steps after the time ``end``, at which the last step of the solve ended."""
        while self.steps and (self.steps[-1].t - end) * self.steps[-1].h >= 0:
            self.steps.pop()
        if self.steps:
            self.steps[-1] = self.steps[-1]._replace(t_next=end)


class CheckpointStore:
    """Store the states that steps start from, by step number: all of them, or at most ``limit``."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._stride = limit, 1
        self._states: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._states)

    def save_if_due(self, n: int, y: Tensor) -> None:
        """Store the state before step n if n is a multiple of the stride. The stride doubles when the store is full."""
        while n % self._stride == 0 and len(self._states) == self._limit:
            self._stride *= 2
            self._states = {m: state for m, state in self._states.items() if m % self._stride == 0}
        if n % self._stride == 0:
            self._states[n] = y

    def reversed_steps(self, num_steps: int, advance: Callable[[int, Tensor], Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each step and the state that it starts from, from the last step to the first.

        advance: a function of n and the state before step n that computes the state after this step again.
        """
        end, checkpoints = num_steps, {n: y for n, y in self._states.items() if n < num_steps}
        for start in sorted(checkpoints, reverse=True):
            num_free = end - start if self._limit is None else self._limit - len(checkpoints)
            yield from reversed_states(start, end, checkpoints.pop(start), num_free, advance)
            end = start


class StateHistory(StepHistory):
    """Record the accepted steps, and the states [N] that they start from: all of them, or at most ``limit``."""

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self.checkpoints = CheckpointStore(limit)

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Append the step, and store the state that it starts from if it is due."""
        self.checkpoints.save_if_due(len(self.steps), y)
        super().accept(t, y, h)

    def reversed_steps(self, advance: Callable[[AcceptedStep, Tensor], Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of each step and the state [N] that it starts from, from the last step to the first.

        advance: a function of a step and the state before it that computes the state after this step again.
        """
        return self.checkpoints.reversed_steps(len(self.steps), lambda n, y: advance(self.steps[n], y))


def reversed_states(
    start: int, end: int, y: Tensor, num_free: int, advance: Callable[[int, Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Yield (n, state before step n) for n = end - 1 .. start, storing at most ``num_free`` states besides y.

    y: the state before step ``start``.
    advance: a function of n and the state before step n that computes the state after this step.

    Griewank & Walther 2000, Algorithm 799: revolve. With m stored states and r repeats of a step, binomial(m + r, m)
    steps can be reversed. The next state is stored at the earliest step from which one stored state less is enough.
    """
    length = end - start
    if length <= 1:
        if length == 1:
            yield start, y
        return
    if num_free == 0:
        for n in range(end - 1, start - 1, -1):
            state = y
            for m in range(start, n):
                state = advance(m, state)
            yield n, state
        return
    num_repeats = 1
    while math.comb(num_free + 1 + num_repeats, num_repeats) < length:
        num_repeats += 1
    # The earliest step from which the later steps can be reversed with one stored state less, in num_repeats repeats.
    middle = end - min(length - 1, math.comb(num_free + num_repeats, num_repeats))
    state = y
    for m in range(start, middle):
        state = advance(m, state)
    yield from reversed_states(middle, end, state, num_free - 1, advance)
    yield from reversed_states(start, middle, y, num_free, advance)


@dataclass
class Stage:
    """One evaluation at t and y [N]; graph: its graph, or None if it is evaluated again later."""

    t: Tensor
    y: Tensor
    graph: EvaluationGraph | None


class StageRecorder:
    """A field whose results have no graph.

    While ``recording`` is set, it appends each evaluation to ``stages``. The evaluations have their graphs if
    ``with_graphs`` is set; if not, they are evaluated again later, one by one.
    """

    def __init__(self, problem: InitialValueProblem, args: Sequence[Tensor], stats: Stats, recording: bool) -> None:
        self.recording, self.with_graphs = recording, True
        self.stages: list[Stage] = []
        self.time_tensors = problem.time_tensors
        self._problem, self._args, self._stats = problem, args, stats

    def __call__(self, t: Tensor, y: Tensor, in_result: bool = True, out: Tensor | None = None) -> Tensor:
        """Return dy/dt [N]."""
        if self.recording and self.with_graphs:
            graph = self.graph(t, y)
            self.stages.append(Stage(t, y, graph))
            return flatten([rate.detach() for rate in graph.outputs], y.dtype, out)
        if self.recording:
            self.stages.append(Stage(t, y, None))
        return self._problem(t, y, out=out, args=self._args, stats=self._stats)

    def field_arguments(self) -> FieldArguments:
        """Return f and its arguments; see ``InitialValueProblem.field_arguments``."""
        return dataclasses.replace(self._problem.field_arguments(), args=self._args, stats=self._stats)

    def graph(self, t: Tensor, y: Tensor) -> EvaluationGraph:
        """Evaluate f once and return the evaluation with its graph."""
        return self._problem.evaluate_with_graph(t, y, self._args, self._stats)


class GraphHistory(StepHistory):
    """Record the stages that ``field`` evaluates, with their graphs.

    Each step has a list of all its stages, followed by the extra stages of its interpolant. The stage at the end of a
    step is also the first stage of the next step.
    """

    def __init__(self, field: StageRecorder, method: Tableau, first: FirstEvaluation) -> None:
        super().__init__()
        self._field, self._method, self._complete = field, method, False
        self._stages: list[list[Stage]] = []
        field.stages.append(Stage(first.t, first.y, EvaluationGraph([first.y], [first.f])))

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Start the list of a step with its first stage.

        The stages before it belong to the last accepted step, or to a rejected step.
        """
        stages = self._field.stages
        if self._complete:
            next_first = stages.pop() if self._method.end_stage is None else stages[self._method.end_stage]
            self._stages.append(stages)
            self._field.stages, self._complete = [next_first], False
        else:
            self._field.stages = stages[:1]

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Append the step. Until the next step starts, ``field`` may add the extra stages of the interpolant."""
        super().accept(t, y, h)
        self._complete = True

    def close(self, end: float) -> None:
        """Drop the steps after the time ``end``, at which the last step of the solve ended."""
        super().close(end)
        if self._complete:
            # The dense output of a fixed step also evaluates f at the end of the step, which is no stage.
            self._stages.append(self._field.stages[: self._method.dense_stages])
        del self._stages[len(self.steps) :]
        self._field.stages = []

    def reversed_steps(self, plan: SolvePlan) -> Iterator[tuple[int, list[Stage]]]:
        """Yield the number and stages of each step, from the last step to the first.

        The stages are removed from this history, so that their memory is freed. Raises RuntimeError when called twice.
        """
        if len(self._stages) < len(self.steps):
            raise RuntimeError(
                "gradient='checkpoint' with keep='graphs' can run backward only once, since that frees its graphs"
            )
        while self._stages:
            n, stages = len(self._stages) - 1, self._stages.pop()
            yield n, stages[: self._method.stages - 1] if self.shares_last_stage(plan, n) else stages

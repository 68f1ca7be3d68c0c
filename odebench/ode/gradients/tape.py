"""What a forward solve leaves for a hand-written backward pass: its accepted steps, and some states or all graphs."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from odebench.ode.gradients.captured_tensors import FirstEvaluation
from odebench.ode.methods import Tableau
from odebench.ode.plan import SolvePlan
from odebench.ode.problem import EvaluationGraph, FieldArguments, InitialValueProblem, flatten
from odebench.ode.solution import Stats


@dataclass(frozen=True)
class Step:
    """An accepted step from t, of signed size h; ``t_next`` is where the next one starts."""

    t: float
    h: float
    t_next: float


class Tape:
    """The accepted steps in the order they were taken."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """A step counts."""
        if self.steps:
            self.steps[-1] = dataclasses.replace(self.steps[-1], t_next=t)
        self.steps.append(Step(t, h, t + h))

    def reject(self, t: float, y: Tensor, h: float) -> None:
        """Costs nothing backward."""

    def side(self, plan: SolvePlan) -> float:
        """See ``SolvePlan.time_direction``."""
        return plan.time_direction(self.steps[0].t, self.steps[-1].t_next) if self.steps else 0.0

    def close(self, end: float) -> None:
        """The solve is over; its last step that counts ended there."""
        while self.steps and (self.steps[-1].t - end) * self.steps[-1].h >= 0:
            self.steps.pop()
        if self.steps:
            self.steps[-1] = dataclasses.replace(self.steps[-1], t_next=end)


class Kept:
    """The states that steps start from, by the steps' numbers: all of them, or at most ``limit``."""

    def __init__(self, limit: int | None) -> None:
        self._limit, self._stride = limit, 1
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def offer(self, n: int, y: Tensor) -> None:
        """Keep the state before step n, where that falls on the stride, which doubles when there is no room left."""
        while n % self._stride == 0 and len(self._kept) == self._limit:
            self._stride *= 2
            self._kept = {m: state for m, state in self._kept.items() if m % self._stride == 0}
        if n % self._stride == 0:
            self._kept[n] = y

    def backward(self, num_steps: int, advance: Callable[[int, Tensor], Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Each step's number and the state that it starts from, the last step first.

        advance(n, y): the state after step n, solved again.
        """
        end, kept = num_steps, {n: y for n, y in self._kept.items() if n < num_steps}
        for start in sorted(kept, reverse=True):
            slots = end - start if self._limit is None else self._limit - len(kept)
            yield from replay(start, end, kept.pop(start), slots, advance)
            end = start


class StateTape(Tape):
    """Keeps the states [N] that the steps start from: all of them, or at most ``limit``."""

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self.kept = Kept(limit)

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Nothing yet."""

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """The step counts, and its state may be kept."""
        self.kept.offer(len(self.steps), y)
        super().accept(t, y, h)

    def backward(self, advance: Callable[[Step, Tensor], Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Each step's number and the state [N] that it starts from, the last step first.

        advance(step, y): the state after a step, solved again.
        """
        return self.kept.backward(len(self.steps), lambda n, y: advance(self.steps[n], y))


def replay(
    start: int, end: int, y: Tensor, slots: int, advance: Callable[[int, Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """(n, state before step n) for n = end - 1 .. start, from y before ``start``, with so many states kept on the way.

    The recursion of Griewank & Walther 2000, Algorithm 799: revolve: with m slots and r replays of a step,
    binomial(m + r, m) steps can be reversed, and the first state is kept where the rest needs one slot less.
    """
    length = end - start
    if length <= 1:
        if length == 1:
            yield start, y
        return
    if slots == 0:
        for n in range(end - 1, start - 1, -1):
            state = y
            for m in range(start, n):
                state = advance(m, state)
            yield n, state
        return
    replays = 1
    while math.comb(slots + 1 + replays, replays) < length:
        replays += 1
    # As far as the part behind can still be reversed with one slot less and one replay more in hand.
    middle = end - min(length - 1, math.comb(slots + replays, replays))
    state = y
    for m in range(start, middle):
        state = advance(m, state)
    yield from replay(middle, end, state, slots - 1, advance)
    yield from replay(start, middle, y, slots, advance)


@dataclass
class Stage:
    """One evaluation at t and y [N], and its graph; None where it is still to be made."""

    t: Tensor
    y: Tensor
    graph: EvaluationGraph | None


class StageField:
    """f without graph. While ``recording``, its evaluations are kept in ``stages``, ``with_graphs`` or to be made again
    one by one."""

    def __init__(self, problem: InitialValueProblem, args: Sequence[Tensor], stats: Stats, recording: bool) -> None:
        self.recording, self.with_graphs = recording, True
        self.stages: list[Stage] = []
        self.time_tensors = problem.time_tensors
        self._problem, self._args, self._stats = problem, args, stats

    def __call__(self, t: Tensor, y: Tensor, counts: bool = True, out: Tensor | None = None) -> Tensor:
        """dy/dt [N]."""
        if self.recording and self.with_graphs:
            graph = self.graph(t, y)
            self.stages.append(Stage(t, y, graph))
            return flatten([rate.detach() for rate in graph.outputs], y.dtype, out)
        if self.recording:
            self.stages.append(Stage(t, y, None))
        self._stats.nfe += 1
        return self._problem.evaluate(t, y, self._args, out)

    def field_arguments(self) -> FieldArguments:
        """See ``InitialValueProblem.field_arguments``."""
        return dataclasses.replace(self._problem.field_arguments(), args=self._args, stats=self._stats)

    def graph(self, t: Tensor, y: Tensor) -> EvaluationGraph:
        """One evaluation with a graph of its own."""
        self._stats.nfe += 1
        return self._problem.evaluate_with_graph(t, y, self._args)


class GraphTape(Tape):
    """Keeps the stages that ``field`` gathers, with their graphs.

    The list of a step has all its stages and the extra ones of its continuous extension; the one at the end of the step
    is at the same time the next step's first.
    """

    def __init__(self, field: StageField, method: Tableau, first: FirstEvaluation) -> None:
        super().__init__()
        self._field, self._method, self._complete = field, method, False
        self._stages: list[list[Stage]] = []
        field.stages.append(Stage(first.t, first.y, EvaluationGraph([first.y], [first.f])))

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """A step begins with its first stage; what was gathered before belongs to the last step, or to nothing."""
        gathered = self._field.stages
        if self._complete:
            following = gathered.pop() if self._method.end_stage is None else gathered[self._method.end_stage]
            self._stages.append(gathered)
            self._field.stages, self._complete = [following], False
        else:
            self._field.stages = gathered[:1]

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """The step counts; its extra stages may still come."""
        super().accept(t, y, h)
        self._complete = True

    def close(self, end: float) -> None:
        """The solve is over; its last step that counts ended there."""
        super().close(end)
        if self._complete:
            self._stages.append(self._field.stages)
        del self._stages[len(self.steps) :]
        self._field.stages = []

    def backward(self, plan: SolvePlan) -> Iterator[tuple[int, list[Stage]]]:
        """Each step's number and stages, the last step first; they are given away, for their memory.

        Raises RuntimeError the second time.
        """
        if len(self._stages) < len(self.steps):
            raise RuntimeError(
                "gradient='checkpoint' with keep='graphs' can go backward once: its graphs are freed on the way"
            )
        while self._stages:
            n, stages = len(self._stages) - 1, self._stages.pop()
            yield n, stages[: self._method.stages - 1] if shares_last_stage(plan, self, n) else stages


def shares_last_stage(plan: SolvePlan, tape: Tape, n: int) -> bool:
    """Whether the last stage of step n is the first of step n + 1 and gets its gradient there."""
    method = plan.method
    assert isinstance(method, Tableau)
    follows = n + 1 < len(tape.steps) and tape.steps[n].t_next not in plan.jump_times
    return method.fsal and not method.extra_c and follows

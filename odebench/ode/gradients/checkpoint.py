"""The exact gradient of the discrete solve by a hand-written backward pass over its steps.

With the stages k_i = f(t + c_i h, Y_i), Y_i = y_n + h sum_j a_ij k_j of an explicit Runge-Kutta step, lambda = dL/dy:

    l_i = h (b_i lambda_(n+1) + sum_(j>i) a_ji w_j),   w_i = (df/dy)(Y_i)^T l_i,   i = s .. 1,
    lambda_n = lambda_(n+1) + sum_i w_i,   dL/dtheta += (df/dtheta)(Y_i)^T l_i

(Hager 2000, Runge-Kutta methods in optimal control and the transformed adjoint system; Sanz-Serna 2016, Symplectic
Runge-Kutta schemes for adjoint equations). An output inside a step is linear in y_n and the k_i and adds to l_i and
lambda_n with the weights of the continuous extension.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from odebench.ode.dense import weights_at
from odebench.ode.events import Watch
from odebench.ode.gradients.reach import FirstEvaluation, Targets, first_evaluation
from odebench.ode.integrate import Observer, Plan, Result, integrate
from odebench.ode.methods import Tableau
from odebench.ode.methods.runge_kutta import ExplicitRungeKutta
from odebench.ode.methods.steppers import make_stepper
from odebench.ode.once import differentiable_once
from odebench.ode.problem import Problem, PureField
from odebench.ode.status import Outcome, Stats


@dataclass(frozen=True)
class Checkpoint:
    """The numbers of backpropagation, to round-off, in less memory: each step is evaluated again on the way back.
    Differentiable once.

    checkpoints: how many states are kept at most, at any moment; None keeps the one of every accepted step. With fewer
        the steps between them are solved again, more than once where they are very few; each is placed when the solve
        comes by, since an adaptive solve does not know how many steps it will take.
    recompute: "step" holds the graph of one step at a time, "stage" that of one evaluation, at the cost of evaluating
        everything twice.
    keep: "graphs" keeps the graph of every evaluation instead of any state, and evaluates nothing again: the work of
        backpropagation with fewer tensor operations.
    """

    checkpoints: int | None = None
    recompute: Literal["step", "stage"] = "step"
    keep: Literal["states", "graphs"] = "states"

    name = "checkpoint"

    def __post_init__(self) -> None:
        if self.checkpoints is not None and self.checkpoints < 1:
            raise ValueError(f"checkpoints must be at least 1, got {self.checkpoints}")
        if self.recompute not in ("step", "stage"):
            raise ValueError(f"recompute must be 'step' or 'stage', got {self.recompute!r}")
        if self.keep not in ("states", "graphs"):
            raise ValueError(f"keep must be 'states' or 'graphs', got {self.keep!r}")
        if self.keep == "graphs" and (self.checkpoints is not None or self.recompute == "stage"):
            raise ValueError("keep='graphs' recomputes nothing: leave checkpoints and recompute out")

    def integrate(
        self, problem: Problem, plan: Plan, observers: tuple[Observer, ...] = (), watch: Watch | None = None
    ) -> Result:
        """The states at the problem's times, and how it ended.

        Raises ValueError where f reaches a tensor whose gradient this mode would lose, and for a method that is not
        made of steps from one state to the next.
        """
        method = plan.method
        if not isinstance(method, Tableau):
            if not getattr(method, "one_step", False):
                raise ValueError(
                    f"gradient='checkpoint': a step of {method.name} needs more than the state it starts from; use "
                    "gradient='backprop' or 'adjoint', or a Runge-Kutta method"
                )
            if self != Checkpoint(self.checkpoints):
                raise ValueError(
                    f"gradient='checkpoint': recompute and keep are for explicit methods, not for {method.name}"
                )
        if self.keep == "graphs" and plan.jumps:
            raise ValueError("gradient='checkpoint': keep='graphs' has no jumps; leave keep out")
        if plan.compile and (self.keep == "graphs" or self.recompute == "stage"):
            raise ValueError(
                "gradient='checkpoint': a compiled step has no graphs of its own; leave keep and recompute out"
            )
        if not torch.is_grad_enabled():
            return integrate(problem, problem.y0, problem.times, plan, problem.stats, observers=observers)
        first = first_evaluation(problem, self.name)
        results: list[Result] = []
        states = _CheckpointSolve.apply(
            self, problem, plan, observers, first, results, problem.y0, *first.parameters, *problem.args
        )
        return dataclasses.replace(results[0], states=states)


class _CheckpointSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mode: Checkpoint,
        problem: Problem,
        plan: Plan,
        observers: tuple[Observer, ...],
        first: FirstEvaluation,
        results: list[Result],
        y0: Tensor,
        *targets: Tensor,
    ) -> Tensor:
        keeps_graphs = mode.keep == "graphs"
        field = _StageField(problem, first.args if keeps_graphs else problem.args, problem.stats, keeps_graphs)
        record: _Graphs | _States = _States(mode.checkpoints)
        if keeps_graphs:
            assert isinstance(plan.method, Tableau)
            record = _Graphs(field, plan.method, first)
        result = integrate(
            field, y0, problem.times, plan, problem.stats, f=first.f.detach(), observers=(*observers, record)
        )
        record.close(result.outcome)
        results.append(result)
        ctx.mode, ctx.problem, ctx.plan, ctx.record = mode, problem, plan, record
        # The parameters themselves: what f reaches is told by identity, which saved tensors may lose to a hook.
        ctx.parameters, ctx.reached = first.parameters, result.outcome.reached
        ctx.args = first.args if keeps_graphs else None
        ctx.save_for_backward(y0, *targets)
        return result.states

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
        problem, plan, record, mode = ctx.problem, ctx.plan, ctx.record, ctx.mode
        args = ctx.saved_tensors[1 + len(ctx.parameters) :]
        targets = Targets(problem, mode.name, ctx.parameters, args, ctx.args)
        outputs = _Outputs(problem.times[: ctx.reached], grad_states, record)
        stats = Stats() if isinstance(record, _Graphs) else problem.stats.backward or Stats()
        field = _StageField(problem, targets.args, stats, False)
        if isinstance(record, _Graphs):
            a = _reverse_stages(plan, record, record.backward(plan), field.evaluate, targets, outputs)
        else:
            problem.stats.backward = stats
            if isinstance(plan.method, Tableau) and not plan.compile:
                steps = _recompute(plan, record, field, outputs, with_graphs=mode.recompute == "step")
                a = _reverse_stages(plan, record, steps, field.evaluate, targets, outputs)
            else:
                a = _reverse_steps(plan, record, field, targets, outputs)
        return None, None, None, None, None, None, a + grad_states[0], *targets.gradients()


@dataclass(frozen=True)
class _Step:
    """An accepted step from t, of signed size h; ``t_next`` is where the next one starts."""

    t: float
    h: float
    t_next: float


class _Record:
    """The accepted steps in the order they were taken."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """A step counts."""
        if self.steps:
            self.steps[-1] = dataclasses.replace(self.steps[-1], t_next=t)
        self.steps.append(_Step(t, h, t + h))

    def reject(self, t: float, y: Tensor, h: float) -> None:
        """Costs nothing backward."""

    def side(self, plan: Plan) -> float:
        """See ``Plan.side``."""
        return plan.side(self.steps[0].t, self.steps[-1].t_next) if self.steps else 0.0

    def close(self, outcome: Outcome) -> None:
        """The solve is over."""
        if self.steps:
            self.steps[-1] = dataclasses.replace(self.steps[-1], t_next=outcome.time)


class _States(_Record):
    """Keeps the states [N] that the steps start from: all of them, or at most ``limit``."""

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self._limit, self._stride = limit, 1
        self._kept: dict[int, Tensor] = {}

    def attempt(self, t: float, y: Tensor, h: float) -> None:
        """Nothing yet."""

    def accept(self, t: float, y: Tensor, h: float) -> None:
        """Keep the state where its number falls on the stride, which doubles when there is no room left."""
        n = len(self.steps)
        super().accept(t, y, h)
        while n % self._stride == 0 and len(self._kept) == self._limit:
            self._stride *= 2
            self._kept = {m: state for m, state in self._kept.items() if m % self._stride == 0}
        if n % self._stride == 0:
            self._kept[n] = y

    def backward(self, advance: Callable[[_Step, Tensor], Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Each step's number and the state [N] that it starts from, the last step first.

        advance(step, y): the state after a step, solved again.
        """

        def forward(n: int, y: Tensor) -> Tensor:
            return advance(self.steps[n], y)

        end, kept = len(self.steps), dict(self._kept)
        for start in sorted(kept, reverse=True):
            slots = end - start if self._limit is None else self._limit - len(kept)
            yield from _replay(start, end, kept.pop(start), slots, forward)
            end = start


def _replay(
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
    yield from _replay(middle, end, state, slots - 1, advance)
    yield from _replay(start, middle, y, slots, advance)


@dataclass
class _Stage:
    """One evaluation k = f(t, y) [N] with its graph, y [N] a leaf; k is None where the graph is still to be made."""

    t: Tensor
    y: Tensor
    k: Tensor | None


class _StageField:
    """f without graph. While ``recording``, its evaluations are kept in ``stages``, ``with_graphs`` or to be made again
    one by one."""

    def __init__(self, problem: Problem, args: Sequence[Tensor], stats: Stats, recording: bool) -> None:
        self.recording, self.with_graphs = recording, True
        self.stages: list[_Stage] = []
        self.clock = problem.clock
        self._problem, self._args, self._stats = problem, args, stats

    def __call__(self, t: Tensor, y: Tensor, counts: bool = True) -> Tensor:
        """dy/dt [N]."""
        if self.recording and self.with_graphs:
            k, y = self.evaluate(t, y)
            self.stages.append(_Stage(t, y, k))
            return k.detach()
        if self.recording:
            self.stages.append(_Stage(t, y, None))
        self._stats.nfe += 1
        return self._problem.rate(t, y, self._args)

    def pure(self) -> PureField:
        """See ``Problem.pure``."""
        return dataclasses.replace(self._problem.pure(), args=self._args, stats=self._stats)

    def evaluate(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """dy/dt with a graph of its own, and the leaf that it starts from, both [N]."""
        self._stats.nfe += 1
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            return self._problem.rate(t, y, self._args), y


class _Graphs(_Record):
    """Keeps the stages that ``field`` gathers, with their graphs.

    The list of a step has all its stages and the extra ones of its continuous extension; the one at the end of the step
    is at the same time the next step's first.
    """

    def __init__(self, field: _StageField, method: Tableau, first: FirstEvaluation) -> None:
        super().__init__()
        self._field, self._method, self._complete = field, method, False
        self._stages: list[list[_Stage]] = []
        field.stages.append(_Stage(first.t, first.y, first.f))

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

    def close(self, outcome: Outcome) -> None:
        """The solve is over."""
        super().close(outcome)
        if self._complete:
            self._stages.append(self._field.stages)
        self._field.stages = []

    def backward(self, plan: Plan) -> Iterator[tuple[int, list[_Stage]]]:
        """Each step's number and stages, the last step first; they are given away, for their memory.

        Raises RuntimeError the second time.
        """
        if len(self._stages) < len(self.steps):
            raise RuntimeError(
                "gradient='checkpoint' with keep='graphs' can go backward once: its graphs are freed on the way"
            )
        while self._stages:
            n, stages = len(self._stages) - 1, self._stages.pop()
            yield n, stages[: self._method.stages - 1] if _shares_last_stage(plan, self, n) else stages


class _Outputs:
    """Which outputs lie in which step, with their gradients [T, N]."""

    def __init__(self, times: list[float], gradients: Tensor, record: _Record) -> None:
        self.gradients = gradients
        self._inside: list[tuple[list[float], int]] = []
        self._at_end: list[int | None] = []
        due = 1
        for step in record.steps:
            first = due
            while due < len(times) and (times[due] - step.t_next) * step.h < 0:
                due += 1
            self._inside.append(([(time - step.t) / step.h for time in times[first:due]], first))
            ends = due < len(times) and times[due] == step.t_next
            self._at_end.append(due if ends else None)
            due += ends

    def inside(self, n: int) -> tuple[list[float], Tensor]:
        """The thetas of the outputs inside step n, and their gradients [m, N]."""
        thetas, first = self._inside[n]
        return thetas, self.gradients[first : first + len(thetas)]

    def add_end(self, n: int, a: Tensor) -> Tensor:
        """a [N] with the gradient of the output at the end of step n, where there is one."""
        row = self._at_end[n]
        return a if row is None else a + self.gradients[row]


def _recompute(
    plan: Plan, record: _States, field: _StageField, outputs: _Outputs, with_graphs: bool
) -> Iterator[tuple[int, list[_Stage]]]:
    """Each step's number and stages, evaluated again, the last step first.

    The last stage of an FSAL method is left out where no output needs it, or where it is the next step's first.
    """
    method = plan.method
    assert isinstance(method, Tableau)
    side = record.side(plan)
    short, full = (
        ExplicitRungeKutta(tableau, field, outputs.gradients[0], one_sided=side) for tableau in (method.fixed(), method)
    )

    def advance(step: _Step, y: Tensor) -> Tensor:
        field.recording = False
        short.start(step.t, y, None)
        return short.attempt(step.t, step.h, y, True)

    for n, y in record.backward(advance):
        step = record.steps[n]
        needs_last = bool(outputs.inside(n)[0]) and not _shares_last_stage(plan, record, n)
        stepper = full if needs_last else short
        field.recording, field.with_graphs, field.stages = True, with_graphs, []
        stepper.start(step.t, y, None)
        y_next = stepper.attempt(step.t, step.h, y, True)
        if needs_last:
            stepper.extension(step.t, step.t_next, y, y_next, plan.interpolation)
        if not with_graphs:
            field.recording = False
        yield n, field.stages


def _shares_last_stage(plan: Plan, record: _Record, n: int) -> bool:
    """Whether the last stage of step n is the first of step n + 1 and gets its gradient there."""
    method = plan.method
    assert isinstance(method, Tableau)
    follows = n + 1 < len(record.steps) and record.steps[n].t_next not in plan.jumps
    return method.fsal and not method.extra_c and follows


def _reverse_stages(
    plan: Plan,
    record: _Record,
    steps: Iterator[tuple[int, list[_Stage]]],
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    targets: Targets,
    outputs: _Outputs,
) -> Tensor:
    """dL/dy [N] at the start of the first step, by the formulas above; the targets' gradients are added up.

    evaluate: gives k of a stage at t and y with its graph, and the graph's leaf.
    """
    method = plan.method
    assert isinstance(method, Tableau)
    a = torch.zeros_like(outputs.gradients[0])
    rows = a.new_zeros(method.dense_stages, len(a))
    columns = _Columns(method, rows)
    # A first stage may serve the extension of the step before as well.
    retain = method.end_stage is not None and bool(method.extra_c)
    for n, stages in steps:
        h, num = record.steps[n].h, len(stages)
        a = outputs.add_end(n, a)
        reading = _reading(method, *outputs.inside(n), h)
        earlier = _reading_of_last_stage(plan, record, outputs, n - 1)
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
            k, y = (stage.k, stage.y) if stage.k is not None else evaluate(stage.t, stage.y)
            rows[i].copy_(targets.pull(k, stage.t, y, pull, retain=retain and i == 0))
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
    return h * gradients.new_tensor(weights_at(method.dense, thetas)).t() @ gradients


def _reading_of_last_stage(plan: Plan, record: _Record, outputs: _Outputs, n: int) -> Tensor | None:
    """dL/dk [N] of step n's last stage through the outputs inside that step, where step n + 1 is to add it."""
    if n < 0 or not outputs.inside(n)[0] or not _shares_last_stage(plan, record, n):
        return None
    method = plan.method
    assert isinstance(method, Tableau)
    reading = _reading(method, *outputs.inside(n), record.steps[n].h)
    return None if reading is None else reading[method.stages - 1]


def _reverse_steps(plan: Plan, record: _States, field: _StageField, targets: Targets, outputs: _Outputs) -> Tensor:
    """The same for any method of one step, each step's graph made as a whole."""
    a = torch.zeros_like(outputs.gradients[0])
    inside = any(outputs.inside(n)[0] for n in range(len(record.steps)))
    side = record.side(plan)
    how: dict[str, Any] = {"compiled": plan.compile, "with_stages": inside, "one_sided": side}

    def advance(step: _Step, y: Tensor) -> Tensor:
        stepper = make_stepper(plan.method, field, y, **how)
        stepper.start(step.t, y, None)
        return stepper.attempt(step.t, step.h, y, True)

    for n, y in record.backward(advance):
        step, (thetas, gradients) = record.steps[n], outputs.inside(n)
        a = outputs.add_end(n, a)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            stepper = make_stepper(plan.method, field, y, **how)
            stepper.start(step.t, y, None)
            results = [stepper.attempt(step.t, step.h, y, True)]
            if thetas:
                extension = stepper.extension(step.t, step.t_next, y, results[0], plan.interpolation)
                results.append(extension.at(thetas))
        a = targets.pull_all(y, results, [a, gradients][: len(results)])
    return a

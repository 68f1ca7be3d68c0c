"""The states asked for, read off the accepted steps of each row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from odebench.ode.per_sample.problem import RowProblem, pick
from odebench.ode.per_sample.stepping import RowStepper, Step, states_at


@dataclass
class Reading:
    """Which states to read off one step, all on the host.

    owners, thetas: [P] positions of rows, ascending, and where in their step.
    ends: [E] positions of rows whose state at the end of the step is one of them.
    slots: [P + E] where the states belong: output number times B plus the row's number.
    """

    owners: Tensor
    thetas: Tensor
    ends: Tensor
    slots: Tensor

    def of(self, accepted: Tensor) -> "Reading":
        """The same among the accepted rows only."""
        position = accepted.cumsum(0) - 1
        return Reading(position[self.owners], self.thetas, position[self.ends], self.slots)


class Outputs:
    """Output times of the rows at work, and the states found so far, [P, n] with their slots [P].

    gridded: no output time lies inside a step.
    """

    def __init__(self, problem: RowProblem, y: Tensor, gridded: bool) -> None:
        self._problem, self._gridded = problem, gridded
        times = problem.table
        self._num_times = times.shape[1]
        self._direction = torch.sign(times[:, -1] - times[:, 0])
        self._ordered = times * self._direction.unsqueeze(1)
        self._due = torch.ones(problem.num_rows, dtype=torch.long)
        self._states = [y]
        self._slots = [problem.all_rows()]

    def find(self, step: Step, t: Tensor, arrived: Tensor) -> Reading | None:
        """What to read off a step that has brought the rows to t [b], those that ``arrived`` to their end."""
        if self._num_times == 2:
            if not bool(arrived.any()):
                return None
            inside, first = torch.zeros_like(step.rows), self._due
            ends = arrived
        else:
            reach = (t * self._direction).unsqueeze(1)
            first, self._due = self._due, torch.searchsorted(self._ordered, reach, right=True).squeeze(1)
            inside = self._due - first
            if not bool(inside.any()):
                return None
            # A grid leads through all output times.
            ends = inside > 0 if self._gridded else arrived
            inside = inside - ends.long()
        return self._reading(step, inside, first, ends.nonzero().squeeze(1))

    def _reading(self, step: Step, inside: Tensor, first: Tensor, ends: Tensor) -> Reading:
        owners = torch.repeat_interleave(torch.arange(len(inside)), inside)
        offsets = torch.arange(len(owners)) - pick(inside.cumsum(0) - inside, owners)
        inner = pick(first, owners) + offsets
        numbers = torch.cat((inner, pick(first + inside, ends)))
        slots = numbers * self._problem.num_rows + pick(step.rows, torch.cat((owners, ends)))
        times = self._problem.table[pick(step.rows, owners), inner]
        thetas = (times - pick(step.t, owners)) / pick(step.h, owners)
        return Reading(owners, thetas, ends, slots)

    def keep(self, states: Tensor, slots: Tensor) -> None:
        """Remember states [P, n] for these slots [P]."""
        self._states.append(states)
        self._slots.append(slots)

    def select(self, rows: Tensor) -> None:
        """Go on with the rows at these positions."""
        self._ordered, self._direction = pick(self._ordered, rows), pick(self._direction, rows)
        self._due = pick(self._due, rows)

    def collect(self) -> Tensor:
        """The states [T, B, n], NaN where not reached."""
        return gather(self._states, self._slots, self._num_times, self._problem.num_rows)


def read(stepper: RowStepper, step: Step, reading: Reading) -> Tensor:
    """The states [P + E, n] of a reading."""
    parts = []
    device = step.y.device
    if len(reading.owners):
        at, owners = torch.unique_consecutive(reading.owners, return_inverse=True)
        parts.append(states_at(stepper.interpolant(step, at), pick(step.y, at), owners.to(device), reading.thetas))
    if len(reading.ends):
        parts.append(pick(step.y_next, reading.ends))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def gather(states: list[Tensor], slots: list[Tensor], num_times: int, num_rows: int) -> Tensor:
    """[T, B, n] from pieces [P, n] with their slots [P]; NaN where there is none."""
    found = torch.cat(states)
    empty = found.new_full((num_times * num_rows, found.shape[1]), float("nan"))
    full = empty.index_copy(0, torch.cat(slots).to(found.device), found)
    return full.view(num_times, num_rows, found.shape[1])

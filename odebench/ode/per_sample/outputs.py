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
    """Output times of the rows at work, and the states found so far, [P, n] with their slots [P]."""

    def __init__(self, problem: RowProblem, y: Tensor) -> None:
        self._problem = problem
        times = problem.table
        self._num_times = times.shape[1]
        self._direction = torch.sign(times[:, -1] - times[:, 0])
        self._ordered = times * self._direction.unsqueeze(1)
        self._due = torch.ones(problem.num_rows, dtype=torch.long)
        self._states = [y]
        self._slots = [problem.all_rows()]
        # Numbers for the common reading: only the rows that arrived.
        self._nobody = torch.empty(0, dtype=torch.long)
        self._nowhere = torch.empty(0, dtype=torch.float64)

    def find(
        self, step: Step, t_next: Tensor, accepted: Tensor, arrived: Tensor, until: Tensor | None
    ) -> Reading | None:
        """What to read off a step to t_next [b]: of accepted rows, of those at their end (``arrived``), and not beyond
        an event at ``until`` [b], NaN for rows without."""
        if self._num_times == 2:
            ends = arrived.nonzero().squeeze(1)
            slots = step.rows.index_select(0, ends) + self._problem.num_rows
            return Reading(self._nobody, self._nowhere, ends, slots) if len(ends) else None
        reach = t_next if until is None else torch.where(until.isnan(), t_next, until)
        reach = (reach * self._direction).unsqueeze(1)
        due = torch.maximum(torch.searchsorted(self._ordered, reach).squeeze(1), self._due)
        due = torch.where(accepted, due, self._due)
        exact = accepted & (self._ordered.gather(1, due.clamp(max=self._num_times - 1).unsqueeze(1)) == reach).squeeze(
            1
        )
        if until is not None:
            exact &= until.isnan()
        inside, first = due - self._due, self._due
        self._due = due + exact
        return self._reading(step, inside, first, exact.nonzero().squeeze(1))

    def _reading(self, step: Step, inside: Tensor, first: Tensor, ends: Tensor) -> Reading | None:
        owners = torch.repeat_interleave(torch.arange(len(inside)), inside)
        if not len(owners) and not len(ends):
            return None
        offsets = torch.arange(len(owners)) - torch.repeat_interleave(inside.cumsum(0) - inside, inside)
        numbers = torch.cat((pick(first, owners) + offsets, pick(self._due, ends) - 1))
        slots = numbers * self._problem.num_rows + pick(step.rows, torch.cat((owners, ends)))
        times = self._ordered[owners, numbers[: len(owners)]] * pick(self._direction, owners)
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
        parts.append(states_at(stepper.extension(step, at), pick(step.y, at), owners.to(device), reading.thetas))
    if len(reading.ends):
        parts.append(pick(step.y_next, reading.ends))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def gather(states: list[Tensor], slots: list[Tensor], num_times: int, num_rows: int) -> Tensor:
    """[T, B, n] from pieces [P, n] with their slots [P]; NaN where there is none."""
    found = torch.cat(states)
    empty = found.new_full((num_times * num_rows, found.shape[1]), float("nan"))
    full = empty.index_copy(0, torch.cat(slots).to(found.device), found)
    return full.view(num_times, num_rows, found.shape[1])

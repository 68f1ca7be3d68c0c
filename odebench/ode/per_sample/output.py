"""Recording of the states at the output times of each row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from odebench.ode.per_sample.problem import RowProblem, put_rows, take_rows
from odebench.ode.per_sample.stepping import RowStep, RowStepper, interpolate


@dataclass
class StepOutputs:
    """The outputs inside and at the end of one step of b rows; all tensors are on the host.

    idx: [P] for each output inside the step, the index of its row in the step, ascending.
    thetas: [P] the positions of these outputs, (t - t_start) / h.
    end_idx: [E] the indices of the rows that have an output at the end of the step.
    flat_idx: [P + E] where the states of these outputs are stored: the output number times B plus the row number.
    """

    idx: Tensor
    thetas: Tensor
    end_idx: Tensor
    flat_idx: Tensor

    def for_accepted(self, accepted: Tensor) -> "StepOutputs":
        """Return the outputs of the step that consists of the accepted rows only."""
        position = accepted.cumsum(0) - 1
        return StepOutputs(position[self.idx], self.thetas, position[self.end_idx], self.flat_idx)


class RowOutputRecorder:
    """Record states at output times, each with an index: the output number times B plus the row number.

    at_step_ends: True if no output time lies inside a step.
    """

    def __init__(self, problem: RowProblem, y: Tensor, at_step_ends: bool) -> None:
        self._problem, self._at_step_ends = problem, at_step_ends
        times = problem.row_times
        self._num_times = times.shape[1]
        self._direction = torch.sign(times[:, -1] - times[:, 0])
        self._ordered_times = times * self._direction.unsqueeze(1)
        self._next_output = torch.ones(problem.num_rows, dtype=torch.long, device="cpu")
        self._states = [y]
        self._flat_idx = [problem.all_rows()]

    def find_in_step(self, step: RowStep, t: Tensor, at_end: Tensor) -> StepOutputs | None:
        """Return the outputs in a step that ended at t [b]; None if there are none.

        at_end: [b] whether each row has reached its last time.
        """
        if self._num_times == 2:
            if not bool(at_end.any()):
                return None
            inside, first = torch.zeros_like(step.rows), self._next_output
            ends = at_end
        else:
            end_times = (t * self._direction).unsqueeze(1)
            first = self._next_output
            self._next_output = torch.searchsorted(self._ordered_times, end_times, right=True).squeeze(1)
            inside = self._next_output - first
            if not bool(inside.any()):
                return None
            # Fixed steps end at all output times.
            ends = inside > 0 if self._at_step_ends else at_end
            inside = inside - ends.long()
        return self._locate(step, inside, first, ends.nonzero().squeeze(1))

    def _locate(self, step: RowStep, inside: Tensor, first: Tensor, ends: Tensor) -> StepOutputs:
        idx = torch.repeat_interleave(torch.arange(len(inside), device="cpu"), inside)
        offsets = torch.arange(len(idx), device="cpu") - take_rows(inside.cumsum(0) - inside, idx)
        inner = take_rows(first, idx) + offsets
        numbers = torch.cat((inner, take_rows(first + inside, ends)))
        flat_idx = numbers * self._problem.num_rows + take_rows(step.rows, torch.cat((idx, ends)))
        times = self._problem.row_times[take_rows(step.rows, idx), inner]
        thetas = (times - take_rows(step.t, idx)) / take_rows(step.h, idx)
        return StepOutputs(idx, thetas, ends, flat_idx)

    def add(self, states: Tensor, flat_idx: Tensor) -> None:
        """Store states [P, n] with their indices [P]."""
        self._states.append(states)
        self._flat_idx.append(flat_idx)

    def select(self, idx: Tensor) -> None:
        """Keep only the rows at the indices ``idx``."""
        parts = (self._ordered_times, self._direction, self._next_output)
        self._ordered_times, self._direction, self._next_output = (take_rows(x, idx) for x in parts)

    def collect(self) -> Tensor:
        """Return the states [T, B, n]; NaN at times that a row did not reach."""
        found, num_rows = torch.cat(self._states), self._problem.num_rows
        empty = found.new_full((self._num_times * num_rows, found.shape[1]), float("nan"))
        full = put_rows(empty, torch.cat(self._flat_idx), found)
        return full.view(self._num_times, num_rows, found.shape[1])


def evaluate_outputs(stepper: RowStepper, step: RowStep, outputs: StepOutputs) -> Tensor:
    """Compute the states [P + E, n] at the outputs of a step."""
    parts = []
    if len(outputs.idx):
        distinct, inverse = torch.unique_consecutive(outputs.idx, return_inverse=True)
        coefficients, y = stepper.interpolant(step, distinct), take_rows(step.y, distinct)
        inverse = inverse.to(y.device, non_blocking=True)
        parts.append(interpolate(coefficients, y, inverse, outputs.thetas))
    if len(outputs.end_idx):
        parts.append(take_rows(step.y_next, outputs.end_idx))
    return parts[0] if len(parts) == 1 else torch.cat(parts)

"""Run a recurrent cell over a batch of irregular series, each series at its own times."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odebench import ode

Solve = Callable[..., ode.Solution]
State = tuple[Tensor, ...]

# Relative tolerance of time gaps, since times have single precision: a gap that is longer than a step by less than this
# is still one step.
GAP_RTOL = 1e-4


class ObservedSeries(Protocol):
    """B series on the union of their times.

    times: [T], increasing, all >= 0; all series start at time 0. values: [B, T, D]. mask: bool [B, T, D], True where a
    value was observed; values elsewhere are ignored.
    """

    @property
    def times(self) -> Tensor: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...


class RecurrentCell(nn.Module, ABC):
    """A recurrent network that takes the time between observations into account. Its state is a tuple of [B, ...].

    The state's first tensor is the hidden state [B, H]. Predictions for a time are decoded from the hidden state after
    ``advance`` to this time.

    width: the width H. recurrent: maps (values and mask [B, 2 D], hidden state) to the next hidden state.
    continuous_time: whether a gap can be advanced in parts: advance(advance(s, a), b) = advance(s, a + b).
    max_gap: the longest such part, for a cell with continuous time; None: the whole gap to the next observation.
    """

    width: int
    recurrent: nn.Module
    continuous_time = False
    max_gap: float | None = None

    def initial_state(self, like: Tensor) -> State:
        """The state before the first observation: zeros. like: values [B, D] with the dtype and device to use."""
        return (like.new_zeros(len(like), self.width),)

    @abstractmethod
    def advance(self, state: State, gap: Tensor, solve: Solve, longest_gap: float) -> State:
        """Return the state at a time ``gap`` [B] after the last observation, before the cell takes in the next one.

        longest_gap: the largest gap.
        """

    def update(self, state: State, values: Tensor, mask: Tensor) -> State:
        """The state after taking in an observation [B, D] at the current time; values are 0 where the mask is False."""
        return (self.recurrent(torch.cat((values, mask), 1), state[0]),)

    def hidden_after_last(self, state: State) -> Tensor:
        """The hidden state [B, H] right after the last observation."""
        return state[0]


class SolveRecorder:
    """Calls ``solve`` and records the statistics of each call."""

    def __init__(self, solve: Solve) -> None:
        self._solve = solve
        self._stats: list[ode.Stats] = []

    def __call__(self, f: Callable[..., Any], y0: Any, t: Any, **more: Any) -> ode.Solution:
        solution = self._solve(f, y0, t, **more)
        self._stats.append(solution.stats)
        return solution

    @property
    def stats(self) -> tuple[ode.Stats, ...]:
        """The statistics of all solves so far."""
        return tuple(self._stats)


@dataclass(frozen=True)
class ObservationGrid:
    """For each series, the times at which it was observed or a prediction is requested.

    There are at most K such times; shorter rows are padded with their last time.

    times: [B, K], not decreasing. values, mask: [B, K, D], 0 and False where nothing was observed.
    is_observed: bool [B, K]. is_after_last: bool [B, K], True for requested times after the last observation.
    target_index: [B, K], the index among the T prediction times; T where no prediction is requested.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    is_observed: Tensor
    is_after_last: Tensor
    target_index: Tensor

    def scatter(self, rows: Tensor, num_times: int) -> Tensor:
        """Move numbers from the times of the grid [B, K, D] to the prediction times [B, T, D]; 0 elsewhere."""
        index = self.target_index.unsqueeze(-1).expand_as(rows)
        return rows.new_zeros(len(rows), num_times + 1, rows.shape[2]).scatter(1, index, rows)[:, :num_times]


@dataclass(frozen=True)
class RecurrenceOutput:
    """The states of a cell along a grid.

    hidden_states: [B, K, H], the hidden state at each time of the grid, before the observation at that time is taken
    in. final_state: the state at the end of the grid. state_after_last: the state after the last true observation.
    """

    hidden_states: Tensor
    final_state: State
    state_after_last: State


def make_grid(
    inputs: ObservedSeries, times: Tensor, requested: Tensor | None, max_gap: float | None = None
) -> ObservationGrid:
    """Make the grid of all observations and of the requested prediction times.

    times: [T], the prediction times. requested: bool [B, T], which of them are in the grid of each series; None: all.
    max_gap: insert times without observation or prediction, so that no gap is longer; None: insert none.
    """
    if requested is None:
        requested = inputs.mask.new_ones(len(inputs.mask), len(times))
    num_inputs = len(inputs.times)
    union, union_index = torch.unique(torch.cat((inputs.times, times)), return_inverse=True)
    # For each time of the union: its index among the input times, and among the prediction times. If it is not among
    # them, the index is one past the last, where the padded tensors are 0 or False.
    input_at = _inverse_index(union_index[:num_inputs], len(union))
    target_at = _inverse_index(union_index[num_inputs:], len(union))
    mask, values = (F.pad(x, (0, 0, 0, 1)) for x in (inputs.mask, inputs.values))
    is_target = F.pad(requested, (0, 1))[:, target_at]
    order, kept = _compact_columns(mask.any(-1)[:, input_at] | is_target)
    grid_times = union[order].masked_fill(~kept, -torch.inf).cummax(1).values
    grid_times = grid_times.masked_fill(grid_times.isinf(), 0)
    if max_gap is not None:
        grid_times, parts_of, kept = _subdivide_gaps(grid_times, kept, max_gap)
        order = order.gather(1, parts_of)
    rows = torch.arange(len(order), device=order.device).unsqueeze(1)
    mask = mask[rows, input_at[order]] & kept.unsqueeze(-1)
    is_observed, is_target = mask.any(-1), is_target.gather(1, order) & kept
    return ObservationGrid(
        times=grid_times,
        values=torch.where(mask, values[rows, input_at[order]], 0),
        mask=mask,
        is_observed=is_observed,
        is_after_last=is_target & (is_observed.flip(1).cumsum(1).flip(1) == 0),
        target_index=torch.where(is_target, target_at[order], len(times)),
    )


@dataclass(frozen=True)
class Observations:
    """An ``ObservedSeries`` made of given tensors."""

    times: Tensor
    values: Tensor
    mask: Tensor


def reversed_grid(inputs: ObservedSeries, max_gap: float | None = None, to_start: bool = False) -> ObservationGrid:
    """Make the grid of the observations in reversed order, at negative times that rise to 0, the start of the series.

    to_start: include time 0 even if nothing was observed then. max_gap: see ``make_grid``.
    """
    backwards = Observations(-inputs.times.flip(0), inputs.values.flip(1), inputs.mask.flip(1))
    return make_grid(backwards, inputs.times.new_zeros(int(to_start)), None, max_gap)


def run_cell(
    cell: RecurrentCell,
    grid: ObservationGrid,
    state: State,
    last: Tensor,
    solve: Solve,
    predict: Callable[[Tensor], Tensor] | None = None,
) -> RecurrenceOutput:
    """Run a cell over a grid.

    state: the initial state; last: [B], its time in each series.
    predict: maps hidden states [B, H] to predicted values [B, D]. At the times after the last observation the cell
        takes these as input. None: the cell takes no input there.
    """
    hidden_states, state_after_last = [], state
    # Read these before the loop: inside it, the host would wait for the device at each time.
    longest_gaps = grid.times.diff(dim=1, prepend=last.unsqueeze(1)).amax(0)
    roles = grid.is_observed.all(0), grid.is_after_last.any(0)
    columns = torch.stack((longest_gaps, *(role.to(longest_gaps) for role in roles)), 1).tolist()
    parts = (part.unbind(1) for part in (grid.times, grid.values, grid.mask, grid.is_observed, grid.is_after_last))
    for column, time, values, mask, is_observed, is_after_last in zip(columns, *parts, strict=True):
        longest_gap, all_observed, any_after_last = column
        advanced = cell.advance(state, time - last, solve, longest_gap)
        hidden_states.append(advanced[0])
        if all_observed:
            last, state = time, cell.update(advanced, values, mask)
            state_after_last = state
            continue
        has_input = is_observed
        if predict is not None and any_after_last:
            after_last = is_after_last.unsqueeze(1)
            values = torch.where(after_last, predict(hidden_states[-1]), values)
            mask, has_input = mask | after_last, is_observed | is_after_last
        updated = cell.update(advanced, values, mask)
        state_after_last = _where(is_observed, updated, state_after_last)
        state = _where(has_input, updated, advanced if cell.continuous_time else state)
        last = time if cell.continuous_time else torch.where(has_input, time, last)
    return RecurrenceOutput(torch.stack(hidden_states, 1), state, state_after_last)


def _inverse_index(index: Tensor, size: int) -> Tensor:
    """Return a tensor [size] that holds i at index[i], and len(index) elsewhere."""
    inverse = torch.full((size,), len(index), device=index.device)
    inverse[index] = torch.arange(len(index), device=index.device)
    return inverse


def _compact_columns(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The columns to keep in each row of keep [B, U], in order.

    Returns their indices [B, K], and a mask [B, K] that is False in the padding.
    """
    most = max(int(keep.sum(1).max()), 1)
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return order, keep.gather(1, order)


def _subdivide_gaps(times: Tensor, kept: Tensor, max_gap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Divide each gap of times [B, K] into equal parts of at most max_gap; series are padded to the same length P.

    kept: bool [B, K], False in the padding. Returns the new times [B, P]; for each of them the index [B, P] of the old
    time at which its gap ends; and whether it is itself one of the old times that are kept, [B, P].

    In this way a series with few observations and long gaps takes its small steps while others take in their
    observations. If all series went together from observation to observation, each gap would take as many steps as the
    longest gap of the batch.
    """
    # The first gap starts at 0. If the times are negative and rise to 0, it starts at the first time.
    gaps = times.diff(dim=1, prepend=times[:, :1].clamp(max=0))
    parts = (gaps / max_gap * (1 - GAP_RTOL)).ceil().long().maximum(kept.long())
    ends = parts.cumsum(1)
    columns = torch.arange(max(int(ends[:, -1].max()), 1), device=times.device).repeat(len(times), 1)
    gap_index = torch.searchsorted(ends, columns, right=True).clamp(max=times.shape[1] - 1)
    remaining = ends.gather(1, gap_index) - 1 - columns  # negative in the padding
    share = remaining.clamp(min=0) / parts.gather(1, gap_index).clamp(min=1)
    part_times = times.gather(1, gap_index) - share * gaps.gather(1, gap_index)
    return part_times, gap_index, kept.gather(1, gap_index) & (remaining == 0)


def _where(condition: Tensor, state: State, other: State) -> State:
    return tuple(torch.where(condition.unsqueeze(1), a, b) for a, b in zip(state, other, strict=True))

"""Run a recurrent cell over a batch of irregular series, each series at its own times."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odebench import ode

Solve = Callable[..., ode.Solution]
State = tuple[Tensor, ...]

# Relative tolerance of time gaps, as times have single precision: a gap longer than a step by less is still one step.
GAP_RTOL = 1e-4


class ObservedSeries(Protocol):
    """B series on the union of their times.

    times: [T] increasing, from 0 on, where all series start. values: [B, T, D]. mask: bool [B, T, D], True where a
    value was observed; values are ignored elsewhere.
    """

    @property
    def times(self) -> Tensor: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...


class RecurrentCell(nn.Module):
    """A recurrent network that takes the time between observations into account; its state is a tuple of [B, ...].

    The state's first tensor is the hidden state [B, H]; predictions are decoded from that of an advanced state.

    width: H. recurrent: the step from (values and mask [B, 2 D], hidden state) to the next hidden state.
    continuous_time: whether a gap can be advanced in parts: advance(advance(s, a), b) = advance(s, a + b).
    max_gap: the longest such part, of a cell with continuous time; None: the whole gap to the next observation.
    """

    width: int
    recurrent: nn.Module
    continuous_time = False
    max_gap: float | None = None

    def initial_state(self, like: Tensor) -> State:
        """The state before the first observation, for values like these [B, D]: zeros."""
        return (like.new_zeros(len(like), self.width),)

    def advance(self, state: State, gap: Tensor, solve: Solve, longest_gap: float) -> State:
        """The state at a time ``gap`` [B] after the last observation, before the next one is taken in.

        longest_gap: the largest gap if the cell has a ``max_gap``, else NaN.
        """
        raise NotImplementedError

    def update(self, state: State, values: Tensor, mask: Tensor) -> State:
        """An advanced state after an observation [B, D] at its time; values are 0 where the mask is False."""
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
    """The times at which each series was observed or a prediction is requested: at most K, padded with the last one.

    times: [B, K], not decreasing. values, mask: [B, K, D], 0 and False where nothing was observed.
    is_observed: bool [B, K]. is_after_last: bool [B, K], requested and after the last observation.
    target_index: [B, K], the index among the T prediction times; T where no prediction is requested.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    is_observed: Tensor
    is_after_last: Tensor
    target_index: Tensor

    def scatter(self, rows: Tensor, num_times: int) -> Tensor:
        """Numbers for each time of the grid [B, K, D], scattered to the prediction times [B, T, D]; 0 elsewhere."""
        index = self.target_index.unsqueeze(-1).expand_as(rows)
        return rows.new_zeros(len(rows), num_times + 1, rows.shape[2]).scatter(1, index, rows)[:, :num_times]


@dataclass(frozen=True)
class RecurrenceOutput:
    """The states of a cell along a grid.

    hidden_states: [B, K, H], at each time of the grid before the observation there is taken in.
    final_state: at the end of the grid. state_after_last: after the last true observation.
    """

    hidden_states: Tensor
    final_state: State
    state_after_last: State


def make_grid(
    inputs: ObservedSeries, times: Tensor, requested: Tensor | None, max_gap: float | None = None
) -> ObservationGrid:
    """The grid of the observations and of those of the ``times`` [T] that are ``requested`` [B, T], None for all.

    max_gap: insert times without observation or prediction, so that no gap is longer; None: insert none.
    """
    if requested is None:
        requested = inputs.mask.new_ones(len(inputs.mask), len(times))
    num_inputs = len(inputs.times)
    union, union_index = torch.unique(torch.cat((inputs.times, times)), return_inverse=True)
    # The index of the input time and of the prediction time that each time of the union is. If there is none, the index
    # is one past the last, where the padded tensors are 0 or False.
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
    """An ``ObservedSeries`` of given tensors."""

    times: Tensor
    values: Tensor
    mask: Tensor


def reversed_grid(inputs: ObservedSeries, max_gap: float | None = None, to_start: bool = False) -> ObservationGrid:
    """The grid of the observations, the last first, on negative times that rise to the start at 0.

    to_start: include the start even if nothing was observed there. max_gap: see ``make_grid``.
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
    """Run a cell over a grid, from a state at times ``last`` [B].

    predict: from hidden states [B, H] to predicted values [B, D], which the cell takes as input at the times after the
        last observation; None: it takes no input there.
    """
    hidden_states, state_after_last = [], state
    # Read before the loop: inside, the host would wait for the device at each time.
    any_after_last = [] if predict is None else grid.is_after_last.any(0).tolist()
    longest_gaps = [math.nan] * grid.times.shape[1]
    if cell.max_gap is not None:
        longest_gaps = grid.times.diff(dim=1, prepend=last.unsqueeze(1)).amax(0).tolist()
    for k, longest_gap in enumerate(longest_gaps):
        values, mask, has_input, time = grid.values[:, k], grid.mask[:, k], grid.is_observed[:, k], grid.times[:, k]
        advanced = cell.advance(state, time - last, solve, longest_gap)
        hidden_states.append(advanced[0])
        if predict is not None and any_after_last[k]:
            after_last = grid.is_after_last[:, k].unsqueeze(1)
            values = torch.where(after_last, predict(hidden_states[-1]), values)
            mask, has_input = mask | after_last, has_input | after_last.squeeze(1)
        updated = cell.update(advanced, values, mask)
        state_after_last = _where(grid.is_observed[:, k], updated, state_after_last)
        state = _where(has_input, updated, advanced if cell.continuous_time else state)
        last = time if cell.continuous_time else torch.where(has_input, time, last)
    return RecurrenceOutput(torch.stack(hidden_states, 1), state, state_after_last)


def _inverse_index(index: Tensor, size: int) -> Tensor:
    """[size]: i at index[i], and len(index) elsewhere."""
    inverse = torch.full((size,), len(index), device=index.device)
    inverse[index] = torch.arange(len(index), device=index.device)
    return inverse


def _compact_columns(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The columns kept in each row of keep [B, U], in order: their indices [B, K] and a mask without the padding."""
    most = max(int(keep.sum(1).max()), 1)
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return order, keep.gather(1, order)


def _subdivide_gaps(times: Tensor, kept: Tensor, max_gap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Divide each gap of times [B, K] into equal parts of at most max_gap; series are padded to the same length P.

    Returns the times [B, P], the index [B, P] of the old time at which each one's gap ends, and whether it is itself
    an old time that was kept.

    So a series with few observations and long gaps takes its small steps while others take in their observations. From
    observation to observation, all series together, each gap would take as many steps as the longest of the batch.
    """
    # The first gap starts at 0, or, if the times are negative and rise to 0, at the first time.
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

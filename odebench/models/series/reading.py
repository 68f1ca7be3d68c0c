"""Reading irregular series: each at its own times, a whole batch at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from odebench import ode

Solve = Callable[..., ode.Solution]
State = tuple[Tensor, ...]

# Of times in single precision, as a share of a step: what is longer by so little is no longer.
ROUNDING = 1e-4


class Observed(Protocol):
    """B series on the union of their times.

    times: [T] increasing, from 0 on, where all series start. values: [B, T, D]. mask: bool [B, T, D], where there is a
    value; elsewhere there may be anything.
    """

    @property
    def times(self) -> Tensor: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...


class Cell(Protocol):
    """A recurrent network that knows how much time has passed; its state is a tuple of tensors [B, ...].

    Predictions are read off an advanced state's hidden one [B, H], which comes first in it.

    flows: whether the state may be carried on in pieces, advance(advance(s, a), b) = advance(s, a + b).
    longest_gap: how long these are at most; None: as long as it is to the next observation.
    """

    flows: bool
    longest_gap: float | None

    def start(self, like: Tensor) -> State:
        """The state before anything was seen, for values like these [B, D]."""

    def advance(self, state: State, gap: Tensor, solve: Solve) -> State:
        """The state a time ``gap`` [B] after the last observation, the next not yet seen."""

    def update(self, state: State, values: Tensor, mask: Tensor) -> State:
        """An advanced state after an observation [B, D] at its time; values are 0 where the mask is False."""

    def summary(self, state: State) -> Tensor:
        """The hidden state [B, H] that has seen the last observation, at its time."""


class Counted:
    """A solve that remembers what its solves cost."""

    def __init__(self, solve: Solve) -> None:
        self._solve = solve
        self._stats: list[ode.Stats] = []

    def __call__(self, f: Callable[..., Any], y0: Any, t: Any, **more: Any) -> ode.Solution:
        solution = self._solve(f, y0, t, **more)
        self._stats.append(solution.stats)
        return solution

    @property
    def stats(self) -> tuple[ode.Stats, ...]:
        """Of all solves so far."""
        return tuple(self._stats)


@dataclass(frozen=True)
class Grid:
    """The times at which each series was observed, or is wanted: K at most, padded at the end by the last.

    times: [B, K], not decreasing. values, mask: [B, K, D], 0 and False where nothing was observed.
    seen: bool [B, K], where anything was observed. beyond: bool [B, K], wanted and after the last observation.
    slots: [B, K] which of the T times asked for it is; T where it is none that is wanted.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    seen: Tensor
    beyond: Tensor
    slots: Tensor


@dataclass(frozen=True)
class Reading:
    """What came of reading a grid.

    hiddens: [B, K, H] the hidden states at its times, each before the observation there.
    end: the last state. told: the state after the last observation proper.
    """

    hiddens: Tensor
    end: State
    told: State


def own_times(inputs: Observed, times: Tensor, wanted: Tensor | None, longest_gap: float | None = None) -> Grid:
    """The grid of the observations and of those of the ``times`` [T] that are ``wanted`` [B, T], None for all.

    longest_gap: times are put in between, where nothing is observed or wanted, so that no gap is longer; None: none.
    """
    if wanted is None:
        wanted = inputs.mask.new_ones(len(inputs.mask), len(times))
    num_inputs = len(inputs.times)
    union, places = torch.unique(torch.cat((inputs.times, times)), return_inverse=True)
    # Which input time and which time asked for each of the union is; where it is none, one past the last of them, where
    # the padded tensors hold nothing.
    input_at = _inverse(places[:num_inputs], len(union))
    asked_at = _inverse(places[num_inputs:], len(union))
    mask, values = (F.pad(x, (0, 0, 0, 1)) for x in (inputs.mask, inputs.values))
    asked = F.pad(wanted, (0, 1))[:, asked_at]
    order, kept = _kept_first(mask.any(-1)[:, input_at] | asked)
    own = union[order].masked_fill(~kept, -torch.inf).cummax(1).values
    own = own.masked_fill(own.isinf(), 0)
    if longest_gap is not None:
        own, parts_of, kept = _divided(own, kept, longest_gap)
        order = order.gather(1, parts_of)
    rows = torch.arange(len(order), device=order.device).unsqueeze(1)
    mask = mask[rows, input_at[order]] & kept.unsqueeze(-1)
    seen, asked = mask.any(-1), asked.gather(1, order) & kept
    return Grid(
        times=own,
        values=torch.where(mask, values[rows, input_at[order]], 0),
        mask=mask,
        seen=seen,
        beyond=asked & (seen.flip(1).cumsum(1).flip(1) == 0),
        slots=torch.where(asked, asked_at[order], len(times)),
    )


@dataclass(frozen=True)
class Observations:
    """The plainest ``Observed``."""

    times: Tensor
    values: Tensor
    mask: Tensor


def observed_backwards(inputs: Observed, longest_gap: float | None = None, to_start: bool = False) -> Grid:
    """The grid of the observations, the last first, on negative times that rise to the start at 0.

    to_start: whether the start is among them where nothing was observed there. longest_gap: see ``own_times``.
    """
    backwards = Observations(-inputs.times.flip(0), inputs.values.flip(1), inputs.mask.flip(1))
    return own_times(backwards, inputs.times.new_zeros(int(to_start)), None, longest_gap)


def read(
    cell: Cell, grid: Grid, state: State, last: Tensor, solve: Solve, respond: Callable[[Tensor], Tensor] | None = None
) -> Reading:
    """Read a grid from a state at times ``last`` [B].

    respond: from hidden states [B, H] to the values that the series are thought to have [B, D]; at the times beyond the
        last observation these are read in place of one. None: nothing is.
    """
    hiddens, told = [], state
    for k, any_beyond in enumerate(grid.beyond.any(0).tolist()):
        values, mask, seen, time = grid.values[:, k], grid.mask[:, k], grid.seen[:, k], grid.times[:, k]
        now = cell.advance(state, time - last, solve)
        hiddens.append(now[0])
        if respond is not None and any_beyond:
            beyond = grid.beyond[:, k].unsqueeze(1)
            values = torch.where(beyond, respond(hiddens[-1]), values)
            mask, seen = mask | beyond, seen | beyond.squeeze(1)
        updated = cell.update(now, values, mask)
        told = _choose(grid.seen[:, k], updated, told)
        state = _choose(seen, updated, now if cell.flows else state)
        last = time if cell.flows else torch.where(seen, time, last)
    return Reading(torch.stack(hiddens, 1), state, told)


def spread(rows: Tensor, grid: Grid, num_times: int) -> Tensor:
    """Numbers for each time of a grid [B, K, D] where they belong among the times asked for [B, T, D]; 0 elsewhere."""
    slots = grid.slots.unsqueeze(-1).expand_as(rows)
    return rows.new_zeros(len(rows), num_times + 1, rows.shape[2]).scatter(1, slots, rows)[:, :num_times]


def _inverse(places: Tensor, size: int) -> Tensor:
    """[size]: i at places[i], and len(places) elsewhere."""
    found = torch.full((size,), len(places), device=places.device)
    found[places] = torch.arange(len(places), device=places.device)
    return found


def _kept_first(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The columns kept in each row of keep [B, U], in order: their numbers [B, K] and which of these are kept."""
    most = max(int(keep.sum(1).max()), 1)
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return order, keep.gather(1, order)


def _divided(times: Tensor, kept: Tensor, longest_gap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Times [B, K] with each gap in equal parts, at most so long: [B, P], P the most that a series has; of each the
    number of the old time that its gap leads to, and whether it is that time itself and kept.

    So series with few observations and long gaps take their small steps while others read theirs. From observation to
    observation, all together, each gap would take as many steps as the longest of the batch.
    """
    # Times that rise to 0 begin with the first of them; others with 0.
    gaps = times.diff(dim=1, prepend=times[:, :1].clamp(max=0))
    parts = (gaps / longest_gap * (1 - ROUNDING)).ceil().long().maximum(kept.long())
    ends = parts.cumsum(1)
    columns = torch.arange(max(int(ends[:, -1].max()), 1), device=times.device).repeat(len(times), 1)
    leads_to = torch.searchsorted(ends, columns, right=True).clamp(max=times.shape[1] - 1)
    to_come = ends.gather(1, leads_to) - 1 - columns  # negative where a series has no more
    share = to_come.clamp(min=0) / parts.gather(1, leads_to).clamp(min=1)
    own = times.gather(1, leads_to) - share * gaps.gather(1, leads_to)
    return own, leads_to, kept.gather(1, leads_to) & (to_come == 0)


def _choose(which: Tensor, state: State, other: State) -> State:
    return tuple(torch.where(which.unsqueeze(1), a, b) for a, b in zip(state, other, strict=True))

"""What loaders of series do: from arrays to series, into splits, and to what is seen and what is asked of each."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from odebench.data.series import SeriesData, SeriesSplit
from odebench.errors import UsageError

Mode = Literal["interpolation", "extrapolation"]

_INPUTS = 1  # apart from the streams of random numbers that make the series themselves


def flat_series(
    lengths: Sequence[int] | np.ndarray,
    times: np.ndarray,
    values: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    truth: np.ndarray | None = None,
) -> SeriesSplit:
    """Series from NumPy arrays of any float type: lengths [N], times [P], values [P, D].

    mask: everything is observed where it is None. All observed points are inputs and targets; ids count from 0
    unless given.
    """
    lengths = np.asarray(lengths)
    seen = torch.ones(values.shape, dtype=torch.bool) if mask is None else torch.from_numpy(mask)
    observed = seen.any(1)
    return SeriesSplit(
        ids=torch.arange(len(lengths)) if ids is None else torch.from_numpy(ids.astype(np.int64)),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
        times=torch.from_numpy(times.astype(np.float32)),
        values=torch.from_numpy(values.astype(np.float32)),
        mask=seen,
        is_input=observed,
        is_target=observed,
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        truth=None if truth is None else torch.from_numpy(truth.astype(np.float32)),
    )


def select_series(split: SeriesSplit, indices: np.ndarray | Tensor) -> SeriesSplit:
    """The series of a split at these indices, in their order."""
    indices = torch.as_tensor(indices)
    _, points = split.points(indices)
    lengths = split.offsets.diff()[indices]
    kept = {
        name: part[indices] if name in ("ids", "labels") else part[points]
        for name, part in vars(split).items()
        if part is not None and name != "offsets"
    }
    return SeriesSplit(offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), **kept)


def observed_series(split: SeriesSplit) -> Tensor:
    """Which series have an observation to encode and one to compare with: bool [N]."""
    owners, seen = split.owners(), split.mask.any(1)
    counts = [torch.bincount(owners[role & seen], minlength=len(split)) for role in (split.is_input, split.is_target)]
    return (counts[0] > 0) & (counts[1] > 0)


def without_unobserved(data: SeriesData) -> SeriesData:
    """The data set without the series that have nothing to encode or nothing to compare with.

    They and those that its loader left out are counted in note and provenance. UsageError where a split has no others.
    """
    whole = {name: observed_series(split) for name, split in data.splits().items()}
    wanting = {name: split for name, split in data.splits().items() if not whole[name].all()}
    kept: dict[str, Any] = {of: select_series(split, whole[of].nonzero().squeeze(1)) for of, split in wanting.items()}
    missing = sum(int((~of_split).sum()) for of_split in whole.values())
    counts = {**data.provenance.get("left_out", {}), "with nothing to encode or to compare with": missing}
    left_out = {reason: count for reason, count in counts.items() if count}
    listed = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    redraw, points = data.redraw, whole["train"][data.train.owners()]
    return dataclasses.replace(
        data,
        **kept,
        redraw=None if redraw is None else lambda seed, epoch: redraw(seed, epoch)[points],
        note="; ".join(filter(None, [data.note, f"series kept out: {listed}" if listed else ""])),
        provenance={**data.provenance, "left_out": left_out},
    )


def draw_inputs(split: SeriesSplit, observed: int | float, random: np.random.RandomState) -> Tensor:
    """Some of each series' inputs, at random without replacement: bool [P], a new `is_input`.

    observed: how many points of each series, or (a float) which share of its points, rounded down but one at least.
    Raises UsageError for more points than a series has.
    """
    offsets, candidates = split.offsets.numpy(), split.is_input.numpy()
    owners = split.owners().numpy()
    counts = np.bincount(owners[candidates], minlength=len(split))
    if isinstance(observed, float):
        quota = np.minimum(counts, np.maximum(1, np.floor(counts * observed + 1e-9).astype(np.int64)))
    else:
        quota = np.full(len(split), observed)
        if (counts < quota).any():
            series = int(np.argmax(counts < quota))
            raise UsageError(
                f"data.observed={observed}: series {int(split.ids[series])} has only {counts[series]} points"
            )
    # Candidates in a random order stand first in their series; the quota takes the first of them.
    order = np.argsort(owners + random.random_sample(len(owners)) / 4 + ~candidates / 2)
    chosen = np.empty(len(owners), dtype=bool)
    chosen[order] = np.arange(len(owners)) - offsets[owners] < quota[owners]
    return torch.from_numpy(chosen)


def assign_roles(split: SeriesSplit, mode: Mode, span: float) -> SeriesSplit:
    """Which points are encoded and which are asked for.

    interpolation: all observed points, both times; extrapolation: those of the first half of the span are encoded,
    those of the second are asked for (Rubanova et al. 2019, section 4).
    """
    if mode == "interpolation":
        return split
    first = split.times < span / 2
    return dataclasses.replace(split, is_input=split.is_input & first, is_target=split.is_target & ~first)


def hold_out_series(
    order: np.ndarray, num_test: int, validation: int, train_limit: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices for training, validation and test: the order's first num_test are for test, then come validation's.

    A train_limit takes the first so many of those left. Raises UsageError for numbers that the order cannot give.
    """
    pool = len(order) - num_test
    if not 0 < validation < pool:
        raise UsageError(
            f"data.validation={validation} must be positive and less than the {pool:,} series that training and "
            "validation share"
        )
    left = pool - validation
    limit = left if train_limit is None else train_limit
    if not 0 < limit <= left:
        raise UsageError(
            f"data.train_limit={limit} must be positive and at most {left:,}, the training series left beside "
            f"{validation:,} for validation; null takes them all"
        )
    start = num_test + validation
    return order[start : start + limit], order[num_test:start], order[:num_test]


def divide(
    pool: SeriesSplit, parts: Sequence[np.ndarray], observed: float = 1.0, random_state: int = 0
) -> dict[str, Any]:
    """The splits (and redraw) of SeriesData, from a pool of series and the indices of its three parts.

    observed: the share of each series' inputs that the encoder is given. They are drawn once, by random_state and the
    series' place in the pool alone, so the limits of the split do not move them; `redraw` draws others for training.
    """
    drawn = pool
    if observed < 1:
        inputs = draw_inputs(pool, observed, np.random.RandomState([random_state, _INPUTS]))
        drawn = dataclasses.replace(pool, is_input=inputs)
    splits = (select_series(drawn, part) for part in parts)
    fields: dict[str, Any] = dict(zip(("train", "validation", "test"), splits, strict=True))
    if observed < 1:
        candidates = select_series(pool, parts[0])

        def redraw(seed: int, epoch: int) -> Tensor:
            return draw_inputs(candidates, observed, np.random.RandomState([seed, epoch, _INPUTS]))

        fields["redraw"] = redraw
    return fields


def bounds(split: SeriesSplit) -> tuple[Tensor, Tensor]:
    """The smallest and the largest observed value of each channel, [D] each; 0 and 1 where none was observed."""
    low = split.values.masked_fill(~split.mask, torch.inf).amin(0)
    high = split.values.masked_fill(~split.mask, -torch.inf).amax(0)
    seen = split.mask.any(0)
    return low.where(seen, 0), high.where(seen, 1)


def scale(split: SeriesSplit, low: Tensor, high: Tensor) -> SeriesSplit:
    """The same series with channel values from `low` on, in units of `high`, where that is not 0.

    As in the public code of Rubanova et al. (2019): their errors are told in this unit, and not in that of the range.
    """
    unit = high.abs().where(high != 0, 1)
    return dataclasses.replace(split, values=((split.values - low) / unit).where(split.mask, 0))

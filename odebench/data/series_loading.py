"""Steps that loaders of series share: make series from arrays, split them, and choose inputs and targets."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from odebench.data.series import SeriesData, SeriesSplit
from odebench.data.splits import num_training
from odebench.errors import UsageError

Mode = Literal["interpolation", "extrapolation"]

_INPUTS = 1  # key of the random stream of the inputs, independent of those that generate the series


def series_from_arrays(
    lengths: Sequence[int] | np.ndarray,
    times: np.ndarray,
    values: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    truth: np.ndarray | None = None,
) -> SeriesSplit:
    """Make series from NumPy arrays of any float type. All observed points are inputs and targets.

    lengths: [N], the number of points of each series. times: [P]. values: [P, D]. mask: [P, D], or None if all values
    are observed. ids: [N], or None for 0, 1, 2, ....
    """
    lengths = np.asarray(lengths)
    is_observed = torch.ones(values.shape, dtype=torch.bool) if mask is None else torch.from_numpy(mask)
    observed = is_observed.any(1)
    return SeriesSplit(
        ids=torch.arange(len(lengths)) if ids is None else torch.from_numpy(ids.astype(np.int64)),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
        times=torch.from_numpy(times.astype(np.float32)),
        values=torch.from_numpy(values.astype(np.float32)),
        mask=is_observed,
        is_input=observed,
        is_target=observed,
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        truth=None if truth is None else torch.from_numpy(truth.astype(np.float32)),
    )


def select_series(split: SeriesSplit, indices: np.ndarray | Tensor) -> SeriesSplit:
    """The series of a split at these indices, in their order."""
    indices = torch.as_tensor(indices)
    _, points = split.point_indices(indices)
    lengths = split.offsets.diff()[indices]
    fields = {
        name: part[indices] if name in ("ids", "labels") else part[points]
        for name, part in vars(split).items()
        if part is not None and name != "offsets"
    }
    return SeriesSplit(offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), **fields)


def has_input_and_target(split: SeriesSplit) -> Tensor:
    """Whether each series has at least one observed input and one observed target: bool [N]."""
    series_index, is_observed = split.series_of_points(), split.mask.any(1)
    roles = (split.is_input, split.is_target)
    counts = [torch.bincount(series_index[role & is_observed], minlength=len(split)) for role in roles]
    return (counts[0] > 0) & (counts[1] > 0)


def drop_unobserved_series(data: SeriesData) -> SeriesData:
    """The data set without the series that have no observed inputs or no observed targets.

    Its note and provenance count these series, and the series that the loader dropped. Raises UsageError if no series
    is left in a split.
    """
    keep = {name: has_input_and_target(split) for name, split in data.splits().items()}
    splits: dict[str, Any] = {
        name: select_series(split, keep[name].nonzero().squeeze(1))
        for name, split in data.splits().items()
        if not keep[name].all()
    }
    missing = sum(int((~of_split).sum()) for of_split in keep.values())
    counts = {**data.provenance.get("left_out", {}), "with nothing to encode or to compare with": missing}
    left_out = {reason: count for reason, count in counts.items() if count}
    listed = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    redraw, points = data.redraw, keep["train"][data.train.series_of_points()]
    return dataclasses.replace(
        data,
        **splits,
        redraw=None if redraw is None else lambda seed, epoch: redraw(seed, epoch)[points],
        note="; ".join(filter(None, [data.note, f"series dropped: {listed}" if listed else ""])),
        provenance={**data.provenance, "left_out": left_out},
    )


def draw_inputs(split: SeriesSplit, observed: int | float, random: np.random.RandomState) -> Tensor:
    """Draw a part of each series' inputs without replacement; returns a new `is_input`, bool [P].

    observed: an int is the number of inputs to draw from each series. A float is the fraction of its inputs, rounded
    down, but at least one input. Raises UsageError if a series has fewer inputs than that.
    """
    offsets, candidates = split.offsets.numpy(), split.is_input.numpy()
    series_index = split.series_of_points().numpy()
    counts = np.bincount(series_index[candidates], minlength=len(split))
    if isinstance(observed, float):
        quota = np.minimum(counts, np.maximum(1, np.floor(counts * observed + 1e-9).astype(np.int64)))
    else:
        quota = np.full(len(split), observed)
        if (counts < quota).any():
            series = int(np.argmax(counts < quota))
            raise UsageError(
                f"data.observed={observed}: series {int(split.ids[series])} has only {counts[series]} points"
            )
    # Sort the points by series, in each series the candidates first and in random order; choose the first ``quota``.
    order = np.argsort(series_index + random.random_sample(len(series_index)) / 4 + ~candidates / 2)
    chosen = np.empty(len(series_index), dtype=bool)
    chosen[order] = np.arange(len(series_index)) - offsets[series_index] < quota[series_index]
    return torch.from_numpy(chosen)


def assign_roles(split: SeriesSplit, mode: Mode, span: float) -> SeriesSplit:
    """Set which points are inputs and which are targets.

    mode: with "interpolation" all observed points are both; with "extrapolation" the points in the first half of the
    span are inputs, and those in the second half are targets (Rubanova et al. 2019, section 4).
    """
    if mode == "interpolation":
        return split
    first = split.times < target_start(mode, span)
    return dataclasses.replace(split, is_input=split.is_input & first, is_target=split.is_target & ~first)


def target_start(mode: Mode, span: float) -> float:
    """The time from which on there are targets."""
    return span / 2 if mode == "extrapolation" else 0.0


def hold_out_series(
    order: np.ndarray, num_test: int, validation: int, train_limit: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The indices of the series for training, for validation and for test.

    order: the indices of all series: the first num_test are for test, the next for validation, the rest for training.
    train_limit: use only this many of the rest; None: use all. Raises UsageError for numbers out of range.
    """
    limit = num_training(len(order) - num_test, validation, train_limit, "series")
    start = num_test + validation
    return order[start : start + limit], order[num_test:start], order[:num_test]


def make_splits(
    pool: SeriesSplit, parts: Sequence[np.ndarray], observed: float = 1.0, random_state: int = 0
) -> dict[str, Any]:
    """The fields train, validation and test of SeriesData, and redraw if inputs are drawn.

    pool: all series. parts: indices of the series for training, for validation and for test. observed: the fraction of
    each series' inputs that the encoder gets. These are drawn once and depend only on random_state and the position of
    the series in the pool, not on the splits; `redraw` draws new ones for training.
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


def value_range(split: SeriesSplit) -> tuple[Tensor, Tensor]:
    """The smallest and the largest observed value of each channel, [D] each; 0 and 1 if none was observed."""
    low = split.values.masked_fill(~split.mask, torch.inf).amin(0)
    high = split.values.masked_fill(~split.mask, -torch.inf).amax(0)
    is_observed = split.mask.any(0)
    return low.where(is_observed, 0), high.where(is_observed, 1)


def scale_values(split: SeriesSplit, low: Tensor, high: Tensor) -> SeriesSplit:
    """The series with values (value - low) / |high|; the divisor is 1 where high is 0.

    As in the public code of Rubanova et al. (2019): their errors are in units of |high|, not of high - low.
    """
    unit = high.abs().where(high != 0, 1)
    return dataclasses.replace(split, values=((split.values - low) / unit).where(split.mask, 0))

"""Irregular series: stored as concatenated points, and batched on the union of their times.

A point is one time of one series with D values and a mask of the observed ones. Each series has its own times, so a
split concatenates the points of all series and stores where each series begins; batches are made without a loop. Some
points are inputs of the encoder (`is_input`), and some are targets of the loss and the metrics (`is_target`); batches
of inputs and of targets contain no others.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from odebench.errors import UsageError


@dataclass(frozen=True)
class SeriesBatch:
    """B series on the union of their times.

    times: float32 [T], increasing; values: float32 [B, T, D], 0 where unobserved; mask: bool [B, T, D], True where
    observed; labels: int64 [B], or None.
    """

    times: Tensor
    values: Tensor
    mask: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, rows: slice) -> "SeriesBatch":
        """A batch of some of these series, on the same times."""
        labels = None if self.labels is None else self.labels[rows]
        return SeriesBatch(self.times, self.values[rows], self.mask[rows], labels)


@dataclass(frozen=True)
class SeriesSplit:
    """N series with P points in total: series i has the points offsets[i] to offsets[i + 1].

    ids: int64 [N], a number that identifies a series across splits; offsets: int64 [N + 1];
    times: float32 [P], increasing within a series; values: float32 [P, D]; mask: bool [P, D], True where observed;
    is_input, is_target: bool [P], the points for the encoder and those for the loss and the metrics;
    labels: int64 [N], or None; truth: float32 [P, D], the values without noise at all points, also at those that were
    not observed, or None if they are not known. Raises UsageError for wrong shapes, times that repeat or decrease,
    and observed values that are not finite.
    """

    ids: Tensor
    offsets: Tensor
    times: Tensor
    values: Tensor
    mask: Tensor
    is_input: Tensor
    is_target: Tensor
    labels: Tensor | None = None
    truth: Tensor | None = None

    def __post_init__(self) -> None:
        num, points = len(self.ids), len(self.times)
        _expect("offsets", self.offsets, torch.int64, (num + 1,))
        _expect("times", self.times, torch.float32, (points,))
        if self.offsets[0] != 0 or self.offsets[-1] != points or (self.offsets.diff() < 0).any():
            raise UsageError(f"offsets must go from 0 to {points}, the number of points, and never decrease")
        if self.values.ndim != 2:
            raise UsageError(f"values must be float32 [{points}, D], not {list(self.values.shape)}")
        for name in ("values", "truth"):
            _expect(name, getattr(self, name), torch.float32, (points, self.dim))
        _expect("mask", self.mask, torch.bool, (points, self.dim))
        for name in ("is_input", "is_target"):
            _expect(name, getattr(self, name), torch.bool, (points,))
        _expect("labels", self.labels, torch.int64, (num,))
        self._check_times()
        if not torch.isfinite(self.values).logical_or(~self.mask).all():
            raise UsageError("an observed value is not finite; for a missing value the mask must be False")
        if self.truth is not None and not torch.isfinite(self.truth).all():
            raise UsageError("the truth is not finite; it is needed at each point, also at those not observed")

    def _check_times(self) -> None:
        series_index = self.series_of_points()
        decreases = (self.times.diff() <= 0) & (series_index.diff() == 0)
        wrong = decreases if decreases.any() else ~self.times.isfinite()
        if wrong.any():
            point = int(wrong.nonzero()[0])
            given = ", ".join(f"{time:.9g}" for time in self.times[point : point + 2].tolist())
            raise UsageError(
                f"series {int(self.ids[series_index[point]])}: times must be finite and increase, "
                f"not repeat or go backwards ({given})"
            )

    def series_of_points(self) -> Tensor:
        """The index of the series of each point: [P]."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.ids.device), self.offsets.diff())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """D, the number of values at a point."""
        return self.values.shape[1]

    def inputs(self, indices: Tensor) -> SeriesBatch:
        """The inputs of the encoder for these series; indices: int64 [B]."""
        return self._batch(indices, self.is_input, self.values, self.mask)

    def targets(self, indices: Tensor) -> SeriesBatch:
        """The targets of the loss and the metrics for these series."""
        return self._batch(indices, self.is_target, self.values, self.mask)

    def inputs_and_targets(self, indices: Tensor) -> tuple[SeriesBatch, SeriesBatch]:
        """Inputs and targets of these series; the same object twice if the inputs are the targets."""
        inputs = self.inputs(indices)
        return inputs, inputs if torch.equal(self.is_input, self.is_target) else self.targets(indices)

    def noiseless(self, indices: Tensor) -> SeriesBatch:
        """The values without noise at all points of these series. Raises ValueError if they are not known."""
        if self.truth is None:
            raise ValueError("the values without noise of these series are not known")
        everywhere = torch.ones_like(self.mask)
        return self._batch(indices, everywhere[:, 0], self.truth, everywhere)

    def point_indices(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """For each point of these series: the position of its series in ``indices``, and its index in this split."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        rows = torch.repeat_interleave(torch.arange(len(indices), device=self.offsets.device), lengths)
        shift = starts - (lengths.cumsum(0) - lengths)
        return rows, torch.arange(len(rows), device=self.offsets.device) + shift[rows]

    def _batch(self, indices: Tensor, kept: Tensor, values: Tensor, mask: Tensor) -> SeriesBatch:
        indices = indices.to(self.offsets.device)
        rows, points = self.point_indices(indices)
        selected = kept[points].nonzero().squeeze(1)
        rows, points = rows[selected], points[selected]
        times, columns = torch.unique(self.times[points], return_inverse=True)
        is_observed = mask[points]
        size = (len(indices), len(times), self.dim)
        batch_values, batch_mask = values.new_zeros(size), mask.new_zeros(size)
        batch_values[rows, columns] = values[points].where(is_observed, 0)
        batch_mask[rows, columns] = is_observed
        return SeriesBatch(times, batch_values, batch_mask, None if self.labels is None else self.labels[indices])

    def to(self, device: torch.device | str) -> "SeriesSplit":
        moved = {name: part.to(device) for name, part in vars(self).items() if part is not None}
        return SeriesSplit(**moved)

    def sha256(self) -> str:
        """SHA-256 of the bytes of all fields except the truth, in the order of the fields; unobserved values are 0."""
        digest = hashlib.sha256()
        hashed = dataclasses.replace(self, values=self.values.where(self.mask, 0), truth=None)
        for part in vars(hashed).values():
            if part is not None:
                digest.update(part.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class EventRate(Protocol):
    """A known rate of events, a function of time for each series; ids: int64 [B]."""

    def __call__(self, ids: Tensor, times: Tensor) -> Tensor:
        """The rate of each series at these times: [T] gives [B, T]."""

    def integral(self, ids: Tensor, end: float) -> Tensor:
        """The exact integral of the rate from time 0 to `end`: [B]."""


@dataclass(frozen=True)
class SeriesData:
    """A data set of irregular series, split three ways.

    span: inputs and targets have times in [0, span]; a known truth may continue beyond. channels: names of the D
    values. target_start: there are targets from this time on; later times without events are observed to have none.
    num_classes: labels are 0 to num_classes - 1; 0 if the series have no labels. redraw: a function that draws a new
    `is_input` of the training series for (seed, epoch); None if the inputs are fixed. rate: the rate of the events;
    None if it is not known. note: one line for the user, may be empty. provenance: the source, licence and files of the
    series, how they are split, and under "left_out" how many were dropped for each reason.
    """

    train: SeriesSplit
    validation: SeriesSplit
    test: SeriesSplit
    span: float
    channels: tuple[str, ...]
    target_start: float = 0.0
    num_classes: int = 0
    redraw: Callable[[int, int], Tensor] | None = None
    rate: EventRate | None = None
    note: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, split in self.splits().items():
            if split.dim != len(self.channels):
                raise UsageError(
                    f"the {name} series have {split.dim} values per point, but the data set has {len(self.channels)} "
                    "channels"
                )
            if not (split.is_input.any() and split.is_target.any()):
                raise UsageError(f"the {name} series have no inputs, or no targets")
            used = split.times[split.is_input | split.is_target]
            if used.min() < 0 or used.max() > self.span * (1 + 1e-6):
                raise UsageError(
                    f"the {name} series are observed from {used.min():g} to {used.max():g}; times must lie in "
                    f"[0, {self.span:g}], the data's span"
                )
            labels = split.labels
            if (labels is None) != (self.train.labels is None):
                raise UsageError(f"the {name} series and the training series must both have labels, or neither")
            if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise UsageError(f"a label of the {name} series is outside 0 to {self.num_classes - 1}")

    def splits(self) -> dict[str, SeriesSplit]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def split_provenance(self) -> dict[str, dict[str, Any]]:
        """For each split the number of series, points and values per point, and the SHA-256 of their bytes."""
        return {
            name: {"series": len(split), "points": len(split.times), "dim": split.dim, "sha256": split.sha256()}
            for name, split in self.splits().items()
        }


def _expect(name: str, tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor is not None and (tensor.dtype != dtype or tuple(tensor.shape) != shape):
        expected, given = (str(d).removeprefix("torch.") for d in (dtype, tensor.dtype))
        raise UsageError(f"{name} must be {expected} {list(shape)}, not {given} {list(tensor.shape)}")

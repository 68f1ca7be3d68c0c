"""Irregular series: held flat, and batched on the union of their times.

A point is one time of one series with D values, of which a mask says which were observed. Series have points at
times of their own, so a split holds all points end to end and knows where each series begins; a batch is made
from it without a loop. An experiment gives the encoder some points (`is_input`) and lets the loss and the metrics
look at some (`is_target`); everything else stays out of both batches.
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
        """Some of the series, at the times of all."""
        labels = None if self.labels is None else self.labels[rows]
        return SeriesBatch(self.times, self.values[rows], self.mask[rows], labels)


@dataclass(frozen=True)
class SeriesSplit:
    """N series of P points in all, end to end: series i owns the points offsets[i] up to offsets[i + 1].

    ids: int64 [N], a number that names a series whatever split it is in; offsets: int64 [N + 1];
    times: float32 [P], increasing within a series; values: float32 [P, D]; mask: bool [P, D], True where observed;
    is_input, is_target: bool [P], the points for the encoder and those for the loss and the metrics;
    labels: int64 [N], or None; truth: float32 [P, D], the values without noise where they are known, also at points
    that nobody observed, or None. Raises UsageError for shapes that do not fit, times that repeat or go backwards,
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
            raise UsageError(f"offsets must go from 0 to {points}, the number of points, and never fall")
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
            raise UsageError("an observed value is not finite; a value that is missing belongs outside the mask")
        if self.truth is not None and not torch.isfinite(self.truth).all():
            raise UsageError("the truth is not finite; it is wanted at each point, also at those that nobody observed")

    def _check_times(self) -> None:
        owners = self.owners()
        falls = (self.times.diff() <= 0) & (owners.diff() == 0)
        wrong = falls if falls.any() else ~self.times.isfinite()
        if wrong.any():
            point = int(wrong.nonzero()[0])
            here = ", ".join(f"{time:.9g}" for time in self.times[point : point + 2].tolist())
            raise UsageError(
                f"series {int(self.ids[owners[point]])}: times must be finite and increase, "
                f"not repeat or go backwards ({here})"
            )

    def owners(self) -> Tensor:
        """The series of each point: [P]."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.ids.device), self.offsets.diff())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """D, the number of values at a point."""
        return self.values.shape[1]

    def inputs(self, indices: Tensor) -> SeriesBatch:
        """What the encoder is given of these series; indices: int64 [B]."""
        return self._batch(indices, self.is_input, self.values, self.mask)

    def targets(self, indices: Tensor) -> SeriesBatch:
        """What the loss and the metrics look at."""
        return self._batch(indices, self.is_target, self.values, self.mask)

    def both(self, indices: Tensor) -> tuple[SeriesBatch, SeriesBatch]:
        """Inputs and targets, made once where they are the same points."""
        inputs = self.inputs(indices)
        return inputs, inputs if torch.equal(self.is_input, self.is_target) else self.targets(indices)

    def truths(self, indices: Tensor) -> SeriesBatch:
        """The values without noise at all points of these series; ValueError where they are not known."""
        if self.truth is None:
            raise ValueError("the values without noise of these series are not known")
        everywhere = torch.ones_like(self.mask)
        return self._batch(indices, everywhere[:, 0], self.truth, everywhere)

    def points(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """For each point of the series at these indices: its series' place among them, and its own place here."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        rows = torch.repeat_interleave(torch.arange(len(indices), device=self.offsets.device), lengths)
        shift = starts - (lengths.cumsum(0) - lengths)
        return rows, torch.arange(len(rows), device=self.offsets.device) + shift[rows]

    def _batch(self, indices: Tensor, kept: Tensor, values: Tensor, mask: Tensor) -> SeriesBatch:
        indices = indices.to(self.offsets.device)
        rows, points = self.points(indices)
        chosen = kept[points]
        rows, points = rows[chosen], points[chosen]
        times, columns = torch.unique(self.times[points], return_inverse=True)
        seen = mask[points]
        size = (len(indices), len(times), self.dim)
        batch_values, batch_mask = values.new_zeros(size), mask.new_zeros(size)
        batch_values[rows, columns] = values[points].where(seen, 0)
        batch_mask[rows, columns] = seen
        return SeriesBatch(times, batch_values, batch_mask, None if self.labels is None else self.labels[indices])

    def to(self, device: torch.device | str) -> "SeriesSplit":
        moved = {name: part.to(device) for name, part in vars(self).items() if part is not None}
        return SeriesSplit(**moved)

    def sha256(self) -> str:
        """Of the bytes of all fields but the truth, in their order; unobserved values count as 0."""
        digest = hashlib.sha256()
        plain = dataclasses.replace(self, values=self.values.where(self.mask, 0), truth=None)
        for part in vars(plain).values():
            if part is not None:
                digest.update(part.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class Rate(Protocol):
    """A known rate of events, one function of time a series; ids: int64 [B]."""

    def __call__(self, ids: Tensor, times: Tensor) -> Tensor:
        """The rate of each series at these times: [T] gives [B, T]."""

    def integral(self, ids: Tensor, end: float) -> Tensor:
        """Of the rate from time 0 to `end`, exactly: [B]."""


@dataclass(frozen=True)
class SeriesData:
    """A data set of irregular series, split three ways.

    span: inputs and targets lie at times in [0, span]; a known truth may go on beyond. channels: names of the D
    values. num_classes: labels lie in 0 to num_classes - 1; 0 where there are none. redraw: gives, for (seed, epoch),
    other random points as the training series' `is_input`; None where the inputs are fixed. rate: the rate that the
    events came from, where it is known. note: one line for the user, may be empty. provenance: where the series come
    from, under which licence, the files, the rule of the split, and under "left_out", by reason, how many series of the
    source are not among them.
    """

    train: SeriesSplit
    validation: SeriesSplit
    test: SeriesSplit
    span: float
    channels: tuple[str, ...]
    num_classes: int = 0
    redraw: Callable[[int, int], Tensor] | None = None
    rate: Rate | None = None
    note: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, split in self.splits().items():
            if split.dim != len(self.channels):
                raise UsageError(f"the {name} series have {split.dim} values a point, not {len(self.channels)}")
            if not (split.is_input.any() and split.is_target.any()):
                raise UsageError(f"the {name} series have nothing to encode, or nothing to compare with")
            used = split.times[split.is_input | split.is_target]
            if used.min() < 0 or used.max() > self.span * (1 + 1e-6):
                raise UsageError(
                    f"the {name} series are observed from {used.min():g} to {used.max():g}; times must lie in "
                    f"[0, {self.span:g}], the data's span"
                )
            labels = split.labels
            if (labels is None) != (self.train.labels is None):
                raise UsageError(f"the {name} series and those for training must both have labels, or neither")
            if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise UsageError(f"a label of the {name} series is outside 0 to {self.num_classes - 1}")

    def splits(self) -> dict[str, SeriesSplit]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def split_facts(self) -> dict[str, dict[str, Any]]:
        """Of each split the number of series, of points and of values a point, and the SHA-256 of their bytes."""
        return {
            name: {"series": len(split), "points": len(split.times), "dim": split.dim, "sha256": split.sha256()}
            for name, split in self.splits().items()
        }


def _expect(name: str, tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor is not None and (tensor.dtype != dtype or tuple(tensor.shape) != shape):
        wanted, given = (str(d).removeprefix("torch.") for d in (dtype, tensor.dtype))
        raise UsageError(f"{name} must be {wanted} {list(shape)}, not {given} {list(tensor.shape)}")

"""Samples in memory, with their density if it is known."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odebench.errors import UsageError

Draw = Callable[[int, np.random.RandomState], Tensor]

_TRAIN, _VALIDATION, _TEST = 0, 1, 2  # keys of independent random streams


@dataclass(frozen=True)
class DensityData:
    """Samples of a density, split three ways: float32 [N, *shape], finite; anything else raises UsageError.

    draw: a function that draws new training samples, given their number and a random state; None if the training set
    is fixed. log_density: maps [N, D] to the unnormalised log density [N], which must be finite at every sample; None
    if it is not known. log_normaliser: log of the integral of exp(log_density); None without log_density. note: one
    line for the user, may be empty. provenance: where the samples come from; `build_data` adds counts and hashes.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    draw: Draw | None = None
    log_density: Callable[[Tensor], Tensor] | None = None
    log_normaliser: float | None = None
    note: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, split in self.splits().items():
            if split.dtype != torch.float32 or split.ndim < 2 or split.shape[1:] != self.train.shape[1:]:
                form = f"{str(split.dtype).removeprefix('torch.')} {list(split.shape)}"
                raise UsageError(f"{name} samples must be float32 [N, *shape], one shape in all splits, not {form}")
            if not len(split):
                raise UsageError(f"there are no {name} samples")
            if not split.isfinite().all():
                raise UsageError(f"the {name} samples hold numbers that are not finite")
            if self.log_density is not None:
                _check_finite(self.log_density, split, f"it must be finite at the {name} samples")
        if (self.log_density is None) != (self.log_normaliser is None):
            raise UsageError(
                "give both log_density and log_normaliser, the log of the integral of exp(log_density), or neither"
            )

    def splits(self) -> dict[str, Tensor]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def split_provenance(self) -> dict[str, dict[str, Any]]:
        """For each split the number of samples, their shape, and the SHA-256 of their bytes (little-endian)."""
        return {
            name: {"samples": len(split), "shape": list(split.shape[1:]), "sha256": _sha256(split)}
            for name, split in self.splits().items()
        }

    def check_density_matching_target(self) -> None:
        """Raise UsageError unless log_density is finite wherever a model may sample.

        Tested on Gaussian points with twice the standard deviation of the samples. Only for data with a log density.
        """
        assert self.log_density is not None
        noise = torch.randn(4096, *self.train.shape[1:], generator=torch.Generator().manual_seed(0))
        points = self.train.mean(0) + 2 * self.train.std(0) * noise
        _check_finite(self.log_density, points, "density matching needs a log density that is finite everywhere")


@dataclass(frozen=True)
class Distribution:
    """A distribution that data sets are sampled from.

    sample(num, random, **options) returns independent points, float64 [num, D]. log_density(x, **options) returns the
    unnormalised log density of points [N, D]. log_normaliser() returns the log of the integral of exp(log_density).
    """

    source: str
    sample: Callable[..., np.ndarray]
    log_density: Callable[..., Tensor] | None = None
    log_normaliser: Callable[[], float] | None = None


def sampled(
    distribution: Distribution,
    *,
    seed: int,
    samples: int,
    fresh: bool,
    validation: int,
    test: int,
    **options: float,
) -> DensityData:
    """A data set sampled from a distribution.

    Only the training set depends on the seed. samples, validation, test: the numbers of samples for training,
    validation and test. fresh: whether training draws new samples in each step. options: the distribution's options.
    """

    def draw(num: int, random: np.random.RandomState) -> Tensor:
        return torch.from_numpy(distribution.sample(num, random, **options)).float()

    def log_density(x: Tensor) -> Tensor:
        assert distribution.log_density is not None
        return distribution.log_density(x, **options)

    return DensityData(
        train=draw(samples, _stream(_TRAIN, seed)),
        validation=draw(validation, _stream(_VALIDATION)),
        test=draw(test, _stream(_TEST)),
        draw=draw if fresh else None,
        log_density=log_density if distribution.log_density else None,
        log_normaliser=distribution.log_normaliser() if distribution.log_normaliser else None,
        provenance={"source": distribution.source, "split": f"train: sampled by seed {seed}; the others by fixed ones"},
    )


def _stream(*key: int) -> np.random.RandomState:
    # RandomState, because NumPy promises that its stream never changes; SeedSequence mixes the key.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


def _check_finite(log_density: Callable[[Tensor], Tensor], x: Tensor, need: str) -> None:
    with torch.no_grad():
        values = log_density(x)
    if values.shape != x.shape[:1]:
        raise UsageError(f"log_density must give {list(x.shape[:1])} for {list(x.shape)}, not {list(values.shape)}")
    if not values.isfinite().all():
        worst = int(values.isfinite().int().argmin())
        raise UsageError(f"log_density is {values[worst].item()} at {x[worst].tolist()}; {need}")


def _sha256(samples: Tensor) -> str:
    return hashlib.sha256(samples.cpu().contiguous().numpy().astype("<f4", copy=False).data).hexdigest()

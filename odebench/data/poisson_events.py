"""Events of an inhomogeneous Poisson process whose rate is known, to check an inferred rate against."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odebench.data.series import Rate, SeriesData, SeriesSplit
from odebench.data.series_loading import divide, flat_series, hold_out_series
from odebench.errors import UsageError

NUM_TEST = 200
SPAN = 5.0
# Of the mean level.
LEVEL = (0.6, 1.4)
DEPTH, PHASE = (0.3, 0.9), (0.0, 2 * np.pi)
NOISE = 0.1


@dataclass(frozen=True)
class SinusoidalRate:
    """rate(t) = level * (1 + depth * sin(omega t + phase)), with the parameters of all series: float64 [N] each."""

    level: Tensor
    depth: Tensor
    omega: Tensor
    phase: Tensor

    def __call__(self, ids: Tensor, times: Tensor) -> Tensor:
        """The rate of each series at these times: ids [B], times [T] give float32 [B, T]."""
        level, depth, omega, phase = self._of(ids)
        return (level * (1 + depth * torch.sin(omega * times.double() + phase))).float()

    def integral(self, ids: Tensor, end: float) -> Tensor:
        """Of the rate from 0 to `end`, exactly: float32 [B]."""
        level, depth, omega, phase = self._of(ids)
        swing = depth / omega * (torch.cos(phase) - torch.cos(omega * end + phase))
        return (level * (end + swing)).squeeze(1).float()

    def _of(self, ids: Tensor) -> list[Tensor]:
        return [part.to(ids.device)[ids, None] for part in (self.level, self.depth, self.omega, self.phase)]


def poisson_events(
    *,
    series: int,
    level: float,
    frequency: tuple[float, float],
    observations: bool,
    validation: int,
    train_limit: int | None,
    random_state: int,
) -> SeriesData:
    """So many series of events on [0, 5], every one with a sinusoidal rate of its own.

    The level of the rate is uniform in [0.6, 1.4] times the mean ``level``, in events a unit of time, so that a series
    has about five times as many events; its depth is in [0.3, 0.9], its ``frequency`` in that range, its phase in
    [0, 2 pi]; events are drawn by thinning (Lewis and Shedler 1979). An event is a point with one observed value, so
    the mask tells where the events are. The value is 1 or, with observations, a reading of depth * sin(omega t +
    phase), the relative rate, under noise of standard deviation 0.1, and the truth is the same without noise.

    200 series are for test. All events are inputs and targets. `SeriesData.rate` is the rate by series' ids;
    `log_likelihood` is exact. random_state decides everything, the training's seed nothing. Raises UsageError for fewer
    series than the splits need, and for a range that ends before it begins.
    """
    if frequency[0] > frequency[1]:
        raise UsageError(f"data.frequency: the lower end {frequency[0]:g} is above the upper end {frequency[1]:g}")
    if series <= NUM_TEST:
        raise UsageError(f"data.series={series}: must be more than the {NUM_TEST} for test")
    random = np.random.RandomState(random_state)
    ranges = ([share * level for share in LEVEL], DEPTH, frequency, PHASE)
    levels, depth, frequencies, phase = (random.uniform(low, high, series) for low, high in ranges)
    omega = 2 * np.pi * frequencies
    # Thinning: events at the highest rate there is, each kept with the probability rate / highest rate.
    highest = levels * (1 + depth)
    owners = np.repeat(np.arange(series), random.poisson(highest * SPAN))
    # float32 as the model gets them; two events at one time of float32 count as one.
    owners, times = np.unique([owners, random.uniform(0, SPAN, len(owners)).astype(np.float32)], axis=1)
    owners = owners.astype(np.int64)
    swing = depth[owners] * np.sin(omega[owners] * times + phase[owners])
    kept = random.uniform(size=len(owners)) * (1 + depth[owners]) < 1 + swing
    owners, times, swing = owners[kept], times[kept], swing[kept]
    order = random.permutation(series)
    readings = swing + random.normal(0, NOISE, len(swing)) if observations else np.ones(len(swing))
    pool = flat_series(
        np.bincount(owners, minlength=series),
        times,
        readings[:, None],
        truth=swing[:, None] if observations else None,
    )
    splits = divide(pool, hold_out_series(order, NUM_TEST, validation, train_limit))
    return SeriesData(
        **splits,
        span=SPAN,
        channels=("reading" if observations else "event",),
        rate=SinusoidalRate(*(torch.from_numpy(part) for part in (levels, depth, omega, phase))),
        provenance={
            "source": "simulated: Poisson processes of a sinusoidal rate",
            "split": f"random, random_state {random_state}: {NUM_TEST} for test, then validation",
        },
    )


def log_likelihood(split: SeriesSplit, rate: Rate, span: float) -> Tensor:
    """Of each series' events under a rate: sum of log rate(t_i) less the rate's integral over [0, span], [N]."""
    ends = split.offsets.tolist()
    logs = [
        rate(split.ids[i : i + 1], split.times[begin:end][split.is_target[begin:end]]).log().sum()
        for i, (begin, end) in enumerate(itertools.pairwise(ends))
    ]
    return torch.stack(logs) - rate.integral(split.ids, span)

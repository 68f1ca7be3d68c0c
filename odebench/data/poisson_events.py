"""Events of inhomogeneous Poisson processes. Their rates are known, so inferred rates can be compared with them."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odebench.data.series import EventRate, SeriesData, SeriesSplit
from odebench.data.series_loading import hold_out_series, make_splits, series_from_arrays
from odebench.errors import UsageError

NUM_TEST = 200
SPAN = 5.0
LEVEL = (0.6, 1.4)  # range of a series' level, relative to the mean level
DEPTH, PHASE = (0.3, 0.9), (0.0, 2 * np.pi)
NOISE = 0.1


@dataclass(frozen=True)
class SinusoidalRate:
    """rate(t) = level * (1 + depth * sin(omega t + phase)); each parameter is float64 [N], one number per series."""

    level: Tensor
    depth: Tensor
    omega: Tensor
    phase: Tensor

    def __call__(self, ids: Tensor, times: Tensor) -> Tensor:
        """The rate of each series at these times: ids [B], times [T] give float32 [B, T]."""
        level, depth, omega, phase = self._parameters(ids)
        return (level * (1 + depth * torch.sin(omega * times.double() + phase))).float()

    def integral(self, ids: Tensor, end: float) -> Tensor:
        """The exact integral of the rate from 0 to `end`: float32 [B]."""
        level, depth, omega, phase = self._parameters(ids)
        oscillation = depth / omega * (torch.cos(phase) - torch.cos(omega * end + phase))
        return (level * (end + oscillation)).squeeze(1).float()

    def _parameters(self, ids: Tensor) -> list[Tensor]:
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
    """Series of events on [0, 5], each with its own sinusoidal rate.

    series: the number of series. level: the mean level of the rates, in events per unit of time; a series has about
    five times as many events. The level of a series is uniform in [0.6, 1.4] times ``level``, its depth in [0.3, 0.9],
    its frequency in ``frequency``, its phase in [0, 2 pi]. Events are drawn by thinning (Lewis and Shedler 1979). An
    event is a point with one observed value, so the mask shows where the events are. observations: if False, this value
    is 1. If True, it is a measurement of the relative rate depth * sin(omega t + phase), with noise of standard
    deviation 0.1; the truth is the value without noise.

    200 series are for test. All events are inputs and targets. `SeriesData.rate` is the true rate; `log_likelihood`
    computes the exact log-likelihood of the events. Everything depends on random_state, nothing on the training's seed.
    Raises UsageError for fewer series than the splits need, and for a range whose lower end is above its upper end.
    """
    if frequency[0] > frequency[1]:
        raise UsageError(f"data.frequency: the lower end {frequency[0]:g} is above the upper end {frequency[1]:g}")
    if series <= NUM_TEST:
        raise UsageError(f"data.series={series}: must be more than {NUM_TEST}, the number of test series")
    random = np.random.RandomState(random_state)
    ranges = ([share * level for share in LEVEL], DEPTH, frequency, PHASE)
    levels, depth, frequencies, phase = (random.uniform(low, high, series) for low, high in ranges)
    omega = 2 * np.pi * frequencies
    # Thinning: draw events at the highest rate, and keep each with probability rate / highest rate.
    highest = levels * (1 + depth)
    index = np.repeat(np.arange(series), random.poisson(highest * SPAN))
    # float32, the precision of the data set; two events at the same float32 time count as one.
    index, times = np.unique([index, random.uniform(0, SPAN, len(index)).astype(np.float32)], axis=1)
    index = index.astype(np.int64)
    relative = depth[index] * np.sin(omega[index] * times + phase[index])
    kept = random.uniform(size=len(index)) * (1 + depth[index]) < 1 + relative
    index, times, relative = index[kept], times[kept], relative[kept]
    order = random.permutation(series)
    values = relative + random.normal(0, NOISE, len(relative)) if observations else np.ones(len(relative))
    pool = series_from_arrays(
        np.bincount(index, minlength=series),
        times,
        values[:, None],
        truth=relative[:, None] if observations else None,
    )
    splits = make_splits(pool, hold_out_series(order, NUM_TEST, validation, train_limit))
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


def log_likelihood(split: SeriesSplit, rate: EventRate, span: float) -> Tensor:
    """Log-likelihood of each series' events [N]: sum of log rate(t_i) minus the integral of the rate over [0, span]."""
    ends = split.offsets.tolist()
    logs = [
        rate(split.ids[i : i + 1], split.times[begin:end][split.is_target[begin:end]]).log().sum()
        for i, (begin, end) in enumerate(itertools.pairwise(ends))
    ]
    return torch.stack(logs) - rate.integral(split.ids, span)

"""Events of an inhomogeneous Poisson process whose rate is known, to check an inferred rate against."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odebench.data.series import Rate, SeriesData, SeriesSplit, divide, flat_series, hold_out_series

NUM_SERIES, NUM_TEST = 1000, 200
SPAN = 5.0
LEVEL, DEPTH, FREQUENCY, PHASE = (3.0, 7.0), (0.3, 0.9), (0.4, 0.8), (0.0, 2 * np.pi)
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


def poisson_events(*, observations: bool, validation: int, train_limit: int | None, random_state: int) -> SeriesData:
    """1,000 series of events on [0, 5], about 25 each, every one with a sinusoidal rate of its own.

    The level of the rate is uniform in [3, 7], its depth in [0.3, 0.9], its frequency in [0.4, 0.8], its phase in
    [0, 2 pi]; events are drawn by thinning (Lewis and Shedler 1979). An event is a point with one observed value, so
    the mask tells where the events are. The value is 1 or, with observations, a reading of depth * sin(omega t +
    phase), the relative rate, under noise of standard deviation 0.1, and the truth is the same without noise.

    All events are inputs and targets. `SeriesData.rate` is the rate by series' ids; `log_likelihood` is exact.
    random_state decides everything, the training's seed nothing. Series without an event are kept out and counted.
    """
    random = np.random.RandomState(random_state)
    level, depth, frequency, phase = (
        random.uniform(low, high, NUM_SERIES) for low, high in (LEVEL, DEPTH, FREQUENCY, PHASE)
    )
    omega = 2 * np.pi * frequency
    # Thinning: events at the highest rate there is, each kept with the probability rate / highest rate.
    highest = level * (1 + depth)
    series = np.repeat(np.arange(NUM_SERIES), random.poisson(highest * SPAN))
    # float32 as the model gets them; two events at one time of float32 count as one.
    series, times = np.unique([series, random.uniform(0, SPAN, len(series)).astype(np.float32)], axis=1)
    series = series.astype(np.int64)
    swing = depth[series] * np.sin(omega[series] * times + phase[series])
    kept = random.uniform(size=len(series)) * (1 + depth[series]) < 1 + swing
    series, times, swing = series[kept], times[kept], swing[kept]
    order = random.permutation(NUM_SERIES)
    readings = swing + random.normal(0, NOISE, len(swing)) if observations else np.ones(len(swing))
    pool = flat_series(
        np.bincount(series, minlength=NUM_SERIES),
        times,
        readings[:, None],
        truth=swing[:, None] if observations else None,
    )
    splits, missing = divide(pool, hold_out_series(order, NUM_TEST, validation, train_limit))
    return SeriesData(
        **splits,
        span=SPAN,
        channels=("reading" if observations else "event",),
        rate=SinusoidalRate(*(torch.from_numpy(part) for part in (level, depth, omega, phase))),
        note=f"{missing:,} series without an event are kept out" if missing else "",
        provenance={
            "source": "simulated: Poisson processes of a sinusoidal rate",
            "left_out": missing,
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

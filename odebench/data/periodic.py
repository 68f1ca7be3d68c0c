"""Sinusoids at irregular times, the toy data of Rubanova et al. (2019), section 4.1."""

import numpy as np

from odebench.data.series import SeriesData
from odebench.data.series_loading import (
    Mode,
    assign_roles,
    hold_out_series,
    make_splits,
    series_from_arrays,
    target_start,
)
from odebench.errors import UsageError

NUM_SERIES, NUM_TEST, NUM_TIMES = 1000, 200, 100
SPAN = 5.0
FREQUENCY = (0.4, 0.8)
LEVEL, LEVEL_NOISE, NOISE = 1.0, 0.1, 0.01


def periodic(
    *,
    mode: Mode,
    observed: float,
    amplitude: tuple[float, float],
    shared_times: bool,
    validation: int,
    train_limit: int | None,
    random_state: int,
) -> SeriesData:
    """1,000 noisy sinusoids level + amplitude * sin(2 pi frequency t), each at 100 irregular times t in [0, 5].

    For each series the frequency is uniform in [0.4, 0.8], the amplitude uniform in the given range ([1, 1] as
    published), the level normal with mean 1 and standard deviation 0.1. The noise has standard deviation 0.01. Times
    are drawn uniformly: once for all series if shared_times, as published, else for each series.

    mode, observed: see `assign_roles` and `make_splits`. Everything depends on random_state, nothing on the training's
    seed. Raises UsageError if the lower end of the amplitude's range is above the upper one.
    """
    low, high = amplitude
    if low > high:
        raise UsageError(f"data.amplitude=[{low:g},{high:g}]: the lower end must come first")
    random = np.random.RandomState(random_state)
    times = _irregular_times(random, 1 if shared_times else NUM_SERIES)
    level = random.normal(LEVEL, LEVEL_NOISE, (NUM_SERIES, 1))
    frequency = random.uniform(*FREQUENCY, (NUM_SERIES, 1))
    truth = level + random.uniform(low, high, (NUM_SERIES, 1)) * np.sin(2 * np.pi * frequency * times)
    values = truth + random.normal(0, NOISE, truth.shape)
    order = random.permutation(NUM_SERIES)
    pool = series_from_arrays(
        np.full(NUM_SERIES, NUM_TIMES),
        np.broadcast_to(times, truth.shape).reshape(-1),
        values.reshape(-1, 1),
        truth=truth.reshape(-1, 1),
    )
    parts = hold_out_series(order, NUM_TEST, validation, train_limit)
    splits = make_splits(assign_roles(pool, mode, SPAN), parts, observed, random_state)
    return SeriesData(
        **splits,
        span=SPAN,
        target_start=target_start(mode, SPAN),
        channels=("y",),
        provenance={
            "source": "simulated: periodic trajectories after Rubanova, Chen, Duvenaud, arXiv:1907.03907 (2019)",
            "split": f"random, random_state {random_state}: {NUM_TEST} for test, then validation",
        },
    )


def _irregular_times(random: np.random.RandomState, num: int) -> np.ndarray:
    """Times [num, 100], drawn uniformly from [0, 5] and sorted in each row; in a row all differ in float32."""
    times = np.zeros((num, NUM_TIMES), dtype=np.float32)
    while (repeats := (np.diff(times) <= 0).any(axis=1)).any():
        times[repeats] = np.sort(random.uniform(0, SPAN, (repeats.sum(), NUM_TIMES)).astype(np.float32))
    return times

"""The spirals of the latent ODE (Chen et al. 2018, section 5.1)."""

import dataclasses

import numpy as np

from odebench.data.series import SeriesData
from odebench.data.series_loading import draw_inputs, hold_out_series, make_splits, series_from_arrays
from odebench.errors import UsageError

NUM_SPIRALS, NUM_TEST = 1000, 200
NUM_TIMES = 1000
WINDOW = 100
STOP = 6 * np.pi
START_RADIUS, GROWTH, NOISE = 0.0, 0.3, 0.3


def spirals(*, observed: int, beyond: int, validation: int, train_limit: int | None, random_state: int) -> SeriesData:
    """1,000 noisy spirals in the plane, half of them clockwise, each in a window of 100 times.

    The curves are those of the paper's public example, on 1,000 equally spaced theta from 0 to 6 pi. Counter-clockwise:
    angle theta, radius a + b theta, centre (5, 0). Clockwise: angle z = 6 pi + 1 - theta, radius a + 50 b / z, centre
    (-5, 0). Here a = 0 and b = 0.3. A series starts at a random theta, at the earliest the 101st. The latest start is
    the last at which the curve still contains the 100 times of the window and, for test spirals, `beyond` times after
    it; so the training covers all of the curve that is tested. The times of a series are theta less theta at its start.
    In the window Gaussian noise of standard deviation 0.3 is added to both coordinates. Exactly 500 spirals turn
    clockwise (label 0), 500 counter-clockwise (label 1).

    observed: how many of the window's 100 points are observed. They are drawn once, without replacement, and are inputs
    and targets. The rest of the window and the times after it are neither, but the truth contains all of them. The
    starts, the noise, the observed points and the choice of 200 test spirals depend on random_state, not on the
    training's seed. Raises UsageError if `observed` or `beyond` is larger than the curve allows.
    """
    if not 0 < observed <= WINDOW:
        raise UsageError(f"data.observed={observed}: must be from 1 to {WINDOW}, the number of times in the window")
    if not 0 < beyond <= NUM_TIMES - 2 * WINDOW:
        raise UsageError(f"data.beyond={beyond}: must be from 1 to {NUM_TIMES - 2 * WINDOW}; then the curve ends")
    random = np.random.RandomState(random_state)
    labels = random.permutation(np.arange(NUM_SPIRALS) % 2)
    order = random.permutation(NUM_SPIRALS)
    last = np.full(NUM_SPIRALS, NUM_TIMES - WINDOW)
    last[order[:NUM_TEST]] -= beyond
    starts = random.randint(WINDOW, last + 1)
    steps = np.arange(WINDOW + beyond)
    index = starts[:, None] + steps
    on_curve = index < NUM_TIMES
    truth = curves()[labels[:, None], np.minimum(index, NUM_TIMES - 1)]
    mask = np.broadcast_to(steps[:, None] < WINDOW, truth.shape)
    noise = random.standard_normal((NUM_SPIRALS, WINDOW, 2)) * NOISE
    values = np.where(mask, truth + np.pad(noise, ((0, 0), (0, beyond), (0, 0))), 0)
    times = np.linspace(0, STOP, NUM_TIMES)[: len(steps)]
    pool = series_from_arrays(
        on_curve.sum(1),
        np.tile(times, (NUM_SPIRALS, 1))[on_curve],
        values[on_curve],
        mask=mask[on_curve],
        labels=labels,
        truth=truth[on_curve],
    )
    drawn = draw_inputs(pool, observed, random)
    pool = dataclasses.replace(pool, is_input=drawn, is_target=drawn)
    splits = make_splits(pool, hold_out_series(order, NUM_TEST, validation, train_limit))
    return SeriesData(
        **splits,
        span=float(times[WINDOW - 1]),
        channels=("x", "y"),
        num_classes=2,
        provenance={
            "source": "simulated: spirals of Chen, Rubanova, Bettencourt, Duvenaud, arXiv:1806.07366 (2018)",
            "split": f"random, random_state {random_state}: {NUM_TEST} for test, then validation",
        },
    )


def curves() -> np.ndarray:
    """The clockwise and the counter-clockwise curve without noise: [2, 1000, 2]."""
    theta = np.linspace(0, STOP, NUM_TIMES)
    inverse = STOP + 1 - theta
    clockwise = _polar(START_RADIUS + 50 * GROWTH / inverse, inverse) - (5, 0)
    counter_clockwise = _polar(START_RADIUS + GROWTH * theta, theta) - (-5, 0)
    return np.stack([clockwise, counter_clockwise])


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

"""The periodic toy data: sinusoids of the stated ranges at irregular times."""

import numpy as np
import pytest
import torch

from odebench.data.periodic import periodic
from odebench.errors import UsageError

DEFAULTS = {
    "mode": "interpolation",
    "observed": 0.5,
    "amplitude": (0.5, 1.5),
    "shared_times": True,
    "validation": 100,
    "train_limit": None,
    "random_state": 0,
}


def load(**changed):
    return periodic(**DEFAULTS | changed)


def fit(times, values):
    """Frequency, amplitude and residual of the best sinusoid a sin(2 pi f t) + c on a fine grid of f."""
    best = (np.inf, 0.0, 0.0)
    for frequency in np.linspace(0.3, 0.9, 1201):
        basis = np.stack([np.sin(2 * np.pi * frequency * times), np.ones_like(times)], axis=1)
        (amplitude, level), *_ = np.linalg.lstsq(basis, values, rcond=None)
        best = min(best, (np.abs(basis @ (amplitude, level) - values).max(), frequency, amplitude))
    return best


def test_the_truth_of_each_series_is_a_sinusoid_in_the_stated_ranges():
    split = load().test
    batch = split.noiseless(torch.arange(4))
    found = [fit(batch.times.double().numpy(), row.squeeze(1).double().numpy()) for row in batch.values]
    residuals, frequencies, amplitudes = np.array(found).T
    assert residuals.max() < 0.01
    assert ((frequencies > 0.4) & (frequencies < 0.8)).all()
    assert ((amplitudes > 0.49) & (amplitudes < 1.51)).all()
    assert min(np.abs(np.diff(frequencies)).min(), np.abs(np.diff(amplitudes)).min()) > 0.001


def test_amplitudes_can_be_as_published():
    split = load(amplitude=(1, 1)).test
    batch = split.noiseless(torch.arange(2))
    assert [fit(batch.times.double().numpy(), row.squeeze(1).double().numpy())[2] for row in batch.values] == (
        pytest.approx([1, 1], abs=0.01)
    )


@pytest.mark.parametrize("shared", [True, False], ids=["one grid", "times of their own"])
def test_times_are_irregular_and_shared_only_with_shared_times(shared):
    data = load(shared_times=shared)
    times = data.train.times.view(-1, 100)
    assert (times[0] == times[1]).all() == shared
    assert times.diff().std() > 0.03
    assert 0 <= times.min() < times.max() <= data.span == 5


def test_the_noise_is_as_stated():
    split = load().train
    assert (split.values - split.truth).std() == pytest.approx(0.01, rel=0.02)


def test_half_of_the_points_are_inputs_and_all_or_the_second_half_targets():
    data = load()
    assert (data.train.is_input.view(-1, 100).sum(1) == 50).all()
    assert data.train.is_target.all()
    data = load(mode="extrapolation", observed=1.0)
    assert torch.equal(data.train.is_input, data.train.times < 2.5)
    assert torch.equal(data.train.is_target, data.train.times >= 2.5)
    assert data.redraw is None


def test_a_reversed_amplitude_range_raises_an_error():
    with pytest.raises(UsageError, match=r"data\.amplitude=\[2,1\]"):
        load(amplitude=(2, 1))

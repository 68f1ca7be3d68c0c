"""Constant predictions against their definition, and smoothing of events against plain sums over the events."""

import math

import pytest
import torch

from odebench.errors import UsageError
from odebench.models.series import ConstantBaseline, EventSmoother
from odebench.models.series.recurrence import Observations

TIMES = torch.tensor([0.0, 0.1, 0.3, 0.5, 1.0], dtype=torch.float64)
VALUES = torch.tensor([[1.0, -9.0], [2.0, -9.0], [4.0, 5.0]], dtype=torch.float64)
MASK = torch.tensor([[True, False], [True, False], [True, True]])
BATCH = Observations(TIMES[:3], torch.stack([VALUES, VALUES]), torch.stack([MASK, torch.zeros_like(MASK)]))
MEANS = torch.tensor([7.0, 8.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("training_mean", [[7, 8]] * 5),
        ("series_mean", [[7 / 3, 5]] * 5),
        ("last_value", [[7, 8], [1, 8], [2, 8], [4, 5], [4, 5]]),  # the value before the time, not at it
    ],
)
def test_constants_are_those_of_the_series_or_the_training_mean_where_it_has_none(kind, expected):
    model = ConstantBaseline(MEANS, kind, noise_std=0.3)
    values = model(BATCH, TIMES).values
    assert values.shape == (1, 2, 5, 2)
    assert torch.allclose(values[0, 0], torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(values[0, 1], MEANS.expand(5, 2))


def smoothed(observations, bandwidth, events, readings, times, span=2.0):
    batch = Observations(events, readings.reshape(1, -1, 1), torch.ones(1, len(events), 1, dtype=torch.bool))
    return EventSmoother(1, span, observations, bandwidth, noise_std=0.3).double()(batch, times)


def test_the_kernel_estimate_leaves_out_the_event_at_its_own_time_and_is_corrected_at_the_ends():
    events = torch.tensor([0.2, 0.5, 0.6, 1.9], dtype=torch.float64)
    at, bandwidth = [0.0, 0.5, 2.0], 0.3

    def density(gap):
        return math.exp(-0.5 * (gap / bandwidth) ** 2) / (bandwidth * math.sqrt(2 * math.pi))

    def mass(t):
        return 0.5 * (math.erf((2.0 - t) / bandwidth / math.sqrt(2)) + math.erf(t / bandwidth / math.sqrt(2)))

    expected = [sum(density(t - event) for event in events.tolist() if event != t) / mass(t) for t in at]
    forecast = smoothed(False, bandwidth, events, torch.ones(4), torch.tensor(at, dtype=torch.float64))
    assert forecast.values is None
    assert forecast.log_rates.exp().flatten().tolist() == pytest.approx(expected)
    # Events at a constant rate: the ends have no bias.
    even = torch.linspace(0, 2, 401, dtype=torch.float64)
    forecast = smoothed(False, 0.1, even, torch.ones(401), torch.tensor([0.0013, 1.0013], dtype=torch.float64))
    assert forecast.log_rates.exp().flatten().tolist() == pytest.approx([200, 200], rel=0.02)
    assert forecast.expected_events.item() == pytest.approx(400, rel=0.01)


def test_local_linear_smoothing_reproduces_a_line_and_expects_as_many_events_as_there_are():
    events = torch.linspace(0.05, 1.95, 20, dtype=torch.float64)
    times = torch.tensor([0.0, 0.05, 1.0, 2.0], dtype=torch.float64)
    forecast = smoothed(True, 0.2, events, 0.3 * events - 0.2, times)
    assert torch.allclose(forecast.values.flatten(), 0.3 * times - 0.2, atol=1e-6)
    # The rate is proportional to 1 + line, and its integral over [0, 2] is the number of events.
    assert torch.allclose(forecast.log_rates.exp().flatten(), 20 * (0.8 + 0.3 * times) / 2.2, rtol=1e-5)
    assert forecast.expected_events.item() == 20


def test_smoothing_refuses_several_kinds_of_events():
    with pytest.raises(UsageError, match="one kind of event, the data has 2 channels; choose data=poisson_events"):
        EventSmoother(2, span=1.0, observations=True, bandwidth=0.2, noise_std=0.3)

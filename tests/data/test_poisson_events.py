"""Poisson events: they follow the given rate, and its likelihood is exact."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from odebench.data import build_data
from odebench.data.poisson_events import SinusoidalRate, log_likelihood, poisson_events
from odebench.errors import UsageError

DEFAULTS = {
    "series": 1000,
    "level": 5.0,
    "frequency": (0.4, 0.8),
    "observations": False,
    "validation": 100,
    "train_limit": None,
    "random_state": 0,
}


def load(**changed):
    return poisson_events(**DEFAULTS | changed)


def series_of(split):
    """Id and float64 times of each series."""
    for number, begin, end in zip(split.ids.tolist(), split.offsets[:-1], split.offsets[1:], strict=True):
        yield number, split.times[begin:end].double()


def test_the_integral_of_the_rate_is_that_of_quadrature():
    rate = load().rate
    ids = torch.tensor([3, 700])
    for place, number in enumerate(ids.tolist()):
        for end in (1.3, 5.0):
            area, _ = integrate.quad(lambda t, i=number: float(rate(torch.tensor([i]), torch.tensor([t]))), 0, end)
            assert float(rate.integral(ids, end)[place]) == pytest.approx(area, rel=1e-5)


def test_after_time_rescaling_events_have_a_constant_rate():
    # Time rescaling (Brown et al. 2002): the rate's integral between events is exponential with mean 1.
    data = load()
    waits = []
    for number, times in series_of(data.train):
        clock = [float(data.rate.integral(torch.tensor([number]), t)) for t in times.tolist()[:10]]
        waits += [after - before for before, after in itertools.pairwise([0.0, *clock])]
    # The first ten waiting times of each series: the last one is cut off by the end of the span.
    assert stats.kstest(waits, "expon").pvalue > 0.01


def test_the_number_of_events_is_the_integral_of_the_rate():
    data = load()
    expected = sum(float(data.rate.integral(split.ids, data.span).sum()) for split in data.splits().values())
    counted = sum(len(split.times) for split in data.splits().values())
    assert abs(counted - expected) < 3 * expected**0.5


def test_the_log_likelihood_is_its_formula():
    data = load()
    exact = log_likelihood(data.test, data.rate, data.span).double()
    for place, (number, times) in enumerate(itertools.islice(series_of(data.test), 5)):
        of = torch.tensor([number])
        grid = torch.linspace(0, 5, 20001, dtype=torch.float64)
        area = torch.trapezoid(data.rate(of, grid).double().squeeze(0), grid)
        formula = data.rate(of, times).double().log().sum() - area
        assert float(exact[place]) == pytest.approx(float(formula), abs=1e-3)


def test_no_other_rate_is_likelier_than_the_true_one():
    data = load()
    true = log_likelihood(data.train, data.rate, data.span).mean()
    rate = data.rate
    for other in (
        SinusoidalRate(rate.level, 0 * rate.depth, rate.omega, rate.phase),
        SinusoidalRate(1.1 * rate.level, rate.depth, rate.omega, rate.phase),
        SinusoidalRate(rate.level, rate.depth, rate.omega, rate.phase + 0.3),
    ):
        assert log_likelihood(data.train, other, data.span).mean() < true - 0.05


def test_the_value_of_an_event_is_one_or_a_measurement_of_the_relative_rate():
    events, readings = load().test, load(observations=True).test
    assert torch.equal(events.times, readings.times)
    assert (events.values == 1).all()
    assert events.mask.all()
    assert events.truth is None
    noise = readings.values - readings.truth
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    rate = load().rate
    number, times = next(series_of(readings))
    level = rate.level[number]
    assert torch.allclose(
        readings.truth[: len(times), 0].double(), rate(torch.tensor([number]), times)[0].double() / level - 1, atol=1e-5
    )


def test_the_data_depend_on_random_state_alone():
    assert load().test.sha256() == load(train_limit=10).test.sha256() != load(random_state=1).test.sha256()
    assert np.isclose(load().span, 5)


def test_a_higher_level_gives_more_events_of_the_same_shape():
    data = load(level=50.0, series=320)
    assert [len(split) for split in data.splits().values()] == [20, 100, 200]
    assert len(data.test.times) / 200 == pytest.approx(50 * 5, rel=0.1)
    assert 30 <= data.rate.level.min() < 35
    assert 65 < data.rate.level.max() <= 70
    slow = load(frequency=(0.1, 0.2)).rate.omega / (2 * np.pi)
    assert 0.1 <= slow.min() < slow.max() <= 0.2


def test_series_without_an_event_are_dropped_and_counted():
    data = build_data("poisson_events", {**DEFAULTS, "level": 0.3}, seed=0)
    missing = 1000 - sum(map(len, data.splits().values()))
    # A fraction exp(-1.5) of the series, if all had the mean level.
    assert missing == pytest.approx(1000 * np.exp(-1.5), rel=0.25)
    assert data.provenance["left_out"] == {"with nothing to encode or to compare with": missing}
    assert f"series dropped: {missing} with nothing" in data.note
    assert all((split.offsets.diff() > 0).all() for split in data.splits().values())


def test_too_few_series_and_reversed_ranges_raise_an_error():
    with pytest.raises(UsageError, match=r"data\.series=200: must be more than 200, the number of test series"):
        load(series=200)
    with pytest.raises(UsageError, match=r"data\.frequency: the lower end 2 is above"):
        load(frequency=(2.0, 1.0))

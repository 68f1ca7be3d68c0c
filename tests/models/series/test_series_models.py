"""Properties of every series model: independence of masked values, of the batch and of unused times."""

from functools import partial

import pytest
import torch
from small_series import BUILD, HEADS, TIMES, UNITS, build, noise_for, small_batch

from odebench import ode
from odebench.models.series import rnn
from odebench.models.series.base import SeriesModel
from odebench.models.series.recurrence import Observations

EVERY = pytest.mark.parametrize("name", list(BUILD))
SOLVE = partial(ode.solve, rtol=1e-9, atol=1e-9)


def predictions(forecast):
    """All predictions of a forecast, by name."""
    fields = ("values", "logits", "latents", "log_rates", "expected_events")
    found = {name: getattr(forecast, name) for name in fields if getattr(forecast, name) is not None}
    if forecast.posterior is not None:
        found |= {"mean": forecast.posterior.mean[None], "std": forecast.posterior.std[None]}
    return found


def assert_same(one, other, tolerance=1e-7):
    one, other = predictions(one), predictions(other)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


@EVERY
def test_values_outside_the_mask_change_nothing(name):
    model, batch = build(name), small_batch()
    loud = Observations(batch.times, torch.where(batch.mask, batch.values, 1e9), batch.mask)
    noise = noise_for(model)
    assert_same(model(batch, TIMES, SOLVE, noise=noise), model(loud, TIMES, SOLVE, noise=noise), tolerance=0)


@EVERY
def test_times_that_are_neither_observed_nor_requested_change_nothing(name):
    model, batch, noise = build(name), small_batch(), noise_for(build(name))
    more = torch.tensor([0.013, 0.5123, 0.99, 1.07], dtype=torch.float64)
    union, places = torch.unique(torch.cat((batch.times, more)), return_inverse=True)
    values, mask = torch.zeros(4, len(union), 2, dtype=torch.float64), torch.zeros(4, len(union), 2, dtype=torch.bool)
    values[:, places[:9]], mask[:, places[:9]] = batch.values, batch.mask
    later, columns = torch.unique(torch.cat((TIMES, more)), return_inverse=True)
    requested = torch.isin(later, TIMES).expand(4, -1)
    padded = model(Observations(union, values, mask), later, SOLVE, requested, noise)
    assert_same(model(batch, TIMES, SOLVE, noise=noise), padded.at_times(columns[: len(TIMES)]))


@EVERY
def test_a_series_is_forecast_the_same_alone(name):
    model, batch, noise = build(name), small_batch(), noise_for(build(name))
    together = predictions(model(batch, TIMES, SOLVE, noise=noise))
    for i in range(4):
        seen = batch.mask[i].any(-1)
        one = Observations(batch.times[seen], batch.values[i : i + 1, seen], batch.mask[i : i + 1, seen])
        alone = predictions(model(one, TIMES, SOLVE, noise=None if noise is None else noise[:, i : i + 1]))
        for key, value in alone.items():
            torch.testing.assert_close(value, together[key][:, i : i + 1], rtol=1e-6, atol=1e-6, msg=key)


@EVERY
def test_forecasts_follow_a_permutation_of_the_series(name):
    model, batch, noise = build(name), small_batch(), noise_for(build(name))
    order = torch.tensor([2, 0, 3, 1])
    mixed = Observations(batch.times, batch.values[order], batch.mask[order])
    in_order = predictions(model(batch, TIMES, SOLVE, noise=noise))
    permuted = predictions(model(mixed, TIMES, SOLVE, noise=None if noise is None else noise[:, order]))
    for key, value in permuted.items():
        torch.testing.assert_close(value, in_order[key][:, order], rtol=1e-7, atol=1e-7, msg=key)


@EVERY
def test_every_parameter_is_trained(name):
    model, batch = build(name), small_batch()
    forecast = model(batch, TIMES, SOLVE, noise=noise_for(model))
    parts = [forecast.values / model.noise_std, forecast.logits, forecast.log_rates, forecast.expected_events]
    sum(part.square().sum() for part in parts if part is not None).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@EVERY
def test_forecasts_depend_on_the_observed_values_and_times(name):
    model, batch = build(name), small_batch()
    first = model(batch, TIMES, SOLVE).values
    other_values = Observations(batch.times, batch.values + batch.mask, batch.mask)
    assert not torch.allclose(model(other_values, TIMES, SOLVE).values, first, atol=1e-3)
    other_times = Observations(batch.times.sqrt(), batch.values, batch.mask)
    assert not torch.allclose(model(other_times, TIMES, SOLVE).values, first, atol=1e-3)


@EVERY
@pytest.mark.parametrize("unseen", [[1], [0, 1, 2, 3]], ids=["one", "all"])
def test_the_forecast_of_an_unobserved_series_is_finite(name, unseen):
    model, batch = build(name), small_batch()
    mask = batch.mask.clone()
    mask[unseen] = False
    found = predictions(model(Observations(batch.times, batch.values, mask), TIMES, SOLVE, noise=noise_for(model)))
    sum(part.square().sum() for part in found.values()).backward()
    assert all(part.isfinite().all() for part in found.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_all_models_have_the_same_heads():
    heads = {
        name: {key for key in build(name).state_dict() if key.startswith(("decoder", "classifier"))} for name in BUILD
    }
    assert len(set(map(frozenset, heads.values()))) == 1
    for name in BUILD:
        assert isinstance(build(name), SeriesModel)


def test_an_rnn_without_time_gaps_depends_only_on_the_order_of_the_observations():
    torch.manual_seed(0)
    model = rnn(2, width=6, kind="gru", time_gap=False, rollout=True, **UNITS, **HEADS).double()
    batch = small_batch()
    squeezed = Observations(batch.times.sqrt(), batch.values, batch.mask)
    torch.testing.assert_close(model(squeezed, TIMES + 1).values, model(batch, TIMES + 1).values)

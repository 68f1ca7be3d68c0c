"""The likelihoods and the bound, against explicit sums and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import simpson
from scipy.stats import norm

from odebench.data.series import SeriesBatch
from odebench.models.series import Forecast, Posterior
from odebench.tasks.series_losses import (
    HALF_LOG_2_PI,
    kl_from_prior,
    kl_weight,
    label_loss,
    log_likelihood,
    lower_bound,
    negative_log_posterior,
    reduce_series,
)

STD = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)


@pytest.fixture
def targets():
    """Two series of three features at four times; the third feature of the second is never observed."""
    torch.manual_seed(0)
    mask = torch.rand(2, 4, 3) < 0.6
    mask[1, :, 2] = False
    values = torch.where(mask, torch.randn(2, 4, 3, dtype=torch.float64), 0)
    return SeriesBatch(torch.arange(4.0).double(), values, mask, torch.tensor([0, 1]))


@pytest.fixture
def forecast():
    torch.manual_seed(1)
    events = {"log_rates": torch.randn(2, 2, 4, 3).double(), "expected_events": torch.rand(2, 2).double()}
    posterior = Posterior(torch.randn(2, 5).double(), torch.rand(2, 5).double() + 0.1)
    return Forecast(torch.randn(2, 2, 4, 3).double(), posterior=posterior, logits=torch.randn(2, 2).double(), **events)


def by_hand(forecast, targets, sample, series):
    """log N of each observation by feature, and the events' log-likelihood, with scipy and loops."""
    gaussian = [[], [], []]
    events = -forecast.expected_events[sample, series].item()
    for t, d in targets.mask[series].nonzero().tolist():
        mean = forecast.values[sample, series, t, d].item()
        gaussian[d].append(norm.logpdf(targets.values[series, t, d].item(), mean, STD[d].item()))
        events += forecast.log_rates[sample, series, t, d].item()
    return gaussian, events


def test_the_summed_likelihood_is_the_logarithm_of_the_joint_density(forecast, targets):
    found = log_likelihood(forecast, targets, STD, "sum", event_weight=0.1)
    for sample, series in np.ndindex(2, 2):
        gaussian, events = by_hand(forecast, targets, sample, series)
        assert found[sample, series].item() == pytest.approx(sum(map(sum, gaussian)) + 0.1 * events)


def test_the_mean_likelihood_weighs_features_alike_and_unobserved_ones_as_zero(forecast, targets):
    found = log_likelihood(forecast, targets, STD, "mean")
    for sample, series in np.ndindex(2, 2):
        gaussian, events = by_hand(forecast, targets, sample, series)
        of_features = [np.mean(numbers) if numbers else 0.0 for numbers in gaussian]
        assert found[sample, series].item() == pytest.approx(np.mean(of_features) + events / 3)


@pytest.mark.parametrize("hidden", [1e9, math.inf, math.nan])
def test_an_unobserved_value_changes_neither_likelihood_nor_gradient(forecast, targets, hidden):
    changed = SeriesBatch(targets.times, torch.where(targets.mask, targets.values, hidden), targets.mask, None)
    found = []
    for batch in (targets, changed):
        values = forecast.values.clone().requires_grad_()
        likelihood = log_likelihood(Forecast(values), batch, STD, "sum")
        found.append((likelihood, *torch.autograd.grad(likelihood.sum(), values)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(found[0][1] == 0, ~targets.mask.expand(2, -1, -1, -1))


def test_the_divergence_equals_its_integral(forecast):
    x = np.linspace(-12, 12, 4001)
    expected = np.zeros((2, 5))
    for place in np.ndindex(2, 5):
        q = norm(forecast.posterior.mean[place].item(), forecast.posterior.std[place].item())
        expected[place] = simpson(q.pdf(x) * (q.logpdf(x) - norm.logpdf(x)), x=x)
    torch.testing.assert_close(kl_from_prior(forecast.posterior, "sum"), torch.from_numpy(expected.sum(1)))
    torch.testing.assert_close(kl_from_prior(forecast.posterior, "mean"), torch.from_numpy(expected.mean(1)))


def test_the_bound_equals_a_manual_computation():
    likelihood, kl = torch.tensor([[-3.0, -5.0], [-2.0, -7.0]]), torch.tensor([1.0, 2.0])
    # For the whole batch: samples of bound (-4 - 7) / 2 and (-3 - 9) / 2.
    assert lower_bound(likelihood, kl, "mean").item() == pytest.approx(-5.75)
    exact = math.log((math.exp(-5.5) + math.exp(-6.0)) / 2)
    assert lower_bound(likelihood, kl, "logsumexp").item() == pytest.approx(exact)
    assert exact > -5.75


def test_one_sample_needs_no_combination():
    likelihood, kl = torch.tensor([[-3.0, -5.0]]), torch.tensor([1.0, 2.0])
    assert lower_bound(likelihood, kl, "mean") == lower_bound(likelihood, kl, "logsumexp")


def test_the_weight_of_the_divergence_is_zero_and_then_grows_to_one():
    weights = [kl_weight(epoch, wait_epochs=10, growth=0.99) for epoch in (0, 9, 10, 11, 12, 1000)]
    assert weights == pytest.approx([0, 0, 0, 0.01, 1 - 0.99**2, 1], abs=1e-4)
    assert kl_weight(0, wait_epochs=None, growth=0.99) == 1.0


def test_the_negative_log_posterior_is_that_of_the_density_without_its_constant(forecast):
    q, states = forecast.posterior, torch.randn(3, 2, 5).double()
    log_density = torch.distributions.Normal(q.mean, q.std).log_prob(states).sum(-1).mean()
    assert negative_log_posterior(q, states).item() == pytest.approx(-log_density.item() - 5 * HALF_LOG_2_PI)


def test_label_loss_is_the_mean_cross_entropy(forecast):
    p = forecast.logits.sigmoid().numpy()
    expected = -(np.log(1 - p[:, 0]) + np.log(p[:, 1])).mean() / 2
    assert label_loss(forecast.logits, torch.tensor([0, 1])).item() == pytest.approx(expected)


def test_reductions_agree_where_all_is_observed():
    numbers, mask = torch.rand(2, 3, 4, 5).double(), torch.ones(3, 4, 5, dtype=torch.bool)
    torch.testing.assert_close(reduce_series(numbers, mask, "mean"), reduce_series(numbers, mask, "sum") / 20)

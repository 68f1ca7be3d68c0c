"""The metrics of an evaluation, against numpy on all batches at once."""

import numpy as np
import pytest
import torch

from odebench.data.series import SeriesBatch
from odebench.models.series import Forecast, Posterior
from odebench.tasks.series_metrics import (
    error_sums,
    label_metrics,
    likelihood_sums,
    metrics_from_sums,
    window_error_sums,
)

TIMES = torch.tensor([0.1, 0.4, 0.5, 0.9])


def batch(seed, num):
    torch.manual_seed(seed)
    mask = torch.rand(num, 4, 2) < 0.5
    mask[0, 0] = True
    values = torch.where(mask, torch.randn(num, 4, 2), 1e9)
    return torch.randn(3, num, 4, 2), SeriesBatch(TIMES, values, mask, None)


BATCHES = [batch(0, 5), batch(1, 2)]


def errors(columns):
    """Errors of the mean predictions of all batches at some of the times, only where observed."""
    found = [(t.values - v.mean(0))[:, columns][t.mask[:, columns]] for v, t in BATCHES]
    return torch.cat(found).double().numpy()


def test_mse_is_over_all_observed_numbers_of_all_batches():
    numbers = metrics_from_sums([error_sums(values, targets) for values, targets in BATCHES])
    assert numbers["mse"] == pytest.approx(np.mean(errors(range(4)) ** 2))


def test_mse_per_feature_weighs_each_series_and_feature_alike():
    numbers = metrics_from_sums([error_sums(values, targets) for values, targets in BATCHES])
    by_series = []
    for values, targets in BATCHES:
        for i in range(len(targets)):
            squares = (targets.values[i] - values[:, i].mean(0)).square()
            of = [squares[targets.mask[i, :, d], d].mean().item() if targets.mask[i, :, d].any() else 0 for d in (0, 1)]
            by_series.append(np.mean(of))
    assert numbers["mse_per_feature"] == pytest.approx(np.mean(by_series))


def test_errors_in_the_window_and_beyond_it_are_kept_apart():
    numbers = metrics_from_sums([window_error_sums(values, targets, 0.5) for values, targets in BATCHES])
    assert numbers["rmse_interpolation"] == pytest.approx(np.sqrt(np.mean(errors([0, 1, 2]) ** 2)))
    assert numbers["rmse_extrapolation"] == pytest.approx(np.sqrt(np.mean(errors([3]) ** 2)))
    assert "rmse_extrapolation" not in metrics_from_sums([window_error_sums(*BATCHES[0], 1.0)])


def test_the_bound_is_likelihood_less_divergence():
    values, targets = BATCHES[0]
    forecast = Forecast(values, posterior=Posterior(torch.zeros(5, 2), torch.full((5, 2), 2.0)))
    numbers = metrics_from_sums([likelihood_sums(forecast, targets, torch.ones(2))])
    assert numbers["kl_nats"] == pytest.approx(2 * (0.5 * 3 - np.log(2)))
    assert numbers["elbo_nats"] == pytest.approx(-numbers["nll_nats"] - numbers["kl_nats"])
    assert "kl_nats" not in metrics_from_sums([likelihood_sums(Forecast(values), targets, torch.ones(2))])


def test_auc_is_the_fraction_of_pairs_in_the_right_order():
    probability, labels = torch.tensor([0.9, 0.2, 0.6, 0.4]), torch.tensor([1, 0, 0, 1])
    logits = probability.logit().unsqueeze(0)
    numbers = label_metrics([logits[:, :3], logits[:, 3:]], [labels[:3], labels[3:]])
    assert numbers == pytest.approx({"auc": 3 / 4, "accuracy": 0.5})
    assert "auc" not in label_metrics([logits[:, :1]], [labels[:1]])


def test_labels_are_predicted_from_the_mean_probability_of_the_samples():
    logits = torch.tensor([[0.9], [0.2], [0.2]]).logit()
    assert label_metrics([logits], [torch.tensor([0])])["accuracy"] == 1.0

import pytest

from odebench.reporting.published import format_percent
from odebench.reproduce.table import comparison_verdict, how_much_worse, published_verdict

ACCURACY, RMSE, AUC = "final/test_accuracy", "final/test_rmse_extrapolation", "final/test_auc"


@pytest.mark.parametrize(
    ("tag", "ours", "published", "text"),
    [
        (RMSE, 0.105, 0.1, "reproduced: within 5.0 %"),
        (RMSE, 0.08, 0.1, "reproduced: better by 20 %"),
        (RMSE, 0.15, 0.1, "not reached: worse by 50 %"),
        (ACCURACY, 0.9956, 0.9958, "reproduced: within 4.8 %"),
        (ACCURACY, 0.99, 0.995, "not reached: worse by 100 %"),
        (AUC, 0.95, 0.8, "reproduced: better by 19 %"),
        (AUC, 0.6, 0.8, "not reached: worse by 25 %"),
        ("final/test_nll_nats", -0.3, -0.4, "not reached: worse by 25 %"),
        ("nfe_ratio", 1.5, 0.5, "not reached: more by 200 %"),
        ("nfe_ratio", 0.25, 0.5, "not reached: less by 50 %"),
        ("final/minutes", 1.0, 6.0, "another machine"),
    ],
)
def test_a_verdict_gives_size_and_direction_of_the_deviation(tag, ours, published, text):
    assert published_verdict(tag, ours, published, tolerance=0.1, fraction=1.0) == text


def test_a_partial_training_is_marked_and_never_judged():
    text = published_verdict(RMSE, 0.15, 0.1, 0.1, fraction=0.02)
    assert text == "partial budget, 2 % of the published training: worse by 50 %"
    assert "reproduced" not in published_verdict(RMSE, 0.1, 0.1, 0.1, fraction=0.5)
    assert published_verdict(RMSE, 0.1, 0.1, 0.1, fraction=0.995) == "reproduced: within 0.0 %"
    assert published_verdict(RMSE, 0.1, 0.1, 0.1, fraction=None) == "reproduced: within 0.0 %"
    assert published_verdict("parameters", 1.0, 1.0, 0.1, fraction=0.02) == "reproduced: within 0.0 %"


def test_percentages_have_two_digits():
    assert [format_percent(fraction) for fraction in (0.0013, 0.2, 0.996, 1.0)] == ["0.13 %", "20 %", "100 %", "100 %"]


@pytest.mark.parametrize("tag", [RMSE, ACCURACY, AUC])
def test_worse_is_positive_for_both_directions(tag):
    low, high = how_much_worse(tag, 0.7, 0.8), how_much_worse(tag, 0.9, 0.8)
    assert (low > 0 > high) == (tag != RMSE)
    assert (high > 0 > low) == (tag == RMSE)


def test_deviation_from_a_published_zero_is_infinite():
    assert [how_much_worse(RMSE, ours, 0.0) for ours in (0.0, 1e-3)] == [0.0, float("inf")]
    assert how_much_worse(ACCURACY, 0.9, 1.0) == float("inf")


def test_a_comparison_verdict_has_the_better_row_and_both_ratios():
    assert comparison_verdict(RMSE, 0.2, 0.4, "the RNN") == "as published: 0.2 against 0.4 of the RNN"
    assert comparison_verdict(RMSE, 0.4, 0.2, "the RNN").startswith("not as published")
    assert comparison_verdict(ACCURACY, 0.9, 0.8, "the MLP") == "as published: 90 against 80 of the MLP"
    assert comparison_verdict(RMSE, 0.2, 0.4, "the RNN", 0.42).endswith(", ratio 0.50 (published 0.42)")

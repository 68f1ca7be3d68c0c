import math

import numpy as np
import pytest
from scipy import stats

from odebench.reporting.published import PublishedValue, format_percent
from odebench.reproduce.table import format_interval, measurement_columns, read_measurement
from odebench.reproduce.verdicts import Measurement, describe_deviation, deviation, judge_pair, judge_published

ACCURACY, RMSE, AUC, NLL = (f"final/test_{name}" for name in ("accuracy", "rmse_extrapolation", "auc", "nll_nats"))
SEEDS = (0.21, 0.23, 0.19, 0.24)


def measured(tag, values, row="ours", **columns):
    """A measurement with these values of seeds 0, 1, ..."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    by_seed = {str(seed): value for seed, value in enumerate(values)}
    return Measurement(row, tag, float(np.mean(values)), std, len(values), by_seed, **columns)


def published(value, printed="printed"):
    return PublishedValue("table", "row", "", RMSE, value, printed, "paper", recalled=False)


def word(ours, value, margin=0.1):
    return judge_published(ours, published(value), margin).word


def test_the_interval_over_seeds_is_that_of_scipy():
    expected = stats.t.interval(0.95, 3, loc=np.mean(SEEDS), scale=stats.sem(SEEDS))
    assert measured(NLL, SEEDS).interval == pytest.approx(expected)
    assert not math.isfinite(measured(RMSE, SEEDS[:1]).interval.half_width)


def test_the_interval_of_an_accuracy_ends_at_1():
    low, high = measured(ACCURACY, (0.996, 0.9949), samples=10_000).interval
    assert 0.98 < low < 0.99
    assert high == 1.0
    assert not math.isfinite(measured(AUC, (0.9,)).interval.high)


def test_the_interval_of_an_error_is_that_of_its_logarithm():
    for tag in (RMSE, "final/test_mse", "final/test_mse_per_feature", "final/test_rate_rmse", "output_error"):
        logs = np.log(SEEDS)
        expected = np.exp(stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs)))
        assert measured(tag, SEEDS).interval == pytest.approx(tuple(expected))
    assert 0 < measured(RMSE, [1.3, 0.5, 0.2]).interval.low < 0.2
    known = measured(RMSE, SEEDS)
    only_mean = Measurement("ours", RMSE, known.mean, known.std, known.num_seeds)
    assert tuple(only_mean.interval) == pytest.approx(tuple(known.interval), rel=0.01)
    assert tuple(measured(RMSE, [0.3], std_error=0.003).interval) == pytest.approx((0.2942, 0.3059), rel=1e-3)
    assert measured(RMSE, [0.0, 0.0]).interval.low >= 0
    assert measured(RMSE, [0.0, 1e-7, 1e-7]).interval.low >= 0  # its upper end is beyond the largest float


def test_the_interval_over_test_samples_is_wilsons_or_of_the_mean():
    low, high = stats.binomtest(9960, 10_000).proportion_ci(method="wilson")
    one = measured(ACCURACY, [0.996], samples=10_000)
    assert one.interval == pytest.approx((low, high))
    assert measured(NLL, [0.8], std_error=0.01).interval == pytest.approx(stats.norm.interval(0.95, 0.8, 0.01))
    seeds = [0.995, 0.997]
    both = measured(ACCURACY, seeds, samples=10_000).interval
    over_seeds = measured(ACCURACY, seeds).interval
    assert both.half_width > over_seeds.half_width > one.interval.half_width
    assert (0.996 - both.low) ** 2 == pytest.approx((0.996 - over_seeds.low) ** 2 + (0.996 - low) ** 2)


def test_a_narrow_interval_with_the_published_value_reproduces_it_and_a_wide_one_cannot_tell():
    ours, accuracy = measured(RMSE, SEEDS), measured(ACCURACY, SEEDS)
    half = math.log(ours.interval.high / ours.interval.low) / 2
    assert word(ours, 0.22, margin=math.exp(1.01 * half) - 1) == "reproduced"
    assert word(ours, 0.22, margin=math.exp(0.99 * half) - 1) == "cannot tell"
    assert word(ours, 0.99 * ours.interval.low) == "worse"
    assert word(ours, 1.01 * ours.interval.high) == "better"
    assert word(accuracy, 0.99 * accuracy.interval.low) == "better"
    half = accuracy.interval.half_width
    assert word(accuracy, 0.22, margin=1.01 * half / 0.78) == "reproduced"
    assert word(accuracy, 0.22, margin=0.99 * half / 0.78) == "cannot tell"
    assert word(measured(RMSE, SEEDS[:1]), 0.21) == "cannot tell"
    assert word(measured(RMSE, [math.nan, 0.2]), 0.21) == "not measured"
    assert word(measured("final/minutes", SEEDS), 6.0) == "another machine"


def test_the_seeds_that_would_tell_make_the_interval_narrow_enough():
    text = judge_published(measured(RMSE, SEEDS), published(0.22), margin=0.05).text
    assert text == "1.1 % better, 4 seeds, about 20 would tell"
    std = np.std(np.log(SEEDS), ddof=1)
    halves = [stats.t.ppf(0.975, num - 1) * std / math.sqrt(num) for num in (19, 20)]
    assert halves[0] > math.log(1.05) >= halves[1]
    # A distant value is decided by fewer seeds than the margin needs.
    assert "about 5 would" in judge_published(measured(RMSE, SEEDS), published(0.19), margin=0.01).text
    wide = measured(RMSE, [0.1, 5.0])
    assert "more than 1,000 would tell" in judge_published(wide, published(0.707), margin=0.001).text


def test_a_shorter_training_is_never_judged():
    ours = measured(RMSE, [0.15], share=0.02)
    verdict = judge_published(ours, published(0.1), 0.1)
    assert str(verdict) == "partial budget: 2 % of the published training, 50 % worse"
    assert word(measured(RMSE, SEEDS, share=0.5), 0.2175) == "partial budget"
    assert word(measured(RMSE, SEEDS, share=0.995), 0.2175, margin=1) == "reproduced"


@pytest.mark.parametrize(
    ("ours", "printed", "text"),
    [
        (238_510, "0.24 M parameters", "reproduced: 238,510 is 0.24 M parameters"),
        (235_001, "0.24 M parameters", "reproduced: 235,001 is 0.24 M parameters"),
        (234_900, "0.24 M parameters", "different architecture: 2.1 % less"),
        (208_266, "0.24 M parameters", "different architecture: 13 % less"),
    ],
)
def test_numbers_of_parameters_are_compared_to_the_last_printed_digit(ours, printed, text):
    one = measured("parameters", [ours], share=0.02)
    assert str(judge_published(one, published(240_000, printed), margin=0.1)) == text


def test_an_auc_is_compared_by_its_skill_above_chance():
    text = judge_published(measured(AUC, [0.551], share=0.02), published(0.829), 0.05).text
    assert text.endswith("84 % of the skill above chance missing")


@pytest.mark.parametrize(
    ("tag", "ours", "value", "text"),
    [
        (RMSE, 0.105, 0.1, "5.0 % worse"),
        (RMSE, 0.08, 0.1, "20 % better"),
        (ACCURACY, 0.9956, 0.9958, "4.8 % worse"),
        (AUC, 0.95, 0.8, "50 % of the skill above chance added"),
        (NLL, -0.3, -0.4, "0.1 nats worse"),
        ("nfe_ratio", 1.5, 0.5, "200 % more"),
        ("nfe_ratio", 0.25, 0.5, "50 % less"),
        (RMSE, 0.1, 0.1, "equal"),
    ],
)
def test_a_deviation_has_size_and_direction(tag, ours, value, text):
    assert describe_deviation(tag, ours, value) == text


@pytest.mark.parametrize("tag", [RMSE, ACCURACY, AUC])
def test_a_deviation_is_positive_if_ours_is_worse(tag):
    low, high = deviation(tag, 0.7, 0.8), deviation(tag, 0.9, 0.8)
    assert (low > 0 > high) == (tag != RMSE)
    assert (high > 0 > low) == (tag == RMSE)


def test_deviation_from_a_published_zero_is_infinite():
    assert [deviation(RMSE, ours, 0.0) for ours in (0.0, 1e-3)] == [0.0, math.inf]
    assert deviation(ACCURACY, 0.9, 1.0) == math.inf


def test_percentages_have_two_digits():
    assert [format_percent(fraction) for fraction in (0.0013, 0.2, 0.996, 1.0)] == ["0.13 %", "20 %", "100 %", "100 %"]


def test_rows_with_the_same_seeds_are_compared_pair_by_pair():
    # The spread over seeds hides the difference, except within pairs.
    ours = measured(RMSE, [1.0, 2.0, 3.0])
    other = measured(RMSE, [1.05, 2.12, 3.21], row="the RNN")
    verdict = judge_pair(ours, other, margin=0.1)
    assert str(verdict) == "better: 2 against 2.127 of the RNN, paired by 3 seeds"
    assert judge_pair(other, ours, margin=0.1).word == "worse"
    unpaired = Measurement("the RNN", RMSE, other.mean, other.std, 3)
    assert judge_pair(ours, unpaired, margin=0.1).word == "cannot tell"
    interval = stats.ttest_rel(*(np.log([*one.values.values()]) for one in (ours, other))).confidence_interval()
    assert interval.high < 0
    # A further seed of one row makes the rows unpaired.
    assert judge_pair(measured(RMSE, [1.0, 2.0, 3.0, 2.0]), other, margin=0.1).text.endswith(
        ", 4 seeds, about 225 would tell"
    )


def test_rows_of_other_seeds_are_compared_as_by_welch():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = [rng.normal(mean, std, num) for mean, std, num in ((1.0, 0.1, 4), (1.3, 0.3, 6))]
        rows = [Measurement("a", NLL, x.mean(), x.std(ddof=1), len(x)) for x in values]
        expected = stats.ttest_ind(*values, equal_var=False).pvalue
        assert (judge_pair(*rows, margin=0.0).word == "better") == (
            expected < 0.05 and values[0].mean() < values[1].mean()
        )


def test_a_small_difference_is_a_tie_if_its_interval_is_narrow():
    ours, other = (measured(NLL, [value], row=value, std_error=0.007) for value in (0.7995, 0.8005))
    verdict = judge_pair(ours, other, margin=0.05)
    assert str(verdict) == "tie: 0.7995 against 0.8005 of 0.8005, one seed each, over test samples"
    assert judge_pair(ours, other, margin=0.01).word == "cannot tell"
    alone = [measured(NLL, [value]) for value in (0.7, 0.8)]
    assert judge_pair(*alone, margin=0.05).text.endswith("one seed")
    memory = [measured("final/peak_mib", [value], row="backprop") for value in (40.0, 50.0)]
    assert str(judge_pair(*memory, margin=0.1)) == "better: 40 against 50 of backprop"


def test_a_comparison_has_both_ratios_and_the_mark_of_a_shorter_training():
    ours, other = measured(ACCURACY, [0.9], share=1.0), measured(ACCURACY, [0.8], row="the MLP", share=0.2)
    assert str(judge_pair(ours, other, 0.1)) == (
        "partial budget: 100 % and 20 % of the published trainings, 90 against 80 of the MLP"
    )
    full = [measured(RMSE, [value, value + 0.02]) for value in (0.2, 0.4)]
    assert ", ratio 0.51 (published 0.42), " in judge_pair(*full, 0.1, 0.42).text
    failed = Measurement("RNN", RMSE, math.nan, missing="not done: failed")
    assert str(judge_pair(full[0], failed, 0.1)) == "not measured: RNN not done: failed"


def test_a_measurement_is_read_back_from_the_columns_of_its_file():
    for one in (measured(RMSE, SEEDS, share=1.0), measured(ACCURACY, [0.9], samples=100, missing="1 of 2 runs")):
        columns = {name: "" if value is None or value != value else str(value)
                   for name, value in measurement_columns(one, []).items()}  # fmt: skip
        again = read_measurement(columns)
        assert measurement_columns(again, []) == pytest.approx(measurement_columns(one, []), nan_ok=True)
        assert again.values == one.values


def test_an_interval_has_two_digits_of_its_half_width():
    assert format_interval(measured(RMSE, SEEDS)) == "0.184 to 0.255"
    assert format_interval(measured(RMSE, [0.19, 1.56, 0.23])) == "0.02 to 7.37"
    assert format_interval(measured(ACCURACY, [0.996], samples=10_000)) == "99.46 to 99.71"
    assert format_interval(measured(RMSE, [0.1])) == "-"

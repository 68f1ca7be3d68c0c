"""The spirals: curves, noise, observed points, and a truth that is no input."""

import numpy as np
import pytest
import torch

from odebench.data.spirals import spirals
from odebench.errors import UsageError


def load(**changed):
    return spirals(
        **{"observed": 30, "beyond": 100, "validation": 80, "train_limit": None, "random_state": 0} | changed
    )


def everything(split):
    return torch.arange(len(split))


def truths(data):
    """Truth [1000, 200, 2] and labels [1000] of all series; NaN after the end of the curve."""
    batches = [split.noiseless(everything(split)) for split in data.splits().values()]
    curves = [batch.values.double().where(batch.mask, torch.nan) for batch in batches]
    return torch.cat(curves).numpy(), torch.cat([batch.labels for batch in batches])


def test_800_for_training_200_for_test_and_half_turn_clockwise():
    data = load()
    assert [len(split) for split in data.splits().values()] == [720, 80, 200]
    ids = torch.cat([split.ids for split in data.splits().values()])
    assert sorted(ids.tolist()) == list(range(1000))
    assert truths(data)[1].bincount().tolist() == [500, 500]


def test_the_curves_are_a_clockwise_and_a_counter_clockwise_spiral():
    curve, counter = truths(load())
    step = 6 * np.pi / 999
    for label, centre in ((0, -5), (1, 5)):
        offset = curve[counter.numpy() == label] - (centre, 0)
        radius, angle = np.hypot(*offset.T).T, np.unwrap(np.arctan2(offset[..., 1], offset[..., 0]))
        # r = 15 / z with z falling, against r = 0.3 theta with theta rising.
        true_angle = 15 / radius if label == 0 else radius / 0.3
        turns = (true_angle - angle) / (2 * np.pi)
        assert np.nanmax(np.abs(turns - turns.round())) < 1e-3
        assert np.nanmax(np.abs(np.diff(angle) - (step if label else -step))) < 1e-4


def test_the_training_covers_all_of_the_curve_that_is_tested():
    data = load()
    curve, label = truths(data)
    assert not np.isnan(curve[-200:]).any()
    for turn, centre in ((0, -5), (1, 5)):
        radius = np.linalg.norm(curve[label.numpy() == turn] - (centre, 0), axis=-1)
        windows, beyond = radius[:-100, :100], radius[-80:]
        assert windows.max() > 0.97 * beyond.max(), turn


def test_times_are_equally_spaced_from_0_and_continue_beyond_the_window():
    data = load()
    times = data.test.noiseless(everything(data.test)).times.double()
    assert torch.allclose(times, torch.arange(200).double() * 6 * torch.pi / 999, atol=1e-6)
    assert data.span == pytest.approx(99 * 6 * np.pi / 999)


@pytest.mark.parametrize("observed", [30, 50, 100])
def test_inputs_and_targets_are_the_observed_points_of_the_window(observed):
    data = load(observed=observed)
    for split in data.splits().values():
        inputs, targets = split.inputs(everything(split)), split.targets(everything(split))
        assert (inputs.mask.all(2).sum(1) == observed).all()
        assert torch.equal(inputs.mask, targets.mask)
        assert torch.equal(inputs.values, targets.values)
        assert float(targets.times[-1]) <= data.span + 1e-6


def test_the_noise_has_the_stated_deviation_and_is_zero_beyond_the_window():
    split = load(observed=100).train
    seen = split.mask.all(1)
    noise = (split.values - split.truth)[seen]
    assert noise.std() == pytest.approx(0.3, rel=0.01)
    assert abs(noise.mean()) < 0.005
    assert (split.values[~seen] == 0).all()


def test_only_what_is_observed_changes_with_the_number_of_points():
    few, many = load(observed=30).test, load(observed=100).test
    assert torch.equal(few.values, many.values)
    assert torch.equal(few.truth, many.truth)
    assert (few.is_input & many.is_input).sum() == few.is_input.sum() == 200 * 30


def test_the_data_depend_on_random_state_alone():
    first, again, other = load(), load(), load(random_state=1)
    assert first.test.sha256() == again.test.sha256()
    assert first.test.sha256() != other.test.sha256()
    assert load(validation=100, train_limit=50).test.sha256() == first.test.sha256()


def test_a_larger_beyond_extends_the_truth():
    data = load(beyond=300)
    assert data.test.noiseless(torch.tensor([0])).values.shape == (1, 400, 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"observed": 101}, r"data\.observed=101: must be from 1 to 100"),
        ({"observed": 0}, r"data\.observed=0"),
        ({"beyond": 801}, r"data\.beyond=801"),
        ({"validation": 800}, r"data\.validation=800"),
    ],
)
def test_numbers_out_of_range_raise_an_error(options, named):
    with pytest.raises(UsageError, match=named):
        load(**options)

"""Irregular series: batches on the union of times, masks, inputs and targets."""

import dataclasses

import numpy as np
import pytest
import torch

from odebench.data.series import SeriesData
from odebench.data.series_loading import (
    assign_roles,
    draw_inputs,
    drop_unobserved_series,
    has_input_and_target,
    hold_out_series,
    make_splits,
    scale_values,
    select_series,
    series_from_arrays,
    value_range,
)
from odebench.errors import UsageError


def random_pool(num=40, dim=3, seed=0):
    """Series of 0 to 12 points on a grid of 20 times in [0, 2), a third of the values unobserved."""
    random = np.random.RandomState(seed)
    lengths = random.randint(13, size=num)
    places = [np.sort(random.permutation(20)[:length]) for length in lengths]
    points = lengths.sum()
    return series_from_arrays(
        lengths,
        np.concatenate(places) / 10,
        random.standard_normal((points, dim)),
        mask=random.uniform(size=(points, dim)) < 2 / 3,
        ids=np.arange(num) + 100,
        labels=np.arange(num) % 2,
        truth=random.standard_normal((points, dim)),
    )


def points_of(split, series, kept):
    """Time -> values of one series, unobserved ones as None, by a plain loop."""
    begin, end = split.offsets[series : series + 2].tolist()
    return {
        split.times[p].item(): [v if m else None for v, m in zip(split.values[p].tolist(), split.mask[p], strict=True)]
        for p in range(begin, end)
        if kept[p]
    }


def test_inputs_and_targets_of_the_same_points_are_one_batch():
    split, some = random_pool(), torch.tensor([7, 3])
    inputs, targets = split.inputs_and_targets(some)
    assert targets is inputs
    apart = assign_roles(split, "extrapolation", 2.0)
    for made, alone in zip(apart.inputs_and_targets(some), (apart.inputs(some), apart.targets(some)), strict=True):
        assert torch.equal(made.times, alone.times)
        assert torch.equal(made.values, alone.values)


def test_a_batch_is_the_union_of_its_series_times():
    split = series_from_arrays([2, 1, 2], np.array([0.0, 2.0, 1.0, 0.5, 2.0]), np.arange(1.0, 6.0)[:, None])
    batch = split.inputs(torch.tensor([2, 0]))
    assert batch.times.tolist() == [0, 0.5, 2]
    assert batch.values.squeeze(2).tolist() == [[0, 4, 5], [1, 0, 2]]
    assert batch.mask.squeeze(2).tolist() == [[False, True, True], [True, False, True]]
    assert len(batch) == 2


@pytest.mark.parametrize("role", ["is_input", "is_target"])
def test_a_batch_contains_exactly_the_points_of_its_role(role):
    pool = assign_roles(random_pool(), "extrapolation", span=2.0)
    indices = torch.tensor([7, 3, 3, 30, 12])
    batch = (pool.inputs if role == "is_input" else pool.targets)(indices)
    assert batch.labels.tolist() == pool.labels[indices].tolist()
    assert (batch.times.diff() > 0).all()
    for row, series in enumerate(indices.tolist()):
        expected = points_of(pool, series, getattr(pool, role))
        for column, time in enumerate(batch.times.tolist()):
            values, mask = batch.values[row, column].tolist(), batch.mask[row, column].tolist()
            given = [value if seen else None for value, seen in zip(values, mask, strict=True)]
            assert given == expected.pop(time, [None] * 3)
            assert all(seen or value == 0 for value, seen in zip(values, mask, strict=True))
        assert not any(any(v is not None for v in values) for values in expected.values())


@pytest.mark.parametrize("hidden", [1e9, float("nan"), float("inf")])
def test_values_outside_the_mask_change_nothing(hidden):
    pool = random_pool()
    other = dataclasses.replace(pool, values=pool.values.masked_fill(~pool.mask, hidden))
    everything = torch.arange(len(pool))
    assert torch.equal(pool.targets(everything).values, other.targets(everything).values)
    assert pool.sha256() == other.sha256()
    assert [b.tolist() for b in value_range(pool)] == [b.tolist() for b in value_range(other)]
    assert torch.equal(scale_values(other, *value_range(other)).values, scale_values(pool, *value_range(pool)).values)


def test_an_observed_value_a_label_or_a_role_changes_the_hash():
    pool = random_pool()
    changed = [
        dataclasses.replace(pool, values=pool.values + pool.mask.float()),
        dataclasses.replace(pool, labels=1 - pool.labels),
        dataclasses.replace(pool, is_input=torch.zeros_like(pool.is_input)),
        dataclasses.replace(pool, mask=torch.ones_like(pool.mask)),
    ]
    assert len({split.sha256() for split in [pool, *changed]}) == 5


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        ([0, 1, 1, 0, 1, 2], r"series 0: .*\(1, 1\)"),
        ([0, 1, 2, 0, 2, 1.5], r"series 1: .*\(2, 1\.5\)"),
        ([0, 1, float("nan"), 0, 1, 2], r"series 0: .*\(nan, 0\)"),
        ([0, 1, 2, 0, 1, float("inf")], r"series 1: .*\(inf\)"),
    ],
    ids=["repeated", "backwards", "not a number", "infinite"],
)
def test_the_error_about_times_that_do_not_increase_names_the_series(times, shown):
    with pytest.raises(UsageError, match=f"^{shown}$"):
        series_from_arrays([3, 3], np.array(times), np.ones((6, 1)))


@pytest.mark.parametrize("lengths", [[0, 2, 0, 2, 0], [2, 2]], ids=["empty ones between", "side by side"])
def test_times_may_decrease_only_from_one_series_to_the_next(lengths):
    series_from_arrays(lengths, np.array([0.0, 2.0, 0.0, 1.0]), np.ones((4, 1)))
    with pytest.raises(UsageError, match="go backwards"):
        series_from_arrays(lengths, np.array([2.0, 0.0, 0.0, 1.0]), np.ones((4, 1)))
    with pytest.raises(UsageError, match="go backwards"):
        series_from_arrays(lengths, np.array([0.0, 2.0, 1.0, 0.0]), np.ones((4, 1)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"times": torch.zeros(3)}, "offsets"),
        ({"values": torch.zeros(4, 1, dtype=torch.float64)}, "values must be float32"),
        ({"values": torch.zeros(4)}, r"values must be float32 \[4, D\]"),
        ({"mask": torch.ones(4, 2, dtype=torch.bool)}, "mask"),
        ({"is_target": torch.ones(4)}, "is_target must be bool"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        ({"truth": torch.zeros(4, 3)}, "truth"),
        ({"offsets": torch.tensor([0, 3, 2])}, "offsets"),
        ({"values": torch.full((4, 1), torch.nan)}, "not finite"),
        ({"truth": torch.full((4, 1), torch.nan)}, "the truth is not finite"),
    ],
)
def test_inconsistent_fields_raise_an_error(change, named):
    split = series_from_arrays([2, 2], np.array([0.0, 1.0, 0.0, 1.0]), np.ones((4, 1)))
    with pytest.raises(UsageError, match=named):
        dataclasses.replace(split, **change)


def test_selected_series_keep_all_their_fields():
    pool = random_pool()
    chosen = select_series(pool, np.array([5, 39, 0, 5]))
    assert chosen.ids.tolist() == [105, 139, 100, 105]
    for place, series in enumerate([5, 39, 0, 5]):
        everything = [torch.ones(len(split.times), dtype=torch.bool) for split in (chosen, pool)]
        assert points_of(chosen, place, everything[0]) == points_of(pool, series, everything[1])
    assert torch.equal(chosen.noiseless(torch.tensor([1])).values, pool.noiseless(torch.tensor([39])).values)


def sparse_pool():
    """Series with points at 0 and 1, without points, with one at 0, with one at 1, and with two unobserved points."""
    return series_from_arrays(
        [2, 0, 1, 1, 2],
        np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]),
        np.ones((6, 1)),
        mask=np.array([[True], [True], [True], [True], [False], [False]]),
    )


@pytest.mark.parametrize(("mode", "ids"), [("interpolation", [0, 2, 3]), ("extrapolation", [0])])
def test_series_without_inputs_or_targets_are_dropped_and_counted(mode, ids):
    pool = assign_roles(sparse_pool(), mode, span=1.0)
    data = drop_unobserved_series(SeriesData(pool, pool, select_series(pool, np.array(ids)), 1.0, ("a",)))
    assert [split.ids.tolist() for split in data.splits().values()] == [ids] * 3
    left_out = {"with nothing to encode or to compare with": 2 * (5 - len(ids))}
    assert data.provenance["left_out"] == left_out
    assert data.note == f"series dropped: {left_out.popitem()[1]} with nothing to encode or to compare with"


def test_a_point_without_observed_values_is_no_observation():
    pool = dataclasses.replace(sparse_pool(), is_input=torch.ones(6, dtype=torch.bool))
    assert has_input_and_target(pool).tolist() == [True, False, True, True, False]


def test_a_split_without_any_observed_series_raises_an_error():
    pool = assign_roles(sparse_pool(), "extrapolation", span=1.0)
    data = SeriesData(pool, select_series(pool, np.array([2, 3])), pool, 1.0, ("a",))
    with pytest.raises(UsageError, match="the validation series have no inputs"):
        drop_unobserved_series(data)


def test_where_all_series_are_observed_nothing_changes():
    pool = select_series(sparse_pool(), np.array([0, 2, 3]))
    data = drop_unobserved_series(
        SeriesData(pool, pool, pool, 1.0, ("a",), note="theirs", provenance={"source": "here"})
    )
    assert data.note == "theirs"
    assert data.provenance == {"source": "here", "left_out": {}}
    assert data.train is pool


def test_the_targets_are_all_points_in_interpolation_and_the_second_half_in_extrapolation():
    pool = random_pool()
    both = assign_roles(pool, "interpolation", span=2.0)
    assert torch.equal(both.is_input, pool.mask.any(1))
    assert torch.equal(both.is_target, pool.mask.any(1))
    apart = assign_roles(pool, "extrapolation", span=2.0)
    assert torch.equal(apart.is_input, pool.mask.any(1) & (pool.times < 1))
    assert torch.equal(apart.is_target, pool.mask.any(1) & (pool.times >= 1))


@pytest.mark.parametrize("observed", [0.1, 0.29, 1.0, 0])
def test_drawn_inputs_are_the_given_number_of_observed_points(observed):
    pool = random_pool()
    drawn = draw_inputs(pool, observed, np.random.RandomState(0))
    assert not (drawn & ~pool.is_input).any()
    for begin, end in zip(pool.offsets[:-1], pool.offsets[1:], strict=True):
        there = int(pool.is_input[begin:end].sum())
        expected = observed if isinstance(observed, int) else min(there, max(1, int(there * observed)))
        assert drawn[begin:end].sum() == expected


def test_a_fraction_is_not_affected_by_rounding():
    pool = series_from_arrays([100], np.arange(100.0), np.ones((100, 1)))
    assert draw_inputs(pool, 0.29, np.random.RandomState(0)).sum() == 29  # 100 * 0.29 < 29 in floating point


def test_every_point_is_drawn_equally_often():
    pool = series_from_arrays([10] * 4000, np.tile(np.arange(10.0), 4000), np.ones((40000, 1)))
    counts = draw_inputs(pool, 3, np.random.RandomState(0)).view(4000, 10).sum(0)
    assert (counts - 1200).abs().max() < 4 * (4000 * 0.3 * 0.7) ** 0.5


def test_more_points_than_a_series_has_raise_an_error():
    pool = series_from_arrays([4, 3], np.arange(7.0), np.ones((7, 1)), ids=np.array([8, 9]))
    with pytest.raises(UsageError, match=r"^data\.observed=4: series 9 has only 3 points$"):
        draw_inputs(pool, 4, np.random.RandomState(0))


def test_the_drawn_points_do_not_depend_on_the_limits_of_the_split():
    pool = random_pool()
    order = np.random.RandomState(1).permutation(40)
    drawn = {}
    for validation, limit in ((5, None), (12, 3)):
        parts = make_splits(pool, hold_out_series(order, 10, validation, limit), 0.3, random_state=4)
        for split in (parts["train"], parts["validation"], parts["test"]):
            for place, number in enumerate(split.ids.tolist()):
                points = points_of(split, place, split.is_input)
                assert drawn.setdefault(number, points) == points
    other = make_splits(pool, hold_out_series(order, 10, 5, None), 0.3, random_state=5)
    first = [points_of(other["test"], place, other["test"].is_input) for place in range(len(other["test"]))]
    assert first != [drawn[number] for number in other["test"].ids.tolist()]


def test_redrawn_inputs_differ_between_epochs_and_are_reproducible():
    pool = random_pool()
    drawn = make_splits(pool, hold_out_series(np.arange(40), 10, 5, None), 0.3)
    data = drop_unobserved_series(SeriesData(**drawn, span=2.0, channels=("a", "b", "c"), num_classes=2))
    empty = int((torch.bincount(pool.series_of_points()[pool.is_input], minlength=40) == 0).sum())
    assert sum(data.provenance["left_out"].values()) == empty > 0
    train, redraw = data.train, data.redraw
    assert len(train) < len(drawn["train"])
    assert torch.equal(redraw(0, 1), redraw(0, 1))
    draws = [train.is_input, redraw(0, 1), redraw(0, 2), redraw(1, 1)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    for draw in draws:
        assert not (draw & ~train.is_target).any()
        assert torch.equal(
            *(torch.bincount(train.series_of_points()[d], minlength=len(train)) for d in (draw, train.is_input))
        )
    assert "redraw" not in make_splits(pool, hold_out_series(np.arange(40), 10, 5, None))


def test_held_out_series_are_disjoint_and_a_smaller_limit_gives_a_subset():
    order = np.random.RandomState(0).permutation(50)
    train, validation, test = hold_out_series(order, 10, 5, None)
    assert sorted([*train, *validation, *test]) == list(range(50))
    few, same, also = hold_out_series(order, 10, 5, 7)
    assert set(few) < set(train)
    assert len(few) == 7
    assert (list(same), list(also)) == (list(validation), list(test))


@pytest.mark.parametrize(
    ("validation", "limit", "named"),
    [(0, None, "data.validation=0"), (40, None, "data.validation=40"), (5, 36, "data.train_limit=36"), (5, 0, "=0")],
)
def test_splits_of_impossible_sizes_raise_an_error(validation, limit, named):
    with pytest.raises(UsageError, match=named):
        hold_out_series(np.arange(50), 10, validation, limit)


def test_scaling_subtracts_the_smallest_observed_value_and_divides_by_the_largest():
    values = np.array([[5.0, 1e6, 7.0, 3.0], [9.0, -2.0, 7.0, 3.0], [7.0, 2.0, 7.0, 3.0]])
    mask = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool)
    split = series_from_arrays([3], np.arange(3.0), values, mask=mask)
    low, high = value_range(split)
    assert low.tolist() == [5, -2, 7, 0]
    assert high.tolist() == [9, 2, 7, 1]
    expected = torch.tensor([[0, 0, 0, 0], [4 / 9, 0, 0, 0], [2 / 9, 2, 0, 0]])
    torch.testing.assert_close(scale_values(split, low, high).values, expected)


def test_inconsistent_splits_raise_an_error():
    pool = random_pool()
    parts = {"train": pool, "validation": pool, "test": pool, "span": 2.0}
    SeriesData(**parts, channels=("a", "b", "c"), num_classes=2)
    with pytest.raises(UsageError, match="have 3 values per point, but the data set has 2 channels"):
        SeriesData(**parts, channels=("a", "b"), num_classes=2)
    with pytest.raises(UsageError, match="outside 0 to 0"):
        SeriesData(**parts, channels=("a", "b", "c"), num_classes=1)
    with pytest.raises(UsageError, match=r"^the train series are observed from 0 to 1\.9; .* in \[0, 0\.5\]"):
        SeriesData(**parts | {"span": 0.5}, channels=("a", "b", "c"), num_classes=2)
    for nothing in (select_series(pool, np.arange(0)), dataclasses.replace(pool, is_input=pool.is_input & False)):
        with pytest.raises(UsageError, match="the test series have no inputs, or no targets"):
            SeriesData(**parts | {"test": nothing}, channels=("a", "b", "c"), num_classes=2)


def test_the_provenance_of_the_splits_has_their_sizes_and_hashes():
    pool = random_pool()
    data = SeriesData(pool, pool, select_series(pool, np.arange(3)), 2.0, ("a", "b", "c"), num_classes=2)
    provenance = data.split_provenance()
    assert provenance["train"] == {"series": 40, "points": len(pool.times), "dim": 3, "sha256": pool.sha256()}
    assert provenance["test"]["series"] == 3
    assert provenance["test"]["sha256"] != provenance["validation"]["sha256"]


def test_noiseless_values_raise_an_error_where_they_are_unknown():
    pool = dataclasses.replace(random_pool(), truth=None)
    with pytest.raises(ValueError, match="not known"):
        pool.noiseless(torch.tensor([0]))
    assert pool.to("cpu").truth is None

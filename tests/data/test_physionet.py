"""PhysioNet 2012 as series: rounded times, averages, masks, scale, labels and split."""

import os

import numpy as np
import pytest
import torch

from odebench.data import build_data
from odebench.data.physionet import quantise
from odebench.data.physionet_records import PARAMETERS, Records
from odebench.data.root import data_root
from odebench.errors import UsageError

HEADER = "Time,Parameter,Value\n"
DEFAULTS = {
    "sets": "ab",
    "mode": "interpolation",
    "observed": 1.0,
    "quantisation": 1,
    "static": True,
    "validation": 4,
    "train_limit": None,
    "random_state": 42,
}
HR, AGE, WEIGHT = (PARAMETERS.index(name) for name in ("HR", "Age", "Weight"))


@pytest.fixture
def root(tmp_path):
    """Forty records: HR at two times, at different times in each record; the last of each set has only descriptors."""
    for letter, first in (("a", 100), ("b", 200)):
        folder = tmp_path / "PhysioNet2012" / f"set-{letter}"
        folder.mkdir(parents=True)
        outcomes = ["RecordID,In-hospital_death"]
        for number in range(first, first + 20):
            lines = [f"00:00,RecordID,{number}", f"00:00,Age,{number % 90}", "00:00,Gender,0", "00:00,Weight,-1"]
            if number != first + 19:
                lines += [f"{number % 20:02}:04,HR,{number}", f"{number % 20 + 25}:00,HR,{number + 50}"]
            (folder / f"{number}.txt").write_text(HEADER + "\n".join(lines) + "\n")
            outcomes.append(f"{number},{number % 2}")
        (folder.parent / f"Outcomes-{letter}.txt").write_text("\n".join(outcomes))
    return tmp_path


def load(root, **changed):
    return build_data("physionet2012", {"root": str(root), **DEFAULTS, **changed}, seed=0)


def one_record(*lines, descriptors=True):
    """Records with the (minute, parameter, value) of one file."""
    lines = [(0, "Age", 50.0), *lines] if descriptors else lines
    minutes, names, values = zip(*lines, strict=True)
    return Records(
        ids=np.array([7]),
        deaths=np.array([1], dtype=np.int8),
        lengths=np.array([len(lines)]),
        minutes=np.array(minutes, dtype=np.int16),
        parameters=np.array([PARAMETERS.index(name) for name in names], dtype=np.int8),
        values=np.array(values, dtype=np.float32),
    )


def test_a_fifth_is_for_test_and_records_without_an_observation_are_counted(root):
    data = load(root)
    assert [len(split) for split in data.splits().values()] == [26, 4, 8]
    ids = torch.cat([split.ids for split in data.splits().values()])
    assert sorted(ids.tolist()) == [*range(100, 119), *range(200, 219)]
    assert data.provenance["left_out"] == {"without an observation": 2}
    assert data.note == "series dropped: 2 without an observation"
    for split in data.splits().values():
        assert torch.equal(split.labels, split.ids % 2)


def test_the_split_is_that_of_train_test_split(root):
    from sklearn.model_selection import train_test_split

    ids = [*range(100, 119), *range(200, 219)]
    train, test = train_test_split(ids, train_size=0.8, random_state=42, shuffle=True)
    data = load(root)
    assert data.test.ids.tolist() == test
    assert torch.cat([data.validation.ids, data.train.ids]).tolist() == train


def test_values_are_scaled_by_the_extremes_outside_the_test_records(root):
    data = load(root)
    rest = torch.cat([data.train.ids, data.validation.ids]).tolist()
    low, high = min(rest), max(rest) + 50
    for split in data.splits().values():
        rows = split.mask[:, HR]
        owners = torch.repeat_interleave(split.ids, split.offsets.diff())[rows]
        late = (split.times[rows] >= 25 / 48).float() * 50
        assert torch.allclose(split.values[rows, HR], (owners + late - low) / high, atol=1e-6)
    assert torch.equal(load(root, train_limit=3, validation=9).test.values, data.test.values)


def test_an_unknown_descriptor_is_not_observed_and_static_ones_only_at_time_0(root):
    data = load(root)
    assert data.channels == PARAMETERS
    assert len(PARAMETERS) == 41
    assert not data.train.mask[:, WEIGHT].any()
    assert torch.equal(data.train.mask[:, AGE], data.train.times == 0)


def test_without_static_descriptors_37_channels_are_left(root):
    data = load(root, static=False)
    assert data.channels == PARAMETERS[4:]
    assert data.train.dim == 37
    assert (data.train.mask.sum(1) == 1).all()
    assert (data.train.offsets.diff() == 2).all()


def test_one_set_alone_can_be_loaded(root):
    assert sorted(load(root, sets="b").test.ids.tolist())[0] >= 200


def test_extrapolation_drops_and_counts_records_with_an_empty_half(root):
    data = load(root, mode="extrapolation", static=False)
    for split in data.splits().values():
        assert (split.times[split.is_input] < 0.5).all()
        assert (split.times[split.is_target] >= 0.5).all()
    path = root / "PhysioNet2012" / "set-a" / "103.txt"
    path.write_text(f"{HEADER}30:00,HR,70\n")
    shorter = load(root, mode="extrapolation", static=False)
    assert sum(map(len, shorter.splits().values())) == 37
    assert shorter.note.endswith(", 1 with nothing to encode or to compare with")


def test_times_are_rounded_and_values_at_the_same_time_averaged():
    records = one_record((7, "HR", 60.0), (12, "HR", 80.0), (12, "Temp", 37.0), (13, "HR", 91.0), (2880, "HR", 5.0))
    pool, fewer, empty = quantise(records, 10, static=True)
    assert torch.allclose(pool.times * 2880, torch.tensor([0.0, 10.0, 2880.0]))
    assert pool.values[:, HR].tolist() == [0, 77, 5]
    assert pool.mask[:, HR].tolist() == [False, True, True]
    assert pool.values[0, AGE] == 50
    assert pool.values[1, PARAMETERS.index("Temp")] == 37
    assert (fewer, empty) == (2, 0)


def test_a_rounded_time_stays_inside_the_two_days():
    pool, _, _ = quantise(one_record((2879, "HR", 60.0)), 7 * 60, static=False)
    assert pool.times.tolist() == [1.0]


def test_a_record_of_descriptors_alone_is_dropped():
    pool, _, empty = quantise(one_record((0, "Weight", 80.0), (90, "Weight", 81.0)), 1, static=True)
    assert (len(pool), empty) == (0, 1)


def test_records_of_descriptors_alone_raise_an_error(root):
    for path in (root / "PhysioNet2012").glob("set-?/*.txt"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(UsageError, match=r"PhysioNet2012: none of its 40 records has an observation"):
        load(root)


@pytest.mark.slow
def test_the_published_records_are_all_there():
    folder = data_root(None) / "PhysioNet2012"
    if not os.environ.get("ODEBENCH_DATA") or not folder.is_dir():
        pytest.skip("$ODEBENCH_DATA is not set or holds no PhysioNet2012")
    data = load(os.environ["ODEBENCH_DATA"], quantisation=60, validation=100)
    assert [len(split) for split in data.splits().values()] == [6292, 100, 1598]
    assert sum(int(split.labels.sum()) for split in data.splits().values()) == 554 + 568
    assert data.provenance["left_out"] == {"without an observation": 10}
    assert data.provenance["records_sha256"] == "bb889c031ffdbb033b8da0517b26e625dc187411b867b7ca30b56c08c21c6df1"
    assert data.train.mask.any(0).all()
    together = torch.cat([split.values[split.mask] for split in (data.train, data.validation)])
    assert (together.min(), together.max() <= 2) == (0, True)

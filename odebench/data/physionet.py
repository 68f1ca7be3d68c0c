"""The intensive-care records of the PhysioNet Challenge 2012, prepared as in Rubanova et al. (2019), section 4.3."""

import math

import numpy as np

from odebench.data.physionet_records import DESCRIPTORS, PARAMETERS, SPAN_MINUTES, STATIC, Records, read_set
from odebench.data.root import data_root
from odebench.data.series import SeriesData, SeriesSplit
from odebench.data.series_loading import (
    Mode,
    assign_roles,
    hold_out_series,
    make_splits,
    scale_values,
    select_series,
    series_from_arrays,
    target_start,
    value_range,
)
from odebench.errors import UsageError

TEST_SHARE = 0.2


def physionet2012(
    *,
    root: str | None,
    sets: str,
    mode: Mode,
    observed: float,
    quantisation: int,
    static: bool,
    validation: int,
    train_limit: int | None,
    random_state: int,
) -> SeriesData:
    """8,000 records of the first 48 hours in intensive care, with death in hospital as label.

    Times are rounded to multiples of `quantisation` minutes and given in units of 48 hours. Values of one parameter at
    the same time are averaged. Each parameter is shifted and scaled by its smallest and largest value outside the test
    records: see `scale_values`. static: whether to include age, gender, height and kind of unit, observed once at time
    0. There are 41 channels with them, as in the released code, and 37 without, as in the paper. A descriptor of -1 is
    unknown, and so not observed. Records with descriptors only are dropped and counted.

    sets: which sets of the challenge to use, "ab", "a" or "b" (the released code uses set-a alone for classification).
    A fifth of the records is for test, chosen as scikit-learn's train_test_split does from the records sorted by
    number; the published split has random_state 42. mode, observed: see `assign_roles` and `make_splits`. Raises
    UsageError as `read_set` does, and if no record has an observation.
    """
    folder = data_root(root) / "PhysioNet2012"
    parts, files = zip(*(read_set(folder, letter) for letter in sets), strict=True)
    records = Records(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})
    pool, averaged, empty = quantise(records, quantisation, static)
    if len(pool) == 0:
        raise UsageError(f"{folder}: none of its {empty:,} records has an observation, only descriptors")
    num_test = math.ceil(TEST_SHARE * len(pool))
    order = np.random.RandomState(random_state).permutation(len(pool))
    held_out = hold_out_series(order, num_test, validation, train_limit)
    pool = scale_values(pool, *value_range(select_series(pool, order[num_test:])))
    splits = make_splits(assign_roles(pool, mode, span=1.0), held_out, observed, random_state)
    return SeriesData(
        **splits,
        span=1.0,
        target_start=target_start(mode, 1.0),
        channels=PARAMETERS if static else PARAMETERS[len(STATIC) :],
        num_classes=2,
        provenance={
            "source": "Silva et al.: PhysioNet/Computing in Cardiology Challenge 2012, sets " + " and ".join(sets),
            "licence": "ODC-By 1.0",
            "folder": str(folder.absolute()),
            "files": {name: entry for of_set in files for name, entry in of_set.items()},
            "records": len(records.ids),
            "records_sha256": records.sha256(),
            "left_out": {"without an observation": empty},
            "averaged": f"{averaged:,} of {len(records.values):,} values shared a time and a parameter with another",
            "split": f"random, random_state {random_state}: {num_test:,} for test, then validation",
        },
    )


def quantise(records: Records, quantisation: int, static: bool) -> tuple[SeriesSplit, int, int]:
    """Make series from the records, with times rounded to multiples of ``quantisation`` minutes, in units of 48 hours.

    Values of one parameter at the same rounded time are averaged. Returns the series; the number of values before
    averaging less that after it; and the number of records that were dropped because they hold descriptors only.
    """
    num, dim, stride = len(records.ids), len(PARAMETERS), SPAN_MINUTES + 1
    first = 0 if static else len(STATIC)
    record_index = np.repeat(np.arange(num), records.lengths)
    minutes = np.minimum(np.rint(records.minutes / quantisation) * quantisation, SPAN_MINUTES).astype(np.int64)
    has_measurement = np.bincount(record_index, records.parameters >= len(DESCRIPTORS), minlength=num) > 0
    kept = has_measurement[record_index] & (records.parameters >= first)
    keys, points = np.unique(record_index[kept] * stride + minutes[kept], return_inverse=True)
    cells, cell_index = np.unique(points * dim + records.parameters[kept], return_inverse=True)
    values, mask = np.zeros((len(keys), dim), dtype=np.float32), np.zeros((len(keys), dim), dtype=bool)
    values.flat[cells] = np.bincount(cell_index, records.values[kept]) / np.bincount(cell_index)
    mask.flat[cells] = True
    pool = series_from_arrays(
        np.bincount(keys // stride, minlength=num)[has_measurement],
        keys % stride / SPAN_MINUTES,
        values[:, first:],
        mask=mask[:, first:],
        ids=records.ids[has_measurement],
        labels=records.deaths[has_measurement],
    )
    return pool, int(kept.sum()) - len(cells), int(num - has_measurement.sum())

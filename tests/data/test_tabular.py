"""The tabular sets: published preparation, on small files in the published layout, and errors for missing files."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch

from odebench.data import tabular
from odebench.errors import UsageError

NUM = 1000


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.RandomState(seed).randn(*shape)


def save(root, name, table) -> None:
    path = root / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, table)
    else:
        table.to_csv(path, index=False)


def error_line(read, root) -> str:
    with pytest.raises(UsageError) as caught:
        read(root=str(root))
    line = str(caught.value)
    assert "\n" not in line
    return line


def joined(*splits) -> np.ndarray:
    return torch.cat(splits).double().numpy()


def test_power_is_shuffled_and_split_by_the_published_seed_and_normalised_without_test(tmp_path):
    table = normal(NUM, 8)
    table[:, 7] = np.arange(NUM)  # the time, the only column without noise
    save(tmp_path, "power/data.npy", table)
    data = tabular.power(root=str(tmp_path))
    assert [len(split) for split in data.splits().values()] == [810, 90, 100]
    order = np.arange(NUM)
    np.random.RandomState(42).shuffle(order)
    seen = order[:900]
    expected = (order - seen.mean()) / seen.std()
    np.testing.assert_allclose(joined(*data.splits().values())[:, 5], expected, atol=1e-6)
    np.testing.assert_allclose(joined(data.train, data.validation).mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(joined(data.train, data.validation).std(0), 1, atol=1e-6)


def test_a_table_that_cannot_be_normalised_is_named(tmp_path):
    path = tmp_path / "miniboone" / "data.npy"
    table = normal(NUM, 43)
    table[:, 2] = 1.5
    save(tmp_path, "miniboone/data.npy", table)
    line = f"{path}: column 3 of those that are used is constant or not finite"
    assert error_line(tabular.miniboone, tmp_path) == line
    save(tmp_path, "miniboone/data.npy", table[:5])
    assert error_line(tabular.miniboone, tmp_path).startswith(f"{path} has 5 rows, too few for training")


def test_power_drops_two_columns_and_adds_noise_of_the_size_of_the_last_digit(tmp_path):
    sizes = np.array([0.001, 0, 0.01, 0, 1, 1, 1, 0.0])
    high = normal(NUM, 8) > 0
    save(tmp_path, "power/data.npy", high * np.where(sizes > 0, 10 * sizes, 1))
    x = joined(*tabular.power(root=str(tmp_path)).splits().values())
    order = np.arange(NUM)
    np.random.RandomState(42).shuffle(order)
    for column, kept in enumerate([0, 2, 4, 5, 6, 7]):
        upper, lower = (x[high[order, kept] == level, column] for level in (True, False))
        # Two levels, ten times the width of the noise apart: each level is a tenth as wide as their distance.
        width = 0.1 if sizes[kept] else 0
        assert np.ptp(lower) / (upper.min() - lower.min()) == pytest.approx(width, abs=0.002)
        assert np.ptp(upper) / (upper.min() - lower.min()) == pytest.approx(width, abs=0.002)


def gas_table() -> pd.DataFrame:
    """Columns A to E: B is nearly A, D nearly C; A and E are correlated below the threshold."""
    x = normal(NUM, 8)
    columns = {"Time": x[:, 0], "Meth": x[:, 1], "Eth": x[:, 2], "A": 3 + x[:, 3], "C": x[:, 4]}
    columns |= {"B": 2 * x[:, 3] + 0.1 * x[:, 5], "E": x[:, 3] + 0.5 * x[:, 6], "D": x[:, 4] + 0.1 * x[:, 7]}
    return pd.DataFrame(columns)


def test_gas_keeps_the_last_of_columns_that_are_nearly_the_same(tmp_path):
    table = gas_table()
    save(tmp_path, "gas/ethylene_CO.csv", table)
    data = tabular.gas(root=str(tmp_path))
    kept = table[["B", "E", "D"]]
    expected = (kept - kept.mean()) / kept.std(ddof=1)
    np.testing.assert_allclose(joined(*data.splits().values()), expected, atol=1e-6)
    assert [len(split) for split in data.splits().values()] == [810, 90, 100]


def test_gas_reads_the_same_from_npy(tmp_path):
    save(tmp_path, "gas/ethylene_CO.csv", gas_table())
    from_csv = tabular.gas(root=str(tmp_path))
    (tmp_path / "gas/ethylene_CO.csv").unlink()
    save(tmp_path, "gas/ethylene_CO.npy", gas_table().to_records(index=False))
    torch.testing.assert_close(tabular.gas(root=str(tmp_path)).test, from_csv.test)


def test_a_pickle_is_never_opened_and_the_error_says_how_to_convert_it(tmp_path):
    (tmp_path / "gas").mkdir()
    pd.to_pickle(Trap(tmp_path / "sprung"), tmp_path / "gas/ethylene_CO.pickle")
    line = error_line(tabular.gas, tmp_path)
    assert "odebench reads none" in line
    assert "pandas.read_pickle('ethylene_CO.pickle').to_csv('ethylene_CO.csv', index=False)" in line
    assert not (tmp_path / "sprung").exists()


def test_the_error_names_a_damaged_copy_of_gas_once(tmp_path):
    (tmp_path / "gas").mkdir()
    (tmp_path / "gas/ethylene_CO.npy").write_bytes(b"")
    assert error_line(tabular.gas, tmp_path).count("cannot read") == 1


def test_gas_without_column_names_raises_an_error(tmp_path):
    save(tmp_path, "gas/ethylene_CO.npy", normal(NUM, 19))
    assert "lacks Eth, Meth, Time" in error_line(tabular.gas, tmp_path)


def hepmass_table(num, more=()) -> pd.DataFrame:
    x = normal(num, 4)
    table = pd.DataFrame({"# label": np.arange(num) % 2, "f0": x[:, 0], "f1": x[:, 1].clip(min=-1), "f2": x[:, 2]})
    return table.assign(**dict.fromkeys(more, 1000.0))


def test_hepmass_keeps_the_signal_and_features_whose_smallest_value_is_rare(tmp_path):
    save(tmp_path, "hepmass/1000_train.csv", hepmass_table(NUM))
    save(tmp_path, "hepmass/1000_test.csv", hepmass_table(400, more=["mass"]))
    data = tabular.hepmass(root=str(tmp_path))
    assert [len(split) for split in data.splits().values()] == [450, 50, 200]
    train = hepmass_table(NUM)[1::2][["f0", "f2"]]
    test = hepmass_table(400)[1::2][["f0", "f2"]]
    np.testing.assert_allclose(joined(data.train, data.validation), (train - train.mean()) / train.std(), atol=1e-6)
    np.testing.assert_allclose(joined(data.test), (test - train.mean()) / train.std(), atol=1e-6)
    assert set(data.provenance["files"]) == {"1000_train.csv", "1000_test.csv"}


def test_hepmass_with_too_few_test_columns_raises_an_error(tmp_path):
    save(tmp_path, "hepmass/1000_train.csv", hepmass_table(NUM, more=["mass"]))
    save(tmp_path, "hepmass/1000_test.csv", hepmass_table(400))
    assert "1000_test.csv has 3 columns, fewer than the 4 of 1000_train.csv" in error_line(tabular.hepmass, tmp_path)


def test_hepmass_without_a_signal_raises_an_error(tmp_path):
    for part in ("train", "test"):
        save(tmp_path, f"hepmass/1000_{part}.csv", hepmass_table(NUM).assign(**{"# label": 0}))
    assert "1000_train.csv has no row of class 1" in error_line(tabular.hepmass, tmp_path)


def test_miniboone_keeps_its_order_and_is_normalised_without_test(tmp_path):
    table = 5 + normal(NUM, 43)
    save(tmp_path, "miniboone/data.npy", table)
    data = tabular.miniboone(root=str(tmp_path))
    expected = (table - table[:900].mean(0)) / table[:900].std(0)
    np.testing.assert_allclose(joined(*data.splits().values()), expected, atol=1e-6)
    assert [len(split) for split in data.splits().values()] == [810, 90, 100]


def test_bsds300_is_not_changed(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "BSDS300").mkdir()
    parts = {"train": normal(30, 63), "validation": normal(10, 63, seed=1), "test": normal(20, 63, seed=2)}
    with h5py.File(tmp_path / "BSDS300/BSDS300.hdf5", "w") as file:
        for name, part in parts.items():
            file[name] = part
    for name, split in tabular.bsds300(root=str(tmp_path)).splits().items():
        np.testing.assert_allclose(split, parts[name], rtol=1e-6)
    (tmp_path / "BSDS300/BSDS300.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "cannot read" in error_line(tabular.bsds300, tmp_path)


def test_the_error_without_h5py_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "BSDS300").mkdir()
    (tmp_path / "BSDS300/BSDS300.hdf5").touch()
    assert (
        error_line(tabular.bsds300, tmp_path) == 'data=bsds300 needs h5py; from the checkout, pip install -e ".[hdf5]"'
    )


@pytest.mark.parametrize(
    ("read", "file"),
    [
        (tabular.power, "power/data.npy"),
        (tabular.hepmass, "hepmass/1000_train.csv"),
        (tabular.miniboone, "miniboone/data.npy"),
        (tabular.bsds300, "BSDS300/BSDS300.hdf5"),
    ],
)
def test_the_error_about_a_missing_file_says_where_to_get_it(tmp_path, read, file):
    line = error_line(read, tmp_path)
    for part in (f"{tmp_path / file} is absent", "zenodo.org/records/1161203", "data.root=DIR", "$ODEBENCH_DATA"):
        assert part in line


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"<html>not found</html>",
        b"PK\x03\x04 and no archive",
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f8',\n",
    ],
    ids=["empty", "cut", "a web page", "no archive", "an open brace"],
)
def test_the_error_names_a_damaged_array(tmp_path, content):
    (tmp_path / "miniboone").mkdir()
    (tmp_path / "miniboone/data.npy").write_bytes(content)
    assert f"cannot read {tmp_path / 'miniboone/data.npy'}: " in error_line(tabular.miniboone, tmp_path)


@pytest.mark.parametrize("content", ["", "# label,f0\n1,abc\n", '# label,f0\n1,"2\n'], ids=["empty", "words", "quote"])
def test_the_error_names_a_damaged_csv(tmp_path, content):
    (tmp_path / "hepmass").mkdir()
    for part in ("train", "test"):
        (tmp_path / f"hepmass/1000_{part}.csv").write_text(content)
    assert "cannot read" in error_line(tabular.hepmass, tmp_path)


def test_objects_in_an_array_are_not_loaded(tmp_path):
    (tmp_path / "power").mkdir()
    np.save(tmp_path / "power/data.npy", np.array([[Trap(tmp_path / "sprung")]], dtype=object))
    assert "allow_pickle" in error_line(tabular.power, tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "table", [normal(20, 42), normal(43), np.full((20, 43), "a")], ids=["columns", "flat", "words"]
)
def test_a_table_of_another_form_raises_an_error(tmp_path, table):
    save(tmp_path, "miniboone/data.npy", table)
    assert "must hold floating-point numbers in 43 columns" in error_line(tabular.miniboone, tmp_path)

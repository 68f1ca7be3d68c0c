"""POWER, GAS, HEPMASS, MINIBOONE and BSDS300, benchmark tables of density models.

The files are those of Papamakarios, Pavlakou, Murray: Masked autoregressive flow for density estimation,
NeurIPS 2017 (MAF), in their layout under the data root. They are prepared as in the authors' code, with the same
columns, noise, splits and units, so that log-likelihoods can be compared with published ones. The numbers of rows below
are those for training + validation + test.
"""

import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from odebench.data.density import DensityData
from odebench.data.root import data_root
from odebench.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame

Splits = tuple[np.ndarray, np.ndarray, np.ndarray]

ARCHIVE = "https://zenodo.org/records/1161203"
NOISE_SEED = 42
LARGEST_CORRELATION = 0.98
MOST_REPEATED = 5


def power(*, root: str | None) -> DensityData:
    """Electric power consumption of a household, 6 columns; 1,659,917 + 184,435 + 204,928 rows.

    The 2nd and the 4th of 8 columns are dropped and the rows shuffled; uniform noise of the size of the last digit is
    added to all columns but the time.
    """
    path = _find(root, "power/data.npy")
    table = _table(path, columns=8).astype(np.float64)
    random = np.random.RandomState(NOISE_SEED)
    random.shuffle(table)
    num = len(table)
    # The order of these draws is that of MAF's code, so the numbers are the same.
    voltage, gap, meters = 0.01 * random.rand(num, 1), 0.001 * random.rand(num, 1), random.rand(num, 3)
    table = np.delete(table, [1, 3], axis=1) + np.hstack([gap, voltage, meters, np.zeros((num, 1))])
    return _data([path], _normalised(path, _split(table)), "UCI: individual household electric power consumption")


def gas(*, root: str | None) -> DensityData:
    """Measurements of gas sensors, 8 columns; 852,174 + 94,685 + 105,206 rows, in the order of the file.

    Time and both concentrations are dropped, then repeatedly the first column whose correlation with another is above
    0.98. MAF's file is a pickle, which could run any code when it is loaded. This function reads a copy of it that
    includes the names of the columns: ethylene_CO.csv, or ethylene_CO.npy (numpy.save of to_records(index=False)).
    """
    folder = data_root(root) / "gas"
    found = [path for path in (folder / "ethylene_CO.npy", folder / "ethylene_CO.csv") if path.is_file()]
    if not found:
        raise UsageError(
            f"{folder} lacks ethylene_CO.npy and ethylene_CO.csv; a pickle can run any code, so odebench reads none: "
            f"take gas/ethylene_CO.pickle of data.tar.gz from {ARCHIVE}, and if you trust it run python -c "
            "\"import pandas; pandas.read_pickle('ethylene_CO.pickle').to_csv('ethylene_CO.csv', index=False)\""
        )
    path = found[0]
    table = _frame(path)
    if missing := {"Time", "Meth", "Eth"} - set(table.columns):
        raise UsageError(f"{path} lacks {', '.join(sorted(missing))}; save the pickle's columns with their names")
    table = table.drop(columns=["Time", "Meth", "Eth"])
    while (correlated := (table.corr() > LARGEST_CORRELATION).sum() > 1).any():
        table = table.drop(columns=correlated.idxmax())
    table = (table - table.mean()) / table.std()
    return _data([path], _split(table.to_numpy()), "UCI: gas sensor array under dynamic gas mixtures")


def hepmass(*, root: str | None) -> DensityData:
    """Particle collisions that produced a new particle, 21 columns; 315,123 + 35,013 + 174,987 rows.

    Columns whose smallest value occurs more than 5 times are dropped. Both files, for training and for test, are
    normalised by the mean and standard deviation of the training file.
    """
    paths = [_find(root, f"hepmass/1000_{part}.csv") for part in ("train", "test")]
    train, test = map(_signal, paths)
    if test.shape[1] < train.shape[1]:
        raise UsageError(f"{paths[1]} has {test.shape[1]} columns, fewer than the {train.shape[1]} of {paths[0].name}")
    test = test[:, : train.shape[1]]  # the published test file has one more column, which is no feature
    mean, std = train.mean(0), train.std(0, ddof=1)
    kept = (train == train.min(0)).sum(0) <= MOST_REPEATED
    train, test = ((table[:, kept] - mean[kept]) / std[kept] for table in (train, test))
    train, validation = np.split(train, [len(train) - len(train) // 10])
    return _data(paths, (train, validation, test), "UCI: HEPMASS, mass 1000")


def miniboone(*, root: str | None) -> DensityData:
    """Signals of neutrinos, 43 columns; 29,556 + 3,284 + 3,648 rows, in the order of the file."""
    path = _find(root, "miniboone/data.npy")
    return _data([path], _normalised(path, _split(_table(path, columns=43))), "UCI: MiniBooNE particle identification")


def bsds300(*, root: str | None) -> DensityData:
    """8 x 8 patches of natural images less their mean and last pixel, 63 columns; 1,000,000 + 50,000 + 250,000 rows.

    The patches in the file are already prepared and split. Needs h5py, an optional dependency.
    """
    path = _find(root, "BSDS300/BSDS300.hdf5")
    try:
        import h5py
    except ImportError as error:
        raise UsageError('data=bsds300 needs h5py; from the checkout, pip install -e ".[hdf5]"') from error
    try:
        with h5py.File(path) as file:
            splits = file["train"][:], file["validation"][:], file["test"][:]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged_error(path, error) from error
    return _data([path], splits, "Berkeley segmentation data set")


def _find(root: str | None, name: str) -> Path:
    path = data_root(root) / name
    if not path.is_file():
        raise UsageError(
            f"{path} is absent; unpack data.tar.gz of {ARCHIVE} and set data.root=DIR or $ODEBENCH_DATA to its "
            "folder data"
        )
    return path


def _array(path: Path) -> np.ndarray:
    """Read the array in a .npy file. Raises OSError, or ValueError if it is damaged or holds objects (pickles)."""
    with path.open("rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except tokenize.TokenError as error:  # raised for a header that lacks a closing bracket
            raise ValueError(f"its header is damaged: {error}") from error


def _table(path: Path, columns: int) -> np.ndarray:
    """Read the numbers in a .npy file. Raises UsageError unless it has this number of columns."""
    try:
        table = _array(path)
    except (OSError, ValueError) as error:
        raise _damaged_error(path, error) from error
    if table.dtype.kind != "f" or list(table.shape[1:]) != [columns]:
        form = f"{table.dtype} {list(table.shape)}"
        raise UsageError(f"{path} must hold floating-point numbers in {columns} columns, not {form}")
    return table


def _frame(path: Path) -> "DataFrame":
    """Read the numbers in a .csv or .npy file, with the names of the columns."""
    import pandas  # takes half a second

    try:
        if path.suffix == ".npy":
            return pandas.DataFrame(_array(path)).astype(np.float64)
        # Without index_col, rows with a comma at their end would lose their first number to the index.
        return pandas.read_csv(path, index_col=False, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise _damaged_error(path, error) from error


def _signal(path: Path) -> np.ndarray:
    """Read the features [N, D] of the rows of class 1; the class is the first column."""
    values = _frame(path).to_numpy()
    signal = values[values[:, 0] == 1, 1:]
    if not len(signal):
        raise UsageError(f"{path} has no row of class 1, the signal; copy or unpack it again")
    return signal


def _split(table: np.ndarray) -> Splits:
    """Split the rows: the last tenth is for test, the last tenth of the rest for validation."""
    num_test = len(table) // 10
    num_validation = (len(table) - num_test) // 10
    train, validation, test = np.split(table, [len(table) - num_test - num_validation, len(table) - num_test])
    return train, validation, test


def _normalised(path: Path, splits: Splits) -> Splits:
    """Normalise by the mean and standard deviation of training and validation together, as MAF does.

    Raises UsageError if the table in the file has too few rows, or a column that is constant or not finite.
    """
    if not all(map(len, splits)):
        raise UsageError(f"{path} has {sum(map(len, splits))} rows, too few for training, validation and test")
    fitted = np.concatenate(splits[:2])
    mean, std = fitted.mean(0), fitted.std(0)
    if len(wrong := np.flatnonzero(~((std > 0) & np.isfinite(std)))):
        raise UsageError(f"{path}: column {wrong[0] + 1} of those that are used is constant or not finite")
    train, validation, test = ((split - mean) / std for split in splits)
    return train, validation, test


def _data(paths: list[Path], splits: Splits, source: str) -> DensityData:
    train, validation, test = (torch.from_numpy(np.ascontiguousarray(split, dtype=np.float32)) for split in splits)
    return DensityData(
        train,
        validation,
        test,
        provenance={
            "source": f"{source}, as prepared by Papamakarios, Pavlakou, Murray (2017)",
            "folder": str(paths[0].parent.absolute()),
            "files": {path.name: {"bytes": path.stat().st_size} for path in paths},
            "split": "as published",
        },
    )


def _damaged_error(path: Path, error: Exception) -> UsageError:
    return UsageError(f"cannot read {path}: {' '.join(str(error).split())}; copy or unpack it again")

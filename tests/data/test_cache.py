"""Arrays cached on disk: written atomically, and loaded without executing code."""

import os
import pickle

import numpy as np
import pytest

from odebench.data.cache import load_arrays, save_arrays


def test_arrays_come_back_and_nothing_else_stays_in_the_folder(tmp_path):
    path = tmp_path / "new" / "a.npz"
    save_arrays(path, {"x": np.arange(3), "word": np.array("stamp")})
    kept = load_arrays(path)
    assert kept["x"].tolist() == [0, 1, 2]
    assert str(kept["word"]) == "stamp"
    assert os.listdir(path.parent) == ["a.npz"]


@pytest.mark.parametrize("damage", ["cut", "empty", "pickle", "object", "method"])
def test_a_file_that_is_damaged_or_holds_objects_counts_as_absent(tmp_path, damage):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.arange(1000)})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "method":  # an unknown compression method
        content = bytearray(path.read_bytes())
        content[content.index(b"PK\x01\x02") + 10] = 0x63
        path.write_bytes(content)
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"x": 1}))
    else:
        np.savez(path, x=np.array([{}], dtype=object))
    assert load_arrays(path) is None
    assert load_arrays(tmp_path / "absent.npz") is None


def test_a_folder_that_is_not_writable_is_no_error(tmp_path):
    path = tmp_path / "a.npz"
    path.mkdir()
    save_arrays(path, {"x": np.arange(3)})
    assert os.listdir(tmp_path) == ["a.npz"]
    (tmp_path / "file").write_bytes(b"")
    save_arrays(tmp_path / "file" / "a.npz", {"x": np.arange(3)})

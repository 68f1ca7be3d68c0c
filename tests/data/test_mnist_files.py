"""MNIST's files: found, checked, downloaded. On a tiny data set in torchvision's layout, written here."""

import gc
import gzip
import hashlib
import http.server
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from odebench.data import mnist_files
from odebench.data.mnist_files import IdxDataSet, IdxFile, load_idx_data_set
from odebench.data.root import data_root
from odebench.errors import UsageError

NUM_TRAIN, NUM_TEST = 60, 20


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def tiny_files() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    contents = {}
    for part, num in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        images = random.integers(256, size=(num, 6, 5), dtype=np.uint8)
        contents[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx_bytes((np.arange(num) % 10).astype(np.uint8))
    return contents


FILES = tiny_files()
TINY = IdxDataSet(
    "MNIST",
    tuple(IdxFile(name, hashlib.sha256(content).hexdigest()) for name, content in FILES.items()),
    source="a test",
    licence="none",
)


def load(root, *, validation=10, train_limit=None, augment=True, download=False):
    options = {"validation": validation, "train_limit": train_limit, "augment": augment, "download": download}
    return load_idx_data_set(TINY, root=None if root is None else str(root), **options)


@pytest.fixture
def raw(tmp_path) -> Path:
    """The folder of the raw files under the data root tmp_path, with all four files unpacked."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def error_line(root, **options) -> str:
    """The error message of loading the data set."""
    with pytest.raises(UsageError) as caught:
        load(root, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_the_splits_have_the_contents_of_the_files(tmp_path, raw):
    data = load(tmp_path)
    assert data.train.images.shape == (50, 1, 6, 5)
    assert data.validation.labels.bincount().tolist() == [1] * 10
    assert idx_bytes(data.test.images.squeeze(1).numpy()) == FILES["t10k-images-idx3-ubyte"]
    assert data.test.labels.tolist() == [i % 10 for i in range(NUM_TEST)]
    together = torch.cat([data.train.images, data.validation.images]).flatten(1).tolist()
    published = np.frombuffer(FILES["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(NUM_TRAIN, -1)
    assert sorted(together) == sorted(published.tolist())
    assert data.num_classes == 10
    assert data.provenance["files"]["train-labels-idx1-ubyte"]["bytes"] == NUM_TRAIN + 8


def test_augment_sets_a_crop_padding_of_4(tmp_path, raw):
    assert load(tmp_path, augment=True).crop_padding == 4
    assert load(tmp_path, augment=False).crop_padding == 0


def test_packed_files_suffice_and_nothing_is_written(tmp_path, raw):
    unpacked = load(tmp_path)
    for name, content in FILES.items():
        (raw / name).unlink()
        (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    before = sorted(os.listdir(raw))
    packed = load(tmp_path)
    assert packed.train.sha256() == unpacked.train.sha256()
    assert packed.test.sha256() == unpacked.test.sha256()
    assert sorted(os.listdir(raw)) == before


def test_the_error_about_missing_files_names_them_and_the_remedies(tmp_path, raw):
    (raw / "t10k-labels-idx1-ubyte").unlink()
    line = error_line(tmp_path)
    assert f"{raw} lacks t10k-labels-idx1-ubyte;" in line
    for way_out in ("data.root=DIR", "$ODEBENCH_DATA", "MNIST/raw", "data.download=true", "data=mnist5k"):
        assert way_out in line


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
def test_the_error_names_a_truncated_file(tmp_path, raw, name, packed):
    content = (raw / name).read_bytes()
    (raw / name).unlink()
    path = raw / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content)[:-20] if packed else content[:-1])
    assert f"{path} is damaged: " in error_line(tmp_path)


def test_a_truncated_file_is_detected_by_its_size(tmp_path, raw):
    path = raw / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-3])
    assert f"{NUM_TEST + 5} bytes, but {NUM_TEST + 8} by its header" in error_line(tmp_path)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "sha256"),
        (lambda content: b"\x00\x00\x0d" + content[3:], "IDX"),
        (lambda content: b"", "IDX"),
        (lambda content: content[:6], "IDX"),
        (lambda content: b"<html>not found</html>", "IDX"),
    ],
    ids=["one bit", "another type", "empty", "half a header", "a web page"],
)
def test_the_error_names_a_file_with_other_content(tmp_path, raw, damage, why):
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    line = error_line(tmp_path)
    assert f"{path} is damaged: " in line
    assert why in line


def test_a_missing_root_raises_an_error_and_is_not_created(tmp_path, monkeypatch):
    absent = tmp_path / "slip"
    assert f"data.root={absent} is not a folder" in error_line(absent, download=True)
    monkeypatch.setenv("ODEBENCH_DATA", str(absent))
    assert f"$ODEBENCH_DATA={absent} is not a folder" in error_line(None, download=True)
    assert not absent.exists()


@pytest.fixture
def mirror(tmp_path_factory, monkeypatch):
    """torchvision's MNIST with one mirror on this machine, that serves the files of the folder returned."""
    torchvision = pytest.importorskip("torchvision")
    served = tmp_path_factory.mktemp("mirror")
    resources = []
    for name, content in FILES.items():
        (served / f"{name}.gz").write_bytes(gzip.compress(content))
        resources.append((f"{name}.gz", hashlib.md5((served / f"{name}.gz").read_bytes()).hexdigest()))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        yield served
        server.shutdown()
        thread.join()


def test_a_download_fetches_the_files_without_output(tmp_path, mirror, capfd):
    data = load(tmp_path, download=True)
    assert (len(data.train), len(data.test)) == (50, 20)
    assert sorted(os.listdir(tmp_path / "MNIST" / "raw")) == sorted(FILES)
    assert capfd.readouterr() == ("", "")


def test_a_download_does_not_change_existing_files(tmp_path, raw, mirror):
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "train-labels-idx1-ubyte").write_bytes(b"mine")
    assert f"{raw / 'train-labels-idx1-ubyte'} is damaged" in error_line(tmp_path, download=True)
    assert (raw / "t10k-labels-idx1-ubyte").read_bytes() == FILES["t10k-labels-idx1-ubyte"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # torchvision leaves a refused answer's socket open
@pytest.mark.parametrize("failure", ["cut", "absent"])
def test_a_failed_download_raises_one_line_and_leaves_nothing_behind(tmp_path, mirror, capfd, failure):
    last = mirror / "t10k-labels-idx1-ubyte.gz"
    if failure == "cut":
        last.write_bytes(last.read_bytes()[:-10])
    else:
        last.unlink()
    line = error_line(tmp_path, download=True)
    assert "and the download failed (" in line
    assert "data=mnist5k" in line
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")
    gc.collect()


def test_no_network_raises_one_line_and_leaves_no_cache_folder(tmp_path, mirror, monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ODEBENCH_DATA", raising=False)
    line = error_line(None, download=True)
    assert f"{tmp_path}/.cache/odebench/MNIST/raw lacks train-images-idx3-ubyte" in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("archive", [mnist_files.MNIST, mnist_files.FASHION_MNIST], ids=lambda archive: archive.name)
def test_the_table_lists_the_files_that_torchvision_downloads(archive):
    torchvision = pytest.importorskip("torchvision")
    published = [name for name, _ in getattr(torchvision.datasets, archive.name).resources]
    assert [f"{file.name}.gz" for file in archive.files] == published
    assert len({file.sha256 for file in archive.files}) == 4


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_published_files_are_accepted_and_split(name):
    if not os.environ.get("ODEBENCH_DATA"):
        pytest.skip("$ODEBENCH_DATA is not set: no real data to read")
    archive = {"mnist": mnist_files.MNIST, "fashion_mnist": mnist_files.FASHION_MNIST}[name]
    if mnist_files.missing_files(archive, data_root(None) / archive.name / "raw"):
        pytest.skip(f"$ODEBENCH_DATA holds no {archive.name}")
    data = getattr(mnist_files, name)(root=None, validation=5000, train_limit=None, augment=True, download=False)
    assert [len(split) for split in data.splits().values()] == [55000, 5000, 10000]
    assert data.train.images.shape == (55000, 1, 28, 28)
    share = (data.train.labels.bincount() + data.validation.labels.bincount()) / 60000
    assert (data.validation.labels.bincount() - 5000 * share).abs().max() <= 1

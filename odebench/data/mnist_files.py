"""MNIST and Fashion-MNIST as published, from files in torchvision's layout."""

import contextlib
import gzip
import hashlib
import http.client
import io
import logging
import math
import socket
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from odebench.data.images import ImageData, ImageSplit
from odebench.data.root import data_root
from odebench.data.splits import SPLIT_SEED, hold_out
from odebench.errors import UsageError

CROP_PADDING = 4
DOWNLOAD_TIMEOUT_S = 15.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdxFile:
    """A file in MNIST's IDX format, unpacked or as NAME.gz; sha256 is the hash of the unpacked bytes.

    Format (http://yann.lecun.com/exdb/mnist/): two zero bytes, a byte for the type (8: unsigned bytes), a byte for the
    number of dimensions, each dimension as a big-endian 32-bit integer, then the numbers.
    """

    name: str
    sha256: str

    def find(self, folder: Path) -> Path | None:
        """The path of the unpacked file if it exists, else of the packed file, else None."""
        candidates = (folder / self.name, folder / f"{self.name}.gz")
        return next((path for path in candidates if path.is_file()), None)

    def read(self, path: Path, num_dims: int) -> torch.Tensor:
        """The numbers of the file, a uint8 tensor of num_dims dimensions.

        Raises UsageError, which names the path, if the file is unreadable, truncated, or not the published one.
        """
        content = _read_bytes(path)
        shape = tuple(int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, num_dims + 1))
        offset = 4 * (num_dims + 1)
        if content[:4] != bytes((0, 0, 8, num_dims)) or len(content) < offset:
            raise _damaged_error(path, f"it does not begin like an IDX file of {num_dims} dimensions")
        expected = offset + math.prod(shape)
        if len(content) != expected:
            raise _damaged_error(path, f"it has {len(content):,} bytes, but {expected:,} by its header")
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise _damaged_error(path, "its content is not the published one (sha256 differs)")
        return torch.frombuffer(content, dtype=torch.uint8, offset=offset).view(shape)


@dataclass(frozen=True)
class IdxDataSet:
    """Files under ROOT/NAME/raw, where NAME is the name of the data set's class in torchvision.datasets.

    files: training images, training labels, test images and test labels, in this order.
    """

    name: str
    files: tuple[IdxFile, ...]
    source: str
    licence: str
    num_classes: int = 10


def _published_files(*sha256: str) -> tuple[IdxFile, ...]:
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    return tuple(map(IdxFile, names, sha256))


MNIST = IdxDataSet(
    name="MNIST",
    files=_published_files(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    source="LeCun, Cortes, Burges: The MNIST database of handwritten digits (1998)",
    licence="CC BY-SA 3.0",
)

FASHION_MNIST = IdxDataSet(
    name="FashionMNIST",
    files=_published_files(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    source="Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747 (2017)",
    licence="MIT",
)


def load_idx_data_set(
    data_set: IdxDataSet, *, root: str | None, validation: int, train_limit: int | None, augment: bool, download: bool
) -> ImageData:
    """Read a data set from the data root; download missing files to it first if ``download``.

    validation, train_limit: see `hold_out`. Raises UsageError if files are missing (and cannot be downloaded) or
    damaged.
    """
    folder = data_root(root) / data_set.name / "raw"
    if missing_files(data_set, folder):
        if not download:
            raise _missing_error(data_set, folder)
        fetch(data_set, folder)
    paths = {file.name: path for file in data_set.files if (path := file.find(folder))}
    pool, test = (_read_split(files, paths) for files in (data_set.files[:2], data_set.files[2:]))
    train, held_out = hold_out(pool, validation, train_limit)
    return ImageData(
        train,
        held_out,
        test,
        num_classes=data_set.num_classes,
        crop_padding=CROP_PADDING if augment else 0,
        provenance={
            "source": data_set.source,
            "licence": data_set.licence,
            "folder": str(folder.absolute()),
            "files": {
                paths[file.name].name: {"bytes": paths[file.name].stat().st_size, "unpacked_sha256": file.sha256}
                for file in data_set.files
            },
            "split": f"test: as published; validation: stratified, of the training images, seed {SPLIT_SEED}",
        },
    )


mnist = partial(load_idx_data_set, MNIST)
fashion_mnist = partial(load_idx_data_set, FASHION_MNIST)


def missing_files(data_set: IdxDataSet, folder: Path) -> list[str]:
    """Names of the files that the folder has neither packed nor unpacked."""
    return [file.name for file in data_set.files if file.find(folder) is None]


def fetch(data_set: IdxDataSet, folder: Path) -> None:
    """Download the missing files with torchvision; each is moved into the folder when it is complete.

    If that fails, raises UsageError and leaves nothing behind, not even a new folder.
    """
    import torchvision.datasets  # takes seconds, and only a download needs it

    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s to %s", data_set.name, folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary, _silenced():
            getattr(torchvision.datasets, data_set.name)(temporary, download=True)
            for name in missing_files(data_set, folder):
                Path(temporary, data_set.name, "raw", name).replace(folder / name)
    # ValueError, AssertionError: the mirror's response is not an IDX file.
    except (OSError, EOFError, RuntimeError, ValueError, AssertionError, http.client.HTTPException) as error:
        for path in new_folders:
            with contextlib.suppress(OSError):
                path.rmdir()
        reason = " ".join(str(error).rpartition("got:\n")[2].split())
        raise _missing_error(data_set, folder, f" and the download failed ({reason})") from error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Silence torchvision's output, and limit the time that it waits for a mirror."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _read_split(files: tuple[IdxFile, ...], paths: dict[str, Path]) -> ImageSplit:
    images, labels = files
    pixels = images.read(paths[images.name], num_dims=3)
    return ImageSplit(pixels.unsqueeze(1), labels.read(paths[labels.name], num_dims=1).long())


def _missing_error(data_set: IdxDataSet, folder: Path, failure: str | None = None) -> UsageError:
    names = ", ".join(missing_files(data_set, folder))
    allow = ", allow data.download=true" if failure is None else ""
    return UsageError(
        f"{folder} lacks {names}{failure or ''}; set data.root=DIR or $ODEBENCH_DATA to a folder with "
        f"torchvision's layout ({data_set.name}/raw/...){allow}, or use data=mnist5k, which needs no files"
    )


def _read_bytes(path: Path) -> bytearray:
    try:
        content = path.read_bytes()
        return bytearray(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged_error(path, f"cannot unpack it: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _damaged_error(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is damaged: {why}; remove it and copy or download it again")

"""MNIST and Fashion-MNIST as published, from files in torchvision's layout."""

import contextlib
import http.client
import io
import logging
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from odebench.data.idx import IdxFile
from odebench.data.images import ImageData, ImageSplit
from odebench.data.root import data_root
from odebench.data.splits import SPLIT_SEED, hold_out
from odebench.errors import UsageError

CROP_PADDING = 4
DOWNLOAD_TIMEOUT_S = 15.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """Four IDX files under ROOT/NAME/raw, where NAME is the class of torchvision.datasets for them."""

    name: str
    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile
    source: str
    licence: str
    num_classes: int = 10

    @property
    def files(self) -> tuple[IdxFile, ...]:
        return self.train_images, self.train_labels, self.test_images, self.test_labels


MNIST = Archive(
    name="MNIST",
    train_images=IdxFile("train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    train_labels=IdxFile("train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    test_images=IdxFile("t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    test_labels=IdxFile("t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    source="LeCun, Cortes, Burges: The MNIST database of handwritten digits (1998)",
    licence="CC BY-SA 3.0",
)

FASHION_MNIST = Archive(
    name="FashionMNIST",
    train_images=IdxFile("train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    train_labels=IdxFile("train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    test_images=IdxFile("t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    test_labels=IdxFile("t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    source="Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747 (2017)",
    licence="MIT",
)


def mnist(*, root: str | None, validation: int, train_limit: int | None, augment: bool, download: bool) -> ImageData:
    """MNIST: 60,000 training images, so many of them held out for validation, and 10,000 test images.

    Raises UsageError where files are missing (and cannot be downloaded) or damaged.
    """
    return read_archive(MNIST, root, validation, train_limit, augment, download)


def fashion_mnist(
    *, root: str | None, validation: int, train_limit: int | None, augment: bool, download: bool
) -> ImageData:
    """Fashion-MNIST: as MNIST in every respect but the images."""
    return read_archive(FASHION_MNIST, root, validation, train_limit, augment, download)


def read_archive(
    archive: Archive,
    root: str | None,
    validation: int,
    train_limit: int | None,
    augment: bool,
    download: bool,
) -> ImageData:
    """An archive's images, found under the data root or downloaded there, checked and split."""
    folder = data_root(root) / archive.name / "raw"
    if missing_files(archive, folder):
        if not download:
            raise _missing(archive, folder)
        fetch(archive, folder)
    paths = {file.name: path for file in archive.files if (path := file.find(folder))}
    pool = _read_split(archive.train_images, archive.train_labels, paths)
    test = _read_split(archive.test_images, archive.test_labels, paths)
    train, held_out = hold_out(pool, validation, train_limit)
    return ImageData(
        train,
        held_out,
        test,
        num_classes=archive.num_classes,
        crop_padding=CROP_PADDING if augment else 0,
        provenance={
            "source": archive.source,
            "licence": archive.licence,
            "folder": str(folder.absolute()),
            "files": {
                paths[file.name].name: {
                    "bytes": paths[file.name].stat().st_size,
                    "unpacked_sha256": file.sha256,
                }
                for file in archive.files
            },
            "split": f"test: as published; validation: stratified, of the training images, seed {SPLIT_SEED}",
        },
    )


def missing_files(archive: Archive, folder: Path) -> list[str]:
    """Names of the archive's files that the folder has neither packed nor unpacked."""
    return [file.name for file in archive.files if file.find(folder) is None]


def fetch(archive: Archive, folder: Path) -> None:
    """Have torchvision download the archive; what the folder lacked appears in it whole or not at all.

    Raises UsageError where that fails; nothing is left behind then, not even a new folder.
    """
    import torchvision.datasets  # takes seconds, and only a download needs it

    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s to %s", archive.name, folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary, _quiet():
            getattr(torchvision.datasets, archive.name)(temporary, download=True)
            for name in missing_files(archive, folder):
                Path(temporary, archive.name, "raw", name).replace(folder / name)
    # ValueError, AssertionError: a mirror's answer that is no IDX file.
    except (OSError, EOFError, RuntimeError, ValueError, AssertionError, http.client.HTTPException) as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        reason = " ".join(str(error).rpartition("got:\n")[2].split())
        raise _missing(archive, folder, f" and the download failed ({reason})") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torchvision prints, and waits for ever on a mirror that does not answer; here it does neither."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _read_split(images: IdxFile, labels: IdxFile, paths: dict[str, Path]) -> ImageSplit:
    pictures = images.read(paths[images.name], num_dims=3)
    return ImageSplit(pictures.unsqueeze(1), labels.read(paths[labels.name], num_dims=1).long())


def _missing(archive: Archive, folder: Path, failure: str | None = None) -> UsageError:
    names = ", ".join(missing_files(archive, folder))
    allow = ", allow data.download=true" if failure is None else ""
    return UsageError(
        f"{folder} lacks {names}{failure or ''}; set data.root=DIR or $ODEBENCH_DATA to a folder with "
        f"torchvision's layout ({archive.name}/raw/...){allow}, or use data=mnist5k, which needs no files"
    )

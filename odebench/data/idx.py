"""Read files in MNIST's IDX format, and check them against known hashes.

Format (http://yann.lecun.com/exdb/mnist/): two zero bytes, a byte for the type (8: unsigned bytes), a byte
for the number of dimensions, each dimension as a big-endian 32-bit integer, then the numbers.
"""

import gzip
import hashlib
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

from odebench.errors import UsageError


@dataclass(frozen=True)
class IdxFile:
    """A file in a folder, unpacked or as NAME.gz; sha256 is that of the unpacked bytes."""

    name: str
    sha256: str

    def find(self, folder: Path) -> Path | None:
        """The path of the unpacked file if it exists, else of the packed file, else None."""
        candidates = (folder / self.name, folder / f"{self.name}.gz")
        return next((path for path in candidates if os.path.isfile(path)), None)

    def read(self, path: Path, num_dims: int) -> torch.Tensor:
        """The numbers of the file, a uint8 tensor of num_dims dimensions.

        Raises UsageError, with the path, where the file is unreadable, truncated, or not the published one.
        """
        content = _read_bytes(path)
        shape = tuple(int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, num_dims + 1))
        offset = 4 * (num_dims + 1)
        if content[:4] != bytes((0, 0, 8, num_dims)) or len(content) < offset:
            raise _damaged_error(path, f"it does not begin like an IDX file of {num_dims} dimensions")
        expected = offset + math.prod(shape)
        if len(content) != expected:
            raise _damaged_error(path, f"{len(content):,} bytes, {expected:,} by its header")
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise _damaged_error(path, "its content is not the published one (sha256 differs)")
        return torch.frombuffer(content, dtype=torch.uint8, offset=offset).view(shape)


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

"""Files that are whole or absent, whatever happens to the process. Free of torch."""

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from odebench.errors import UsageError

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"  # UTC

log = logging.getLogger(__name__)

_TEMPORARY = ".*.tmp"


def time_now() -> str:
    """The time, UTC, as records tell it."""
    return datetime.now(UTC).strftime(TIME_FORMAT)


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write `content` to a temporary file in the same folder, fsync, then rename it to `path`.

    previous: the name that the file which stood there is kept under, in place of an earlier one.
    """
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, by a link, so that it is not without its first one for a moment."""
    temporary = _temporary(name)
    try:
        os.link(path, temporary)
        os.replace(temporary, name)
    except OSError:  # a file system without links
        os.replace(path, name)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a folder and those in it."""
    for pattern in (_TEMPORARY, f"*/{_TEMPORARY}"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `write_atomically` writes under."""
    return Path(name).match(_TEMPORARY)


def make_folder(path: Path, named: str) -> None:
    """Make a folder, and those above it. named: how the user named it, such as ``run_dir=PATH``.

    UsageError where it cannot be made there, as below a file; OSError where the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{named} cannot be made ({os.strerror(error.errno or 0)}); name another folder") from error


def refuse_folder(path: Path, named: str) -> None:
    """UsageError where a folder surely cannot be made at a path: before the work whose result it is to hold. named: as
    of `make_folder`."""
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EACCES if there.is_dir() else errno.ENOTDIR)
        raise UsageError(f"{named} cannot be made ({reason}); name another folder")


def refuse_file(path: Path, named: str) -> None:
    """UsageError where a new file cannot be made at a path: before the work whose result it is to hold. named: as of
    `make_folder`."""
    if path.exists():
        raise UsageError(f"{named} exists; name a new file")
    if not path.parent.is_dir():
        raise UsageError(f"{named}: there is no folder {path.parent}; make it, or name another file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{named}: {path.parent} cannot be written to; name another file")


def content_of(path: Path) -> bytes | None:
    """What a file holds, None where there is none. UsageError where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file, made where there is none. The system frees it when the process ends, however it ends.

    UsageError where another process holds it. A file system without locks gives a warning.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path.parent} is in use by another process") from None
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): see to it that no other process goes on with it", path, error.strerror
            )
        yield


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a loss of power, where the system lets folders be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, by the rules of `plain`."""
    write_atomically(path, _json(content))


def write_json_over(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file over the one that is there: on a full disk there is only its place left, one block."""
    with open(path, "r+b") as file:
        file.write(_json(content))
        file.truncate()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """The value as strict JSON holds it: NaN and infinities become null, numpy and torch scalars Python's,
    tuples lists, and what JSON does not know (paths, devices) its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays, without importing either
        return plain(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)

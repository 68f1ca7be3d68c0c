"""Write files atomically: if the process dies, a file is either complete or unchanged. Imports no torch."""

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

_TEMPORARY_PATTERN = ".*.tmp"


def utc_now() -> str:
    """Return the current time (UTC) in the format of records."""
    return datetime.now(UTC).strftime(TIME_FORMAT)


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write `content` to a temporary file in the same folder, fsync, then rename it to `path`.

    previous: if `path` exists, its old content is kept under this name; a file that has this name is replaced.
    """
    temporary = _temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _add_link(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _add_link(path: Path, name: Path) -> None:
    """Give a file a second name with a hard link. Unlike a rename, the file never loses its first name."""
    temporary = _temporary_path(name)
    try:
        os.link(path, temporary)
        os.replace(temporary, name)
    except OSError:  # the file system has no hard links
        os.replace(path, name)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of killed processes in a folder and its subfolders."""
    for pattern in (_TEMPORARY_PATTERN, f"*/{_TEMPORARY_PATTERN}"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a temporary file of `write_atomically`."""
    return Path(name).match(_TEMPORARY_PATTERN)


def make_folder(path: Path, option: str) -> None:
    """Make a folder and its parents. option: the setting or option that names it, such as ``run_dir=PATH``.

    Raises UsageError if the path is impossible, for example because a parent is a file; OSError if the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{option} cannot be made ({os.strerror(error.errno or 0)}); name another folder") from error


def check_folder_can_be_made(path: Path, option: str) -> None:
    """Raise UsageError if a folder certainly cannot be made. Called before any work. option: see `make_folder`."""
    existing = next(folder for folder in (path, *path.absolute().parents) if os.path.exists(folder))
    problem = 0
    if not existing.is_dir():
        problem = errno.ENOTDIR
    elif not os.access(existing, os.W_OK | os.X_OK):
        problem = errno.EACCES
    elif _is_too_long(path, existing):
        problem = errno.ENAMETOOLONG
    if problem:
        raise UsageError(f"{option} cannot be made ({os.strerror(problem)}); name another folder")


def _is_too_long(path: Path, existing: Path) -> bool:
    """Whether a path, or one of its names, is too long for the file system. existing: a folder on it."""
    longest = max(len(os.fsencode(name)) for name in path.absolute().parts)
    whole = len(os.fsencode(path.absolute()))
    return longest > os.pathconf(existing, "PC_NAME_MAX") or whole >= os.pathconf(existing, "PC_PATH_MAX")


def check_file_can_be_made(path: Path, option: str) -> None:
    """Raise UsageError if a new file cannot be made. Called before any work. option: see `make_folder`."""
    if os.path.exists(path):
        raise UsageError(f"{option} exists; name a new file")
    if not os.path.isdir(path.parent):
        raise UsageError(f"{option}: the folder {path.parent} does not exist; create it, or name another file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: {path.parent} is not writable; name another file")
    if _is_too_long(path, path.parent):
        raise UsageError(f"{option} cannot be made ({os.strerror(errno.ENAMETOOLONG)}); name another file")


def read_if_exists(path: Path) -> bytes | None:
    """Return the content of a file, None if it does not exist. Raises UsageError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Lock a file inside the block, and create the file if needed. If the process dies, the system releases the lock.

    Raises UsageError if another process holds the lock. Logs a warning if the file system has no locks.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{path.parent} is in use by another process") from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no other process uses it", path, error.strerror)
        yield


def fsync_folder(folder: Path) -> None:
    """Write the names of the files in `folder` to disk, so that a rename survives a power failure."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_line(content: Mapping[str, Any]) -> str:
    """Format one line of a JSON Lines file; see `to_json` for the conversion."""
    return json.dumps(to_json(content), allow_nan=False) + "\n"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; see `to_json` for the conversion."""
    write_atomically(path, _json(content))


def overwrite_json(path: Path, content: Mapping[str, Any]) -> None:
    """Overwrite an existing JSON file in place. This also works on a full disk, where no new file can be written."""
    with open(path, "r+b") as file:
        file.write(_json(content))
        file.truncate()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(to_json(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def to_json(value: Any) -> Any:
    """Convert a value to strict JSON types.

    NaN and infinities become null, numpy and torch values become Python values, tuples and sets become lists, and other
    types (paths, devices) become strings.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # scalars and arrays of numpy and torch, recognised without importing them
        return to_json(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)

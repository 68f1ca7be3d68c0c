"""Write files atomically: they are complete or absent, whatever happens to the process. Imports no torch."""

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
    """The current time, UTC, as written in records."""
    return datetime.now(UTC).strftime(TIME_FORMAT)


def write_atomically(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write `content` to a temporary file in the same folder, fsync, then rename it to `path`.

    previous: the name that the existing file gets, replacing an earlier one.
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
    """Give a file a second name with a hard link, so that it always keeps its first name."""
    temporary = _temporary_path(name)
    try:
        os.link(path, temporary)
        os.replace(temporary, name)
    except OSError:  # a file system without links
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
    """Whether a file name is a temporary one of `write_atomically`."""
    return Path(name).match(_TEMPORARY_PATTERN)


def make_folder(path: Path, option: str) -> None:
    """Make a folder and its parents. option: the setting or option that names it, such as ``run_dir=PATH``.

    Raises UsageError if the path is not possible, for example below a file; OSError if the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"{option} cannot be made ({os.strerror(error.errno or 0)}); name another folder") from error


def check_folder_can_be_made(path: Path, option: str) -> None:
    """Raise UsageError if a folder certainly cannot be made, before any work is done. option: see `make_folder`."""
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
    """Whether the file system of an existing folder has no room for the path or one of its names."""
    longest = max(len(os.fsencode(name)) for name in path.absolute().parts)
    whole = len(os.fsencode(path.absolute()))
    return longest > os.pathconf(existing, "PC_NAME_MAX") or whole >= os.pathconf(existing, "PC_PATH_MAX")


def check_file_can_be_made(path: Path, option: str) -> None:
    """Raise UsageError if a new file cannot be made, before any work is done. option: see `make_folder`."""
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
    """Hold a lock on a file, which is created if needed. The system releases it when the process ends in any way.

    Raises UsageError if another process holds it. A file system without locks gives a warning.
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
    """Make renames in `folder` survive a power failure, if the system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_line(content: Mapping[str, Any]) -> str:
    """One line of a JSON Lines file; see `to_json` for the conversion."""
    return json.dumps(to_json(content), allow_nan=False) + "\n"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; see `to_json` for the conversion."""
    write_atomically(path, _json(content))


def overwrite_json(path: Path, content: Mapping[str, Any]) -> None:
    """Overwrite an existing JSON file in place: on a full disk only its own block is available."""
    with open(path, "r+b") as file:
        file.write(_json(content))
        file.truncate()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(to_json(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def to_json(value: Any) -> Any:
    """Convert a value to strict JSON types.

    NaN and infinities become null, numpy and torch values Python's, tuples lists, and other types (paths, devices)
    strings.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays, without importing either
        return to_json(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)

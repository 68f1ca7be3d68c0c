"""Arrays cached on disk because computing them takes long. Loading a cached file executes no code."""

import logging
import tempfile
import zipfile
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file, or None if it is absent, damaged, or holds anything but plain arrays."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s); it is created again", path, error)
        return None


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz file atomically. If the folder is not writable, only log that."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}-", delete=False) as file:
            temporary = Path(file.name)
            try:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                temporary.chmod(0o644)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        log.info("%s is not cached: %s", path, error.strerror or error)

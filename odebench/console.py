"""What the command line says on stderr: the log of a run, and an error in one line."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from odebench.errors import DIVERGED, FAILED, WRONG_USAGE, Diverged, UsageError


@contextlib.contextmanager
def console_log() -> Iterator[None]:
    """Sends what the logger "odebench" gets to stderr, where nothing does so yet."""
    logger = logging.getLogger("odebench")
    if any(type(handler) is logging.StreamHandler for handler in logger.handlers):
        yield
        return
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def report(name: str, error: Exception) -> int:
    """One line on stderr for an error that is the user's or the machine's, and the exit code for it.

    Of several processes (torchrun) the first one alone says it. Anything else is a fault of ours and is raised again,
    with its traceback.
    """
    if isinstance(error, UsageError):
        _tell(f"{name}: {error}")
        return WRONG_USAGE
    if isinstance(error, Diverged):
        _tell(f"{name}: {error}")
        return DIVERGED
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; without this Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + 13
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        _tell(f"{name}: {os.strerror(error.errno)}{where}")
        return FAILED
    raise error


def _tell(line: str) -> None:
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)

"""What the command line prints: the log of a run and an error in one line on stderr, tables on stdout."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

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


def report_error(name: str, error: Exception) -> int:
    """One line on stderr for an error that is the user's or the machine's, and the exit code for it.

    Of several processes (torchrun) the first one alone says it. Anything else is a fault of ours and is raised again,
    with its traceback.
    """
    if isinstance(error, UsageError):
        _print_once(f"{name}: {error}")
        return WRONG_USAGE
    if isinstance(error, Diverged):
        _print_once(f"{name}: {error}")
        return DIVERGED
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; without this Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + 13
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        _print_once(f"{name}: {os.strerror(error.errno)}{where}")
        return FAILED
    raise error


def _print_once(line: str) -> None:
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def print_table(rows: Sequence[Sequence[str]], most: int | None = None) -> None:
    """Rows of text on stdout, in columns as wide as their widest entry; most: characters of a row, None for all."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        text = "  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip()
        print(text if most is None or len(text) <= most else f"{text[: most - 1]}…")

"""Terminal output: logs and one-line errors go to stderr, tables to stdout."""

import contextlib
import errno
import functools
import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from odebench.errors import DIVERGED, FAILED, WRONG_USAGE, Diverged, NothingFoundError, UsageError

log = logging.getLogger(__name__)

# System errors whose cause is the name of a file: it is too long, or its links form a loop.
_WRONG_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)


@contextlib.contextmanager
def console_log() -> Iterator[None]:
    """Send the messages of the logger "odebench" to stderr inside the block, unless a handler does so already.

    Also log warnings of this package, which Python would print with a line of its code.
    """
    logger = logging.getLogger("odebench")
    if any(type(handler) is logging.StreamHandler for handler in logger.handlers):
        yield
        return
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    show_warning = warnings.showwarning
    warnings.showwarning = functools.partial(_log_own_warning, show_warning)
    try:
        yield
    finally:
        warnings.showwarning = show_warning
        logger.removeHandler(handler)
        logger.setLevel(level)


def _log_own_warning(show: Any, message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
    if Path(filename).is_relative_to(Path(__file__).parent):
        log.warning(str(message))
    else:
        show(message, category, filename, *rest)


def report_error(name: str, error: Exception) -> int:
    """Print an error of the user or the machine as one line on stderr; return the exit code.

    If torchrun started several processes, only the first one prints the line. Any other error is a bug: it is raised
    again, so that Python prints its traceback.
    """
    if isinstance(error, UsageError):
        _print_once(f"{name}: {error}")
        return FAILED if isinstance(error, NothingFoundError) else WRONG_USAGE
    if isinstance(error, Diverged):
        _print_once(f"{name}: {error}")
        return DIVERGED
    if isinstance(error, BrokenPipeError):
        _discard_stdout()
        return 128 + 13
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        if not where and not _working_directory_exists():
            where = ": the working directory was deleted; change to another one with cd"
        _print_once(f"{name}: {os.strerror(error.errno)}{where}")
        return WRONG_USAGE if error.errno in _WRONG_NAMES else FAILED
    raise error


def _working_directory_exists() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _print_once(line: str) -> None:
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def print_results(text: str, saved_in: Path) -> None:
    """Print results that are saved in the file ``saved_in``. If printing fails, log a warning that names this file."""
    try:
        print(text, flush=True)
    except OSError as error:
        _discard_stdout()
        log.warning("the results could not be printed (%s); they are in %s", error.strerror, saved_in)


def _discard_stdout() -> None:
    """Redirect stdout to /dev/null after its reader has exited; otherwise Python prints another error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def aligned(rows: Sequence[Sequence[str]], numeric: Collection[int] = ()) -> list[str]:
    """Format each row as one string, with aligned columns. numeric: indices of the columns to align to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{'>' if place in numeric else '<'}{width}}}" for place, width in enumerate(widths))
    return [form.format(*row).rstrip() for row in rows]


def print_table(rows: Sequence[Sequence[str]], max_width: int | None = None) -> None:
    """Print rows in aligned columns on stdout. max_width: cut longer lines to this many characters; None: never."""
    for text in aligned(rows):
        print(text if max_width is None or len(text) <= max_width else f"{text[: max_width - 1]}…")

"""Terminal output: logs and one-line errors go to stderr, tables to stdout."""

import contextlib
import errno
import functools
import logging
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
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


def terminal_width() -> int | None:
    """The number of columns of the terminal, None if stdout is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_text(*lines: str) -> None:
    """Print lines on stdout; a terminal gets those that are too long for it in several, broken between words."""
    width = terminal_width()
    for line in lines:
        print(line if width is None else "\n".join(broken(line, width) or [""]))


def broken(text: str, width: int) -> list[str]:
    """Break a text between words into lines of at most this width; the lines begin alike."""
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def print_table(rows: Sequence[Sequence[str]], less_important: Sequence[str] | None = None) -> None:
    """Print rows in aligned columns on stdout. On a terminal, they fit its width; see `fitted`."""
    print(*fitted(rows, terminal_width(), less_important), sep="\n")


def fitted(
    rows: Sequence[Sequence[str]],
    width: int | None,
    less_important: Sequence[str] | None = None,
    numeric: Collection[str] = (),
) -> list[str]:
    """Align rows like `aligned`, and make them fit a width without splitting a word; None: any width.

    less_important: None if the rows have no titles. Otherwise the first row holds titles. Values that all rows share
    go to one line below, titles of several words take several lines, and columns with the less important titles are
    left out, the first one first. If this is not enough, the last column is wrapped if it holds several words;
    otherwise each row gets a few lines of its own. numeric: titles of the columns to align to the right.
    """
    shared: list[str] = []
    titled = list(rows)
    if less_important is not None and not _fits(rows, width):
        rows, shared = _without_shared_values(rows)
        for title in less_important:
            if title in rows[0] and not _fits(_with_broken_titles(rows), width):
                place = rows[0].index(title)
                rows = [[*row[:place], *row[place + 1 :]] for row in rows]
        titled = list(rows) if _fits(rows, width) else _with_broken_titles(rows)
    if width is not None and not _fits(titled, width):
        *others, last = (max(map(len, column)) for column in zip(*titled, strict=True))
        room = width - sum(others) - 2 * len(others)
        longest_word = max(len(word) for row in titled for word in row[-1].split() or [""])
        if longest_word < last and max(longest_word, 20) <= room:
            titled = [line for row in titled for line in _wrapped(row, room)]
        elif less_important is not None:
            pairs = [
                [_named(title, cell) if cell != "-" else "" for title, cell in zip(rows[0], row, strict=True)]
                for row in rows[1:]
            ]
            blocks = [[row[0], *flow(cells[1:], width, "  ")] for row, cells in zip(rows[1:], pairs, strict=True)]
            return [line for block in blocks for line in block] + flow(shared, width)
    to_right = [place for place, title in enumerate(rows[0]) if title in numeric]
    return aligned(titled, to_right) + flow(shared, width or 0)


def _fits(rows: Sequence[Sequence[str]], width: int | None) -> bool:
    return width is None or max(map(len, aligned(rows))) <= width


def _with_broken_titles(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Break titles into several rows, so that no column is wider than its values or the longest word of its title."""
    titles, *values = rows
    widths = [max(1, *map(len, [*title.split(), *cells])) for title, *cells in zip(*rows, strict=True)]
    lines = [broken(title, width) for title, width in zip(titles, widths, strict=True)]
    height = max(map(len, lines))
    return [*zip(*([""] * (height - len(its)) + its for its in lines), strict=True), *values]


def _without_shared_values(rows: Sequence[Sequence[str]]) -> tuple[Sequence[Sequence[str]], list[str]]:
    """Leave out columns after the first whose values are equal. Returns the rows, and words such as ``step 70``."""
    columns = list(zip(*rows, strict=True))
    kept = [column for place, column in enumerate(columns) if place == 0 or len(set(column[1:])) > 1]
    if len(rows) < 3 or len(kept) == 1:
        kept = [column for column in columns if set(column[1:]) != {"-"}]
        return [*zip(*kept, strict=True)], []
    shared = [_named(title, value) for title, value, *_ in (c for c in columns if c not in kept) if value != "-"]
    return [*zip(*kept, strict=True)], ["all:", *shared] if shared else []


def _named(title: str, value: str) -> str:
    return f"{title.lower() if title.isupper() else title} {value}"


def _wrapped(row: Sequence[str], room: int) -> list[list[str]]:
    """Wrap the last cell of a row between words; the other cells are on the first line."""
    lines = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
    return [[*row[:-1], lines[0]], *([""] * (len(row) - 1) + [line] for line in lines[1:])]


def flow(fields: Iterable[str], width: int, indent: str = "") -> list[str]:
    """Join fields into lines of at most this width; a field stays in one piece, and empty ones are left out."""
    lines: list[str] = []
    for field in filter(None, fields):
        if lines and len(lines[-1]) + 2 + len(field) <= width:
            lines[-1] += f"  {field}"
        else:
            lines.append(indent + field)
    return lines


def progress_text(done: int, total: int, elapsed_s: float, before: int = 0) -> str:
    """Say how far a command is: ``12 of 40, about 3 min left``. before: how many of `done` were done at its start."""
    if done <= before:
        return f"{done} of {total}"
    seconds = elapsed_s / (done - before) * (total - done)
    unit, size = next((pair for pair in (("s", 1), ("min", 60)) if seconds < 90 * pair[1]), ("h", 3600))
    return f"{done} of {total}, about {seconds / size:.0f} {unit} left"

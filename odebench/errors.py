"""The errors that every room may raise, the words they are told in, and how the command line ends. Imports nothing of
odebench."""

import difflib
from collections.abc import Iterable

# Exit codes. STOPPED: by a signal, with a checkpoint; what starts jobs may start it again.
DONE, FAILED, WRONG_USAGE, DIVERGED, STOPPED = 0, 1, 2, 3, 75


class UsageError(ValueError):
    """Wrong usage, settings or input: one line for the user; the command line exits with 2.

    settings: the names of those that it is about, such as ``model.width``, where it is about some.
    """

    def __init__(self, line: str, *settings: str) -> None:
        super().__init__(line)  # alone, so that it can be pickled: by its line, then its attributes
        self.settings = settings


class Diverged(RuntimeError):
    """Numbers that are not finite, or a solve that failed; one line, and the command line exits with 3."""


# Lists that are not `odebench list`'s.
_LISTS = {"figures": "report --list", "reproductions": "reproduce --list"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the known word nearest to ``word``, the first of several; nothing where none is."""
    matcher = difflib.SequenceMatcher(b=word)

    def likeness(name: str) -> float:
        matcher.set_seq1(name)
        return matcher.ratio()

    near = max(known, key=likeness, default="")
    return f"; did you mean {near}?" if near and likeness(near) > 0.6 else ""


def unknown_name(kind: str, name: object, known: Iterable[str], plural: str) -> UsageError:
    """A name that is none of ours: ``unknown model odnet; did you mean odenet? (models: mlp, ...)``."""
    known = list(known)
    listed = _LISTS.get(plural, f"list {plural}")
    names = f"{plural}: {', '.join(known) or 'none'}" if len(known) <= 12 else f"odebench {listed} prints all"
    return UsageError(f"unknown {kind} {name}{did_you_mean(str(name), known)} ({names})", kind)


def unknown_setting(key: str, known: Iterable[str]) -> UsageError:
    """The error for a key that is not among the known ones, or not among those of the chosen option."""
    known, group = list(known), key.partition(".")[0]
    if key in known:
        return UsageError(f"{key}: the chosen {group} has no such setting; odebench train --cfg prints all", key, group)
    hint = did_you_mean(key, known) or "; odebench train --cfg prints them all"
    return UsageError(f"unknown setting {key}{hint}", key)

"""Errors that every package may raise, helpers for their messages, and exit codes. Imports nothing of odebench."""

import difflib
from collections.abc import Collection, Iterable

# Exit codes. STOPPED: by a signal, with a checkpoint; a launcher may start the job again.
DONE, FAILED, WRONG_USAGE, DIVERGED, STOPPED = 0, 1, 2, 3, 75


class UsageError(ValueError):
    """Wrong usage, settings or input: one line for the user; the command line exits with 2.

    settings: names of the settings concerned, such as ``model.width``.
    """

    def __init__(self, line: str, *settings: str) -> None:
        super().__init__(line)  # only the line, so that pickling works
        self.settings = settings


class NothingFoundError(UsageError):
    """A folder exists but holds nothing that a command reads, such as runs: one line, and exit code 1 as of grep."""


class Diverged(RuntimeError):
    """A training that cannot go on: its numbers are not finite, a solve failed, or it passed ``trainer.max_nfe``.

    The command line exits with 3.
    """


# Lists that other commands print than `odebench list`.
_LISTS = {"figures": "report --list", "reproductions": "reproduce --list"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the known name most like ``word``; empty if none is similar."""
    matcher = difflib.SequenceMatcher(b=word)

    def similarity(name: str) -> float:
        matcher.set_seq1(name)
        return matcher.ratio()

    near = max(known, key=similarity, default="")
    return f"; did you mean {near}?" if near and similarity(near) > 0.6 else ""


def unknown_name(kind: str, name: object, known: Iterable[str], plural: str) -> UsageError:
    """The error for an unknown name: ``unknown model odnet; did you mean odenet? (models: mlp, ...)``."""
    known = list(known)
    listed = _LISTS.get(plural, f"list {plural}")
    names = f"{plural}: {', '.join(known) or 'none'}" if len(known) <= 12 else f"odebench {listed} prints all"
    return UsageError(f"unknown {kind} {name}{did_you_mean(str(name), known)} ({names})", kind)


def split_names(option: str, text: str) -> list[str]:
    """The names in an option's comma-separated value. UsageError if there are none."""
    names = list(filter(None, text.split(",")))
    if not names:
        raise UsageError(f"{option} needs a name, or several names separated by commas, got {text!r}")
    return names


# Names from other programs -> the setting meant, which their spelling does not reveal.
_OTHER_NAMES = {
    "dataset": "data",
    "learning_rate": "optim.lr",
    "method": "solver",
    "optimizer": "optim",
    "scheduler": "schedule",
}


def nearest_setting(key: str, known: Collection[str]) -> str:
    """``; did you mean X?`` for a setting of the same name elsewhere, such as ``optim.lr`` for ``lr`` and ``solver``
    for ``model.solver``, or one spelled like it; empty if there is none."""
    name = key.rpartition(".")[2]
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    if (other := _OTHER_NAMES.get(name)) in known:
        return f"; did you mean {other}?"
    if name in elsewhere:
        return f"; did you mean {name}?"
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere[:3])}?"
    return did_you_mean(key, known)


def unknown_setting(key: str, known: Iterable[str]) -> UsageError:
    """The error for a key that is not among the known ones, or not among those of the chosen option."""
    known, group = list(known), key.partition(".")[0]
    if key in known:
        return UsageError(f"{key}: the chosen {group} has no such setting; odebench train --cfg prints all", key, group)
    if group == "cluster" and not known[0].startswith("cluster"):
        return UsageError(f"{key} is a setting of odebench sweep; leave it out, or write odebench sweep", key)
    hint = nearest_setting(key, known) + (f" ({', '.join(known)})" if group == "cluster" else "")
    return UsageError(f"unknown setting {key}{hint or '; odebench train --cfg prints them all'}", key)

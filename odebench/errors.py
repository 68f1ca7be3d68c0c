"""Errors that every package may raise, helpers for their messages, and exit codes. Imports nothing of odebench."""

import difflib
from collections.abc import Collection, Iterable

# Exit codes. STOPPED: a signal stopped the run after it saved a checkpoint; a launcher may start the job again.
DONE, FAILED, WRONG_USAGE, DIVERGED, STOPPED = 0, 1, 2, 3, 75


class UsageError(ValueError):
    """Wrong usage, settings or input. The message is one line for the user; the command line exits with 2.

    settings: names of the settings that cause the error, such as ``model.width``.
    """

    def __init__(self, line: str, *settings: str) -> None:
        super().__init__(line)  # without settings, so that the error can be pickled
        self.settings = settings


class NothingFoundError(UsageError):
    """A folder exists but holds nothing that the command reads, such as runs. Exit code 1, as from grep."""


class Diverged(RuntimeError):
    """A training that cannot go on: its numbers are not finite, a solve failed, or it passed ``trainer.max_nfe``.

    The command line exits with 3.
    """


# Lists that are not printed by `odebench list`: their name -> the command and option that print them.
_LISTS = {"figures": "report --list", "reproductions": "reproduce --list"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?``, X the known name most similar to ``word``; empty if none is similar."""
    matcher = difflib.SequenceMatcher(b=word)

    def similarity(name: str) -> float:
        matcher.set_seq1(name)
        return matcher.ratio()

    near = max(known, key=similarity, default="")
    return f"; did you mean {near}?" if near and similarity(near) > 0.6 else ""


def unknown_name(kind: str, name: object, known: Iterable[str], plural: str) -> UsageError:
    """Return the error for an unknown name: ``unknown model odnet; did you mean odenet? (models: mlp, ...)``."""
    known = list(known)
    listed = _LISTS.get(plural, f"list {plural}")
    few = len(known) <= 12 or plural == "commands"
    names = f"{plural}: {', '.join(known) or 'none'}" if few else f"odebench {listed} prints all"
    return UsageError(f"unknown {kind} {name}{did_you_mean(str(name), known)} ({names})", kind)


def split_names(option: str, text: str) -> list[str]:
    """Split the comma-separated value of an option into names. Raises UsageError if there are none."""
    names = list(filter(None, text.split(",")))
    if not names:
        raise UsageError(f"{option} needs a name, or several names separated by commas, got {text!r}")
    return names


# Names used in other programs -> our setting, where its name is spelled too differently to be found by similarity.
_OTHER_NAMES = {
    "dataset": "data",
    "learning_rate": "optim.lr",
    "method": "solver",
    "optimizer": "optim",
    "scheduler": "schedule",
}


def nearest_setting(key: str, known: Collection[str]) -> str:
    """Return ``; did you mean X?``, X the known setting that ``key`` probably means; empty if there is none.

    It is a setting with the same name in another group (``optim.lr`` for ``lr``, ``solver`` for ``model.solver``), or
    one that is spelled similarly.
    """
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
    """Return the error for a key that no option has, or that the chosen option does not have."""
    known, group = list(known), key.partition(".")[0]
    if key in known:
        return UsageError(f"{key}: the chosen {group} has no such setting; odebench train --cfg prints all", key, group)
    if group == "cluster" and not known[0].startswith("cluster"):
        return UsageError(f"{key} is a setting of odebench sweep; leave it out, or write odebench sweep", key)
    hint = nearest_setting(key, known) + (f" ({', '.join(known)})" if group == "cluster" else "")
    return UsageError(f"unknown setting {key}{hint or '; odebench train --cfg prints them all'}", key)

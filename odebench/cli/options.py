"""Options and checks that several commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from odebench.cli.completion import complete_setting
from odebench.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from odebench.sweep.attempts import FailurePolicy


def add_settings(parser: argparse.ArgumentParser, text: str) -> None:
    """Add an argument for any number of settings KEY=VALUE. text: its help."""
    # Without a default, argparse lists it as a missing argument, although no settings are needed.
    action = parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=text)
    action.completer = complete_setting  # type: ignore[attr-defined]


def add_run(parser: argparse.ArgumentParser, text: str = "the folder of a run") -> None:
    """Add an argument for the folder of a run. text: its help."""
    parser.add_argument("run", metavar="RUN", help=text)


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--config-dir``."""
    parser.add_argument("--config-dir", metavar="DIR", type=Path, help="a folder of your own YAML, laid out as ours")


def add_retries(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--fail-fast``, ``--retry`` and ``--follow``."""
    parser.add_argument("--fail-fast", action="store_true", help="stop the sweep when a job fails")
    parser.add_argument("--retry", metavar="N", type=whole_number, default=0, help="retry a failed job up to N times")
    parser.add_argument("--follow", action="store_true", help="with SLURM: watch the jobs until they end")


def failure_policy(arguments: argparse.Namespace) -> "FailurePolicy":
    """Return the policy for failed jobs that the options of `add_retries` ask for."""
    from odebench.sweep.attempts import FailurePolicy

    if arguments.retry < 0:
        raise UsageError(f"--retry {arguments.retry}: must be at least 0")
    return FailurePolicy(arguments.fail_fast, arguments.retry)


def whole_number(text: str) -> int:
    """Convert the text of an option to an integer. Used as ``type`` in argparse."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, not {text}") from None


def read_split(overrides: list[str]) -> tuple[str, list[str]]:
    """Return the split that an override ``split=NAME`` chooses, by default validation, and the other overrides."""
    from odebench.config.schema.quantities import SPLITS

    split = SPLITS[0]
    for word in overrides:
        if word.startswith("split="):
            split = word.removeprefix("split=")
            if split not in SPLITS:
                raise unknown_name("split", split, SPLITS, "splits")
    return split, [word for word in overrides if not word.startswith("split=")]


def check_limit(limit: int | None) -> None:
    """Raise UsageError if ``--limit`` is no number of samples."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")


def check_run(path: str) -> Path:
    """Return the folder of a run. Raises UsageError if ``path`` is not one. Does not import torch."""
    from odebench.record.reader import read_run

    return read_run(path, metrics=False).path

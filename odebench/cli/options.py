"""Options and checks that several commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from odebench.cli.completion import complete_setting
from odebench.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from odebench.sweep.attempts import FailurePolicy


def add_settings(parser: argparse.ArgumentParser, text: str) -> None:
    """Settings KEY=VALUE, in any number."""
    # Without a default, argparse lists it among missing arguments, though it allows none.
    action = parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help=text)
    action.completer = complete_setting  # type: ignore[attr-defined]


def add_run(parser: argparse.ArgumentParser, text: str = "the folder of a run") -> None:
    """The folder of a run."""
    parser.add_argument("run", metavar="RUN", help=text)


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """``--config-dir``."""
    parser.add_argument("--config-dir", metavar="DIR", type=Path, help="a folder of your own YAML, laid out as ours")


def add_retries(parser: argparse.ArgumentParser) -> None:
    """``--fail-fast``, ``--retry`` and ``--follow``."""
    parser.add_argument("--fail-fast", action="store_true", help="stop the sweep when a job fails")
    parser.add_argument("--retry", metavar="N", type=whole_number, default=0, help="try a job that fails N times more")
    parser.add_argument("--follow", action="store_true", help="with SLURM: watch the jobs until they end")


def failure_policy(arguments: argparse.Namespace) -> "FailurePolicy":
    """The policy for jobs that fail, from the options of `add_retries`."""
    from odebench.sweep.attempts import FailurePolicy

    if arguments.retry < 0:
        raise UsageError(f"--retry {arguments.retry}: must be at least 0")
    return FailurePolicy(arguments.fail_fast, arguments.retry)


def whole_number(text: str) -> int:
    """The type of an option that takes a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, not {text}") from None


def read_split(overrides: list[str]) -> tuple[str, list[str]]:
    """The split named among the overrides, and the other overrides."""
    from odebench.config.schema.quantities import SPLITS

    split = SPLITS[0]
    for word in overrides:
        if word.startswith("split="):
            split = word.removeprefix("split=")
            if split not in SPLITS:
                raise unknown_name("split", split, SPLITS, "splits")
    return split, [word for word in overrides if not word.startswith("split=")]


def check_run(path: str) -> Path:
    """The folder of a run. Raises UsageError, before torch is imported, if it is not one."""
    from odebench.record.reader import read_run

    return read_run(path, metrics=False).path

"""``odebench resume``."""

import argparse
import shlex
from pathlib import Path

from odebench.cli.options import add_retries, add_run, add_settings, check_run, failure_policy
from odebench.errors import UsageError

SUMMARY = "continue a stopped run or sweep"
HELP = """\
Continue a run that was stopped (Ctrl-C, a signal, a time limit) from its last checkpoint, in its folder.
If it is a sweep, run the jobs that have not ended yet; cluster settings may change.

examples:
  odebench resume outputs/2026-11-24/14-03-22-123456_odenet_dopri5
  odebench resume outputs/sweeps/2026-11-24/14-03-22-123456
  odebench resume SWEEP cluster.jobs=4"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_run(parser, "the folder of a run, or of a sweep")
    add_settings(parser, "cluster settings to change, if it is a sweep")
    add_retries(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from odebench.sweep.folder import is_sweep

    if is_sweep(Path(arguments.run)):
        from odebench.sweep.run import resume_sweep

        return resume_sweep(Path(arguments.run), arguments.overrides, failure_policy(arguments), arguments.follow)
    folder = check_run(arguments.run)
    if arguments.overrides:
        raise UsageError(
            f"{arguments.overrides[0]}: the settings of a run are fixed; "
            f"train another from its weights: odebench train KEY=VALUE init_from={shlex.quote(arguments.run)}"
        )
    from odebench.training.run import resume_run

    return resume_run(folder).exit_code

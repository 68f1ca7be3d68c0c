"""``odebench resume``."""

import argparse
from pathlib import Path

from odebench.cli.options import add_retries, add_run, add_settings, failure_policy
from odebench.errors import UsageError

SUMMARY = "continue a stopped run or sweep"
HELP = """\
Continue a run that was stopped (Ctrl-C, a signal, a time limit) from its last checkpoint, in its folder. A larger
trainer.epochs, trainer.iterations or trainer.max_minutes trains longer, also a finished run; a line says what the
schedule of the learning rate does. name, tags and notes may change.
If it is a sweep, run the jobs that have not ended yet; cluster settings may change.

examples:
  odebench resume outputs/2026-11-24/14-03-22-123456_odenet_dopri5
  odebench resume RUN trainer.epochs=30                   train longer
  odebench resume RUN "tags=[baseline]"                   no training, if the run is finished
  odebench resume outputs/sweeps/2026-11-24/14-03-22-123456
  odebench resume SWEEP cluster.jobs=4"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_run(parser, "the folder of a run, or of a sweep")
    add_settings(parser, "trainer.epochs=N trains longer; for a sweep: cluster settings to change")
    add_retries(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from odebench.sweep.folder import is_sweep

    if is_sweep(Path(arguments.run)):
        from odebench.sweep.run import resume_sweep

        return resume_sweep(Path(arguments.run), arguments.overrides, failure_policy(arguments), arguments.follow)
    if arguments.fail_fast or arguments.retry or arguments.follow:
        raise UsageError("--fail-fast, --retry and --follow are for sweeps, and this is a run; leave them out")
    from odebench.config.saved import check_resumable
    from odebench.record.reader import read_run

    run = read_run(arguments.run, metrics=False)
    check_resumable(arguments.overrides, run.settings.get("config_dir"), run.path)  # before torch is imported
    from odebench.training.run import resume_run

    return resume_run(run.path, arguments.overrides).exit_code

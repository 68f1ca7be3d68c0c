"""``odebench tensorboard``."""

import argparse
from pathlib import Path

SUMMARY = "open the dashboard of a run, or of all runs in a folder"
HELP = """\
Start TensorBoard on one run or on all runs of a task in a folder, named by the settings in which they differ. It opens
on the learning curves and costs. Arguments after -- are passed to TensorBoard.

examples:
  odebench tensorboard outputs
  odebench tensorboard outputs --task density             if the runs are of several tasks
  odebench tensorboard outputs -- --port 7007 --bind_all"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("folder", metavar="DIR", help="a run, or a folder of runs")
    parser.add_argument("--task", metavar="TASK", help="show runs of this task; by default that of the latest run")


def run(arguments: argparse.Namespace) -> int:
    """Run TensorBoard until it is stopped. Raises NothingFoundError if there is nothing to show."""
    from odebench.record.dashboard import serve

    return serve(Path(arguments.folder), arguments.task, arguments.for_tensorboard)

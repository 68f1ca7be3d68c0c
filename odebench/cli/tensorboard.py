"""``odebench tensorboard``."""

import argparse
import os
import sys
from pathlib import Path

from odebench.errors import NothingFoundError

SUMMARY = "open the dashboard of a run, or of all runs in a folder"
HELP = """\
Start TensorBoard on one run or on all runs in a folder. Arguments after -- are passed to TensorBoard.

examples:
  odebench tensorboard outputs
  odebench tensorboard outputs -- --port 7007 --bind_all"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("folder", metavar="DIR", help="a run, or a folder of runs")


def run(arguments: argparse.Namespace) -> int:
    """Replace this process by TensorBoard. Raises NothingFoundError if there is nothing to show; never returns."""
    from odebench.record.layout import EVENT_FILES
    from odebench.record.reader import find_runs

    folder = Path(arguments.folder)
    if not any(list(path.glob(EVENT_FILES)) for path in [folder, *find_runs(folder)]):
        raise NothingFoundError(f"no TensorBoard files in {folder}; `odebench list runs` shows the runs")
    sys.stdout.flush()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), *arguments.for_tensorboard]
    os.execv(command[0], command)

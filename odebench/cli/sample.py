"""``odebench sample``."""

import argparse
from pathlib import Path

from odebench.cli.options import add_run, add_settings, check_run, whole_number

SUMMARY = "draw samples from a density model"
HELP = """\
Draw samples of a density model. They are written to stdout as CSV with columns x0, x1, ..., or to a new file: .csv or
.npy, or for images .npy or .png. Settings are the run's own, except those given here. Of an unfinished run, the best
checkpoint so far draws them.

examples:
  odebench sample RUN --num 1000 --seed 1
  odebench sample RUN --output samples.npy
  odebench sample RUN tol=1e-6 --output digits.png"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_run(parser)
    add_settings(parser, "settings to change")
    parser.add_argument("--num", metavar="N", type=whole_number, default=100, help="number of samples; by default 100")
    parser.add_argument("--seed", metavar="S", type=whole_number, default=0, help="seed of the samples; by default 0")
    parser.add_argument("--output", metavar="FILE", type=Path, help="a new file; by default CSV to stdout")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    folder = check_run(arguments.run)
    from odebench.training.trained_run import sample_run

    sample_run(folder, arguments.overrides, arguments.num, arguments.seed, arguments.output)
    return 0

"""``odebench predict``."""

import argparse
from pathlib import Path

from odebench.cli.options import add_run, add_settings, check_limit, check_run, read_split, whole_number

SUMMARY = "write a run's predictions for a split as CSV"
HELP = """\
Write the predictions of a run's model for each sample of a split as CSV. Images: the label, the prediction and its
probability. Densities: the log-likelihood of the sample. Series: predicted and observed values, one row per time.

examples:
  odebench predict RUN                                    the validation split, to stdout
  odebench predict RUN split=test --output test.csv
  odebench predict RUN --limit 20"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_run(parser)
    add_settings(parser, "settings to change, and split=validation (default), test or train")
    parser.add_argument("--limit", metavar="N", type=whole_number, help="use only the first N samples of the split")
    parser.add_argument("--output", metavar="FILE", type=Path, help="a new CSV file; by default stdout")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    folder = check_run(arguments.run)
    split, overrides = read_split(arguments.overrides)
    check_limit(arguments.limit)
    from odebench.training.trained_run import predict_run

    predict_run(folder, overrides, split, arguments.output, arguments.limit)
    return 0

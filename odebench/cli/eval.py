"""``odebench eval``."""

import argparse
from pathlib import Path

from odebench.cli.options import add_run, add_settings, check_limit, read_split, whole_number

SUMMARY = "evaluate a trained model, with another solver or tolerance if you like"
HELP = """\
Evaluate a run and print a table. Settings are the run's own, except those given here. Of an unfinished run, the best
checkpoint so far is evaluated.

Several values a,b give a table with one row per combination: NFE, time, and the error of the model's outputs
compared with the same model solved by dopri5 at 1e-9 in float64. With --gradients, or several gradient modes, the table
also has the memory of a training step and the errors of its gradient. `odebench report` draws these results:
--figure figure3, error-tolerance, nfe-tolerance or gradient-tolerance.

examples:
  odebench eval outputs/2026-11-24/14-03-22-123456_odenet_dopri5
  odebench eval RUN split=test
  odebench eval RUN solver=rk4 solver.steps=8             another solver
  odebench eval RUN tol=1e-5                              another tolerance
  odebench eval RUN tol=1e-1,1e-2,1e-3 solver=dopri5,tsit5,rk4
  odebench eval RUN solver=dopri5,vode_adams --limit 1000 --output adams.csv
  odebench eval RUN gradient=adjoint,checkpoint,interpolated_adjoint"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_run(parser)
    add_settings(parser, "settings to change, a,b for several values; split=validation (default), test or train")
    parser.add_argument("--limit", metavar="N", type=whole_number, help="use only the first N samples of the split")
    parser.add_argument("--output", metavar="FILE", type=Path, help="a new CSV file for the numbers")
    parser.add_argument(
        "--gradients", action="store_true", help="print a table that includes the errors of the gradient"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from odebench.record.files import check_file_can_be_made
    from odebench.record.reader import read_run
    from odebench.sweep.expand import expand

    run = read_run(arguments.run, metrics=False)
    split, overrides = read_split(arguments.overrides)
    check_limit(arguments.limit)
    if arguments.output is not None:
        check_file_can_be_made(arguments.output, f"--output {arguments.output}")
    config_dir = run.settings.get("config_dir")
    combinations = expand([overrides], None if config_dir is None else Path(config_dir), check_reserved=False)
    if len(combinations) > 1 or arguments.gradients:
        from odebench.training.study import study_run

        study_run(run.path, combinations, split, arguments.limit, arguments.gradients, arguments.output)
        return 0
    from odebench.training.trained_run import evaluate_run

    evaluate_run(run.path, overrides, split, arguments.limit, arguments.output)
    return 0

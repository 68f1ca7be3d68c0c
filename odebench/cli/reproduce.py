"""``odebench reproduce``."""

import argparse
from pathlib import Path
from typing import Any

from odebench.cli.options import add_retries, add_settings, failure_policy

SUMMARY = "rerun a published table or figure, and compare the results"
HELP = """\
Reproduce a published table or figure: train the runs that are missing, then compare each result with the published
value and print a verdict. The runs are a sweep in outputs/reproduce/NAME-BUDGET. The same command continues the sweep;
if it is done, nothing is trained and the results are printed again. budget=full is the published training;
budget=medium, small and tiny, where they exist, are shorter.

Other settings apply to every run, cluster settings to the sweep. seed=0,1,2 gives each row of the table three runs; if
the run with seed=0 exists, only the other two are trained.

examples:
  odebench reproduce --list                 names, trainings, counts of verdicts
  odebench reproduce table2 --list          our results and verdicts
  odebench reproduce table1 budget=small
  odebench reproduce table2 seed=0,1,2 cluster.jobs=2
  odebench reproduce hopper budget=small --rows "last value"
  odebench reproduce figure4 budget=small --dry-run"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    name = parser.add_argument("name", metavar="NAME", nargs="?", help="name of a published table or figure")
    name.completer = _complete_name  # type: ignore[attr-defined]
    add_settings(parser, "budget=full (default), small, ...; settings of every run, and cluster=...")
    parser.add_argument("--list", action="store_true", help="print all names, or our results and verdicts of NAME")
    parser.add_argument("--output", metavar="DIR", type=Path, help="the folder of the runs")
    parser.add_argument(
        "--rows", metavar="TEXT", default="", help="only the row TEXT, or the rows with TEXT in their names"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the jobs without starting them")
    add_retries(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from odebench.reproduce.run import list_reproductions, plan_reproduction, run_reproduction
    from odebench.sweep.run import print_plan

    if arguments.list:
        list_reproductions(arguments.name)
        return 0
    reproduction = plan_reproduction(arguments.name, arguments.overrides, arguments.output, arguments.rows)
    if arguments.dry_run:
        print_plan(reproduction.plan)
        return 0
    return run_reproduction(reproduction, failure_policy(arguments), arguments.follow)


def _complete_name(**_: Any) -> list[str]:
    from odebench.reproduce.catalogue import reproductions

    return list(reproductions())

"""``odebench sweep``."""

import argparse
from pathlib import Path

from odebench.cli.options import add_config_dir, add_retries, add_settings, failure_policy

SUMMARY = "train many models, on this machine or on a SLURM cluster"
HELP = """\
Train once for each combination of values, each job in its own process, and print a table of all jobs at the end.

Values are written in Hydra's grammar: a,b or choice(a,b), range(start,stop,step), glob(pattern) for a group. All jobs
are composed and checked before the first one starts. They run on this machine, cluster.jobs=N at a time, or as job
arrays of a SLURM cluster (cluster=slurm; `odebench list clusters`). On Ctrl-C the jobs save and exit;
`odebench resume SWEEP` runs the jobs that have not ended.

A file (--file) holds KEY: VALUES lines, or a list of such blocks, each a separate grid.

examples:
  odebench sweep solver=dopri5,tsit5 tol=1e-2,1e-3        four jobs, one after the other
  odebench sweep "seed=range(0,5)" cluster.jobs=2         two at a time
  odebench sweep "experiment=glob(paper/*)" budget=small --dry-run
  odebench sweep --file grid.yaml cluster=slurm cluster.partition=gpu cluster.gpus=1 cluster.time=8:00:00"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    add_settings(parser, "settings and their values, such as tol=1e-2,1e-3, and cluster=...")
    parser.add_argument("--file", metavar="FILE", type=Path, help="settings and their values as YAML")
    parser.add_argument("--output", metavar="DIR", type=Path, help="a new or empty folder for the sweep")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs without starting them")
    add_retries(parser)
    add_config_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from odebench.sweep.folder import choose_folder
    from odebench.sweep.run import plan_sweep, print_plan, run_sweep

    policy = failure_policy(arguments)
    plan = plan_sweep(arguments.overrides, arguments.file, arguments.config_dir)
    if arguments.dry_run:
        choose_folder(arguments.output, plan.outputs)
        print_plan(plan)
        return 0
    return run_sweep(plan, arguments.output, policy, arguments.follow)

"""``odebench bench``."""

import argparse
import sys
from pathlib import Path

from odebench.cli.options import whole_number

SUMMARY = "compare the solver with other installed libraries"
HELP = """\
Compare the solver with torchdiffeq, torchode, torchdyn, SciPy and diffrax, as far as they are installed
(from the checkout, `pip install -e ".[peers]"`): time, measured in turns; evaluations; errors against a float64
reference; memory.

cases: tiny, mlp, conv, cnf (these four by default), mlp_silu, robertson, vdp, mixed; groups: stiff, all.
modes: forward, backprop, checkpoint, adjoint (by default), interpolated_adjoint, reversible.
The default takes about four minutes on two idle cores and writes to outputs/bench/<date>/<time>.

examples:
  odebench bench
  odebench bench tiny mlp --modes forward,adjoint --peers torchdiffeq
  odebench bench conv --threads 1 --repeats 30 --output results/conv
  odebench bench stiff --modes forward                    Robertson and van der Pol, by the implicit methods
  odebench bench mlp --work-precision --methods dopri5    figures of error against time and evaluations
  odebench bench mlp --compile --peers none               compiled and eager, no other library"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("cases", metavar="CASE", nargs="*", default=[], help="benchmark cases")
    parser.add_argument("--modes", metavar="A,B", help="forward, and gradient modes")
    parser.add_argument("--peers", metavar="A,B", help="other libraries, or none; by default all installed")
    parser.add_argument("--methods", metavar="A,B", help="solvers; by default each case's own")
    parser.add_argument("--tol", metavar="X,Y", help="tolerances (rtol and atol); by default each case's own")
    parser.add_argument(
        "--repeats", metavar="N", type=whole_number, default=10, help="timed runs of each; by default 10"
    )
    parser.add_argument(
        "--threads", metavar="N", type=whole_number, help="threads of PyTorch and JAX; by default PyTorch's own"
    )
    parser.add_argument("--compile", action="store_true", help="also with compiled steps")
    parser.add_argument("--output", metavar="DIR", type=Path, help="a new or empty folder")
    parser.add_argument("--work-precision", action="store_true", help="several tolerances, and figures")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; returns the exit code."""
    from odebench.bench.run import make_plan, run_bench

    plan = make_plan(
        arguments.cases,
        arguments.modes,
        arguments.peers,
        arguments.methods,
        arguments.tol,
        arguments.repeats,
        arguments.compile,
        arguments.work_precision,
    )
    return run_bench(plan, arguments.output, arguments.threads, sys.argv)

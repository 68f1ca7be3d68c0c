"""``odebench bench``."""

import argparse
import sys
from pathlib import Path

from odebench.cli.options import whole_number

SUMMARY = "compare the solver with other libraries that are installed"
HELP = """\
Compare the solver with torchdiffeq, torchode, torchdyn, SciPy and diffrax, as far as they are installed
(from the checkout, `pip install -e ".[peers]"`): time, measured in turns; evaluations; errors against a float64
reference; memory.

cases (the first four by default; groups: stiff, all):
  tiny       spiral: y^3 through an MLP 2-50-2 (tanh), batch 20, 10 outputs in [0, 1] (torchdiffeq's ode_demo)
  mlp        MLP 4-64-64-4 (tanh), batch 128, 50 outputs in [0, 5]
  conv       field of the MNIST ODE-Net, 64 x 6 x 6, batch 128, t in [0, 1]; other libraries solve the published code
  cnf        continuous normalizing flow, 2-D, hypernetwork, exact trace, batch 512, t in [0, 10] (torchdiffeq's cnf)
  mlp_silu   MLP 4-64-64-4 (SiLU), batch 128, 50 outputs in [0, 5]
  robertson  Robertson's reaction, stiff, (y1, 1e4 y2, y3), 9 outputs to t = 1e4, float64
  vdp        van der Pol's oscillator, mu = 1000, stiff, 11 outputs in [0, 1000], float64
  mixed      64 van der Pol oscillators, mu from 0.1 to 30, 20 outputs in [0, 10], float64; also with per-sample steps

modes: forward, backprop, checkpoint, adjoint (by default), interpolated_adjoint, reversible.
The default takes about four minutes on two idle cores and writes to outputs/bench/<date>/<time>.

examples:
  odebench bench
  odebench bench tiny mlp --modes forward,adjoint --peers torchdiffeq
  odebench bench conv --threads 1 --repeats 30 --output results/conv
  odebench bench stiff --modes forward                    Robertson and van der Pol, by the implicit methods
  odebench bench mlp --work-precision --methods dopri5    figures of error against time and evaluations
  odebench bench mlp --compile --peers none               compiled and eager, no other library
  odebench bench tiny cnf --compile solve --batch 1,4096  compiled solves, two numbers of rows"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("cases", metavar="CASE", nargs="*", default=[], help="benchmark cases")
    parser.add_argument("--modes", metavar="A,B", help="forward (no gradient), or gradient modes")
    parser.add_argument("--peers", metavar="A,B", help="other libraries, or none; by default all installed")
    parser.add_argument("--methods", metavar="A,B", help="solvers; by default each case's own")
    parser.add_argument("--tol", metavar="X,Y", help="tolerances (rtol and atol); by default each case's own")
    parser.add_argument("--batch", metavar="N,M", help="numbers of rows of the state; by default each case's own")
    parser.add_argument(
        "--repeats", metavar="N", type=whole_number, default=10, help="timed runs of each solve; by default 10"
    )
    parser.add_argument(
        "--threads", metavar="N", type=whole_number, help="threads of PyTorch and JAX; by default PyTorch's own"
    )
    parser.add_argument(
        "--compile",
        metavar="A,B",
        nargs="?",
        const="step,solve,fast",
        help="also time compiled steps (step), and compiled solves (solve; with fast math: fast)",
    )
    parser.add_argument(
        "--compile-time", action="store_true", help="also time the compilation, with an empty and a filled cache"
    )
    parser.add_argument("--alone", action="store_true", help="also time each solve in a row, not only in turns")
    parser.add_argument("--output", metavar="DIR", type=Path, help="a new or empty folder")
    parser.add_argument("--work-precision", action="store_true", help="use several tolerances, and draw figures")


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from odebench.bench.run import make_plan, run_bench

    plan = make_plan(
        arguments.cases,
        modes=arguments.modes,
        libraries=arguments.peers,
        methods=arguments.methods,
        tol=arguments.tol,
        batch=arguments.batch,
        repeats=arguments.repeats,
        compiled=arguments.compile,
        compile_time=arguments.compile_time,
        alone=arguments.alone,
        work_precision=arguments.work_precision,
    )
    return run_bench(plan, arguments.output, arguments.threads, sys.argv)

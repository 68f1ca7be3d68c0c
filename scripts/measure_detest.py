"""Measure evaluations and errors of several methods on the 25 problems of DETEST.

    pip install -e ".[dev,peers]"
    python scripts/measure_detest.py              takes about a minute

Writes docs/results/detest.*.csv and docs/speed.md. The problems are those of tests/ode/detest.py;
tests/ode/test_detest.py has bounds on these numbers. The only output of each solve is at its end. The error of a
problem is the largest absolute error of a component at t = 20; the table has the geometric mean over the problems. The
numbers of evaluations do not depend on the machine.
"""

import math
import sys
from collections.abc import Callable
from importlib.metadata import version

import results
import torch
from render_tables import ROOT, render_pages
from torch import Tensor

from odebench.bench.measure import CountingField
from odebench.ode import solve

sys.path.insert(0, str(ROOT / "tests" / "ode"))
import detest

TOL = 1e-6
SPAN = torch.tensor([0.0, detest.END], dtype=torch.float64)
# Methods and controllers; adams also chooses its order.
CONFIGS = [
    ("dopri5", "integral"),
    ("dopri5", "pi"),
    *((method, "integral") for method in ("tsit5", "bosh3", "dopri8", "vern7", "adams")),
]

SolveEnd = Callable[[detest.TestProblem], tuple[int, Tensor]]


def solve_with_odebench(method: str, controller: str) -> SolveEnd:
    """Make a function that solves a problem and returns the number of evaluations and y(20)."""

    def solve_end(problem: detest.TestProblem) -> tuple[int, Tensor]:
        solution = solve(problem.f, problem.y0, SPAN, method=method, rtol=TOL, atol=TOL, controller=controller)
        return solution.stats.nfe, solution.y[-1]

    return solve_end


def solve_with_torchdiffeq(problem: detest.TestProblem) -> tuple[int, Tensor]:
    """Solve with torchdiffeq's dopri5. Returns the number of evaluations, counted in the field, and y(20)."""
    import torchdiffeq

    field = CountingField(problem.f)
    y = torchdiffeq.odeint(field, problem.y0, SPAN, rtol=TOL, atol=TOL, method="dopri5")
    return field.calls, y[-1]


@torch.no_grad()
def measure(library: str, method: str, controller: str, solve_end: SolveEnd) -> dict[str, object]:
    """Solve all problems; return a row of the CSV file."""
    evaluations, logs = 0, []
    for name, problem in detest.PROBLEMS.items():
        calls, y = solve_end(problem)
        evaluations += calls
        logs.append(math.log(float((y - detest.reference(name)).abs().max())))
    print(library, method, controller, evaluations, flush=True)
    return {
        "library": library,
        "version": version(library),
        "method": method,
        "controller": controller,
        "tol": TOL,
        "evaluations": evaluations,
        "error": f"{math.exp(sum(logs) / len(logs)):.3g}",
        **results.versions_here(),
    }


def main() -> None:
    """Measure, write the CSV file, and render the page."""
    rows = [measure("odebench", *words, solve_with_odebench(*words)) for words in CONFIGS]
    rows.insert(2, measure("torchdiffeq", "dopri5", "integral", solve_with_torchdiffeq))
    results.keep("detest", rows)
    render_pages()


if __name__ == "__main__":
    main()

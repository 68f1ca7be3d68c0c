"""Compare eager solves with compiled steps and compiled solves, on cases of ``odebench bench``.

    python scripts/measure_compiled_solves.py tiny mlp --repeats 200

Uses one thread. The three run in turns, so that a drift of the machine's speed affects all. The numbers are the
shortest times. They are CPU time, since another program on the same cores lengthens wall time. Compiling takes
minutes. Writes docs/results/compiled_solves.*.csv and docs/compiling.md.
"""

import argparse
import time
from collections.abc import Callable

import results
import torch
from render_tables import render_pages

from odebench.bench.cases import CASES, CaseProblem, build_problem, loss
from odebench.ode import solve

VARIANTS = {"eager": False, "step": "step", "solve": "solve"}


def forward(problem: CaseProblem, compile: bool | str) -> Callable[[], object]:
    """Make a function that solves without a gradient."""
    tol = problem.case.tol

    def run() -> object:
        with torch.no_grad():
            return solve(problem.field, problem.state, problem.times, rtol=tol, atol=tol, compile=compile)

    return run


def gradient(problem: CaseProblem, compile: bool | str) -> Callable[[], object]:
    """Make a function that solves and computes the gradient of ``cases.loss`` for the state and the parameters."""
    tol, y0 = problem.case.tol, problem.state.clone().requires_grad_()

    def run() -> object:
        solution = solve(problem.field, y0, problem.times, rtol=tol, atol=tol, compile=compile)
        return torch.autograd.grad(loss(solution.y), [y0, *problem.parameters])

    return run


def shortest_times(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the shortest CPU time of each function in ms; print that of its first call in seconds."""
    for name, run in runs.items():
        start = time.process_time()
        run()
        print(f"  {name}: first call {time.process_time() - start:.1f} s of CPU time", flush=True)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return best


def main() -> None:
    """Measure, write the CSV file, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", choices=list(CASES), metavar="CASE")
    parser.add_argument("--repeats", type=int, default=200, help="timed runs of each solve; by default 200")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.cases:
        problem = build_problem(CASES[name])
        with torch.no_grad():
            tol = problem.case.tol
            steps = solve(problem.field, problem.state, problem.times, rtol=tol, atol=tol).stats.accepted
        for make in (forward, gradient):
            print(f"{name} {make.__name__}")
            runs = {variant: make(problem, compile) for variant, compile in VARIANTS.items()}
            best = {f"{variant}_ms": f"{ms:.3g}" for variant, ms in shortest_times(runs, arguments.repeats).items()}
            print(best, flush=True)
            rows.append(
                {
                    "case": name,
                    "kind": make.__name__,
                    "steps": steps,
                    **best,
                    **results.machine_here(),
                    **results.versions_here(),
                }
            )
    results.keep("compiled_solves", rows)
    render_pages()


if __name__ == "__main__":
    main()

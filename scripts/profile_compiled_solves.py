"""Say what bounds compiled solves: the share of a solve's time in each kind of work, by torch's profiler.

    python scripts/profile_compiled_solves.py [CASE[:BATCH] ...]

With fast math, on one thread. Needs an idle machine and two minutes for each case, mostly for the compiler. Writes
docs/results/compiled_profile.*.csv and docs/compiling.md.
"""

import argparse
from typing import Any

import results
import torch
from bench_tables import MODES
from compiled_tables import FAST
from render_tables import render_pages
from torch.autograd.profiler_util import EventList

from odebench.bench.cases import CASES, build_problem, with_batch
from odebench.bench.preparation import LibraryConfig, make_run

# How the profiler names a product, the call of a graph, and other arithmetic.
PRODUCTS = ("aoti_torch_cpu_addmm_out", "aoti_torch_cpu_mm_out", "aoti_torch_cpu_bmm_out", "aoti_torch_cpu_baddbmm_out")
GRAPH, KERNEL = "## Call CompiledFxGraph", "cpp_fused"
WARM_UP, RUNS = 5, 50
CASES_SHOWN = ("tiny", "mlp", "cnf", "tiny:4096", "mlp:4096")


def shares(events: EventList) -> dict[str, float]:
    """The fractions of the time: matrix products, other arithmetic, the rest of the graph, and Python around it."""
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.cpu_time_total for event in events if event.key in PRODUCTS)
    arithmetic = sum(event.self_cpu_time_total for event in events if KERNEL in event.key)
    graph = sum(event.cpu_time_total for event in events if event.key.startswith(GRAPH))
    parts = {"products": products, "arithmetic": arithmetic, "loop": graph - products - arithmetic}
    return {name: round(time / total, 3) for name, time in (parts | {"outside": total - graph}).items()}


def profile(name: str, mode: str) -> dict[str, Any]:
    """Compile and profile the solves of a case, or CASE:BATCH."""
    case = CASES[name.partition(":")[0]]
    case = with_batch(case, int(name.partition(":")[2] or case.batch))
    run = make_run(build_problem(case), LibraryConfig("odebench", "dopri5", mode, FAST), case.tol)
    for _ in range(WARM_UP):
        run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(RUNS):
            run()
    row = {"case": case.name, "batch": case.batch, "mode": mode, **shares(profiler.key_averages())}
    print(row, flush=True)
    return row


def main() -> None:
    """Profile all cases, write the CSV file, and render the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES_SHOWN, metavar="CASE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = {**results.machine_here(), **results.versions_here()}
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
        rows = [profile(case, mode) for case in arguments.cases for mode in MODES]
    results.keep("compiled_profile", [row | about for row in rows])
    render_pages()


if __name__ == "__main__":
    main()

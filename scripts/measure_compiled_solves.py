"""Compare compiled solves with eager ones and with other libraries, by `odebench bench` on one thread.

    python scripts/measure_compiled_solves.py FOLDER
    python scripts/measure_compiled_solves.py FOLDER tiny cnf tiny:4096 --repeats 3

A measurement is a case, or CASE:BATCH. Each is a process, whose results stay in FOLDER: a measurement that was stopped
continues with the first one that is missing. At the end, writes docs/results/compiled_solves.*.csv, the picture, and
the tables of the pages. Needs the other libraries (pip install -e ".[peers]"), an idle machine, and about five minutes
for each case, three for another batch, mostly for the compiler.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import results
from render_tables import render_pages

from odebench.bench import report

MEASUREMENTS = ("tiny", "mlp", "mlp_silu", "cnf", "tiny:1", "tiny:4096", "mlp:1", "mlp:4096")
# diffrax computes the exact gradient in mode checkpoint.
OPTIONS = ["--modes", "forward,backprop,checkpoint,adjoint", "--peers", "torchdiffeq,torchode,diffrax"]
OPTIONS += ["--threads", "1", "--alone"]


def measure(name: str, folder: Path, repeats: int) -> None:
    """Measure one case, unless its results are in the folder. Raises SystemExit if `odebench bench` fails."""
    case, _, batch = name.partition(":")
    done, part = folder / name.replace(":", "_"), folder / f"{name.replace(':', '_')}.part"
    if done.exists():
        return
    for file in part.glob("*"):
        file.unlink()
    options = ["--batch", batch, "--compile", "solve,fast"] if batch else ["--compile", "--compile-time"]
    command = [sys.executable, "-m", "odebench", "bench", case, *OPTIONS, "--repeats", str(repeats), *options]
    code = subprocess.run([*command, "--output", str(part)], check=False).returncode
    if code:
        raise SystemExit(code)
    part.rename(done)


def main() -> None:
    """Measure what is missing; write the CSV file and the pages; ``pictures.py`` draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("measurements", nargs="*", default=MEASUREMENTS, metavar="CASE[:BATCH]")
    parser.add_argument("--repeats", type=int, default=50, help="timed runs of each solve; by default 50")
    arguments = parser.parse_args()
    for name in arguments.measurements:
        measure(name, arguments.folder, arguments.repeats)
    files = [arguments.folder / name.replace(":", "_") / report.CSV for name in arguments.measurements]
    results.keep("compiled_solves", [row for file in files for row in results.read_csv(file)])
    render_pages()


if __name__ == "__main__":
    main()

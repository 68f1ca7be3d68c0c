"""The committed measurements: docs/results/NAME.MACHINE.torch-VERSION.csv, one file for each NAME.

    python scripts/results.py NAME FILE.csv            store a measurement, replacing the previous one
    python scripts/results.py NAME FILE.csv --add      keep the rows and seeds of the previous one that FILE.csv lacks

FILE.csv comes from `odebench reproduce` (reproduction.csv) or `odebench bench` (results.csv). Files of results that do
not depend on the machine, such as NFE, have only the versions in their name. ``render_tables.py`` makes the tables of
the pages from these files. Benchmarks of other machines are in docs/results/other_machines/, since ratios of times
differ between machines.
"""

import argparse
import csv
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from odebench.record.manifest import cpu_model
from odebench.reporting.runs import mean_and_std
from odebench.reporting.table import csv_text
from odebench.reproduce.table import measurement_columns, read_measurement

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
OTHERS, BENCH = "other_machines", "bench_"


def path_of(name: str) -> Path:
    """The path of the file with this NAME. Raises SystemExit if there is not exactly one."""
    found = sorted(RESULTS.glob(f"{name}.*.csv"))
    if len(found) != 1:
        raise SystemExit(f"{RESULTS} has {len(found)} files {name}.*.csv; one is needed")
    return found[0]


def read(name: str) -> list[dict[str, str]]:
    """Read the rows of the file with this NAME, as strings."""
    return read_csv(path_of(name))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file, as strings."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def keep(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows to a file named after NAME, machine and version of torch; returns its path.

    Replaces files with this NAME, but a benchmark of another machine is moved to `OTHERS`.
    """
    machine = machines(rows)
    for old in RESULTS.glob(f"{name}.*.csv"):
        if name.startswith(BENCH) and old.name.split(".")[1:2] != machine:
            (RESULTS / OTHERS).mkdir(exist_ok=True)
            old.rename(RESULTS / OTHERS / old.name)
        else:
            old.unlink()
    for old in (RESULTS / OTHERS).glob(f"{'.'.join([name, *machine])}.*.csv"):
        old.unlink()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{'.'.join([name, *machine, *versions(rows)])}.csv"
    path.write_text(csv_text(rows), encoding="utf-8")
    return path


def machines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The machine for a file name: ["intel-xeon"] for "Intel(R) Xeon(R) Processor, threads: 1"; [] if none is given."""
    descriptions = unique(*(row.get("cpu") or row.get("machine") or "" for row in rows))
    plain = {re.sub(r"\(\w+\)|\b(Processor|CPU)\b|@.*|,.*", "", one) for one in descriptions}
    return ["_".join(sorted("-".join(re.findall(r"\w+", one.lower())) for one in plain))] if plain else []


def versions(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The version for a file name, ["torch-2.13.0"], from the column torch or from the description of the machine."""
    descriptions = " ".join(f"torch {row['torch']}" if "torch" in row else row.get("machine") or "" for row in rows)
    found = sorted(set(re.findall(r"torch (\d+\.\d+\.\d+)", descriptions)))
    return [f"torch-{'_'.join(found)}"] if found else []


def with_rows_of(name: str, rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """The rows of the file with this NAME, with those of `rows`, whose seeds are added to the ones that are there."""
    new = {(row["row"], row["number"]): row for row in rows}
    kept = [with_seeds_of(row, new.pop((row["row"], row["number"]), row)) for row in read(name)]
    return [*kept, *new.values()]


def with_seeds_of(old: dict[str, str], new: dict[str, str]) -> dict[str, Any]:
    """The number `new` of a reproduction, over its seeds and the other ones of `old`, if both are of one budget.

    Where the values of the old seeds are not known, the new ones replace them. Verdicts are left to
    ``render_tables.py``.
    """
    one, two = read_measurement(old), read_measurement(new)
    others = one.values.keys() - two.values.keys()
    if not (others and two.values) or one.share != two.share:
        return new
    values = dict(sorted((one.values | two.values).items(), key=lambda pair: int(pair[0])))
    mean, std = mean_and_std(list(values.values()))
    std_error, minutes = (
        (len(others) * float(old[name] or "nan") + len(two.values) * float(new[name] or "nan")) / len(values)
        for name in ("std_error", "minutes")
    )
    return measurement_columns(
        replace(two, mean=mean, std=std, num_seeds=len(values), values=values, std_error=std_error), lines=[]
    ) | {
        "minutes": minutes,
        **{name: "; ".join(unique(old.get(name, ""), new[name])) for name in ("machine", "commit")},
        "date": max(old["date"], new["date"]),
        "command": re.sub(r"\bseed=[\d,]+", f"seed={','.join(values)}", new["command"]),
    }


def unique(*lists: str) -> list[str]:
    """The parts of lists that have semicolons between them, each once."""
    return [*dict.fromkeys(part for one in lists for part in one.split("; ") if part)]


def link(name: str) -> str:
    """A link to the file with this NAME, for a page in docs/."""
    return f"[{name}]({RESULTS.name}/{path_of(name).name})"


def measured(names: Iterable[str]) -> str:
    """A sentence with the days, processors and torch versions of the files with these NAMEs."""
    rows = [row for name in names for row in read(name)]
    days = sorted({row["date"] for row in rows} - {""})
    processors = sorted({(row.get("cpu") or row.get("machine") or "").partition(",")[0] for row in rows} - {""})
    torch = " and ".join(one.replace("-", " ") for one in versions(rows))
    return f"Measured {' to '.join(dict.fromkeys([days[0], days[-1]]))} on {' and '.join(processors)}, {torch}"


def sources(names: Iterable[str]) -> str:
    """The sentence of `measured`, and links to the files."""
    names = list(names)
    return f"{measured(names)}. Files, with the machine and date of each row: {', '.join(map(link, names))}."


def machine_here() -> dict[str, Any]:
    """The columns that describe this machine."""
    return {"machine": cpu_model(), "cores": len(os.sched_getaffinity(0))}


def versions_here() -> dict[str, str]:
    """The columns with versions and date, which are enough for results that do not depend on the machine."""
    return {"python": platform.python_version(), "torch": version("torch"), "date": f"{date.today()}"}


def main() -> None:
    """Store one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("--add", action="store_true")
    arguments = parser.parse_args()
    rows = read_csv(arguments.file)
    rows = with_rows_of(arguments.name, rows) if arguments.add else rows
    print(keep(arguments.name, rows).relative_to(RESULTS.parent.parent))


if __name__ == "__main__":
    main()

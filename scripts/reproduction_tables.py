"""Tables of the pages with results of `odebench reproduce`."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import results
from formatting import markdown, scientific

from odebench.reporting.table import PARAMETERS, display_scale, format_value
from odebench.reproduce.catalogue import Reproduction, find_reproduction
from odebench.reproduce.table import RowVerdict, judge_again, judge_rows, read_measurement
from odebench.reproduce.verdicts import MISSING, OTHER_MACHINE, PARTIAL, REPRODUCED, VERDICTS

# A row of a file that `odebench reproduce` wrote.
Row = dict[str, str]

KL = "final/test_kl_nats"


def overview_table(names: Sequence[str]) -> str:
    """A table with one line per reproduction: file, share of the published training, minutes, counts of verdicts."""
    lines = []
    for name in names:
        rows = results.read(name)
        words = [word for word in rows[0]["command"].split()[2:] if not word.startswith("trainer.threads=")]
        # Rows with equal minutes, to the last digit, come from the same training.
        minutes = sum({float(row["minutes"]) * int(row["seeds"]) for row in rows if row["minutes"]})
        planned, done = {row["row"] for row in rows}, {row["row"] for row in rows if row["ours"]}
        some = f", {len(done)} of {len(planned)} rows" * (done != planned)
        source = find_reproduction(words[0]).source.partition(" (")[0]
        command = f"[`{' '.join(words)}`]({results.RESULTS.name}/{results.path_of(name).name})"
        share = (" and ".join(shares(rows)) or "–") + some
        lines.append([source, command, share, f"{minutes:.0f}", verdict_counts(judged(name)) or "–"])
    header = ["source", "`odebench reproduce`, with its results", "share of the published training", "minutes"]
    return markdown([*header, "verdicts"], lines)


def reproduction_of(rows: Sequence[Row]) -> Reproduction:
    """The reproduction that wrote a file, from its command."""
    return find_reproduction(rows[0]["command"].split()[2])


def judged(name: str) -> list[RowVerdict]:
    """The verdicts on the rows of the file with this NAME."""
    rows = results.read(name)
    return judge_rows(reproduction_of(rows), map(read_measurement, rows))


def rewrite_verdicts() -> None:
    """Judge the rows of all files of `odebench reproduce` anew."""
    for path in sorted(results.RESULTS.glob("*.csv")):
        rows = results.read_csv(path)
        if "verdict" in rows[0]:
            path.write_text(judge_again(reproduction_of(rows), rows), encoding="utf-8")


def verdict_counts(lines: Iterable[RowVerdict]) -> str:
    """Count the verdicts on published values, and on comparisons of two rows."""
    lines = list(lines)
    values = count_words(line for line in lines if line.published)
    pairs = count_words(line for line in lines if line.other)
    parts = [f"{values[word]} {word}" for word in values], [f"{pairs[word]} {word}" for word in pairs]
    texts = [prefix + ", ".join(words) for prefix, words in zip(("", "comparisons: "), parts, strict=True) if words]
    return "; ".join(texts)


def count_words(lines: Iterable[RowVerdict]) -> Counter[str]:
    """The number of lines with each verdict, in the order of VERDICTS, without those that were not judged."""
    words = [line.verdict.word for line in lines if line.verdict.word not in (OTHER_MACHINE, MISSING)]
    return Counter(sorted(words, key=VERDICTS.index))


def published_numbers(names: Iterable[str]) -> str:
    """A sentence with the number of published numbers, and how many of them have each verdict."""
    lines = [line for name in names for line in judged(name) if line.published]
    counts = count_words(lines)
    sizes = sum(line.ours.tag == PARAMETERS for line in lines if line.verdict.word == REPRODUCED)
    partial, total = counts.pop(PARTIAL, 0), counts.total()
    others = [f"{counts[word]} *{word}*" for word in counts if word != REPRODUCED]
    return (
        f"Of {total} published numbers **{counts[REPRODUCED]} are reproduced** ({sizes} of them a number of"
        f" parameters); the verdicts on the\nothers are {', '.join(others)}. {partial} more come from trainings shorter"
        " than the published ones, and decide\nnothing yet."
    )


def shares(rows: Iterable[Row]) -> list[str]:
    """The different shares of the published training among the rows, the largest first."""
    return [f"{100 * share:.3g} %" for share in sorted({float(row["share"]) for row in rows if row["share"]})[::-1]]


def result_table(rows: Sequence[Row], numbers: Sequence[str]) -> str:
    """A table with one line for each row that has a result, and a column for each of the numbers."""
    found = by_row(rows)
    names = [name for name, its in found.items() if any(number in its for number in numbers)]
    cells = [[name, *(result_cell(found[name], number) for number in numbers)] for name in names]
    return markdown(["", *(titled(rows, number) for number in numbers)], cells)


def pivot_table(rows: Sequence[Row], numbers: Sequence[str], separator: str, row_first: bool = True) -> str:
    """A table of rows named "A: B" or "A, B": lines are the A and columns the B (or reversed, unless row_first)."""
    found: dict[str, dict[str, str]] = {}
    for name, its in by_row(rows).items():
        first, _, last = name.partition(separator) if row_first else name.rpartition(separator)
        line, column = (first, last) if row_first else (last, first)
        found.setdefault(line, {})[column] = ", ".join(result_cell(its, number) for number in numbers)
    columns = list(dict.fromkeys(column for its in found.values() for column in its))
    lines = [[line, *(its.get(column, "–") for column in columns)] for line, its in found.items()]
    return markdown([", ".join(titled(rows, number) for number in numbers), *columns], lines)


def by_row(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Name of a row -> number -> its result; omits numbers without a result."""
    found: dict[str, dict[str, Row]] = {}
    for row in (row for row in rows if row["ours"]):
        found.setdefault(row["row"], {})[row["number"]] = row
    return found


def result_cell(its: dict[str, Row], number: str) -> str:
    """Format a result with its standard deviation, and the published value in brackets."""
    row = its.get(number, {})
    ours, published = (row.get(name) for name in ("ours", "published"))
    if not ours:
        return "–"
    text = format_value(number, float(ours), float(row["spread"] or "nan"))
    return f"{text} ({format_value(number, float(published))})" if published else text


def titled(rows: Iterable[Row], number: str) -> str:
    """The column title of a number; it says whether the cells also have published values."""
    is_published = any(row["published"] for row in rows if row["number"] == number and row["ours"])
    return column_title(number) + " (published)" * is_published


def column_title(number: str) -> str:
    """Format final/test_nll_nats as "test NLL (nats)", and best/nll_nats as "best validation NLL (nats)"."""
    words = number.removeprefix("final/").replace("best/", "best validation ").replace("peak_", "peak memory_")
    words = words.replace("saved_", "saved for backward_").replace("_mib", "_(MiB)")
    words = re.sub(r"_(nats|ms)$", r"_(\1)", words).replace("_", " ") + " (%)" * (display_scale(number) == 100)
    return re.sub(r"\b(nll|kl|nfe|mse|rmse|auc)\b", lambda found: found[0].upper(), words)


def error_line(rows: Sequence[Row]) -> str:
    """A line with our and the published test errors of a reproduction."""
    found = [row for row in rows if row["number"] == "final/test_accuracy" and row["published"]]
    errors = {row["row"]: [100 * (1 - float(row[whose])) for whose in ("ours", "published")] for row in found}
    return "; ".join(f"{name} **{ours:.2f} %** ({published:.2f} %)" for name, (ours, published) in errors.items()) + "."


def width_table(rows: Sequence[Row]) -> str:
    """The table for Figure 4: a line per target, a column per width M of the CNF and depth K = M of the planar flow."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, its in by_row(rows).items():
        if KL in its:
            target, _, size = re.fullmatch(r"(.*): (.*), [MK] = (\d+)", name).groups()
            found.setdefault(target, {}).setdefault(size, []).append(result_cell(its, KL))
    sizes = list(next(iter(found.values())))
    lines = [[target, *(", ".join(its[size]) for size in sizes)] for target, its in found.items()]
    return markdown(["test KL (nats): CNF, planar flow", *(f"M = K = {size}" for size in sizes)], lines)


def solver_table(rows: Sequence[Row]) -> str:
    """The table for Figure 3: a trained model with other solvers, at every second tolerance.

    The cells have forward and backward NFE, and the error of the output.
    """
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        solver, _, tol = row["row"].partition(" at ")
        if "," not in solver:
            found.setdefault((tol, solver), {})[row["number"]] = row["ours"]
    solvers = list(dict.fromkeys(solver for _, solver in found))
    lines = []
    for tol in list(dict.fromkeys(tol for tol, _ in found))[::2]:
        cells = []
        for solver in solvers:
            its = found.get((tol, solver), {})
            nfe = [f"{float(its[name]):.0f}" if its.get(name) else "–" for name in ("nfe_forward", "nfe_backward")]
            error = scientific(float(its["output_error"])) if its.get("output_error") else "–"
            cells.append(f"{' + '.join(nfe)}, {error}")
        lines.append([tol, *cells])
    header = ["tol", *(f"`{solver}`: NFE, error" for solver in solvers)]
    return markdown(header, lines)

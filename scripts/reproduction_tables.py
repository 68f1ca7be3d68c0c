"""Tables of the pages with results of `odebench reproduce`."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import results
from formatting import markdown, scientific

from odebench.reporting.formatting import PARAMETERS, PEAK_MIB, SAVED_MIB, display_scale, format_value
from odebench.reporting.notes import plural
from odebench.reporting.published import PublishedValue
from odebench.reporting.runs import mean_and_std
from odebench.reproduce.catalogue import CONSTANTS, Reproduction, find_reproduction
from odebench.reproduce.table import RowVerdict, format_interval, judge_again, judge_rows, read_measurement
from odebench.reproduce.verdicts import (
    BETTER,
    CANNOT_TELL,
    EXACT_TAGS,
    MISSING,
    OTHER_MACHINE,
    PARTIAL,
    REPRODUCED,
    VERDICTS,
    WORSE,
    describe_deviation,
    t_half_width,
)

# A row of a file that `odebench reproduce` wrote.
Row = dict[str, str]

KL = "final/test_kl_nats"
MEMORY_TAGS = (SAVED_MIB, PEAK_MIB)
NOT_JUDGED = (OTHER_MACHINE, MISSING)
INTERVAL_VERDICTS = (REPRODUCED, BETTER, CANNOT_TELL, WORSE)


def overview_rows(name: str) -> list[Row]:
    """The overview of the file with this NAME: a row for each published value, and one for each kind of comparison.

    Values of trainings shorter than the published ones share a row if their names differ only in numbers.
    """
    rows, lines = results.read(name), without_repeats(name)
    budget = re.search(r"budget=(\w+)", rows[0]["command"])
    share = " and ".join(shares(rows))
    budget_text = ", ".join(filter(None, [budget[1] if budget else "full", share]))
    common = {"reproduction": reproduction_of(rows).name, "budget": budget_text}
    groups: dict[str, list[RowVerdict]] = {}
    for line in lines:
        if line.published and line.verdict.word not in NOT_JUDGED:
            stem = re.sub(r"\d+", "", line.ours.row) if line.verdict.word == PARTIAL else line.ours.row
            groups.setdefault(f"{stem} {line.ours.tag}", []).append(line)
    found = [common | _values_row(group) | {"counts": _counts(group)} for group in groups.values()]
    constants = {row.name for row in reproduction_of(rows).rows if f"experiment={CONSTANTS}" in row.job}
    kinds = ("that the paper makes", "of two rows", "with constant predictions")
    pairs: dict[str, list[RowVerdict]] = {kind: [] for kind in kinds}
    for line in (line for line in lines if line.other and line.verdict.word not in NOT_JUDGED):
        is_published = "(published " in line.verdict.text  # the ratio of two published values
        pairs[kinds[2 if line.other in constants else 0 if is_published else 1]].append(line)
    for kind, its in pairs.items():
        if counts := _counts(its):
            seeds = " to ".join(
                f"{one}" for one in sorted({f(line.ours.num_seeds for line in its) for f in (min, max)})
            )
            columns = {
                "number": f"{plural(len(its), 'comparison')} {kind}",
                "seeds": seeds,
                "published": "",
                "ours": "",
            }
            found.append(common | columns | {"verdict": counts, "counts": counts})
    return found


def without_repeats(name: str) -> list[RowVerdict]:
    """The verdicts of the file with this NAME; that of a further budget does not repeat the numbers of parameters."""
    repeats = PARAMETERS if name != reproduction_of(results.read(name)).name else ""
    return [line for line in judged(name) if line.ours.tag != repeats]


def _counts(lines: Iterable[RowVerdict]) -> str:
    """The number of lines with each verdict: ``2 better, 1 cannot tell``."""
    return ", ".join(f"{count} {word}" for word, count in count_words(lines).items())


def _values_row(lines: Sequence[RowVerdict]) -> Row:
    """The overview's row for one published value, or for several whose names differ only in numbers."""
    ours = lines[0].ours
    words = zip(*(re.split(r"(\d+)", line.ours.row) for line in lines), strict=True)
    name = "".join(", ".join(dict.fromkeys(parts)) for parts in words)
    texts = [line.verdict.text for line in lines]
    if lines[0].verdict.word == PARTIAL:
        texts = [describe_deviation(ours.tag, line.ours.mean, line.published.value) for line in lines]
    intervals = [f" ({format_interval(line.ours)})".replace(" (-)", "") for line in lines]
    cells = [f"{format_value(ours.tag, line.ours.mean)}{one}" for line, one in zip(lines, intervals, strict=True)]
    published = [format_value(ours.tag, line.published.value) + "*" * line.published.recalled for line in lines]
    return {
        "number": f"{name}, {column_title(ours.tag)}",
        "seeds": f"{ours.num_seeds}",
        "published": ", ".join(published),
        "ours": ", ".join(cells),
        "verdict": f"{lines[0].verdict.word}: {', '.join(texts)}",
    }


def overview_table(names: Iterable[str], pages: Mapping[str, str]) -> str:
    """The overview of all files as a table. pages: NAME -> name of its page in docs/reproduced, if that differs."""
    cells, without = [], []
    for name in names:
        link = f"[{name}](reproduced/{pages.get(name, name)}.md)"
        rows = overview_rows(name)
        if not rows and name not in pages:
            without.append(link)
        for row in rows:
            parts = [row[column] or "–" for column in ("number", "seeds", "published", "ours", "verdict")]
            cells.append([link, parts[0], row["budget"] if link else "", *parts[1:]])
            link = ""
    header = ["reproduction", "number", "budget", "seeds", "published", "ours (95 % interval)", "verdict"]
    return f"{markdown(header, cells)}\n\nWithout published numbers: {', '.join(without)}."


def origins(names: Iterable[str]) -> str:
    """A line for each file: the command that made it, share of the published training, minutes, and a link."""
    return "\n".join(f"- {origin(name)}" for name in names)


def origin(name: str) -> str:
    """The commands that made the file with this NAME, what they trained, and a link to the file."""
    rows = results.read(name)
    left_out = r" trainer\.(threads|figures)=\w+| seed=0(?= |$)| --rows .*"
    commands = dict.fromkeys(re.sub(left_out, "", row["command"]) for row in rows)
    # Rows with equal minutes, to the last digit, come from the same training.
    minutes = sum({float(row["minutes"]) * int(row["seeds"]) for row in rows if row["minutes"]})
    planned, done = {row["row"] for row in rows}, {row["row"] for row in rows if row["ours"]}
    share = f"{' and '.join(shares(rows))} of `budget=full`, " if any(row["share"] for row in rows) else ""
    some = f"{len(done)} of {len(planned)} rows, " * (done != planned)
    made_by = " and ".join(f"`{one}`" for one in commands)
    return f"{made_by}: {share}{some}{minutes:.0f} minutes; [results](../results/{results.path_of(name).name})"


def own_settings(names: Iterable[str]) -> str:
    """A list of our settings that are not published, and how each was chosen."""
    found = {find_reproduction(results.read(name)[0]["command"].split()[2]).name: None for name in names}
    lines = [f"- {setting}: {how}." for name in found for setting, how in find_reproduction(name).own_settings.items()]
    return "\n".join(["Our own settings:", "", *lines]) if lines else ""


def missed_by_chance(names: Iterable[str]) -> str:
    """A sentence with the number of intervals that should miss a published value by chance, and of those that do."""
    lines = [line for line in first_verdicts(names) if line.ours.tag not in EXACT_TAGS]
    full = [line for line in lines if line.verdict.word in INTERVAL_VERDICTS and line.ours.interval.half_width >= 0]
    missed = sum(line.verdict.word in (BETTER, WORSE) for line in full)
    return (
        f"Of the {len(full)} intervals of complete trainings, {0.05 * len(full):.1f} should miss the published value by"
        f" chance even if each were\nreproduced exactly; {missed} do. The published values have errors of their own,"
        " which Chen et al. do not give."
    )


def first_verdicts(names: Iterable[str]) -> list[RowVerdict]:
    """The verdict on each published number: of its rows and budgets, the first one whose training is complete."""
    by_number: dict[PublishedValue, RowVerdict] = {}
    for line in (line for name in names for line in judged(name) if line.verdict.word not in NOT_JUDGED):
        if line.published and by_number.setdefault(line.published, line).verdict.word == PARTIAL:
            by_number[line.published] = line
    return list(by_number.values())


def reproduction_of(rows: Sequence[Row]) -> Reproduction:
    """The reproduction that wrote a file, from its command."""
    return find_reproduction(rows[0]["command"].split()[2])


def judged(name: str) -> list[RowVerdict]:
    """The verdicts on the rows of the file with this NAME."""
    rows = results.read(name)
    return judge_rows(reproduction_of(rows), map(read_measurement, rows))


def rewrite_verdicts() -> None:
    """Judge the rows of all files of `odebench reproduce` anew, in the order of the reproduction."""
    for path in sorted(results.RESULTS.glob("*.csv")):
        rows = results.read_csv(path)
        if "verdict" in rows[0]:
            reproduction = reproduction_of(rows)
            names = [row.name for row in reproduction.rows]
            rows.sort(key=lambda row, names=names: names.index(row["row"]))
            path.write_text(judge_again(reproduction, rows), encoding="utf-8")


def count_words(lines: Iterable[RowVerdict]) -> Counter[str]:
    """The number of lines with each verdict, in the order of VERDICTS, without those that were not judged."""
    words = [line.verdict.word for line in lines if line.verdict.word not in NOT_JUDGED]
    return Counter(sorted(words, key=VERDICTS.index))


def published_numbers(names: Iterable[str]) -> str:
    """How many published results and numbers of parameters have each verdict."""
    lines = first_verdicts(names)
    results_of, sizes = [], []
    for line in lines:
        (sizes if line.ours.tag == PARAMETERS else results_of).append(line)
    agree, partial = count_words(sizes)[REPRODUCED], count_words(results_of)[PARTIAL]
    recalled = sum(line.published is not None and line.published.recalled for line in lines)
    return (
        f"{trained_in_full(names)} {partial} more come from\nshorter trainings and decide nothing yet. Of"
        f" {len(sizes)} numbers of parameters {agree} agree{'s' * (agree == 1)}. {recalled} of all these published"
        " numbers are quoted from memory\\*. Each is counted once, for the first row that has it."
    )


def trained_in_full(names: Iterable[str]) -> str:
    """A sentence: the verdicts on published results, without numbers of parameters and shorter trainings."""
    counts = count_words(line for line in first_verdicts(names) if line.ours.tag != PARAMETERS)
    del counts[PARTIAL]
    reproduced = counts.pop(REPRODUCED, 0)
    others = ", ".join(f"{number} *{word}*" for word, number in counts.items()) or "none"
    return (
        f"Reproduced: **{reproduced} of {reproduced + counts.total()}** published results that were trained in full; "
        f"the others are {others}."
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


def difference_table(rows: Sequence[Row], numbers: Sequence[str], base: str) -> str:
    """Mean differences of the rows from the row `base`, paired by seed, with half-widths of 95 % intervals."""
    found = by_row(rows)

    def difference(name: str, number: str) -> str:
        one, other = (read_measurement(found[row][number]).values for row in (name, base))
        pairs = [one[seed] - other[seed] for seed in one.keys() & other.keys()]
        mean, std = mean_and_std(pairs)
        return f"{mean:+.2g} ± {t_half_width(std, len(pairs)):.2g}" if len(pairs) > 1 else "–"

    lines = [[name, *(difference(name, number) for number in numbers)] for name in found if name != base]
    return markdown([f"minus {base}", *(titled(rows, number) for number in numbers)], lines)


def pivot_table(rows: Sequence[Row], numbers: Sequence[str], separator: str, swapped: bool = False) -> str:
    """A table of rows named "A: B" with this separator: lines are the A and columns the B, or swapped."""
    found: dict[str, dict[str, str]] = {}
    for name, its in by_row(rows).items():
        line, _, column = name.partition(separator)
        line, column = (column, line) if swapped else (line, column)
        found.setdefault(line, {})[column] = ", ".join(result_cell(its, number) for number in numbers)
    # In the order of the lines that have most of them.
    columns = list(dict.fromkeys(column for its in sorted(found.values(), key=len, reverse=True) for column in its))
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
    """The table for Figure 4: a line per target, a column per width M of the CNF and depth K = M of the planar flow.

    A last column has the CNF with as many parameters as the deepest flow, and a last line the numbers of parameters.
    """
    found: dict[str, dict[str, list[str]]] = {}
    sizes: dict[str, dict[str, None]] = {}
    for name, its in by_row(rows).items():
        parts = re.fullmatch(r"(.*): .*, [MK] = (\d+)(, .*)?", name)
        if parts and KL in its:
            size = f"M = {parts[2]}{parts[3]}" if parts[3] else f"M = K = {parts[2]}"
            found.setdefault(parts[1], {}).setdefault(size, []).append(result_cell(its, KL))
            sizes.setdefault(size, {})[f"{float(its['parameters']['ours']):,.0f}"] = None
    lines = [[target, *(", ".join(its[size]) for size in sizes)] for target, its in found.items()]
    lines.append(["parameters", *("; ".join(counts) for counts in sizes.values())])
    return markdown(["test KL (nats): CNF, planar flow", *sizes], lines)


def growth_table(rows: Sequence[Row]) -> str:
    """A table of saved and peak memory of rows named "A, L = DEPTH": at both ends, and for a layer at the last."""
    found: dict[str, dict[int, dict[str, Row]]] = {}
    for name, its in by_row(rows).items():
        line, depth = name.split(", L = ")
        found.setdefault(line, {})[int(depth)] = its
    lines = []
    for line, by_depth in found.items():
        depths = sorted(by_depth)
        first, before, last = depths[0], depths[-2], depths[-1]
        cells = [line]
        for tag in MEMORY_TAGS:
            low, middle, high = (float(by_depth[depth][tag]["ours"]) for depth in (first, before, last))
            cells.append(f"{low:.2f} to {high:.2f}, {(high - middle) / (last - before):.3f}")
        lines.append(cells)
    return markdown(
        [f"MiB, L = {first} to {last}, and for each layer from L = {before} on", "saved for backward", "peak"], lines
    )


def cost_table(rows: Sequence[Row]) -> str:
    """A table of operations and parameters of rows named "M = WIDTH", and of operations divided by the width."""
    lines = []
    for name, its in by_row(rows).items():
        flops, width = float(its["final/flops"]["ours"]), int(name.removeprefix("M = "))
        parameters = f"{float(its['parameters']['ours']):,.0f}"
        lines.append([f"{width:,}", parameters, f"{flops / 1e6:,.0f}", f"{flops / 1e6 / width:.3f}"])
    return markdown(["M", "parameters", "MFLOPs", "MFLOPs / M"], lines)


def training_table(trainings: Sequence[Sequence[Row]]) -> str:
    """The table for Figure 3d: forward NFE of `dopri5` at each tolerance, a column for each training."""
    found = [by_row(rows) for rows in trainings]
    names = [name for name in found[0] if re.fullmatch("dopri5 at [^,]+", name)]
    header = ["`dopri5`, NFE forward", *(f"after {shares(rows)[0]} of the training" for rows in trainings)]
    lines = [[name.partition(" at ")[2], *(result_cell(its[name], "nfe_forward") for its in found)] for name in names]
    return markdown(header, lines)


def solver_table(rows: Sequence[Row]) -> str:
    """The table for Figure 3: a trained model with other solvers, at every second tolerance.

    The cells have forward and backward NFE, and the error of the output.
    """
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        solver, _, tol = row["row"].partition(" at ")
        if "," not in row["row"]:
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

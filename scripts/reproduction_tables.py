"""Tables of docs/reproduced.md and docs/measured.md with results of `odebench reproduce`."""

import re
from collections.abc import Iterable, Sequence

import results
from formatting import markdown, milliseconds, scientific

from odebench.reporting.table import display_scale, format_value
from odebench.reproduce.catalogue import find_reproduction

# A row of a file that `odebench reproduce` wrote.
Row = dict[str, str]

MINUTES = "final/minutes"
PARTIAL = "partial budget"
AS_PUBLISHED = "as published"
# On published values, the best first.
VERDICTS = ("reproduced", "not reached", PARTIAL)


def overview_table(names: Sequence[str]) -> str:
    """One line per reproduction: description, share of the published training, and counts of verdicts."""
    lines = []
    for name in names:
        rows = results.read(name)
        words = rows[0]["command"].split()[2:]
        reproduction = find_reproduction(words[0])
        texts = [text for row in rows for text in row["verdict"].split("; ")]
        values = {word: sum(bool(re.match(f"{word}(,[^:]*)?: ", text)) for text in texts) for word in VERDICTS}
        comparisons = [text for text in texts if " against " in text]
        kept = sum(text.startswith(f"{AS_PUBLISHED}:") for text in comparisons)
        # Rows that read the same training have its minutes to the last digit.
        minutes = sum({float(row["minutes"]) * int(row["seeds"]) for row in rows if row["minutes"]})
        planned, done = {row["row"] for row in rows}, {row["row"] for row in rows if row["ours"]}
        some = f", {len(done)} of {len(planned)} rows" * (done != planned)
        lines.append(
            [
                reproduction.source.partition(" (")[0],
                reproduction.title,
                f"`{' '.join(word for word in words if not word.startswith('trainer.threads='))}`",
                (" and ".join(shares(rows)) or "–") + some,
                f"{minutes:.0f}",
                ", ".join(f"{count} {word}" for word, count in values.items() if count) or "–",
                f"{kept} of {len(comparisons)} {AS_PUBLISHED}" if comparisons else "–",
            ]
        )
    header = ["source", "what", "`odebench reproduce`", "share of the published training", "minutes"]
    return markdown([*header, "published numbers", "comparisons"], lines)


def shares(rows: Iterable[Row]) -> list[str]:
    """Shares of the published training among the rows, the largest first."""
    return [f"{100 * share:.3g} %" for share in sorted({float(row["share"]) for row in rows if row["share"]})[::-1]]


def reproduction_table(rows: Sequence[Row]) -> str:
    """All results of a reproduction, one line per row: ours, published values if there are any, and short verdicts.
    Columns with equal cells move below the table. Omits rows without a run."""
    rows = [row for row in rows if row["ours"]]
    # Quantities of trainings and of evaluations share a column: a row has only one of them.
    columns: dict[str, list[str]] = {}
    for number in dict.fromkeys(row["number"] for row in rows):
        columns.setdefault(column_title(number), []).append(number)
    published = {row["number"] for row in rows if row["published"]}
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["row"], {})[row["number"]] = row
    lines = []
    for title, its in found.items():
        first = next(iter(its.values()))
        cells = []
        for numbers in columns.values():
            number = next((number for number in numbers if number in its), numbers[0])
            row = its.get(number, {})
            cells.append(format_result(number, row.get("ours"), row.get("spread")))
            cells += [format_result(number, row.get("published"))] if published & {*numbers} else []
        share = next(iter(shares([first])), "–")
        lines.append([title, *cells, share, first["seeds"], short_verdict(its) or "–"])
    header = ["run"]
    for title, numbers in columns.items():
        header += [title, "published"] if published & {*numbers} else [title]
    header += ["share", "seeds", "verdict"]
    alike = {name: cells[0] for name, *cells in zip(header, *lines, strict=True) if len({*cells}) == 1}
    moved_below = BELOW.keys() & alike.keys() - {column_title(number) for number in published}
    below = [text.format(alike[name]) for name, text in BELOW.items() if name in moved_below and alike[name] != "–"]
    left_out = moved_below | ({"verdict"} if alike.get("verdict") == "–" else set())
    kept = [index for index, name in enumerate(header) if name not in left_out]
    header, *lines = ([line[index] for index in kept] for line in [header, *lines])
    return f"{markdown(header, lines)}\n\n{footer(rows, below)}"


# Text below a table for columns whose cells are all equal.
BELOW = {"share": "{} of the published training", "seeds": "seeds: {}", "minutes": "{} minutes"}


def footer(rows: Sequence[Row], more: Sequence[str] = ()) -> str:
    """The line below a table: command, common values, date and machine."""
    command, date, machine = (rows[0][name] for name in ("command", "date", "machine"))
    return f"{', '.join([f'`{command}`', *more, f'measured {date} on {machine}'])}."


def column_title(number: str) -> str:
    """final/test_nll_nats as "test NLL (nats)", best/nll_nats as "best validation NLL (nats)"."""
    words = number.removeprefix("final/").replace("best/", "best validation ").replace("peak_", "peak memory_")
    words = words.replace("saved_", "saved for backward_").replace("_mib", "_(MiB)")
    words = re.sub(r"_(nats|ms)$", r"_(\1)", words).replace("_", " ") + " (%)" * (display_scale(number) == 100)
    return re.sub(r"\b(nll|kl|nfe|mse|rmse|auc)\b", lambda found: found[0].upper(), words)


def format_result(number: str, value: str | None, std: str | None = None) -> str:
    """Format a result as `odebench reproduce` prints it."""
    if not value:
        return "–"
    return format_value(number, float(value), float(std or "nan"))


def short_verdict(its: dict[str, Row]) -> str:
    """The verdicts of a row without values that the table shows; with titles if the row has several."""
    texts = {column_title(number): text for number, row in its.items() if (text := shorten(row["verdict"]))}
    if len({*texts.values()}) < 2:
        return next(iter(texts.values()), "")
    return "; ".join(f"{number}: {text}" for number, text in texts.items())


def shorten(verdict: str) -> str:
    """Shorten one verdict: omit the two values of a comparison, and the share and repetitions of a partial budget."""
    kept: list[str] = []
    for text in verdict.split("; ") if verdict != "another machine" else ():
        if " not done: " in text:
            kept = kept or ["nothing to compare with yet"]
        elif text.startswith(PARTIAL) and text.endswith("of the published trainings"):  # of the comparison
            kept[-1] += f" ({PARTIAL})" * (not kept[0].startswith(PARTIAL))
        else:
            text = re.sub(rf"({AS_PUBLISHED}): .*?(, ratio .*)?$", r"\1\2", text)
            kept.append(re.sub(rf"({PARTIAL}), [^:]* of the published training", r"\1", text))
    return "; ".join(kept)


def error_line(rows: Sequence[Row]) -> str:
    """Our and the published test errors of a reproduction, in one line."""
    found = [row for row in rows if row["number"] == "final/test_accuracy" and row["published"]]
    errors = {row["row"]: [100 * (1 - float(row[whose])) for whose in ("ours", "published")] for row in found}
    return "; ".join(f"{name} **{ours:.2f} %** ({published:.2f} %)" for name, (ours, published) in errors.items()) + "."


def width_table(rows: Sequence[Row]) -> str:
    """Figure 4: one line per target and width M of the CNF, with the planar flow of depth K = M, after its training and
    in the training time of the CNF."""
    cnf, flow, in_time = "CNF", "planar flow", ", in the CNF's time"
    title = re.compile(rf"(?P<target>.*): (?P<model>{cnf}|{flow}), [MK] = (?P<size>\d+)(?P<when>{in_time})?")
    found: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    of_model: dict[str, list[Row]] = {cnf: [], flow: []}
    for row in rows:
        target, model, size, when = title.fullmatch(row["row"]).groups(default="")
        found.setdefault((target, size), {})[model + when, row["number"]] = row
        of_model[model].append(row)
    pairs = {"final/test_kl_nats": flow, "best/kl_nats": flow + in_time}
    lines = []
    for (target, size), its in found.items():
        kls = [
            format_result(number, its[model, number]["ours"]) for number, two in pairs.items() for model in (cnf, two)
        ]
        minutes = [format_result(MINUTES, its[model, MINUTES]["ours"]) for model in of_model]
        published = format_result(MINUTES, its[flow, MINUTES]["published"])
        verdicts = [shorten(its[cnf, number]["verdict"]).removesuffix(f" ({PARTIAL})") for number in pairs]
        lines.append([target, size, *kls, *minutes, published, "; ".join(dict.fromkeys(verdicts))])
    header = ["target", "M, K"]
    for what in ("test KL (nats)", "in the CNF's time", "minutes"):
        header += [f"{what}: {cnf}", flow]
    share = " and ".join(f"{model} {' to '.join(shares(of_model[model]))}" for model in of_model)
    below = [f"of the published trainings {share}", f"seeds: {rows[0]['seeds']}"]
    return f"{markdown([*header, 'planar flow, published', 'verdict'], lines)}\n\n{footer(rows, below)}"


# Test quantities of the models in `reproduce gradients`, with formats.
TEST_QUANTITIES = {
    "test_accuracy": "{:.2f} %",
    "test_nll_nats": "{:.3f} nats",
    "test_rmse_extrapolation": "RMSE {:.3f}",
}


def gradient_table(rows: Sequence[Row]) -> str:
    """`reproduce gradients`: one line per model and gradient mode: test result, costs, and gradient errors at each
    tolerance."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in (row for row in rows if row["ours"]):
        what, _, where = row["row"].partition(", ")
        its = found.setdefault(what, {}).setdefault(where, {})
        its[row["number"].removeprefix("final/")] = float(row["ours"])
    tolerances = {where: where.rpartition(" at ")[2] for its in found.values() for where in its if " at " in where}
    lines = []
    for what, its in found.items():
        model, _, mode = what.partition(": ")
        training = its["training"]
        errors = [
            [scientific(its[where][name]) if name in its.get(where, {}) else "–" for where in tolerances]
            for name in ("gradient_error_discrete", "gradient_error")
        ]
        nfe = f"{training['nfe_forward']:.3g} + {training['nfe_backward']:.3g}"
        (result,) = (
            text.format(display_scale(f"final/{name}") * training[name])
            for name, text in TEST_QUANTITIES.items()
            if name in training
        )
        costs = [f"{training['peak_mib']:.3g} MiB", f"{milliseconds(training['step_ms'])} ms", nfe]
        called = f"`{mode}`".replace(" (", "` (`").replace(")`", "`)")
        lines.append([f"`{model}`", called, result, *costs, *map(", ".join, errors)])
    at = ", ".join(tolerances.values())
    header = ["model", "gradient", "test", "peak memory", "a step", "NFE"]
    header += [f"error against the discrete solve at {at}", "against float64 at 1e-9"]
    return f"{markdown(header, lines)}\n\n{footer(rows)}"


def solver_table(rows: Sequence[Row]) -> str:
    """Figure 3, a trained model under other solvers and tolerances: forward and backward NFE, error of the output."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        solver, _, tol = row["row"].partition(" at ")
        if "," not in solver:
            found.setdefault((tol, solver), {})[row["number"]] = row["ours"]
    solvers = list(dict.fromkeys(solver for _, solver in found))
    lines = []
    for tol in dict.fromkeys(tol for tol, _ in found):
        cells = []
        for solver in solvers:
            its = found.get((tol, solver), {})
            nfe = [f"{float(its[name]):.0f}" if its.get(name) else "–" for name in ("nfe_forward", "nfe_backward")]
            error = scientific(float(its["output_error"])) if its.get("output_error") else "–"
            cells.append(f"{' + '.join(nfe)}, {error}")
        lines.append([tol, *cells])
    header = ["tol", *(f"`{solver}`: NFE, error" for solver in solvers)]
    return f"{markdown(header, lines)}\n\n{footer(rows)}"

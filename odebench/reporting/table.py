"""Tables of runs as pandas DataFrames, and of groups of runs for the terminal, as Markdown, LaTeX and CSV."""

import csv
import io
import logging
import math
import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas

from odebench.console import aligned, fitted, print_text, terminal_width
from odebench.errors import UsageError, did_you_mean, split_names
from odebench.record import layout
from odebench.reporting.formatting import (
    BACKWARD,
    DESCRIPTIONS,
    EMPTY,
    FORWARD,
    MINUTES,
    PARAMETERS,
    PEAK_MIB,
    STEP_MS,
    better_of,
    column_decimals,
    column_title,
    describe_tag,
    display_scale,
    display_unit,
    format_number,
    format_setting,
    heading,
    setting_headings,
    tag_title,
)
from odebench.reporting.runs import Run, RunCollection, RunGroup, collect_runs, mean_and_std

# The columns that are shown by default after the objective, the most important first.
COSTS = (FORWARD, BACKWARD, PEAK_MIB, MINUTES, STEP_MS, PARAMETERS)

log = logging.getLogger(__name__)


def load_runs(folder: Path | str = "outputs") -> pandas.DataFrame:
    """Return all runs in a folder and below as a table with one row per run, unfinished runs included.

    Columns: "folder", "status", "experiment", the settings by dotted key (``solver.rtol``), and the results
    (``best/accuracy``, ``final/test_loss``, "parameters"). A run has no value (None or NaN) in the columns of others.

    Damaged runs are left out with a warning. Raises UsageError if the folder does not exist.
    """
    collection = collect_runs([Path(folder)])
    for line in collection.damaged:
        log.warning(line)
    starts, settings, results = [], [], []
    for run in collection.runs:
        starts.append((str(run.path), run.status, run.settings["experiment"]))
        settings.append({key: value for key, value in run.overview.settings.items() if key != "budgets"})
        summary = run.overview.summary.items()
        results.append({tag: value for tag, value in summary if tag == "parameters" or layout.is_summary_tag(tag)})
    first = pandas.DataFrame(starts, columns=["folder", "status", "experiment"])
    return pandas.concat([first, pandas.json_normalize(settings), pandas.DataFrame(results)], axis=1)


class Column(NamedTuple):
    """A column; `description` explains the title. name: a short title for a terminal, "" for the same one."""

    title: str
    description: str = ""
    is_numeric: bool = True
    name: str = ""


class TableCell(NamedTuple):
    """The text of a cell, and the value to sort by (NaN: empty). is_best: whether it is the best comparable value."""

    text: str
    value: float | str
    is_best: bool = False


# Title -> cell; a cell that is only a text is also sorted by it.
TableRow = Mapping[str, str | TableCell]


class Table(NamedTuple):
    """Columns and rows of cells. note: a line below the table."""

    columns: list[Column]
    rows: list[list[TableCell]]
    note: str = ""

    @classmethod
    def of(cls, rows: Sequence[TableRow], words: Collection[str], note: str = "") -> "Table":
        """Make a table from rows that all have the same titles. words: titles of the columns that hold no numbers."""
        columns = [Column(title, is_numeric=title not in words) for title in rows[0]]
        cells = [[TableCell(cell, cell) if isinstance(cell, str) else cell for cell in row.values()] for row in rows]
        return cls(columns, cells, note)

    @property
    def texts(self) -> list[list[str]]:
        """Titles and rows as strings."""
        return [[column.title for column in self.columns], *([cell.text for cell in row] for row in self.rows)]


def all_tags(collection: RunCollection) -> list[str]:
    """All tags with a finite value in at least one run, in the order of the schema."""
    tasks = dict.fromkeys(str(run.settings.get("task")) for run in collection.runs)
    known = [tag for task in tasks for tag in layout.summary_tags(task)]
    measured = {tag: None for run in collection.runs for tag in run.overview.summary if math.isfinite(run.value(tag))}
    extra = [tag for tag in measured if layout.is_summary_tag(tag)]
    return [tag for tag in dict.fromkeys([PARAMETERS, *known, *extra]) if tag in measured]


def headline_tags(collection: RunCollection) -> list[str]:
    """Default columns: the objectives, then the costs."""
    results = [f"{split}{name}" for name in collection.objectives for split in ("best/", "final/test_")]
    present = all_tags(collection)
    return [tag for tag in [*results, *COSTS] if tag in present]


def chosen_tags(collection: RunCollection, requested: str | None) -> list[str]:
    """The tags of the requested columns. requested: tags separated by commas, "all", or None for the default."""
    present = all_tags(collection)
    if requested is None:
        return headline_tags(collection)
    if requested == "all":
        return present
    tags = split_names("--columns", requested)
    for tag in tags:
        if tag not in present:
            raise UsageError(
                f"no run has a number {tag}{did_you_mean(tag, present)} (--columns all shows the {len(present)} that "
                "exist)"
            )
    return tags


def make_table(
    collection: RunCollection,
    tags: Sequence[str],
    with_notes: bool = False,
    comparable: Callable[[Run], Hashable] | None = None,
) -> Table:
    """Make a table: for each group the varying settings, number of runs, mean and standard deviation of each tag.

    It begins with the names and tags of the runs, if they have any. with_notes: add their notes, which may be long.
    comparable: returns the same key for runs whose results can be compared; the best of these are marked.
    """
    labels = [key for key in used_labels(collection) if with_notes or key != "notes"]
    keys = [*labels, *collection.varying_keys]
    titles = setting_headings(keys)
    columns = [Column(titles[key], key, is_numeric=False, name=column_title(key)) for key in keys]
    columns.append(Column("runs", DESCRIPTIONS["runs"]))
    columns += [Column(heading(tag), describe_tag(tag), name=tag_title(tag)) for tag in tags]
    rows = []
    for group in collection.groups:
        done, total = len(group.done_runs), len(group.runs)
        row = [TableCell(group.label(key) or EMPTY, group.label(key)) for key in labels]
        row += [TableCell(format_setting(value), _sort_value(value)) for value in group.varying_settings.values()]
        row.append(TableCell(f"{done}" if done == total else f"{done} of {total}", float(done)))
        rows.append(row)
    classes = [comparable(group.runs[0]) if comparable else None for group in collection.groups]
    for tag in tags:
        cells = value_cells(tag, displayed_numbers(tag, collection.groups))
        for row, cell in zip(rows, mark_best(tag, cells, classes) if comparable else cells, strict=True):
            row.append(cell)
    others = ", ".join(map(column_title, collection.other_differing_keys))
    return Table(columns, rows, others and f"also differ: {others} (--format csv has their values)")


def displayed_numbers(tag: str, groups: Sequence[RunGroup]) -> list[tuple[float, float]]:
    """Mean and standard deviation of a tag for each group, in displayed units."""
    scale = display_scale(tag)
    return [(scale * mean, scale * std) for mean, std in (mean_and_std(group.values(tag)) for group in groups)]


def value_cells(tag: str, numbers: Sequence[tuple[float, float]]) -> list[TableCell]:
    """The cells of a tag's column, all with the same decimals if they are of similar size."""
    decimals = column_decimals(numbers)
    if decimals is not None and display_unit(tag) in ("evaluations", "steps"):
        decimals = min(decimals, 1)
    return [TableCell(format_number(mean, std, decimals), mean) for mean, std in numbers]


def mark_best(tag: str, cells: Sequence[TableCell], classes: Sequence[Hashable]) -> list[TableCell]:
    """Mark the best of the cells in each class, unless all its values are equal."""
    better = better_of(tag)
    found: dict[Hashable, set[float]] = {}
    for cell, kind in zip(cells, classes, strict=True):
        if cell.text != EMPTY:
            found.setdefault(kind, set()).add(float(cell.value))
    best = {kind: better(values) for kind, values in found.items() if better and len(values) > 1}
    return [cell._replace(is_best=cell.value == best.get(kind)) for cell, kind in zip(cells, classes, strict=True)]


def used_labels(collection: RunCollection) -> list[str]:
    """Those of name, tags and notes that at least one run has."""
    return [key for key in layout.LABELS if any(run.settings.get(key) for run in collection.runs)]


def _sort_value(value: Any) -> float | str:
    if value is None:
        return math.nan
    return value if isinstance(value, float) else str(value)


def as_terminal(table: Table, width: int | None = None, less_important: Sequence[str] = ()) -> str:
    """Format with aligned columns, numbers to the right. width: of the terminal; see `console.fitted`."""
    numeric = {place for place, column in enumerate(table.columns) if column.is_numeric}
    lines = aligned([[column.name or column.title for column in table.columns], *table.texts[1:]], numeric)
    if width is not None and max(map(len, lines)) > width:
        lines = fitted(table.texts, width, less_important, [table.columns[place].title for place in numeric])
    return "\n".join([*lines, *([table.note] if table.note else []), ""])


def print_table(table: Table, less_important: Sequence[str] = ()) -> None:
    """Print a table; on a terminal it fits the width, without columns with the less important titles if it must."""
    print_text(*as_terminal(table, terminal_width(), less_important).splitlines())


def as_markdown(table: Table) -> str:
    """Format as a GitHub Markdown table, the best values in bold."""
    texts = [[" ".join(text.replace("|", "\\|").split()) for text in row] for row in table.texts]
    header, *rows = _emphasised(table, texts, "**{}**")
    rule = ["---:" if column.is_numeric else "---" for column in table.columns]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *rows]) + (table.note and f"\n{table.note}\n")


def as_latex(table: Table) -> str:
    """Format as a LaTeX tabular with booktabs, the best values in bold."""
    texts = [[_escape(text) for text in row] for row in table.texts]
    header, *rows = [" & ".join(row) + r" \\" for row in _emphasised(table, texts, r"\textbf{{{}}}")]
    places = "".join("r" if column.is_numeric else "l" for column in table.columns)
    lines = [rf"\begin{{tabular}}{{{places}}}", r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", *([f"% {table.note}"] if table.note else []), ""])


def _emphasised(table: Table, texts: Sequence[Sequence[str]], form: str) -> list[list[str]]:
    """The texts, a header and rows, with `form` around the best values."""
    marked = [[form.format(text) if cell.is_best else text for cell, text in zip(row, words, strict=True)]
              for row, words in zip(table.rows, texts[1:], strict=True)]  # fmt: skip
    return [list(texts[0]), *marked]


def _escape(text: str) -> str:
    if text == EMPTY:
        return "--"
    names = dict(zip("\\~^|<>", ("backslash", "asciitilde", "asciicircum", "bar", "less", "greater"), strict=True))
    special = {sign: rf"\text{name}{{}}" for sign, name in names.items()}
    escaped = re.sub(r"[\\~^|<>&%$#_{}]", lambda found: special.get(found[0], f"\\{found[0]}"), " ".join(text.split()))
    return escaped.replace("±", r"$\pm$")


def as_csv(collection: RunCollection, tags: Sequence[str]) -> str:
    """Format as CSV, one row per group, numbers in full precision.

    The columns are: names, tags and notes if there are any; differing settings, runs, done, seeds, and mean and
    standard deviation of each tag.
    """
    rows = []
    for group in collection.groups:
        row: dict[str, Any] = {key: group.label(key) for key in used_labels(collection)}
        row |= {key: group.settings.get(key) for key in [*collection.varying_keys, *collection.other_differing_keys]}
        row |= {"runs": len(group.runs), "done": len(group.done_runs), "seeds": num_seeds(group)}
        row |= {name: x for tag in tags for name, x in ((tag, group.mean(tag)), (f"{tag}_std", group.std(tag)))}
        rows.append({name: _int_if_whole(value) for name, value in row.items()})
    return csv_text(rows)


def _int_if_whole(value: Any) -> Any:
    """Convert a whole float to int."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows (column -> value) as CSV; None and NaN are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)
    return text.getvalue()


def num_seeds(group: RunGroup) -> int:
    """The number of distinct seeds among the completed runs."""
    return len({run.settings.get("seed") for run in group.done_runs})

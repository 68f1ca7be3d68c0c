"""``odebench report``: turn folders of runs into a table on the screen, a file, or a folder with tables and figures."""

import io
import logging
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib

from odebench.console import print_table, print_text
from odebench.errors import NothingFoundError, UsageError, split_names, unknown_name
from odebench.plots.comparison import PANEL_IN, comparison_figure
from odebench.record.files import check_folder_can_be_made, write_atomically
from odebench.reporting import figures, notes, table
from odebench.reporting.drawn_figures import DrawnFigure
from odebench.reporting.figure_data import InlineFigure, inline_figure, numbers
from odebench.reporting.formatting import MINUTES, PARAMETERS, STEP_MS, heading
from odebench.reporting.lines import panel_key_function
from odebench.reporting.page import page_data, row_numbers
from odebench.reporting.runs import RunCollection, collect_runs

log = logging.getLogger(__name__)

# The suffix of the output file chooses the format.
TABLE_SUFFIXES = {".txt": "terminal", ".md": "markdown", ".csv": "csv", ".tex": "latex"}
FORMATS = tuple(TABLE_SUFFIXES.values())
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
PAGE_SUFFIX = ".html"
PAGE = "report.html"
DPI = 150
# Letters of 8 pt like those of LaTeX, embedded as text.
_PAPER = {"font.size": 8, "font.family": "STIXGeneral", "mathtext.fontset": "stix", "pdf.fonttype": 42}


# Titles of columns that a narrow terminal leaves out, the first one first.
_LESS_IMPORTANT = tuple(map(heading, (PARAMETERS, STEP_MS, MINUTES)))


class FigureStyle(NamedTuple):
    """How figures look: settings of matplotlib, size of a panel, panels in a row at most, suffixes of files."""

    rc: Mapping[Any, Any]
    panel_in: tuple[float, float]
    max_columns: int
    suffixes: tuple[str, ...]


# paper: a page with one column, 5.5 inches wide. paper-column: one of two columns.
STYLES = {
    "screen": FigureStyle({}, PANEL_IN, 3, (".png", ".svg")),
    "paper": FigureStyle(_PAPER, (2.75, 2.1), 2, (".pdf", ".svg")),
    "paper-column": FigureStyle(_PAPER, (3.25, 2.4), 1, (".pdf", ".svg")),
}


class RenderedFigure(NamedTuple):
    """A figure with its name, a description of what it shows, and its files by suffix.

    inline: the figure for the page, if it was requested.
    """

    name: str
    description: str
    files: Mapping[str, bytes]
    inline: InlineFigure | None = None


def make_report(
    folders: Sequence[str],
    figure: str | None,
    table_format: str | None,
    output: Path | None,
    columns: str | None,
    split: str,
    style: str = "screen",
    data: Path | None = None,
) -> None:
    """Read the runs, and print or write what the arguments of the command line request.

    figure: names separated by commas. columns: tags separated by commas, "all", or None for the default. style: one of
    STYLES. data: a CSV file for the numbers of the figure.
    Raises UsageError for unknown or incompatible arguments, before it reads the runs. After that it raises
    NothingFoundError if there are no runs, and UsageError if data are missing.
    """
    names = [] if figure is None else list(dict.fromkeys(split_names("--figure", figure)))
    _check_arguments(folders, names, table_format, output, split)
    _check_figure_options(names, output, style, data)
    if columns is not None and (names or (output and output.suffix == PAGE_SUFFIX)):
        raise UsageError(f"--columns {columns}: is for tables; leave it out, or write a table: --output FILE.csv")
    collection = collect_runs([Path(folder) for folder in folders], split)
    if not collection.runs and not (names and collection.bench):
        where = ", ".join(map(str, collection.folders))
        if collection.queued or collection.damaged:
            counts = notes.status_counts(collection)
            raise NothingFoundError(f"no run in {where} has started and can be read ({counts})")
        raise NothingFoundError(f"no runs in {where}; make one: odebench train")
    if names:
        _write(_requested_figures(collection, names, output, STYLES[style], data))
        return
    tags = table.chosen_tags(collection, columns)
    if output is None:
        _print(collection, table_format or "terminal", tags)
    elif output.suffix == PAGE_SUFFIX:
        pictures, left_out = render_figures(collection, suffixes=(), for_page=True)
        _write({output: make_page(collection, pictures, left_out, output.parent).encode()})
    elif output.suffix:
        _write({output: as_text(collection, TABLE_SUFFIXES[output.suffix], tags).encode()})
    else:
        _write_folder(output, collection, tags)


def _check_arguments(
    folders: Sequence[str], names: Sequence[str], table_format: str | None, output: Path | None, split: str
) -> None:
    if not all(folders) or not folders:
        raise UsageError("no folder given: name one or several, such as outputs (--list shows the figures)")
    for name in names:
        figures.find(name)
    if split not in ("validation", "test"):
        raise unknown_name("split", split, ("validation", "test"), "splits")
    if table_format is not None and table_format not in FORMATS:
        raise unknown_name("format", table_format, FORMATS, "formats")
    if output is not None:
        _check_output(output, table_format, names)


def _check_figure_options(names: Sequence[str], output: Path | None, style: str, data: Path | None) -> None:
    """Check --style and --data, and that a figure is written somewhere."""
    if style not in STYLES:
        raise unknown_name("style", style, STYLES, "styles")
    if not names and (style != "screen" or data):
        raise UsageError(f"{'--data' if data else '--style'} is for figures; add --figure NAME (--list shows them)")
    if data and len(names) != 1:
        raise UsageError(f"--data {data} holds the numbers of one figure; name one: --figure NAME")
    if data and (data.suffix != ".csv" or data.exists() or data == output):
        raise UsageError(f"--data {data}: name a new file that ends with .csv")
    if data:
        check_folder_can_be_made(data.parent, f"--data {data}")
    if names and not output and not data:
        raise UsageError("--figure writes files; add --output FILE.png, FILE.svg, FILE.pdf or a new folder")


def _requested_figures(
    collection: RunCollection, names: Sequence[str], output: Path | None, style: FigureStyle, data: Path | None
) -> dict[Path, bytes]:
    """Path -> content of the figures, and of the numbers of the first one."""
    files: dict[Path, bytes] = {}
    if data:
        shown = figures.content(names[0], collection)
        files[data] = table.csv_text(numbers(shown.panels)).encode()
    if output:
        suffixes = (output.suffix,) if output.suffix else style.suffixes
        files |= figure_files(output, [render_figure(name, collection, suffixes, style=style) for name in names])
    return files


def _check_output(output: Path, table_format: str | None, names: Sequence[str]) -> None:
    """Check that nothing would be overwritten, and that the suffix fits the requested content."""
    suffix, shown = output.suffix, f"--output {output}"
    if table_format is not None and (names or TABLE_SUFFIXES.get(suffix) != table_format):
        suffixes = [one for one, content in TABLE_SUFFIXES.items() if content == table_format]
        raise UsageError(
            f"--format {table_format} prints to the screen; to write a file, give --output FILE{suffixes[0]} without "
            "--figure"
        )
    if suffix and suffix not in (*TABLE_SUFFIXES, *FIGURE_SUFFIXES, PAGE_SUFFIX):
        known = ", ".join((*TABLE_SUFFIXES, PAGE_SUFFIX, *FIGURE_SUFFIXES))
        raise UsageError(
            f"{shown}: unknown suffix; end the name of a file with {known}, or name a folder, without a suffix"
        )
    if suffix and output.exists():
        raise UsageError(f"{shown} exists; name a new file")
    if suffix in FIGURE_SUFFIXES and len(names) != 1:
        raise UsageError(f"{shown} holds one figure; name it: --figure NAME (--list shows them), or give a folder")
    if suffix and suffix not in FIGURE_SUFFIXES and names:
        raise UsageError(f"{shown} holds no figure; give FILE.png, FILE.svg, FILE.pdf or a folder")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{shown} is a file; name a folder")
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(f"{shown} is not empty; give a new folder")
    check_folder_can_be_made(output.parent if suffix else output, shown)


def list_figures() -> None:
    """Print the name and description of every figure."""
    print_table([(name, figure.description) for name, figure in figures.FIGURES.items()])


def _print(collection: RunCollection, table_format: str, tags: Sequence[str]) -> None:
    lines = [notes.status_counts(collection), *notes.caveats(collection), *notes.failure_lines(collection)]
    if table_format != "terminal":  # only the table, for pipes
        sys.stdout.write(as_text(collection, table_format, tags))
        print(*lines, sep="\n", file=sys.stderr)
        return
    is_default = list(tags) == table.headline_tags(collection)
    table.print_table(table.make_table(collection, tags), _LESS_IMPORTANT if is_default else ())
    print_text("", *lines)
    if published := notes.published_table(collection):
        print()
        table.print_table(published, ("source", "tag", "printed"))


def as_text(collection: RunCollection, table_format: str, tags: Sequence[str]) -> str:
    """Format the table as one of FORMATS."""
    if table_format == "csv":
        return table.as_csv(collection, tags)
    render = {"terminal": table.as_terminal, "markdown": table.as_markdown, "latex": table.as_latex}[table_format]
    return render(table.make_table(collection, tags, comparable=panel_key_function(collection)))


def _write_folder(folder: Path, collection: RunCollection, tags: Sequence[str]) -> None:
    """Write the page, the table in every format, and every figure that the runs have the data for."""
    pictures, left_out = render_figures(collection, for_page=True)
    files = {folder / PAGE: make_page(collection, pictures, left_out, folder).encode()}
    for suffix, table_format in TABLE_SUFFIXES.items():
        chosen = table.all_tags(collection) if table_format == "csv" else tags
        files[folder / f"table{suffix}"] = as_text(collection, table_format, chosen).encode()
    _write(files | figure_files(folder / "figures", pictures))
    if left_out:
        log.info("figures omitted: %s (%s lists what each needs)", ", ".join(left_out), folder / PAGE)


def _write(files: Mapping[Path, bytes]) -> None:
    """Write the files, then print their paths."""
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    print(*files, sep="\n")


def make_page(
    collection: RunCollection, pictures: Sequence[RenderedFigure], left_out: Mapping[str, str], folder: Path
) -> str:
    """Build the HTML page. left_out: figure -> why it is omitted. folder: where the page will be."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("odebench.reporting", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    tables, data = page_data(collection, folder)
    return environment.get_template("page.html").render(
        title=f"Runs of {', '.join(folder.resolve().name for folder in collection.folders)}",
        command=shlex.join(["odebench", *sys.argv[1:]]),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        notes=[notes.status_counts(collection), *notes.caveats(collection)],
        tables=tables,
        data=data | {"figures": [one.inline.series for one in pictures if one.inline]},
        pictures=pictures,
        left_out=left_out.values(),
        reasons=dict(notes.failure_reasons(collection)),
    )


def render_figures(
    collection: RunCollection,
    names: Iterable[str] = figures.FIGURES,
    suffixes: Sequence[str] = STYLES["screen"].suffixes,
    for_page: bool = False,
) -> tuple[list[RenderedFigure], dict[str, str]]:
    """Draw the figures that the runs have the data for; also returns name -> reason for the omitted ones.

    A series has the same style in all figures.
    """
    pictures, left_out, styles = [], {}, dict[str, int]()
    for name in names:
        try:
            pictures.append(render_figure(name, collection, suffixes, styles, for_page))
        except UsageError as error:
            left_out[name] = str(error)
    return pictures, left_out


def render_figure(
    name: str,
    collection: RunCollection,
    suffixes: Sequence[str] = STYLES["screen"].suffixes,
    line_styles: dict[str, int] | None = None,
    for_page: bool = False,
    style: FigureStyle = STYLES["screen"],
) -> RenderedFigure:
    """Draw a figure as files with these suffixes, and also for the page. Raises UsageError if the runs lack the data.

    line_styles: the styles of `comparison_figure`.
    """
    files = {}
    with matplotlib.rc_context({**style.rc, "svg.hashsalt": name}):  # a salt makes bytes reproducible
        shown = figures.content(name, collection)
        if isinstance(shown, DrawnFigure):
            figure = shown.figure
            width, height = figure.get_size_inches()
            scale = min(style.max_columns * style.panel_in[0] / width, 1.0)
            figure.set_size_inches(scale * width, scale * height)
        else:
            columns = min(shown.columns, style.max_columns)
            figure = comparison_figure(shown.panels, columns, line_styles, style.panel_in)
        for suffix in suffixes:
            metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix)
            file = io.BytesIO()
            figure.savefig(file, format=suffix[1:], dpi=DPI, metadata=metadata)
            files[suffix] = file.getvalue()
    inline = inline_figure(name, figure, shown, row_numbers(collection)) if for_page else None
    return RenderedFigure(name, figures.FIGURES[name].description, files, inline)


def figure_files(output: Path, pictures: Sequence[RenderedFigure]) -> dict[Path, bytes]:
    """Path -> content: the files of each figure in the folder ``output``, or one figure as this file."""
    if output.suffix:
        return {output: pictures[0].files[output.suffix]}
    return {output / f"{one.name}{suffix}": content for one in pictures for suffix, content in one.files.items()}

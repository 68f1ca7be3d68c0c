"""``odebench report``: turn folders of runs into a table on the screen, a file, or a folder with tables and figures."""

import base64
import io
import logging
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib

from odebench.console import print_table
from odebench.errors import NothingFoundError, UsageError, split_names, unknown_name
from odebench.record.files import check_folder_can_be_made, write_atomically
from odebench.reporting import figures, notes, table
from odebench.reporting.runs import RunCollection, collect_runs

log = logging.getLogger(__name__)

# The suffix of the output file chooses the format.
TABLE_SUFFIXES = {".txt": "terminal", ".md": "markdown", ".csv": "csv", ".tex": "latex"}
FORMATS = tuple(TABLE_SUFFIXES.values())
FIGURE_SUFFIXES = (".png", ".svg")
PAGE_SUFFIX = ".html"
PAGE = "report.html"
DPI = 150
SVG_LIMIT_BYTES = 400_000  # larger SVGs are embedded as PNG


class RenderedFigure(NamedTuple):
    """A figure as PNG and SVG bytes, with its name and a description of what it shows."""

    name: str
    description: str
    png: bytes
    svg: bytes

    @property
    def data_url(self) -> str:
        """The figure as a data URL, the source of an HTML image."""
        kind, content = ("svg+xml", self.svg) if len(self.svg) < SVG_LIMIT_BYTES else ("png", self.png)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def make_report(
    folders: Sequence[str],
    figure: str | None,
    table_format: str | None,
    output: Path | None,
    columns: str | None,
    split: str,
) -> None:
    """Read the runs, and print or write what the arguments of the command line request.

    figure: names separated by commas. columns: tags separated by commas, "all", or None for the default.
    Raises UsageError for unknown or incompatible arguments, before it reads the runs. After that it raises
    NothingFoundError if there are no runs, and UsageError if data are missing.
    """
    names = [] if figure is None else list(dict.fromkeys(split_names("--figure", figure)))
    _check_arguments(folders, names, table_format, output, split)
    collection = collect_runs([Path(folder) for folder in folders], split)
    if not collection.runs and not (names and collection.bench):
        where = ", ".join(map(str, collection.folders))
        if collection.queued or collection.damaged:
            counts = notes.status_counts(collection)
            raise NothingFoundError(f"no run in {where} has started and can be read ({counts})")
        raise NothingFoundError(f"no runs in {where}; make one: odebench train")
    if names:
        assert output is not None
        _write(figure_files(output, [render_figure(name, collection) for name in names]))
        return
    tags = table.chosen_tags(collection, columns)
    if output is None:
        _print(collection, table_format or "terminal", tags)
    elif output.suffix == PAGE_SUFFIX:
        _write({output: make_page(collection, *render_figures(collection)).encode()})
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
    elif names:
        raise UsageError("--figure writes files; add --output FILE.png, FILE.svg or a new folder")


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
        raise UsageError(f"{shown} holds no figure; give FILE.png, FILE.svg or a folder")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{shown} is a file; name a folder")
    if output.is_dir() and any(output.iterdir()):
        raise UsageError(f"{shown} is not empty; give a new folder")
    check_folder_can_be_made(output.parent if suffix else output, shown)


def list_figures() -> None:
    """Print the name and description of every figure."""
    print_table([(name, figure.description) for name, figure in figures.FIGURES.items()])


def _print(collection: RunCollection, table_format: str, tags: Sequence[str]) -> None:
    sys.stdout.write(as_text(collection, table_format, tags))
    lines = [notes.status_counts(collection), *notes.caveats(collection), *notes.failure_lines(collection)]
    if table_format != "terminal":  # only the table, for pipes
        print(*lines, sep="\n", file=sys.stderr)
        return
    print("", *lines, sep="\n")
    if published := notes.published_table(collection):
        print(f"\n{table.as_terminal(published)}", end="")


def as_text(collection: RunCollection, table_format: str, tags: Sequence[str]) -> str:
    """Format the table as one of FORMATS."""
    if table_format == "csv":
        return table.as_csv(collection, tags)
    render = {"terminal": table.as_terminal, "markdown": table.as_markdown, "latex": table.as_latex}[table_format]
    return render(table.make_table(collection, tags))


def _write_folder(folder: Path, collection: RunCollection, tags: Sequence[str]) -> None:
    """Write the page, the table in every format, and every figure that the runs have the data for."""
    pictures, left_out = render_figures(collection)
    files = {folder / PAGE: make_page(collection, pictures, left_out).encode()}
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


def make_page(collection: RunCollection, pictures: Sequence[RenderedFigure], left_out: Mapping[str, str]) -> str:
    """Build the HTML page; its table has all tags, the default ones first. left_out: figure -> why it is omitted."""
    tags = dict.fromkeys([*table.headline_tags(collection), *table.all_tags(collection)])
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("odebench.reporting", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        title=f"Runs of {', '.join(folder.resolve().name for folder in collection.folders)}",
        command=shlex.join(["odebench", *sys.argv[1:]]),
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        notes=[notes.status_counts(collection), *notes.caveats(collection)],
        table=table.make_table(collection, [*tags], with_notes=True),
        published=notes.published_table(collection),
        pictures=pictures,
        left_out=left_out.values(),
        reasons=dict(notes.failure_reasons(collection)),
    )


def render_figures(
    collection: RunCollection, names: Iterable[str] = figures.FIGURES
) -> tuple[list[RenderedFigure], dict[str, str]]:
    """Draw the figures that the runs have the data for; also returns name -> reason for the omitted ones."""
    pictures, left_out = [], {}
    for name in names:
        try:
            pictures.append(render_figure(name, collection))
        except UsageError as error:
            left_out[name] = str(error)
    return pictures, left_out


def render_figure(name: str, collection: RunCollection) -> RenderedFigure:
    """Draw a figure as PNG and SVG. Raises UsageError if the runs lack the data."""
    figure = figures.draw(name, collection)
    with matplotlib.rc_context({"svg.hashsalt": name}):  # reproducible bytes
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI)
        figure.savefig(svg, format="svg", dpi=DPI, metadata={"Date": None})
    return RenderedFigure(name, figures.FIGURES[name].description, png.getvalue(), svg.getvalue())


def figure_files(output: Path, pictures: Sequence[RenderedFigure]) -> dict[Path, bytes]:
    """Path -> content: NAME.png and NAME.svg of each figure in the folder ``output``, or one figure as this file."""
    if output.suffix:
        return {output: getattr(pictures[0], output.suffix[1:])}
    return {output / f"{one.name}{suffix}": getattr(one, suffix[1:]) for one in pictures for suffix in FIGURE_SUFFIXES}
